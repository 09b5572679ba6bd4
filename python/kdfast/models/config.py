"""Sizes of the networks, and the presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdfast.errors import ConfigError, ModelError, suggest
from kdfast.validation import fault_in_words

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PRESETS", "DeepSetsConfig", "ModelConfig", "NetworkConfig", "OwnModel", "model_config"]


class NetworkConfig(BaseModel):
    """What a network of any family is made by: sizes, among them num_features (inputs per constituent) and
    num_classes (outputs C; 1 is the logit of signal)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    if TYPE_CHECKING:
        num_features: int
        num_classes: int

    def check_features(self, features: Tensor) -> None:
        """Raises ModelError unless features are [M, num_features]."""
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise ModelError(f"features must be [M, {self.num_features}], are {list(features.shape)}", where="features")


class ModelConfig(NetworkConfig):
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
                raise ValueError(f"width {self.width} is not a multiple of {name} {getattr(self, name)}")
        if self.width % 2:
            raise ValueError(f"width {self.width} is odd (the head halves it)")
        return self


class DeepSetsConfig(NetworkConfig):
    """Sizes of a DeepSets: an MLP on each constituent, mean and maximum over a jet, an MLP on both.

    Parameters
    ----------
    width, layers : int
        Width and number of layers on each constituent.
    head_width, head_layers : int
        Likewise of the layers on the jet.
    num_features : int
        Inputs per constituent.
    num_classes : int
        Outputs C; 1 is the logit of signal.
    """

    family: Literal["deepsets"] = "deepsets"
    width: int = Field(default=32, ge=1)
    layers: int = Field(default=3, ge=1)
    head_width: int = Field(default=32, ge=1)
    head_layers: int = Field(default=2, ge=1)
    num_features: int = Field(default=7, ge=1)
    num_classes: int = Field(default=1, ge=1)


class OwnModel(NetworkConfig):
    """A network of the user's own, as a study names it: its code is not part of it.

    Parameters
    ----------
    name : str
        Of the function that makes it, ``package.module:function``. It decides nothing, and opening a study never
        imports it.
    weights : str
        SHA-256 over names and shapes of its weights, by which another network is refused.
    factory : callable, optional
        The function itself, where the network was named by this process.
    standardisation : Standardisation, optional
        Of the features, for a network that takes them as they are.
    """

    family: Literal["own"] = "own"
    name: str
    weights: str
    num_features: int = Field(default=7, ge=1)
    num_classes: int = Field(default=1, ge=1)
    factory: Any = Field(default=None, exclude=True, repr=False)
    standardisation: Any = Field(default=None, exclude=True, repr=False)


_FAMILIES: dict[str, type[NetworkConfig]] = {"deepsets": DeepSetsConfig, "own": OwnModel}

PRESETS: dict[str, NetworkConfig] = {
    "study": ModelConfig(width=128, layers=6, heads=8, ffn=512),
    "medium": ModelConfig(width=64, layers=3, heads=4, ffn=256),
    "demo": ModelConfig(width=48, layers=1, heads=2, ffn=96),
    "small": ModelConfig(width=32, layers=2, heads=4, ffn=64),
    "tiny": ModelConfig(width=16, layers=1, heads=2, ffn=32, pooling_heads=2),
    "deepsets": DeepSetsConfig(),
}


def model_config(preset: str | NetworkConfig | Mapping[str, Any], where: str = "model") -> NetworkConfig:
    """The sizes for a preset's name, a dict of sizes, or sizes as they are. Raises ConfigError."""
    if isinstance(preset, NetworkConfig):
        return preset
    if isinstance(preset, str):
        if preset not in PRESETS:
            hint = suggest(preset, list(PRESETS))
            raise ConfigError(f"unknown model preset {preset!r}", where=where, hint=hint)
        return PRESETS[preset]
    if not isinstance(preset, Mapping):
        hint = f"presets: {', '.join(PRESETS)}"  # type: ignore[unreachable]
        raise ConfigError(f"must be a preset's name or sizes, is {preset!r}", where=where, hint=hint)
    family = preset.get("family")
    if family is not None and family not in _FAMILIES:
        hint = f"{suggest(str(family), list(_FAMILIES))}; a JetTransformer has none"
        raise ConfigError(f"unknown family of models {family!r}", where=where, hint=hint)
    sizes = _FAMILIES[family] if family else ModelConfig
    try:
        return sizes(**preset)
    except (ValidationError, TypeError) as error:
        what = str(error) if isinstance(error, TypeError) else fault_in_words(error.errors()[0])
        raise ConfigError(what, where=where, hint=_sizes_hint(sizes, preset)) from None


def _sizes_hint(family: type[NetworkConfig], sizes: Mapping[str, Any]) -> str:
    known = list(family.model_fields)
    for name in sizes:
        if name not in known:
            return f"{name}: {suggest(str(name), known)}"
    return f"sizes are {', '.join(known)}; or take a preset: {', '.join(PRESETS)}"
