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
    """Return the jets as a high-level trigger sees them: threshold, merging, smearing and loss, in this order.

    Parameters
    ----------
    jets
        Constituents in falling pT, as readers give them.
    preset
        ``"mild"``, ``"nominal"``, ``"severe"``, ``"study"``, or an HLTConfig.
    seed
        Random numbers are keyed by seed, the jet's index and the constituent's place in the given order. So
        a jet comes out the same from any batch, in any order and on any number of threads, and another
        threshold or radius does not change the random numbers of the constituents that remain. Jets of
        equal index get equal random numbers.

    Returns
    -------
    PackedJets
        Constituents in falling pT (after smearing); a jet may be empty. Labels, weights, p4 and index are
        unchanged: p4 is the jet as the experiment stored it, not the sum of what is left.

    Raises
    ------
    ConfigError
        For an unknown preset.
    DataError
        For constituents that are not finite or not in falling pT.

    Notes
    -----
    The preset ``study`` reproduces an oddity of the original study: its code used ln(pT/MeV) as the pT of
    jets that had been rotated to a common orientation. Threshold (1.5), merging, smearing and features then
    act on logarithms, the threshold removes almost nothing, and ln pT becomes the logarithm of a logarithm.
    ``nominal`` is the physical one.

    Examples
    --------
    >>> import kdfast
    >>> offline = kdfast.sample()[:100]
    >>> trigger = kdfast.emulate_hlt(offline, "nominal")
    >>> bool((trigger.counts <= offline.counts).all())
    True
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

    preset: the HLT settings that this view goes with. For `study` it is made of oriented jets with pT :=
    ln(pT/MeV), E := pT·cosh η, and the threshold of 0.5 applies to the logarithm, as in the original code
    (see `emulate_hlt`).
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
