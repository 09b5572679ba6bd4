"""kdfast._probe: the core of the kernels as tests and benchmarks call it. A build with KDFAST_TESTS=ON has it.

KDFAST_PROBE=required makes a missing one an error.
"""

import importlib
import os
from types import ModuleType

why_no_probe: str | None = None
_probe: ModuleType | None = None
try:
    _probe = importlib.import_module("kdfast._probe")
except ImportError:
    if os.environ.get("KDFAST_PROBE") == "required":
        raise
    why_no_probe = "needs kdfast._probe: install with --config-settings=cmake.define.KDFAST_TESTS=ON"


def probe() -> ModuleType:
    """The module; call it only where why_no_probe is None."""
    assert _probe is not None
    return _probe
