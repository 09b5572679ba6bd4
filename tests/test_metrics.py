"""Metrics against brute force over all thresholds and pairs, and against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from kdfast.errors import ConfigError, DataError
from kdfast.metrics import Rejection, background_rejection, evaluate, roc_auc, roc_curve

EFFICIENCIES = [0.1, 0.3, 0.5, 0.8, 0.999, 1.0]


@st.composite
def jets(draw, weighted=None):
    """labels with both classes, scores with many ties (and infinities), weights or None."""
    n = draw(st.integers(2, 25))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda y: 0 < sum(y) < len(y)))
    value = draw(st.sampled_from([st.integers(-3, 3).map(float), st.floats(-1e4, 1e4), st.floats(allow_nan=False)]))
    scores = draw(st.lists(value, min_size=n, max_size=n))
    weights = None
    if draw(st.booleans()) if weighted is None else weighted:
        # small integers: sums are exact, so brute force and cumulated sums can't differ on who reaches ε
        weights = draw(st.lists(st.integers(1, 5), min_size=n, max_size=n))
    return labels, scores, weights


def brute_auc(labels, scores, weights):
    weights = [1] * len(labels) if weights is None else weights
    won = total = 0.0
    for y, s, w in zip(labels, scores, weights, strict=True):
        for z, t, v in zip(labels, scores, weights, strict=True):
            if y == 1 and z == 0:
                won += w * v * (1.0 if s > t else 0.5 if s == t else 0.0)
                total += w * v
    return won / total


def brute_rejection(labels, scores, efficiency, weights):
    rows = list(zip(labels, scores, [1] * len(labels) if weights is None else weights, strict=True))
    for threshold in sorted(set(scores), reverse=True):
        passed = [(y, w) for y, s, w in rows if s >= threshold]
        if sum(w for y, w in passed if y == 1) / sum(w for y, _, w in rows if y == 1) >= efficiency:
            survivors = [w for y, w in passed if y == 0]
            background = [w for y, _, w in rows if y == 0]
            if survivors:
                return Rejection(sum(background) / sum(survivors), len(survivors), False)
            return Rejection(sum(background) ** 2 / sum(w * w for w in background) / 1.14, 0, True)
    raise AssertionError("the lowest threshold has efficiency 1")


@given(jets())
def test_auc_equals_brute_force(case):
    assert roc_auc(*case) == pytest.approx(brute_auc(*case), rel=1e-12, abs=1e-12)


@given(jets(), st.sampled_from(EFFICIENCIES))
def test_rejection_equals_brute_force(case, efficiency):
    labels, scores, weights = case
    got, expected = (
        background_rejection(labels, scores, efficiency, weights),
        brute_rejection(*case[:2], efficiency, weights),
    )
    assert got[1:] == expected[1:]
    assert got.value == pytest.approx(expected.value, rel=1e-12)
    assert np.isfinite(got.value)


@given(jets(weighted=False), st.integers(2, 4))
def test_integer_weights_equal_repeated_jets(case, factor):
    labels, scores, _ = case
    weights = [factor if i % 2 else 1 for i in range(len(labels))]
    again = [np.repeat(values, weights) for values in (labels, scores)]
    assert roc_auc(labels, scores, weights) == pytest.approx(roc_auc(*again), rel=1e-12)
    got, repeated = background_rejection(labels, scores, 0.5, weights), background_rejection(*again, 0.5)
    assert got.is_lower_limit == repeated.is_lower_limit
    if not got.is_lower_limit:
        assert got.value == pytest.approx(repeated.value, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_against_sklearn(dtype, weighted):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 4500)
    scores = (rng.normal(size=4500) + 1.2 * labels).astype(dtype)
    weights = rng.exponential(size=4500) if weighted else None
    assert roc_auc(labels, scores, weights) == pytest.approx(
        roc_auc_score(labels, scores, sample_weight=weights), rel=1e-12
    )
    fpr, tpr, thresholds = sklearn_roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    curve = roc_curve(labels, scores, weights)
    np.testing.assert_allclose(curve.signal_efficiency, tpr[1:], rtol=1e-12)
    np.testing.assert_allclose(curve.background_efficiency, fpr[1:], rtol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds[1:])


def test_equal_weights_of_any_size_change_nothing():
    # ten times 0.1 is not 1 in floating point: the sums must not decide who reaches ε
    labels = np.repeat([1, 0], 1000)
    scores = np.random.default_rng(0).permutation(2000).astype(float) + 300 * labels
    for efficiency in (0.3, 0.5, 0.8):
        plain = background_rejection(labels, scores, efficiency)
        for size in (0.1, 1 / 3, 1e-9, 7e8):
            weighted = background_rejection(labels, scores, efficiency, np.full(2000, size))
            assert weighted.survivors == plain.survivors
            assert weighted.value == pytest.approx(plain.value, rel=1e-12)


def test_zero_weight_takes_no_part():
    labels, scores = [1, 0, 1, 0, 0], [3.0, 2.0, 1.0, 0.5, 9.0]
    weights = [1, 1, 1, 1, 0]
    assert roc_auc(labels, scores, weights) == roc_auc(labels[:4], scores[:4])
    assert background_rejection(labels, scores, 0.5, weights) == Rejection(2 / 1.14, 0, True)


def test_known_values():
    assert roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert roc_auc([0, 1], [1.0, 1.0]) == 0.5
    assert background_rejection([1, 1, 0, 0, 0, 0], [4, 2, 3, 1, 0, -1], 0.5) == Rejection(4 / 1.14, 0, True)
    assert background_rejection([1, 1, 0, 0, 0, 0], [4, 2, 3, 1, 0, -1], 0.51) == Rejection(4.0, 1, False)
    # a tie with the signal jet at the threshold passes with it
    assert background_rejection([1, 1, 0, 0], [4, 2, 4, 1], 0.5) == Rejection(2.0, 1, False)


def test_evaluate_names_every_number():
    labels, scores = [1, 1, 0, 0, 0, 0], [4, 2, 3, 1, 0, -1]
    numbers = evaluate(labels, scores)
    assert list(numbers) == ["auc", "bkg_rej_30", "n_bkg_30", "bkg_rej_50", "n_bkg_50", "bkg_rej_80", "n_bkg_80"]
    assert numbers["auc"] == 7 / 8
    assert evaluate(labels, scores, suffix="_val") == {f"{name}_val": value for name, value in numbers.items()}
    assert (numbers["bkg_rej_50"], numbers["n_bkg_50"]) == (4 / 1.14, 0)
    assert (numbers["bkg_rej_80"], numbers["n_bkg_80"]) == (4.0, 1)


def test_same_bits_again_and_torch_input():
    rng = np.random.default_rng(1)
    labels, scores, weights = rng.integers(0, 2, 999), rng.normal(size=(999, 1)), rng.random(999)
    values = {roc_auc(labels, scores, weights) for _ in range(3)}
    values.add(roc_auc(*(torch.from_numpy(a) for a in (labels, scores, weights))))
    assert len(values) == 1


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "message"),
    [
        ([0, 1, 1], [0.0, np.nan, 1.0], None, r"scores: 1 of 3 scores are NaN\n.*diverge"),
        ([1, 1], [0.0, 1.0], None, r"labels: there is no background \(label 0\) jet"),
        ([0, 0], [0.0, 1.0], None, r"labels: there is no signal \(label 1\) jet"),
        ([0, 1], [0.0, 1.0], [1.0, 0.0], r"no signal \(label 1\) jet with a weight above 0"),
        ([0, 2], [0.0, 1.0], None, r"labels must be 0 \(background\) or 1 \(signal\), 1 of 2 are neither"),
        ([0, 1], [0.0, 1.0, 2.0], None, r"scores: 3 scores for 2 labels"),
        ([0, 1], [0.0, 1.0], [1.0], r"weights: 1 weights for 2 labels"),
        ([0, 1], [0.0, 1.0], [1.0, -1.0], r"weights must be finite and not negative"),
        ([0, 1], [0.0, 1.0], [1.0, np.inf], r"weights must be finite and not negative"),
        ([0, 1], [[0.0, 1.0], [1.0, 2.0]], None, r"scores: needs one value per jet, has shape \(2, 2\)"),
        ([], [], None, r"there is no signal"),
    ],
)
def test_bad_input(labels, scores, weights, message):
    with pytest.raises(DataError, match=message):
        roc_auc(labels, scores, weights)
    with pytest.raises(DataError, match=message):
        background_rejection(labels, scores, 0.5, weights)


@pytest.mark.parametrize("efficiency", [0.0, -0.1, 1.1, float("nan"), 50])
def test_efficiency_out_of_range(efficiency):
    with pytest.raises(ConfigError, match=r"efficiency: a signal efficiency lies in \(0, 1\]"):
        background_rejection([0, 1], [0.0, 1.0], efficiency)
