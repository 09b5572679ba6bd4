"""Models on packed jets."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdfast.models.config import PRESETS, DeepSetsConfig, ModelConfig

if TYPE_CHECKING:
    from kdfast.models.deep_sets import DeepSets
    from kdfast.models.jet_transformer import JetTransformer
    from kdfast.models.own_model import Adapter
    from kdfast.models.tagger import Preparation, Tagger, load_model, tagger_card

__all__ = [
    "PRESETS",
    "Adapter",
    "DeepSets",
    "DeepSetsConfig",
    "JetTransformer",
    "ModelConfig",
    "Preparation",
    "Tagger",
    "load_model",
    "tagger_card",
]

# Name → module, imported when first used: the sizes alone (kdfast.models.config) need no torch.
_HOMES = {
    "Adapter": "own_model",
    "DeepSets": "deep_sets",
    "JetTransformer": "jet_transformer",
    "Preparation": "tagger",
    "Tagger": "tagger",
    "load_model": "tagger",
    "tagger_card": "tagger",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdfast.models' has no attribute {name!r}")
    value = getattr(import_module(f"kdfast.models.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
