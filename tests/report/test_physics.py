"""Tables by pT, of mass and of calibration, and the gap recovered: independent implementations and known truth."""

import math
import tracemalloc

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from sklearn.linear_model import LogisticRegression

from kdfast.metrics import background_rejection, roc_auc
from kdfast.report import physics
from kdfast.report.families import BUDGET
from kdfast.report.figures.performance import ShownNetwork, TestSample
from kdfast.report.physics import TestJets
from kdfast.report.sampling import auc_estimates, auc_interval
from tests.report.simulated import STUDIES, binormal, true_auc, within_binomial


def test_pt_bins():
    labels, (scores,), w = binormal(1, 2000, 1.5, weights=True)
    pt = np.random.default_rng(1).uniform(450.0, 1200.0, 2000)
    edges = physics.pt_edges(pt, labels)
    bins = physics.pt_bins("student", TestJets(labels, w, pt), scores, edges)
    assert len(bins) == 5
    assert sum(b.signal + b.background for b in bins) == 2000
    threshold = np.sort(scores[labels == 1])[::-1][0]
    order = np.argsort(-scores[labels == 1])
    reached = np.cumsum(w[labels == 1][order]) / w[labels == 1].sum()
    threshold = scores[labels == 1][order][np.argmax(reached >= 0.5)]
    for b in bins:
        last = b is bins[-1]
        inside = (pt >= b.pt_low) & ((pt <= b.pt_high) if last else (pt < b.pt_high))
        y, s, weight = labels[inside], scores[inside], w[inside]
        assert b.auc.value == pytest.approx(roc_auc(y, s, weight))
        assert b.auc.low < b.auc.value < b.auc.high
        assert b.rejection.value == pytest.approx(background_rejection(y, s, 0.5, weight).value)
        for label, efficiency in ((1, b.signal_efficiency), (0, b.background_efficiency)):
            of = y == label
            assert efficiency.value == pytest.approx(weight[of & (s >= threshold)].sum() / weight[of].sum())
            assert efficiency.low < efficiency.value < efficiency.high


def test_few_jets_have_few_bins():
    labels = np.arange(300) % 2
    assert len(physics.pt_edges(np.arange(300.0), labels)) == 2
    assert len(physics.pt_edges(np.full(300, 500.0), labels)) == 2


def test_jets_without_a_pt_count_for_the_threshold_alone():
    labels, (scores,), w = binormal(1, 1000, 1.5)
    pt, lost = np.random.default_rng(1).uniform(450.0, 1200.0, 1000), scores > 2.5
    pt[lost] = np.nan
    edges = physics.pt_edges(pt, labels)
    np.testing.assert_array_equal(edges, physics.pt_edges(pt[~lost], labels[~lost]))
    bins = physics.pt_bins("student", TestJets(labels, w, pt), scores, edges)
    assert sum(b.signal + b.background for b in bins) == (~lost).sum()
    passed = sum(b.signal_efficiency.value * b.signal for b in bins) + (lost & (labels == 1)).sum()
    assert passed == pytest.approx(250)  # half of all signal


def test_a_bin_with_a_handful_of_one_class_is_left_out():
    """One signal jet has no scatter: its bin's AUC would have the background's error alone."""
    rng = np.random.default_rng(4)
    labels = np.r_[1, np.zeros(99, int), np.arange(100) % 2]
    pt = np.repeat([500.0, 900.0], 100)
    scores = rng.normal(size=200) + 1.2 * labels
    bins = physics.pt_bins("student", TestJets(labels, np.ones(200), pt), scores, np.array([400.0, 700.0, 1000.0]))
    assert [(b.pt_low, b.signal, b.background) for b in bins] == [(700.0, 50, 50)]
    light = np.where((pt > 700.0) & (labels == 1) & (np.arange(200) > 110), 1e-3, 1.0)  # 5 of these 50 count
    assert physics.pt_bins("student", TestJets(labels, light, pt), scores, np.array([400.0, 700.0, 1000.0])) == []


