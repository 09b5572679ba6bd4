"""Pre-processing of jets as the study did it: a common orientation, and its logarithmic momenta."""

import numpy as np
from numpy.typing import NDArray

from kdfast.jets.kinematics import wrap_phi
from kdfast.jets.packed import PackedJets

__all__ = ["study_view"]


def study_view(jets: PackedJets) -> PackedJets:
    """What the study took for its jets: oriented, with pT := ln(pT/MeV) and E := pT·cosh η.

    The logarithm in place of a momentum is an oddity of the original code, kept to reproduce it; every later threshold,
    weighted mean and sum then acts on logarithms. A constituent below 1 MeV, whose logarithm would be negative, gets 0.
    """
    pt = np.log(np.maximum(jets.constituents[:, 0].astype(np.float64) * 1e3, 1.0))
    eta, phi = _oriented(jets)
    with np.errstate(over="ignore"):
        constituents = np.stack([pt, eta, phi, pt * np.cosh(eta)], axis=1).astype(np.float32)
    return jets.with_constituents(constituents, jets.offsets)


def _oriented(jets: PackedJets) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """(η, φ) [M] in a common orientation.

    Constituents are taken in the stored, falling order of pT. Each jet is shifted so that the hardest is at the
    origin, turned so that the second is on the negative φ axis, and mirrored in η where the third has η < 0. A jet
    of fewer constituents, or whose second coincides with the first, skips what it can't do.
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
