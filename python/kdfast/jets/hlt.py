"""Views of jets: what the offline reconstruction sees, and what a trigger sees."""

from __future__ import annotations

from kdfast.jets.hlt_config import HLT_PRESETS, HLTConfig, hlt_config
from kdfast.jets.packed import PackedJets
from kdfast.jets.preprocess import study_view
from kdfast.ops.arrays import as_tensor
from kdfast.ops.hlt_emulation import hlt_emulation
from kdfast.ops.philox import derive_seed

__all__ = ["HLT_PRESETS", "HLTConfig", "emulate_hlt", "hlt_config", "offline_view"]

OFFLINE_PT_THRESHOLD = 0.5  # GeV


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
    given = study_view(jets) if config.log_pt else jets
    arrays = [as_tensor(array) for array in (given.constituents, given.offsets, given.index)]
    settings = {name: value for name, value in vars(config).items() if name != "log_pt"}
    constituents, offsets, _ = hlt_emulation(*arrays, **settings, seed=derive_seed(seed, "hlt"))
    return jets.with_constituents(constituents.numpy(), offsets.numpy())


def offline_view(jets: PackedJets, preset: str | HLTConfig = "nominal") -> PackedJets:
    """The jets as the offline reconstruction sees them: constituents of pT ≥ 0.5 GeV, nothing else.

    preset: the HLT settings that this view goes with. For `study` it is made of oriented jets with pT :=
    ln(pT/MeV), E := pT·cosh η, and the threshold of 0.5 applies to the logarithm, as in the original code
    (see `emulate_hlt`).
    """
    if hlt_config(preset).log_pt:
        jets = study_view(jets)
    return jets.select_constituents(jets.constituents[:, 0] >= OFFLINE_PT_THRESHOLD)