def test_jets_that_are_all_told_apart_tell_no_error():
    labels = np.arange(200) % 2
    (found,) = physics.pt_bins(
        "student", TestJets(labels, np.ones(200), np.full(200, 500.0)), 1.0 * labels, np.array([400, 600])
    )
    assert (found.auc.value, found.auc.error, found.auc.low) == (1.0, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("separation", [1.2, 2.0])
def test_coverage_in_the_smallest_bin(separation):
    rng, fewest = np.random.default_rng(5), physics.FEWEST_IN_BIN
    labels = np.r_[np.ones(fewest, int), np.zeros(5 * fewest, int)]
    hits = 0
    for _ in range(STUDIES):
        estimates = auc_estimates(labels, rng.normal(size=(1, 6 * fewest)) + separation * labels, np.ones(6 * fewest))
        low, high = auc_interval(estimates.values[0], estimates.errors[0]) or (1.0, 0.0)
        hits += low <= true_auc(separation) <= high
    assert hits / STUDIES >= 0.92


def test_one_threshold_everywhere():
    """Who reaches an efficiency is decided in one place: here half the signal, but for 1e-13."""
    labels = np.r_[1, 1, np.zeros(1000, int)]
    weights = np.r_[0.5 - 1e-13, 0.5 + 1e-13, np.ones(1000)]
    scores = np.r_[2.0, 1.0, np.linspace(0.0, 3.0, 1000)]
    cut = physics.threshold_at(TestJets(labels, weights), scores, 0.5)
    survivors = background_rejection(labels, scores, 0.5, weights).survivors
    assert cut == 1.0
    assert survivors == int((scores[labels == 0] >= cut).sum())
    network = ShownNetwork("student", "", scores, None, None)
    assert TestSample(labels, weights, [network])._survivors(0, 50) == survivors


# ---- mass


def sculpted(rng, jets, pull):
    """Background whose score rises with mass by `pull`; signal at 125."""
    labels = np.arange(jets) % 2
    mass = np.where(labels == 1, 125.0 + 10.0 * rng.normal(size=jets), 50.0 + 50.0 * rng.exponential(size=jets))
    scores = rng.normal(size=jets) + 0.8 * labels + pull * np.minimum(mass, 250.0) / 100.0
    return labels, scores, mass


def test_divergence():
    """Against the definition: half the mean information of either histogram about the mixture, in bits."""
    labels, scores, mass = sculpted(np.random.default_rng(0), 4000, 1.0)
    found = physics.mass_sculpting("student", TestJets(labels, np.ones(4000), mass=mass), scores, 50)
    p, q = np.array(found.passing), np.array(found.all)
    m = (p + q) / 2
    information = [np.sum(x[x > 0] * np.log2(x[x > 0] / m[x > 0])) for x in (p, q)]
    assert found.divergence == pytest.approx(sum(information) / 2)
    cut = np.sort(scores[labels == 1])[1000]
    assert found.survivors == int((scores[labels == 0] >= cut).sum())
    np.testing.assert_allclose(q, 1 / len(q), atol=0.01)  # equally filled


@pytest.mark.slow
def test_no_sculpting_is_not_claimed():
    rng = np.random.default_rng(1)
    claims, studies = 0, 120
    for i in range(studies):
        labels, scores, mass = sculpted(rng, 1500, 0.0)
        found = physics.mass_sculpting("student", TestJets(labels, np.ones(1500), mass=mass), scores, 50, seed=i)
        claims += found.p_value < 0.05
        assert found.divergence < 0.1
    assert within_binomial(claims, studies, 0.05)


def test_the_p_value_of_the_mass_is_the_share_of_random_picks():
    """Of jets picked at random, here by permuting the scores; beyond these few it reaches by a gamma distribution."""
    rng = np.random.default_rng(8)
    labels, scores, mass = sculpted(rng, 1500, 0.12)
    found = physics.mass_sculpting("student", TestJets(labels, np.ones(1500), mass=mass), scores, 50)
    background = mass[labels == 0]
    edges = np.array([-np.inf, *found.edges[1:-1], np.inf])
    everything = np.histogram(background, edges)[0].astype(float)
    picks = (rng.choice(background, found.survivors, replace=False) for _ in range(2000))
    random = np.array([float(physics._divergence(np.histogram(p, edges)[0].astype(float), everything)) for p in picks])
    share = np.mean(random >= found.divergence)
    assert 0.005 < share < 0.5
    assert found.p_value == pytest.approx(share, abs=0.03 + 0.1 * share)
    assert found.expected_without == pytest.approx(random.mean(), rel=0.03)
    assert found.p_adjusted == pytest.approx(min(1.0, 80 * found.p_value))


def test_strong_sculpting_is_significant_among_all_tests():
    """More so than a thousand permutations could tell."""
    labels, scores, mass = sculpted(np.random.default_rng(9), 1500, 1.5)
    found = physics.mass_sculpting("student", TestJets(labels, np.ones(1500), mass=mass), scores, 50)
    assert 0.0 < found.p_value < 1e-4
    assert found.p_adjusted == pytest.approx(80 * found.p_value)
    assert found.p_adjusted < 0.05


@pytest.mark.slow
def test_coverage_of_the_divergence():
    """The truth at the same bins and threshold: from 200,000 jets."""
    rng = np.random.default_rng(2)
    labels, scores, mass = sculpted(rng, 200_000, 1.0)
    background = labels == 0
    hits, studies = 0, 200
    for i in range(studies):
        y, s, m = sculpted(rng, 2000, 1.0)
        found = physics.mass_sculpting("student", TestJets(y, np.ones(2000), mass=m), s, 50, seed=i)
        edges = [-np.inf, *found.edges[1:-1], np.inf]
        passing = background & (scores >= np.sort(s[y == 1])[500])
        p, q = (np.histogram(mass[of], edges)[0].astype(float) for of in (passing, background))
        truth = float(physics._divergence(p, q))
        hits += found.low <= truth <= found.high
    assert hits / studies >= 0.90, hits  # bins are set by the same jets: a little below 95 %
    assert found.corrected < found.divergence


def test_memory_of_the_divergence_is_bounded():
    """All replicates of 10,000 background jets at once would take 160 MB."""
    labels, scores, mass = sculpted(np.random.default_rng(6), 20_000, 0.5)
    tracemalloc.start()
    try:
        physics.mass_sculpting("student", TestJets(labels, np.ones(20_000), mass=mass), scores, 50)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100e6, peak


def test_blocks_change_nothing(monkeypatch):
    labels, scores, mass = sculpted(np.random.default_rng(7), 2000, 0.5)
    whole = physics.mass_sculpting("student", TestJets(labels, np.ones(2000), mass=mass), scores, 50)
    monkeypatch.setattr(physics, "_BLOCK", 130_000)
    parts = physics.mass_sculpting("student", TestJets(labels, np.ones(2000), mass=mass), scores, 50)
    assert parts.p_value == pytest.approx(whole.p_value, abs=0.02)  # other random numbers
    assert parts.corrected == pytest.approx(whole.corrected, abs=0.002)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.005)


