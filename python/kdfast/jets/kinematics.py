"""Four-vector arithmetic on packed constituents."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["jet_p4", "wrap_phi"]


def wrap_phi(phi: NDArray[np.floating]) -> NDArray[np.floating]:
    """An angle brought to [−π, π]; one that lies inside stays exactly as it is."""
    return phi - 2 * np.pi * np.rint(phi * (0.5 / np.pi))


def jet_p4(constituents: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """[B, 4] pt (GeV), eta, phi, mass (GeV) of the sum of each jet's constituents; zeros for an empty jet."""
    pt, eta, phi, energy = constituents.astype(np.float64).T
    momenta = np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), energy])
    before = np.concatenate([np.zeros((4, 1)), np.cumsum(momenta, axis=1)], axis=1)
    px, py, pz, e = before[:, offsets[1:]] - before[:, offsets[:-1]]
    jet_pt = np.hypot(px, py)
    some = jet_pt > 0
    jet_eta = np.where(some, np.arcsinh(np.divide(pz, jet_pt, where=some, out=np.zeros_like(pz))), 0.0)
    mass = np.sqrt(np.maximum(e**2 - px**2 - py**2 - pz**2, 0.0))
    empty = np.diff(offsets) == 0
    p4 = np.stack([jet_pt, jet_eta, np.arctan2(py, px), mass], axis=1)
    p4[empty] = 0.0
    return p4.astype(np.float32)
