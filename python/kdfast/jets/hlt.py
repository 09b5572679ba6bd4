"""Views of jets: what the offline reconstruction sees, and what a trigger sees."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from kdfast.errors import ConfigError, suggest
from kdfast.jets.packed import PackedJets
from kdfast.jets.preprocess import study_view
from kdfast.jets.tensors import as_tensor
from kdfast.ops.hlt_emulation import hlt_emulation
from kdfast.ops.philox import derive_seed

__all__ = ["HLT_PRESETS", "HLTConfig", "HLTStatistics", "emulate_hlt", "hlt_config", "hlt_statistics", "offline_view"]

OFFLINE_PT_THRESHOLD = 0.5  # GeV


@dataclass(frozen=True)
class HLTConfig:
    """How coarse the trigger's view is; the effects act in this order (ops/hlt_emulation.py has the formulas).

    pt_threshold: GeV; constituents of pT ≥ pt_threshold survive.
    merge_radius: rad; a constituent within ΔR < merge_radius of a harder one is merged into it.
    pt_resolution: relative σ of pT (its factor is clipped to [0.5, 1.5]).
    angular_resolution: rad, σ of η and of φ.
    loss: the probability that a constituent is not seen.
    log_pt: both views are made of the study's oriented jets with pT := ln(pT/MeV) (jets/preprocess.py); the threshold
        then applies to the logarithm. For the preset `study` alone.

    Raises ConfigError for values that are negative or not finite, or loss above 1.
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


HLT_PRESETS = {
    "mild": HLTConfig(1.0, 0.05, 0.10, 0.02, 0.02),
    "nominal": HLTConfig(2.0, 0.10, 0.20, 0.05, 0.05),
    "severe": HLTConfig(5.0, 0.10, 0.30, 0.10, 0.10),
    "study": HLTConfig(1.5, 0.01, 0.10, 0.03, 0.03, log_pt=True),
}


@dataclass(frozen=True)
class HLTStatistics:
    """Numbers of constituents: given to the emulation, removed by each effect, and left."""

    given: int
    below_threshold: int
    merged: int
    lost: int

    @property
    def left(self) -> int:
        return self.given - self.below_threshold - self.merged - self.lost


def hlt_config(preset: str | HLTConfig) -> HLTConfig:
    """The settings of a preset's name (or the settings themselves). Raises ConfigError for an unknown name."""
    if isinstance(preset, HLTConfig):
        return preset
    if preset not in HLT_PRESETS:
        raise ConfigError(
            f"unknown HLT preset {preset!r}", where="preset", hint=suggest(str(preset), list(HLT_PRESETS))
        )
    return HLT_PRESETS[preset]


def emulate_hlt(jets: PackedJets, preset: str | HLTConfig = "nominal", *, seed: int = 0) -> PackedJets:
    """The jets as a high-level trigger sees them: pT threshold, merging, smearing, efficiency loss, in this order.

    preset: "mild", "nominal", "severe", "study", or an HLTConfig. jets: constituents in falling pT, as readers give
    them; so are those of the result (after smearing). Jets may end up empty. labels, weights, p4 and index stay: p4 is
    the jet as the experiment stored it, not the sum of what is left.

    Random numbers are keyed by (seed, the jet's index, the constituent's place in the given order): the same jet comes
    out the same from any batch, in any order, on any number of threads, and another threshold or radius does not change
    the random numbers of the constituents that remain. Jets of equal index get equal random numbers.

    The preset `study` reproduces an oddity of the original study: its code used ln(pT/MeV) as the pT of jets that had
    been rotated to a common orientation. Threshold (1.5), merging, smearing and features then act on logarithms, the
    threshold removes almost nothing, and ln pT becomes the logarithm of a logarithm. `nominal` is the physical one.

    Raises ConfigError for an unknown preset, DataError for constituents that are not finite or not in falling pT.
    """
    config = hlt_config(preset)
    constituents, offsets, _ = _emulate(study_view(jets) if config.log_pt else jets, config, seed)
    return jets.with_constituents(constituents.numpy(), offsets.numpy())


def hlt_statistics(jets: PackedJets, preset: str | HLTConfig = "nominal", *, seed: int = 0) -> HLTStatistics:
    """What `emulate_hlt` with the same arguments removes, and why (it runs the emulation once more)."""
    config = hlt_config(preset)
    _, _, removed = _emulate(study_view(jets) if config.log_pt else jets, config, seed)
    return HLTStatistics(len(jets.constituents), *removed.tolist())


def offline_view(jets: PackedJets, preset: str | HLTConfig = "nominal") -> PackedJets:
    """The jets as the offline reconstruction sees them: constituents of pT ≥ 0.5 GeV, nothing else.

    preset: the HLT settings that this view goes with. For `study` it is made of oriented jets with pT := ln(pT/MeV),
    E := pT·cosh η, and the threshold of 0.5 applies to the logarithm, as in the original code (see `emulate_hlt`).
    """
    if hlt_config(preset).log_pt:
        jets = study_view(jets)
    return jets.select_constituents(jets.constituents[:, 0] >= OFFLINE_PT_THRESHOLD)


def _emulate(jets: PackedJets, config: HLTConfig, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return hlt_emulation(
        as_tensor(jets.constituents),
        as_tensor(jets.offsets),
        as_tensor(jets.index),
        pt_threshold=config.pt_threshold,
        merge_radius=config.merge_radius,
        pt_resolution=config.pt_resolution,
        angular_resolution=config.angular_resolution,
        loss=config.loss,
        seed=derive_seed(seed, "hlt"),
    )
