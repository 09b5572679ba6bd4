"""kdfast: knowledge-distillation sweeps for trigger jet taggers."""

from kdfast._version import __version__
from kdfast.ops.backend import backend

__all__ = ["__version__", "backend"]
