"""Features of constituents, and their standardisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdfast.errors import DataError
from kdfast.jets.packed import PackedJets
from kdfast.ops.arrays import as_tensor
from kdfast.ops.jet_features import NUM_FEATURES, jet_features

__all__ = ["FEATURE_NAMES", "Standardisation", "features"]

FEATURE_NAMES = ("delta_eta", "delta_phi", "ln_pt", "ln_energy", "ln_pt_rel", "ln_energy_rel", "delta_r")
STANDARDISED_CLIP = 10.0


def features(jets: PackedJets) -> Tensor:
    """Return the features of every constituent, before standardisation.

    Parameters
    ----------
    jets
        B jets with M constituents in total.

    Returns
    -------
    Tensor
        [M, 7] float32: Δη, Δφ, ln pT, ln E, ln(pT/pT_jet), ln(E/E_jet), ΔR (GeV and rad). Axis, pT_jet and
        E_jet are those of the jet's summed constituents in this view. Values that are not finite become 0;
        all are clipped to ±20.

    Examples
    --------
    >>> import kdfast
    >>> jets = kdfast.sample()[:10]
    >>> kdfast.features(jets).shape == (len(jets.constituents), 7)
    True
    """
    return jet_features(as_tensor(jets.constituents), as_tensor(jets.offsets), checked=True)


@dataclass(frozen=True, eq=False)
class Standardisation:
    """x → (x − mean) / std, clipped to ±10, with the mean and std of the features that a model was trained on.

    mean, std: [7] float32. Raises DataError for other shapes, values that are not finite, or std ≤ 0.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float32)
            if value.shape != (NUM_FEATURES,) or not bool(value.isfinite().all()):
                raise DataError(f"must be {NUM_FEATURES} finite numbers, is {list(value.shape)}: {value}", where=name)
            object.__setattr__(self, name, value)
        if not bool((self.std > 0).all()):
            raise DataError(f"must be above 0, is {self.std.tolist()}", where="std")

    @classmethod
    def fit(cls, features: Tensor) -> Standardisation:
        """The mean and (population) std of features [M, 7]: those of the training jets' offline constituents.

        Computed in float64. A feature that is constant, up to the rounding of float32, gets std 1: it is
        shifted to 0.
        """
        if features.dim() != 2 or features.shape[1] != NUM_FEATURES or len(features) == 0:
            shape = list(features.shape)
            raise DataError(f"must be [M, {NUM_FEATURES}] with M ≥ 1, is {shape}", where="features")
        x = features.double()
        return cls.of_moments(x.mean(dim=0), x.std(dim=0, unbiased=False))

    @classmethod
    def of_moments(cls, mean: Tensor, std: Tensor) -> Standardisation:
        """With a mean and a population std [7], float64; see `fit`."""
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0)
        return cls(mean.float(), std.float())

    def apply(self, features: Tensor) -> Tensor:
        """The standardised features, [M, 7] float32 (a new tensor)."""
        return (features - self.mean).div_(self.std).clamp_(-STANDARDISED_CLIP, STANDARDISED_CLIP)

    def to_dict(self) -> dict[str, list[float]]:
        """Plain lists of numbers, for JSON or TOML; `from_dict` gives back the same bits."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Standardisation:
        """From what `to_dict` gave. Raises DataError for anything else."""
        try:
            return cls(torch.tensor(values["mean"]), torch.tensor(values["std"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"is not a standardisation ({error!r})", where="standardisation") from error
