"""Errors of AUC and rejection: against independent implementations, and by coverage on simulated samples."""

import math

import numpy as np
import pytest
from scipy import stats

from kdfast.metrics import WORKING_POINTS, background_rejection, roc_auc
from kdfast.report.physics import rejection_estimate
from kdfast.report.sampling import (
    _Falling,
    _first_reaching,
    _resampled_background,
    auc_estimates,
    auc_interval,
    quantile,
    rejection_estimates,
)
from tests.report.simulated import STUDIES, binormal, true_auc, true_rejection, within_binomial


def delong_covariance(labels, scores):
    """DeLong's covariance of AUCs from the full matrix of pairs, as in the paper."""
    signal, background = scores[:, labels == 1], scores[:, labels == 0]
    kernel = (signal[:, :, None] > background[:, None, :]) + 0.5 * (signal[:, :, None] == background[:, None, :])
    by_signal, by_background = kernel.mean(axis=2), kernel.mean(axis=1)
    return np.cov(by_signal) / signal.shape[1] + np.cov(by_background) / background.shape[1]


@pytest.mark.parametrize("jets", [1, 3, 63, 64, 65, 500])
def test_blocks_find_the_rows_that_running_sums_find(jets):
    weights = np.random.default_rng(jets).poisson(1.0, (jets, 40)).astype(np.float32)
    weights[0] += 1.0  # none is drawn nowhere
    shares = np.array([0.01, 0.3, 0.5, 0.8, 1.0])
    sums = np.cumsum(weights, axis=0, dtype=np.float64)
    expected = [np.searchsorted(column, shares * column[-1]) for column in sums.T]
    assert (_first_reaching(weights, shares) == expected).all()


@pytest.mark.parametrize("ties", [False, True])
def test_delong(ties):
    labels, scores, weights = binormal(4, 151, 1.0)
    scores = scores + scores[:1]  # correlated
    if ties:
        scores = np.round(scores, 0)
    estimates = auc_estimates(labels, scores, weights)
    np.testing.assert_allclose(estimates.values, [roc_auc(labels, row) for row in scores])
    np.testing.assert_allclose(estimates.factor @ estimates.factor.T, delong_covariance(labels, scores), rtol=1e-10)
    np.testing.assert_allclose(estimates.errors**2, np.diag(delong_covariance(labels, scores)), rtol=1e-10)


def test_jets_of_weight_0_take_no_part():
    labels, scores, weights = binormal(3, 200, 1.0, weights=True)
    weights[:50] = 0.0
    whole = auc_estimates(labels, scores, weights)
    part = auc_estimates(labels[50:], scores[:, 50:], weights[50:])
    np.testing.assert_allclose(whole.values, part.values)
    np.testing.assert_allclose(whole.errors, part.errors)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("separation", [0.8, 2.0])
def test_coverage_of_an_auc(separation, weights):
    labels, scores, w = binormal(STUDIES, 500, separation, weights=weights)
    estimates, truth = auc_estimates(labels, scores, w), true_auc(separation)
    intervals = [auc_interval(a, e) for a, e in zip(estimates.values, estimates.errors, strict=True)]
    assert within_binomial(sum(low <= truth <= high for low, high in intervals), STUDIES, 0.95)


@pytest.mark.slow
def test_coverage_of_a_paired_difference():
    rng = np.random.default_rng(1)
    labels, shared, w = binormal(STUDIES, 500, 0.0)
    one, other = (shared + 0.3 * rng.normal(size=shared.shape) + d * labels for d in (1.2, 1.3))
    truth = true_auc(1.3 / math.sqrt(1.09)) - true_auc(1.2 / math.sqrt(1.09))
    a, b = auc_estimates(labels, one, w), auc_estimates(labels, other, w)
    error = np.linalg.norm(b.factor - a.factor, axis=1)
    hits = np.abs(b.values - a.values - truth) <= quantile() * error
    assert within_binomial(int(hits.sum()), STUDIES, 0.95)
    unpaired = np.hypot(a.errors, b.errors)
    assert (error < 0.6 * unpaired).all()


