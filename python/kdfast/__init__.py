"""kdfast: knowledge-distillation sweeps for trigger jet taggers."""

from kdfast._version import __version__
from kdfast.distill.schedules import RunConfig
from kdfast.jets.readers import load_jets
from kdfast.jets.sample import sample
from kdfast.ops.backend import backend
from kdfast.study.grid import grid

__all__ = ["RunConfig", "__version__", "backend", "grid", "load_jets", "sample"]