def test_too_few_jets_pass():
    labels, scores, mass = sculpted(np.random.default_rng(3), 60, 0.0)
    assert physics.mass_sculpting("student", TestJets(labels, np.ones(60), mass=mass), scores, 50) is None


# ---- calibration


def calibrated(rng, jets, slope=1.0, shift=0.0):
    """Labels drawn from σ(slope · score + shift)."""
    scores = 2.0 * rng.normal(size=jets)
    return (rng.uniform(size=jets) < 1.0 / (1.0 + np.exp(-(slope * scores + shift)))).astype(np.int64), scores


def test_calibration():
    labels, scores = calibrated(np.random.default_rng(0), 5000, slope=0.7, shift=0.3)
    w = np.random.default_rng(1).uniform(0.5, 1.5, 5000)
    found = physics.calibration("student", TestJets(labels, w), scores)
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(scores[:, None], labels, sample_weight=w)
    assert found.slope.value == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert found.intercept.value == pytest.approx(theirs.intercept_[0], rel=1e-4)
    assert found.slope.low < 0.7 < found.slope.high < 1.0
    p = 1.0 / (1.0 + np.exp(-scores))
    assert found.brier == pytest.approx(np.average((p - labels) ** 2, weights=w))
    assert found.log_loss == pytest.approx(-np.average(labels * np.log(p) + (1 - labels) * np.log1p(-p), weights=w))
    assert len(found.bins) == 10
    assert sum(b.jets for b in found.bins) == 5000
    assert found.expected_error > 0.03
    for b in found.bins:
        assert b.low <= b.observed <= b.high


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_coverage_of_slope_and_intercept(weighted):
    """Weights that spread, so that 1,000 jets fluctuate like 500. At 95 %, of which errors are the measure."""
    reach = stats.norm.isf(0.025)
    rng, hits, jets = np.random.default_rng(2), np.zeros(2), 1000 if weighted else 400
    for _ in range(STUDIES):
        labels, scores = calibrated(rng, jets)
        weights = rng.exponential(size=jets) if weighted else np.ones(jets)
        found = physics._logistic(labels, scores, weights)
        hits += [abs(e.value - truth) <= reach * e.error for e, truth in zip(found, (0.0, 1.0), strict=True)]
    assert all(within_binomial(hit, STUDIES, 0.95) for hit in hits), hits


