"""Sums of four-vectors, against a loop over jets in extended precision."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdfast.jets import kinematics
from kdfast.jets.kinematics import jet_p4, wrap_phi
from kdfast.jets.packed import offsets_of


def jet_p4_by_loop(constituents: NDArray[np.float32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Jet by jet, with sums that do not round (math.fsum) and m² in rational numbers."""
    rows = []
    for first, last in pairwise(offsets):
        pt, eta, phi, energy = constituents[first:last].astype(np.float64).T
        px, py, pz = math.fsum(pt * np.cos(phi)), math.fsum(pt * np.sin(phi)), math.fsum(pt * np.sinh(eta))
        e = math.fsum(energy)
        m2 = Fraction(e) ** 2 - Fraction(px) ** 2 - Fraction(py) ** 2 - Fraction(pz) ** 2
        jet_pt = math.hypot(px, py)
        jet_eta = math.asinh(pz / jet_pt) if jet_pt else 0.0
        rows.append((jet_pt, jet_eta, math.atan2(py, px) if jet_pt else 0.0, math.sqrt(max(float(m2), 0.0))))
    return np.array(rows).reshape(-1, 4)


def constituents_of(counts: list[int], seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    total = sum(counts)
    pt, eta, phi = rng.exponential(50, total) + 0.5, rng.uniform(-2, 2, total), rng.uniform(-np.pi, np.pi, total)
    return np.stack([pt, eta, phi, np.hypot(pt * np.cosh(eta), 0.14)], axis=1).astype(np.float32)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 1000), st.sampled_from([1, 3, 1 << 20]))
def test_jet_p4(counts: list[int], seed: int, block: int) -> None:
    x, offsets = constituents_of(counts, seed), offsets_of(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinematics, "BLOCK", block)
        p4 = jet_p4(x, offsets)
    expected = jet_p4_by_loop(x, offsets)
    assert p4.dtype == np.float32
    np.testing.assert_allclose(p4[:, :3], expected[:, :3], rtol=2e-7, atol=1e-7)
    # a mass far below the energy is a difference of large numbers: float64's rounding of E² remains
    energy = np.array([x[a:b, 3].sum(dtype=float) for a, b in pairwise(offsets)])
    m2, expected_m2 = np.square(p4[:, 3], dtype=float), expected[:, 3] ** 2
    assert (np.abs(m2 - expected_m2) <= 1e-6 * expected_m2 + 1e-14 * energy**2).all()


def test_a_jet_does_not_depend_on_the_jets_before_it() -> None:
    """Differences of one running sum would lose late jets' digits: here 10⁵ jets of TeV stand before soft ones."""
    hard = np.tile(np.array([[1e3, 2.0, 0.3, 1e3 * np.cosh(2.0)]], np.float32), (100_000, 1))
    soft = constituents_of([3, 0, 2, 0], 1) * np.array([1e-3, 1, 1, 1e-3], np.float32)
    alone = jet_p4(soft, offsets_of([3, 0, 2, 0]))
    behind = jet_p4(np.concatenate([hard, soft]), offsets_of([*[1] * len(hard), 3, 0, 2, 0]))[-4:]
    np.testing.assert_array_equal(behind, alone)
    np.testing.assert_array_equal(alone[[1, 3]], 0)


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [2], [0, 2, 0]])
def test_empty_jets_are_zero(counts: list[int]) -> None:
    p4 = jet_p4(constituents_of(counts, 0), offsets_of(counts))
    assert p4.shape == (len(counts), 4)
    np.testing.assert_array_equal(p4.any(axis=1), np.array(counts, int) > 0)


@given(st.floats(-1e4, 1e4))
def test_wrap_phi(phi: float) -> None:
    wrapped = float(wrap_phi(np.array([phi]))[0])
    assert -np.pi <= wrapped <= np.pi
    assert math.isclose(math.cos(wrapped), math.cos(phi), abs_tol=1e-11)
    assert math.isclose(math.sin(wrapped), math.sin(phi), abs_tol=1e-11)
    if abs(phi) < 3.14159:
        assert wrapped == phi
