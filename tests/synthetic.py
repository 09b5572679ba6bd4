"""Jets made up from a few random numbers, for tests: plausible, quick to make, and of two classes that differ."""

import numpy as np

from kdfast.jets.packed import PackedJets

_PION_MASS = 0.1396  # GeV


def synthetic_jets(n: int, seed: int = 0, max_constituents: int = 100) -> PackedJets:
    """n jets of 450–1200 GeV within |η| < 2, about half of each class, constituents in falling pT.

    Class 0 has one prong and about 45 constituents (before the cut at max_constituents), class 1 three prongs, about
    0.4 apart, and about 65. Momentum fractions are those of a falling spectrum: a few hard, many soft constituents.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    counts = np.clip(rng.negative_binomial(12, 12 / (12 + np.where(labels == 1, 65, 45))), 1, max_constituents)
    jet_pt = 450.0 + rng.exponential(200.0, n).clip(max=750.0)
    jet_eta, jet_phi = rng.uniform(-2, 2, n), rng.uniform(-np.pi, np.pi, n)

    mask = np.arange(max_constituents) < counts[:, None]
    shape = mask.shape
    fractions = np.where(mask, rng.gamma(0.5, 1.0, shape) ** 1.5 + 1e-4, 0.0)
    pt = jet_pt[:, None] * fractions / fractions.sum(axis=1, keepdims=True)
    pt = -np.sort(-pt, axis=1)  # padding, at 0, comes last

    # Three prongs around the axis; a jet of class 0 puts everything on the first.
    angle = rng.uniform(0, 2 * np.pi, (n, 1)) + np.array([0.0, 2.1, 4.2]) + rng.normal(0, 0.2, (n, 3))
    distance = np.where(labels[:, None] == 1, rng.normal(0.25, 0.06, (n, 3)), 0.0)
    prong = rng.choice(3, size=shape, p=[0.5, 0.3, 0.2])
    width = np.where(rng.random(shape) < 0.25, 0.25, 0.06)  # some soft radiation at wide angles
    eta = jet_eta[:, None] + np.take_along_axis(distance * np.cos(angle), prong, 1) + width * rng.normal(size=shape)
    phi = jet_phi[:, None] + np.take_along_axis(distance * np.sin(angle), prong, 1) + width * rng.normal(size=shape)
    phi = (phi + np.pi) % (2 * np.pi) - np.pi
    energy = np.hypot(pt * np.cosh(eta), _PION_MASS)
    return PackedJets.from_padded(np.stack([pt, eta, phi, energy], axis=2), mask, labels=labels)
