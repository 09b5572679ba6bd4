"""kdfast: knowledge-distillation sweeps for trigger jet taggers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdfast._version import __version__

if TYPE_CHECKING:
    from kdfast import errors, metrics, models, nn, ops, optuna
    from kdfast.distill.schedules import RunConfig
    from kdfast.jets.features import features
    from kdfast.jets.hlt import HLTConfig, emulate_hlt
    from kdfast.jets.packed import PackedJets
    from kdfast.jets.prepare import prepare
    from kdfast.jets.readers import load_jets, sample
    from kdfast.models.tagger import load_model
    from kdfast.ops.backend import backend
    from kdfast.store.grid import grid, space
    from kdfast.study.driver import sweep
    from kdfast.study.imports import import_study
    from kdfast.study.refine import refine
    from kdfast.study.results import StudyResults, open_study
    from kdfast.study.trigger import export_onnx, latency

__all__ = [
    "HLTConfig",
    "PackedJets",
    "RunConfig",
    "StudyResults",
    "__version__",
    "backend",
    "emulate_hlt",
    "errors",
    "export_onnx",
    "features",
    "grid",
    "import_study",
    "latency",
    "load_jets",
    "load_model",
    "metrics",
    "models",
    "nn",
    "open_study",
    "ops",
    "optuna",
    "prepare",
    "refine",
    "sample",
    "space",
    "sweep",
]

# Name → module, loaded when first used: `import kdfast` and the command line start without waiting for torch.
# A name that is its own module's is that module.
_HOMES = {
    "HLTConfig": "jets.hlt",
    "PackedJets": "jets.packed",
    "RunConfig": "distill.schedules",
    "StudyResults": "study.results",
    "backend": "ops.backend",
    "emulate_hlt": "jets.hlt",
    "errors": "errors",
    "export_onnx": "study.trigger",
    "features": "jets.features",
    "grid": "store.grid",
    "import_study": "study.imports",
    "latency": "study.trigger",
    "load_jets": "jets.readers",
    "load_model": "models.tagger",
    "metrics": "metrics",
    "models": "models",
    "nn": "nn",
    "open_study": "study.results",
    "ops": "ops",
    "optuna": "optuna",
    "prepare": "jets.prepare",
    "refine": "study.refine",
    "sample": "jets.readers",
    "space": "store.grid",
    "sweep": "study.driver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdfast' has no attribute {name!r}")
    home = import_module(f"kdfast.{_HOMES[name]}")
    value = home if name == _HOMES[name] else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
