"""What the tests of an op run: the implementations of this build, and the CUDA sources on the emulator."""

from contextlib import AbstractContextManager

import kdfast
from kdfast.ops import backend
from tests.emulator.emulated import emulated, is_built

BACKENDS = ["reference"]
if backend.why_no_cpu is None:
    BACKENDS.append("cpu")
if is_built:
    BACKENDS.append("emulated cuda")


def chosen(name: str) -> AbstractContextManager[None]:
    """One of BACKENDS inside a `with` block, for CPU tensors."""
    return emulated() if name == "emulated cuda" else kdfast.backend(name)
