"""Four-vector arithmetic on packed constituents."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["jet_p4", "wrap_phi"]

BLOCK = 1 << 20  # constituents worked on at a time: bounds the float64 copies


def wrap_phi(phi: NDArray[np.floating]) -> NDArray[np.floating]:
    """An angle brought to [−π, π]; one that lies inside stays exactly as it is."""
    wrapped: NDArray[np.floating] = phi - 2 * np.pi * np.rint(phi * (0.5 / np.pi))
    return wrapped


def jet_p4(constituents: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """[B, 4] pt (GeV), eta, phi, mass (GeV) of the sum of each jet's constituents; zeros for an empty jet.

    Sums are in float64 and never reach across jets, so that a jet's values do not depend on its neighbours.
    """
    jets = len(offsets) - 1
    p4 = np.zeros((jets, 4), np.float32)
    first = 0
    while first < jets:
        last = int(np.searchsorted(offsets, offsets[first] + BLOCK, side="right")) - 1
        last = max(last, first + 1)
        p4[first:last] = _sum(constituents[offsets[first] : offsets[last]], offsets[first : last + 1] - offsets[first])
        first = last
    return p4


def _sum(constituents: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    pt, eta, phi, energy = constituents.astype(np.float64).T
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy])
    p4 = np.zeros((len(offsets) - 1, 4))
    filled = np.flatnonzero(np.diff(offsets))  # without empty jets, each one's first constituent ends the one before
    if not len(filled):
        return p4
    px, py, pz, e = np.add.reduceat(momenta, offsets[filled], axis=1)
    jet_pt = np.hypot(px, py)
    jet_eta = np.arcsinh(np.divide(pz, jet_pt, where=jet_pt > 0, out=np.zeros_like(pz)))
    p = np.hypot(jet_pt, pz)
    mass = np.sqrt(np.maximum((e - p) * (e + p), 0.0))
    p4[filled] = np.stack([jet_pt, jet_eta, np.arctan2(py, px), mass], axis=1)
    return p4