@pytest.mark.slow
@pytest.mark.parametrize("weights", [False, True])
def test_coverage_of_a_rejection(weights):
    labels, scores, w = binormal(STUDIES, 1000, 1.5, weights=weights)
    estimates = rejection_estimates(labels, scores, w, replicates=200)
    for point, estimate in estimates.items():
        truth, hits = true_rejection(1.5, point / 100), 0
        for row, value, error in zip(scores, estimate.values, estimate.errors, strict=True):
            assert value == pytest.approx(math.log(background_rejection(labels, row, point / 100, w).value))
            found = rejection_estimate(math.exp(value), error, survivors=1)
            low, high = found.low, found.high
            hits += low <= truth <= high
        # a bootstrapped quantile errs on the side of caution, so that the coverage may lie a little above 95 %
        assert hits / STUDIES >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / STUDIES), point
        assert hits / STUDIES <= 0.98, point


def test_both_sources_of_a_rejections_error():
    """The delta method with the known densities: background's binomial, and the signal threshold's."""
    n, d = 20_000, 1.5
    labels, scores, w = binormal(8, n, d)
    estimate = rejection_estimates(labels, scores, w, points=(50,))[50]
    passing = float(stats.norm.sf(d))
    slope = stats.norm.pdf(d) / stats.norm.pdf(0.0)  # dε_B/dε_S at the threshold
    background = passing * (1.0 - passing) / (n / 2)
    threshold = slope**2 * 0.25 / (n / 2)
    expected = math.sqrt(background + threshold) / passing
    assert threshold > 0.1 * background  # both matter
    assert estimate.errors.mean() == pytest.approx(expected, rel=0.05)


def test_paired_rejections():
    """Bootstrap covariance of two networks against the spread of many samples."""
    rng = np.random.default_rng(2)
    labels, shared, w = binormal(300, 2000, 0.0)
    one, other = (shared + 0.2 * rng.normal(size=shared.shape) + 1.5 * labels for _ in range(2))
    many = [rejection_estimates(labels, s, w, points=(50,), replicates=2)[50].values for s in (one, other)]
    both = [
        rejection_estimates(labels, np.stack(p), w, points=(50,))[50] for p in zip(one[:20], other[:20], strict=True)
    ]
    error = np.mean([np.linalg.norm(e.factor[1] - e.factor[0]) for e in both])
    spread = np.std(many[1] - many[0])
    assert spread * 0.9 <= error <= spread * 1.25  # cautious: see above


def test_the_size_of_the_study():
    """Half of 4,500 jets at an AUC near 0.82: errors of 0.006 and, where the rejection is 9, of 0.7."""
    labels, scores, w = binormal(1, 4500, 1.25)
    assert auc_estimates(labels, scores, w).errors[0] == pytest.approx(0.006, abs=0.001)
    log = rejection_estimates(labels, scores, w, points=(50,))[50]
    assert math.exp(log.values[0]) * log.errors[0] == pytest.approx(0.7, abs=0.2)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_bootstrap_has_the_metrics_working_points(weighted):
    """Each of 400,000 jets drawn once: threshold and rejection are those of the metrics to the last jet, whatever the
    number of jets."""
    labels, scores, w = binormal(1, 400_000, 1.5, weights=weighted)
    w, own = w.astype(np.float32), [labels == 1, labels == 0]
    once = _resampled_background(*(_Falling.of(scores[0, o]) for o in own), *(w[o, None] for o in own), WORKING_POINTS)
    for point in WORKING_POINTS:
        expected = background_rejection(labels, scores[0], point / 100, w).value
        assert 1.0 / once[point] == pytest.approx([expected], rel=1e-12)


def test_limits():
    limit = rejection_estimate(20.0, 0.1, survivors=0)
    assert limit.lower_limit
    assert (limit.low, limit.high) == (None, None)
    assert auc_interval(1.0, 0.0) is None
    low, high = auc_interval(0.99, 0.02)
    assert 0.0 < low < 0.99 < high < 1.0
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    separated = rejection_estimates(labels, np.arange(8.0)[None], np.ones(8), points=(50,))[50]
    assert np.isfinite(separated.factor).all()
    assert separated.values[0] == pytest.approx(math.log(4 / 1.14))
