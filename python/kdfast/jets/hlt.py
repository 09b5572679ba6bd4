"""Views of jets: what the offline reconstruction sees, and what a trigger sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdfast.jets.hlt_config import HLT_PRESETS, HLTConfig, hlt_config
from kdfast.jets.kinematics import wrap_phi
from kdfast.jets.packed import PackedJets
from kdfast.ops.arrays import as_tensor
from kdfast.ops.hlt_emulation import hlt_emulation
from kdfast.ops.philox import derive_seed

__all__ = ["HLT_PRESETS", "HLTConfig", "emulate_hlt", "hlt_config", "offline_view", "study_view"]

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


def study_view(jets: PackedJets) -> PackedJets:
    """What the study took for its jets: oriented, with pT := ln(pT/MeV) and E := pT·cosh η.

    The logarithm in place of a momentum is an oddity of the original code, kept to reproduce it; every later
    threshold, weighted mean and sum then acts on logarithms. A constituent below 1 MeV, whose logarithm would
    be negative, gets 0.
    """
    pt = np.log(np.maximum(jets.constituents[:, 0].astype(np.float64) * 1e3, 1.0))
    eta, phi = _oriented(jets)
    with np.errstate(over="ignore"):
        constituents = np.stack([pt, eta, phi, pt * np.cosh(eta)], axis=1).astype(np.float32)
    return jets.with_constituents(constituents, jets.offsets)


def _oriented(jets: PackedJets) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(η, φ) [M] in a common orientation.

    Constituents are taken in the stored, falling order of pT. Each jet is shifted so that the hardest is at
    the origin, turned so that the second is on the negative φ axis, and mirrored in η where the third has η <
    0. A jet of fewer constituents, or whose second coincides with the first, skips what it can't do.
    """
    counts = jets.counts
    _, eta, phi, _ = jets.constituents.astype(np.float64).T

    def of_jet(per_constituent: NDArray[np.floating], rank: int) -> NDArray[np.floating]:
        """[B] the value of each jet's constituent of that rank; 0 where there is none."""
        values = np.zeros(len(jets))
        some = counts > rank
        values[some] = per_constituent[jets.offsets[:-1][some] + rank]
        return values

    def spread(per_jet: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.repeat(per_jet, counts)

    eta = eta - spread(of_jet(eta, 0))
    phi = wrap_phi(phi - spread(of_jet(phi, 0)))

    # (η, φ) of the second → (0, −r): the turn by its angle to the negative φ axis.
    eta_2, phi_2 = of_jet(eta, 1), of_jet(phi, 1)
    r = np.hypot(eta_2, phi_2)
    some = r > 0
    cos = np.divide(-phi_2, r, out=np.ones_like(r), where=some)
    sin = np.divide(eta_2, r, out=np.zeros_like(r), where=some)
    eta, phi = spread(cos) * eta + spread(sin) * phi, -spread(sin) * eta + spread(cos) * phi

    eta *= spread(np.where(of_jet(eta, 2) < 0, -1.0, 1.0))
    return eta, wrap_phi(phi)
