"""Sizes of a JetTransformer, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdfast.errors import ConfigError, ModelError, suggest

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PRESETS", "ModelConfig", "model_config"]


class ModelConfig(BaseModel):
    """Sizes of a JetTransformer.

    Parameters
    ----------
    width : int
        Of the constituents' representation; even, and a multiple of heads and of pooling_heads.
    layers, heads, ffn : int
        Encoder layers, heads of their attention, hidden width of their feed-forward network.
    pooling_heads : int
        Of the attention by which one learned query pools the constituents.
    dropout : float
        Probability in [0, 1), everywhere.
    num_features : int
        Inputs per constituent.
    num_classes : int
        Outputs C; 1 is the logit of signal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(ge=2)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    ffn: int = Field(ge=1)
    pooling_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    num_features: int = Field(default=7, ge=1)
    num_classes: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _divisible(self) -> ModelConfig:
        for name in ("heads", "pooling_heads"):
            if self.width % getattr(self, name):
                raise ValueError(f"width {self.width} is no multiple of {name} {getattr(self, name)}")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd (the head halves it)")
        return self

    def check_features(self, features: Tensor) -> None:
        """Raises ModelError unless features are [M, num_features]."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ModelError(f"features must be [M, {self.num_features}], are {list(features.shape)}", where="features")


PRESETS = {
    "study": ModelConfig(width=128, layers=6, heads=8, ffn=512),
    "medium": ModelConfig(width=64, layers=3, heads=4, ffn=256),
    "demo": ModelConfig(width=48, layers=2, heads=2, ffn=96),
    "small": ModelConfig(width=32, layers=2, heads=4, ffn=64),
}


def model_config(preset: str | ModelConfig | Mapping[str, Any], where: str = "model") -> ModelConfig:
    """The sizes for a preset's name, a dict of sizes, or sizes as they are. Raises ConfigError."""
    if isinstance(preset, ModelConfig):
        return preset
    if isinstance(preset, str):
        if preset not in PRESETS:
            hint = suggest(preset, list(PRESETS))
            raise ConfigError(f"unknown model preset {preset!r}", where=where, hint=hint)
        return PRESETS[preset]
    if not isinstance(preset, Mapping):
        hint = f"presets: {', '.join(PRESETS)}"  # type: ignore[unreachable]
        raise ConfigError(f"must be a preset's name or sizes, is {preset!r}", where=where, hint=hint)
    try:
        return ModelConfig(**preset)
    except (ValidationError, TypeError) as error:
        raise ConfigError(_first_fault(error), where=where, hint=_sizes_hint(preset)) from None


def _first_fault(error: ValidationError | TypeError) -> str:
    if isinstance(error, TypeError):
        return str(error)
    fault = error.errors()[0]
    name = ".".join(map(str, fault["loc"]))
    cause = fault.get("ctx", {}).get("error")
    message = fault["msg"] if cause is None else str(cause)
    return f"{name}: {message}" if name else message


def _sizes_hint(sizes: Mapping[str, Any]) -> str:
    known = list(ModelConfig.model_fields)
    for name in sizes:
        if name not in known:
            return f"{name}: {suggest(str(name), known)}"
    return f"sizes are {', '.join(known)}; or take a preset: {', '.join(PRESETS)}"
