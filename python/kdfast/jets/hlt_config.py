"""How coarse the trigger's view is: five numbers, and the presets.

Imports no torch, so that `--help` is quick.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from kdfast.errors import ConfigError, suggest

__all__ = ["HLT_PRESETS", "HLTConfig", "hlt_config"]


@dataclass(frozen=True)
class HLTConfig:
    """How coarse the trigger's view is. The effects act in the order of the parameters.

    Parameters
    ----------
    pt_threshold
        GeV. Constituents with pT ≥ pt_threshold survive.
    merge_radius
        rad. A constituent within ΔR < merge_radius of a harder one is merged into it.
    pt_resolution
        Relative σ of pT. The factor is clipped to [0.5, 1.5].
    angular_resolution
        rad. σ of η and of φ.
    loss
        Probability that a constituent is not seen.
    log_pt
        Only for the preset ``study``: both views are made of the study's oriented jets with pT :=
        ln(pT/MeV), and the threshold applies to the logarithm.

    Raises
    ------
    ConfigError
        For values that are negative or not finite, or a loss above 1.

    Examples
    --------
    >>> HLTConfig.preset("nominal", loss=0.1)
    HLTConfig(pt_threshold=2.0, merge_radius=0.1, pt_resolution=0.2, angular_resolution=0.05, loss=0.1, log_pt=False)
    """

    pt_threshold: float
    merge_radius: float
    pt_resolution: float
    angular_resolution: float
    loss: float
    log_pt: bool = False

    def __post_init__(self) -> None:
        for name in ("pt_threshold", "merge_radius", "pt_resolution", "angular_resolution", "loss"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise ConfigError(f"must be a finite number ≥ 0, is {value!r}", where=name)
        if not isinstance(self.log_pt, bool):
            raise ConfigError(f"must be true or false, is {self.log_pt!r}", where="log_pt")
        if self.loss > 1:
            raise ConfigError(f"is a probability and must lie in [0, 1], is {self.loss}", where="loss")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> HLTConfig:
        """Return the settings of a preset, with some of them changed.

        Parameters
        ----------
        name
            ``"mild"``, ``"nominal"``, ``"severe"`` or ``"study"``.
        **changes
            Parameters of HLTConfig that differ from the preset's.

        Raises
        ------
        ConfigError
            For an unknown preset or parameter (the nearest one is suggested), or a value outside its range.
        """
        known = [field.name for field in fields(cls)]
        for key in changes:
            if key not in known:
                raise ConfigError(f"unknown parameter {key!r}", where="HLTConfig.preset", hint=suggest(key, known))
        return replace(hlt_config(name), **changes)


HLT_PRESETS = {
    "mild": HLTConfig(1.0, 0.05, 0.10, 0.02, 0.02),
    "nominal": HLTConfig(2.0, 0.10, 0.20, 0.05, 0.05),
    "severe": HLTConfig(5.0, 0.10, 0.30, 0.10, 0.10),
    "study": HLTConfig(1.5, 0.01, 0.10, 0.03, 0.03, log_pt=True),
}


def hlt_config(preset: str | HLTConfig) -> HLTConfig:
    """The settings of a preset, or the settings themselves. Raises ConfigError for an unknown name."""
    if isinstance(preset, HLTConfig):
        return preset
    if preset not in HLT_PRESETS:
        raise ConfigError(
            f"unknown HLT preset {preset!r}", where="preset", hint=suggest(str(preset), list(HLT_PRESETS))
        )
    return HLT_PRESETS[preset]
