"""Models on packed jets."""

from kdfast.models.config import PRESETS, ModelConfig
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.tagger import Preparation, Tagger, load_model, tagger_card

__all__ = ["PRESETS", "JetTransformer", "ModelConfig", "Preparation", "Tagger", "load_model", "tagger_card"]