def test_errors_are_statsmodels_where_jets_weigh_alike():
    labels, scores = calibrated(np.random.default_rng(3), 500, slope=0.8)
    theirs = sm.GLM(labels, sm.add_constant(scores), sm.families.Binomial()).fit(cov_type="HC0")
    found = physics._logistic(labels, scores, np.full(500, 7.0))
    np.testing.assert_allclose([e.error for e in found], theirs.bse, rtol=1e-6)


def test_intervals_of_calibration_are_of_the_report_s_tests():
    """Slope and intercept are two of twelve tests of networks, which share a part of the report's level."""
    labels, scores = calibrated(np.random.default_rng(4), 500)
    reach = stats.norm.isf(BUDGET["physics"] / 12 / 2)
    for e in physics._logistic(labels, scores, np.ones(500)):
        assert (e.low, e.high) == pytest.approx((e.value - reach * e.error, e.value + reach * e.error))


def test_scores_that_separate_have_no_slope():
    labels = np.arange(100) % 2
    scores = np.where(labels == 1, 5.0, -5.0) + np.arange(100) / 100
    found = physics.calibration("teacher", TestJets(labels, np.ones(100)), scores)
    assert found.slope is None
    assert found.expected_error < 0.01


# ---- the gap


def test_fieller():
    """The ends θ solve (gain − θ gap)² = q² Var(gain − θ gap)."""
    v1, v2, v12 = 1e-5, 3e-5, 0.5e-5
    quantile = 2.5
    found = physics.gap_recovered(0.01, 0.05, (v1, v2, v12), quantile)
    assert found.value == pytest.approx(0.2)
    for theta in (found.low, found.high):
        variance = v1 + theta**2 * v2 - 2.0 * theta * v12
        assert (0.01 - 0.05 * theta) ** 2 == pytest.approx(quantile**2 * variance)
    assert found.low < 0.2 < found.high
    assert physics.gap_recovered(0.01, 0.005, (v1, v2, v12), quantile).low is None  # a gap that may be 0
    assert physics.gap_recovered(0.01, -0.1, (v1, v2, v12), quantile) is None


@pytest.mark.slow
def test_coverage_of_the_gap_recovered():
    rng = np.random.default_rng(3)
    covariance = np.array([[1e-5, 0.5e-5], [0.5e-5, 6e-5]])
    hits = 0
    for gain, gap in rng.multivariate_normal([0.01, 0.04], covariance, size=STUDIES):
        variances = (covariance[0, 0], covariance[1, 1], covariance[0, 1])
        found = physics.gap_recovered(gain, gap, variances, stats.norm.isf(0.025))
        hits += found is not None and found.low is not None and found.low <= 0.25 <= found.high
    assert within_binomial(hits, STUDIES, 0.95)
    assert math.isfinite(found.value)


@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
def test_divergences_of_many_jets_are_distributed_as_those_of_few(weighted):
    rng = np.random.default_rng(1)
    place = rng.integers(0, 20, 40_000)
    weights = rng.uniform(0.2, 2.0, 40_000) if weighted else np.ones(40_000)
    cells = (np.eye(20)[place] * weights[:, None]).astype(np.float32)
    passed = rng.random(40_000) < 0.02 * (1.0 + 0.3 * (place > 10))
    few = physics._resampled_divergences(cells, passed, np.random.default_rng(2))
    many = physics._resampled_of_many(cells, passed, np.random.default_rng(3))
    for one, other in zip(few, many, strict=True):
        error = np.hypot(one.std(), other.std()) / len(one) ** 0.5
        assert abs(one.mean() - other.mean()) < 4 * error
        assert abs(np.log(one.std() / other.std())) < 4 / len(one) ** 0.5
