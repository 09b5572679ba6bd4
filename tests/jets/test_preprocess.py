import numpy as np

from kdfast.jets.hlt import study_view
from kdfast.jets.packed import PackedJets
from tests.synthetic import synthetic_jets


def jet(*constituents: tuple[float, float, float]) -> PackedJets:
    """One jet of massless (pt, eta, phi)."""
    x = np.array([(pt, eta, phi, pt * np.cosh(eta)) for pt, eta, phi in constituents], np.float32).reshape(1, -1, 4)
    return PackedJets.from_padded(x, np.ones(x.shape[:2], bool))


def orient(jets: PackedJets) -> PackedJets:
    """The jets in the orientation of their study view, with their own pT and massless."""
    pt = jets.constituents[:, 0].astype(np.float64)
    _, eta, phi, _ = study_view(jets).constituents.astype(np.float64).T
    constituents = np.stack([pt, eta, phi, pt * np.cosh(eta)], axis=1).astype(np.float32)
    return jets.with_constituents(constituents, jets.offsets)


def test_orientation_of_every_jet():
    jets = synthetic_jets(300, seed=1)
    oriented = orient(jets)
    x, mask = oriented.to_padded(3)
    many = jets.counts >= 3
    assert many.sum() > 200
    np.testing.assert_array_equal(x[:, 0, 1:3], 0.0)  # the hardest at the origin
    second = x[mask[:, 1], 1]
    assert np.all(second[:, 2] < 0)
    np.testing.assert_allclose(second[:, 1], 0.0, atol=1e-6)  # the second on the negative φ axis
    assert np.all(x[many, 2, 1] >= 0)  # the third at η > 0
    # pT stays, E is massless with the new η, the input stays untouched.
    np.testing.assert_array_equal(oriented.constituents[:, 0], jets.constituents[:, 0])
    energy = oriented.constituents[:, 0] * np.cosh(oriented.constituents[:, 1].astype(np.float64))
    np.testing.assert_allclose(oriented.constituents[:, 3], energy, rtol=1e-6)
    np.testing.assert_array_equal(oriented.offsets, jets.offsets)


def test_distances_stay_across_the_seam_of_phi():
    jets = jet((100, 0.5, 3.1), (50, 0.6, -3.1), (20, 0.2, 3.0))
    x = orient(jets).constituents.astype(np.float64)
    np.testing.assert_allclose(np.hypot(*(x[1, 1:3] - x[0, 1:3])), np.hypot(0.1, 2 * np.pi - 6.2), atol=1e-6)
    np.testing.assert_allclose(np.hypot(*(x[2, 1:3] - x[0, 1:3])), np.hypot(0.3, 0.1), atol=1e-6)


def test_orienting_twice_changes_nothing():
    once = orient(synthetic_jets(50, seed=2))
    np.testing.assert_allclose(orient(once).constituents, once.constituents, rtol=1e-5, atol=2e-6)


def test_short_jets():
    np.testing.assert_array_equal(orient(jet((10, 1.0, 2.0))).constituents, [[10, 0, 0, 10]])
    twins = orient(jet((10, 1.0, 2.0), (9, 1.0, 2.0))).constituents
    np.testing.assert_array_equal(twins[:, 1:3], 0.0)
    none = synthetic_jets(2)[:0]
    assert len(orient(none)) == 0
    empty = PackedJets.from_padded(np.zeros((3, 2, 4)), np.zeros((3, 2), bool))
    np.testing.assert_array_equal(orient(empty).counts, 0)


def test_study_view_takes_the_logarithm_of_mev():
    view = study_view(jet((500, 0.1, 0.2), (1, 0.2, 0.3), (0.0005, 0.0, 0.0), (0.0, 0.0, 0.0)))
    np.testing.assert_allclose(view.constituents[:, 0], [np.log(5e5), np.log(1e3), 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(view.constituents[:, 3], view.constituents[:, 0] * np.cosh(view.constituents[:, 1]))
    assert np.all(np.isfinite(view.constituents))
