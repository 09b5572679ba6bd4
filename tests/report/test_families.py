"""Families of tests: against closed forms, scipy's studentised range, and a simulation written apart."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from kdfast.report.analysis import analyse_networks
from kdfast.report.families import (
    BUDGET,
    LEVEL_OF_REPORT,
    PHYSICS_LEVEL,
    AllPairs,
    adjust,
    alone,
    level_of,
)
from kdfast.report.fitting import Contrast, Part, Resampled, Scatter, critical
from kdfast.report.networks import METRICS, StudyNetworks
from kdfast.report.records import comparison_of
from tests.report.fake_study import SMALL_GRID, make_study
from tests.report.simulated import not_above_binomial

LEVEL = 0.0175
DRAWS = 40_000


def contrasts_of(t, covariance=None, df=math.inf):
    """Contrasts of these t values."""
    variances = np.ones(len(t)) if covariance is None else np.diag(covariance)
    return [Contrast(x * math.sqrt(v), v, 0.0, df) for x, v in zip(t, variances, strict=True)]


def family_p(adjusted, level=LEVEL):
    """p-values on the scale of the family, before they are scaled to the report's level."""
    return np.array([one.p_value * level / LEVEL_OF_REPORT for one in adjusted])


def simulation_error(p, draws=DRAWS):
    """Four standard deviations of a share of simulated studies, at least four of them."""
    return 4.0 * np.sqrt(np.maximum(p, 1.0 / draws) / draws)


def step_down(p_values, covariance, draws=200_000):
    """Westfall and Young's adjusted p-values, written out: for each contrast in the order of significance, the share of
    studies without effects in which it or any less significant one is at least as significant."""
    normal = np.random.default_rng(99).multivariate_normal(np.zeros(len(p_values)), covariance, draws)
    simulated = 2.0 * stats.norm.sf(np.abs(normal) / np.sqrt(np.diag(covariance)))
    found = np.zeros(len(p_values))
    remaining = list(np.argsort(p_values))
    highest = 0.0
    while remaining:
        smallest = simulated[:, remaining].min(axis=1)
        highest = max(highest, float(np.mean(smallest <= p_values[remaining[0]])))
        found[remaining.pop(0)] = highest
    return found


# ---- the budget


def test_the_budget_is_the_report_s_level():
    assert sum(BUDGET.values()) == pytest.approx(LEVEL_OF_REPORT)
    for family in BUDGET:
        parts = [level_of(family, metric, stages) for stages in (1, 2) for metric in METRICS for _ in range(stages)]
        assert sum(parts) == pytest.approx(2 * BUDGET[family])  # once for each number of stages
    tests_of_a_network = {"pt", "mass at 50 %", "slope", "intercept"}
    assert 3 * len(tests_of_a_network) * PHYSICS_LEVEL == pytest.approx(BUDGET["physics"])


@pytest.mark.parametrize("metric", METRICS)
def test_tests_of_choices_share_their_level(tmp_path, metric):
    """By AUC, all pairs and the agreement of seeds have half each."""
    study = StudyNetworks(make_study(tmp_path / "s", SMALL_GRID[:4], seeds=(1, 2)), [])
    study = StudyNetworks(study.store, study.store.results())
    level = level_of("choices", metric)
    assert study.pairs[metric].level == pytest.approx(level / 2 if metric == "auc" else level)
    agreement = analyse_networks(study).rank_agreement
    assert agreement.p_adjusted == pytest.approx(
        min(1.0, agreement.p_value * LEVEL_OF_REPORT / (level_of("choices", "auc") / 2))
    )


# ---- step-down tests


def test_independent_contrasts_are_sidak_s():
    t = np.array([0.3, -3.4, 2.6, 2.4, -1.0, 4.0])
    p = 2.0 * stats.norm.sf(np.abs(t))
    order = np.argsort(p)
    sidak = np.empty(len(t))
    sidak[order] = np.maximum.accumulate(1.0 - (1.0 - p[order]) ** np.arange(len(t), 0, -1))
    found = family_p(adjust(contrasts_of(t), np.eye(len(t)), 0.05), 0.05)
    np.testing.assert_array_less(np.abs(found - sidak), simulation_error(sidak))


def test_contrasts_that_are_one_count_once():
    """Perfectly correlated: the adjusted p-value is the contrast's own."""
    t = np.array([2.9, 1.5, -2.2, 0.1])
    p = 2.0 * stats.norm.sf(np.abs(t))
    covariance = 0.3**2 * np.ones((4, 4))
    found = family_p(adjust(contrasts_of(t, covariance), covariance, 0.05), 0.05)
    np.testing.assert_array_less(np.abs(found - p), simulation_error(p))


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_p_values_are_westfall_and_young_s(seed):
    rng = np.random.default_rng(seed)
    number = 12
    factor = rng.normal(size=(number, 6)) * rng.uniform(0.1, 10.0, (number, 1))
    covariance = factor @ factor.T + 0.3 * np.diag(np.diag(factor @ factor.T))
    contrasts = contrasts_of(rng.normal(size=number) * rng.choice([1.0, 3.0], number), covariance)
    expected = step_down(np.array([c.p_value for c in contrasts]), covariance)
    found = family_p(adjust(contrasts, covariance, 0.05), 0.05)
    error = simulation_error(expected) + simulation_error(expected, 200_000)
    np.testing.assert_array_less(np.abs(found - expected), error)


def test_only_correlations_count():
    covariance = np.array([[1.0, 0.5], [0.5, 1.0]])
    contrasts = contrasts_of([2.5, 2.0])
    (one, other), (again, last) = (adjust(contrasts, scale * covariance, LEVEL) for scale in (1.0, 7.0))
    assert (one.p_value, other.p_value) == pytest.approx((again.p_value, last.p_value))


def test_a_contrast_by_itself_is_not_adjusted():
    """Near the family's level and far from it: its p-value, scaled to the report's level, and its own interval."""
    for p in (1e-30, 1e-6, 0.9 * LEVEL, 0.99 * LEVEL, 1.01 * LEVEL, 1.1 * LEVEL, 0.2, 0.9):
        (contrast,) = contrasts_of([critical(p)])
        (found,) = adjust([contrast], np.eye(1), LEVEL)
        assert found.p_value == pytest.approx(alone(contrast, LEVEL).p_value, rel=1e-6)
        assert (found.low, found.high) == pytest.approx(
            (contrast.value - critical(LEVEL), contrast.value + critical(LEVEL))
        )


@pytest.mark.parametrize("t", [5.0, 9.0, 30.0])
def test_no_p_value_is_below_that_of_the_contrast_itself(t):
    """However few of the simulated studies reach it: none is exactly 0."""
    contrasts = contrasts_of([t, 1.0, 0.5])
    covariance = np.eye(3)
    tested = [*adjust(contrasts, covariance, LEVEL), AllPairs(covariance, LEVEL).adjust(contrasts[0])]
    for found in tested:
        own = found.contrast.p_value
        assert family_p([found])[0] >= min(own, LEVEL / 0.05) * (1.0 - 1e-9)  # scaled to the report, none exceeds 1
        assert family_p([found])[0] <= max(3 * own, 1.0 if own > 1e-4 else 0.0)


def random_family(seed, number, rank, singular):
    """Contrasts of covariances of any rank, of which some are 0 or the same contrast."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(number, rank)) * 10.0 ** rng.uniform(-3, 3, (number, 1))
    if singular:
        factor[rng.integers(number)] = 0.0
        factor[rng.integers(number)] = factor[rng.integers(number)]
    covariance = factor @ factor.T
    sigma = np.sqrt(np.diag(covariance))
    df = float(rng.choice([2.0, 5.0, 30.0, math.inf]))
    t = rng.normal(size=number) * rng.choice([1.0, 2.5, 8.0], number)
    contrasts = [Contrast(x * s, s**2, 0.0, df) for x, s in zip(t, sigma, strict=True)]
    return contrasts, covariance


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.booleans(), st.sampled_from([0.004, 0.0175]))
def test_intervals_agree_with_p_values(seed, number, rank, singular, level):
    contrasts, covariance = random_family(seed, number, rank, singular)
    tested = adjust(contrasts, covariance, level)
    order = np.argsort([c.p_value for c in contrasts], kind="stable")
    assert np.all(np.diff([tested[i].p_value for i in order]) >= 0.0)
    for one in tested:
        assert 0.0 <= one.p_value <= 1.0
        assert one.low <= one.contrast.value <= one.high
        assert (one.p_value < LEVEL_OF_REPORT) == (not one.low <= 0.0 <= one.high)
        comparison = comparison_of(one.contrast, 1.0, True, one)
        assert comparison.supported == (comparison.p_adjusted < LEVEL_OF_REPORT)


def baseline_contrasts(values, known, spread, df):
    """Contrasts with one baseline, whose poorly known scatter all of them have."""
    part = Part(spread**2, spread**2, df)
    return [Contrast(value, known**2, spread**2, df, (part,)) for value in values]


def test_a_scatter_that_all_share_counts_once():
    """Contrasts that differ in nothing else are one test."""
    contrasts = baseline_contrasts([0.3, 0.2, 0.25], 0.0, 0.02, 4)
    tested = adjust(contrasts, np.zeros((3, 3)), LEVEL, [Scatter(np.full((3, 3), 0.02**2), 4)])
    for one, contrast in zip(tested, contrasts, strict=True):
        assert one.p_value == pytest.approx(alone(contrast, LEVEL).p_value, rel=0.05, abs=4e-4)
        assert one.high - contrast.value == pytest.approx(contrast.half_width(LEVEL), rel=0.05)


@pytest.mark.parametrize("df", [2, 4, 12])
def test_scatters_against_a_simulation_written_apart(df):
    """The largest of independent normal errors and a shared one of Student's t."""
    number, known, spread = 6, 1.0, 0.8
    values = np.array([4.5, -3.6, 3.0, 2.5, 1.0, 0.2])
    shared = [Scatter(np.full((number, number), spread**2), df)]
    tested = adjust(baseline_contrasts(values, known, spread, df), known**2 * np.eye(number), LEVEL, shared)
    rng = np.random.default_rng(5)
    errors = known * rng.normal(size=(200_000, number)) + spread * rng.standard_t(df, (200_000, 1))
    below = np.maximum.accumulate(np.abs(errors)[:, ::-1], axis=1)[:, ::-1]
    p = np.maximum.accumulate(np.mean(below >= np.abs(values), axis=0))
    p = np.minimum(p, LEVEL / LEVEL_OF_REPORT)  # p-values on the report's scale end at 1
    assert np.all(np.abs(family_p(tested) - p) <= simulation_error(p) + 0.01 * p)


def test_draws_have_the_covariance_that_they_stand_for():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(3, 40))
    residuals = rng.choice([-1.0, 1.0], size=500) * 0.3
    chosen = np.array([2, 0])
    drawn = Resampled(weights, residuals).of(chosen).draws(np.random.default_rng(2), 20_000)
    np.testing.assert_allclose(np.cov(drawn.T), 0.09 * weights[chosen] @ weights[chosen].T, rtol=0.05, atol=0.05)
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    drawn = Scatter(covariance, 20).draws(np.random.default_rng(3), 40_000)
    np.testing.assert_allclose(np.cov(drawn.T), 20.0 / 18.0 * covariance, rtol=0.05)


def test_residuals_tell_the_tails():
    """One failed run among many makes the difference of its configuration no evidence."""
    number, seeds = 24, 5
    rng = np.random.default_rng(4)
    weights = np.kron(np.eye(number), np.full((1, seeds), 1.0 / seeds))
    residuals = rng.normal(size=number * seeds)
    residuals *= 1.0 / residuals.std()
    failed = residuals.copy()
    failed[0] = 12.0
    failed *= 1.0 / failed.std()
    contrasts = contrasts_of([4.6, *np.linspace(-1.5, 1.5, number - 1)], np.eye(number) / seeds)
    none = np.zeros((number, number))
    light, heavy = (adjust(contrasts, none, LEVEL, [Resampled(weights, pool)])[0] for pool in (residuals, failed))
    usual = adjust(contrasts, np.eye(number), LEVEL)[0]
    assert light.p_value == pytest.approx(usual.p_value, abs=5e-4)
    assert light.p_value < LEVEL_OF_REPORT < heavy.p_value
    assert heavy.high - heavy.low > 1.1 * (light.high - light.low)
    covariance = np.eye(number) / seeds
    usual, light, heavy = (
        AllPairs(covariance, LEVEL, scatter).quantile
        for scatter in (None, *(Resampled(weights, pool) for pool in (residuals, failed)))
    )
    assert light == pytest.approx(usual, rel=0.03)
    assert heavy > 1.1 * usual


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(2, 8))
def test_the_order_of_contrasts_does_not_matter(seed, number):
    contrasts, covariance = random_family(seed, number, number, False)
    tested = adjust(contrasts, covariance, 0.05)
    mixed = np.random.default_rng(seed).permutation(number)
    again = adjust([contrasts[i] for i in mixed], covariance[np.ix_(mixed, mixed)], 0.05)
    for place, i in enumerate(mixed):
        assert again[place].p_value == pytest.approx(tested[i].p_value, abs=1e-9)
        assert (again[place].low, again[place].high) == pytest.approx((tested[i].low, tested[i].high))


@pytest.mark.parametrize("near", np.linspace(0.97, 1.03, 13))
def test_intervals_agree_with_p_values_next_to_the_level(near):
    """Where simulated shares and quantiles are most likely to differ."""
    for correlation in (0.0, 0.5, 0.999):
        covariance = (1.0 - correlation) * np.eye(5) + correlation
        edge = AllPairs(np.eye(2), LEVEL).quantile if correlation > 0.9 else critical(LEVEL / 5)
        tested = adjust(contrasts_of([near * edge, 1.0, 0.5, 0.2, 0.1]), covariance, LEVEL)
        assert (tested[0].p_value < LEVEL_OF_REPORT) == (tested[0].low > 0.0)


def test_a_contrast_without_an_error_is_not_supported():
    """Networks whose jets tell no error: p = 1, whatever the value, and no interval that says otherwise."""
    contrasts = [
        Contrast(0.1, 0.0, 0.0, math.inf),
        Contrast(0.0, 0.0, 0.0, math.inf),
        Contrast(4.0, 1.0, 0.0, math.inf),
    ]
    unknown, equal, known = adjust(contrasts, np.diag([0.0, 0.0, 1.0]), LEVEL)
    assert (unknown.p_value, equal.p_value) == (1.0, 1.0)
    assert known.p_value < LEVEL_OF_REPORT
    for one in (unknown, equal):
        assert one.low <= 0.0 <= one.high
        assert not comparison_of(one.contrast, 1.0, True, one).supported


def test_few_degrees_of_freedom():
    """The interval has Student's quantile, the test its p-value: ten errors of one degree of freedom are none."""
    contrast = Contrast(10.0, 0.0, 1.0, 1.0)
    (one,) = adjust([contrast], np.eye(1), LEVEL)
    assert contrast.p_value == pytest.approx(2 * stats.t.sf(10.0, 1))
    assert one.p_value > LEVEL_OF_REPORT
    assert one.high - one.contrast.value == pytest.approx(stats.t.isf(LEVEL / 2, 1), rel=0.05)


def test_one_of_a_fixed_number():
    """Bonferroni's part of a level."""
    contrast = Contrast(3.0, 1.0, 0.0, math.inf)
    found = alone(contrast, PHYSICS_LEVEL)
    assert found.p_value == pytest.approx(min(1.0, 80 * 2 * stats.norm.sf(3.0)))
    assert found.high - 3.0 == pytest.approx(stats.norm.isf(PHYSICS_LEVEL / 2))
    turned = found.times(-1.0)
    assert (turned.low, turned.high, turned.contrast.value) == (-found.high, -found.low, -3.0)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_family_s_error_rate(correlation):
    """No contrast is there: any is claimed at most at the family's level; with one that is, the others still are."""
    number, studies, level = 8, 300, 0.05
    covariance = (1.0 - correlation) * np.eye(number) + correlation
    draws = np.random.default_rng(3).multivariate_normal(np.zeros(number), covariance, studies)
    for shift in (0.0, 6.0):
        claims = 0
        for t in draws:
            values = t + np.r_[shift, np.zeros(number - 1)]
            tested = adjust(contrasts_of(values), covariance, level)
            claims += any(family_p([one], level)[0] < level for one in tested[shift > 0.0 :])
        assert not_above_binomial(claims, studies, level)


# ---- all pairs


@pytest.mark.parametrize("number", [2, 5, 20])
def test_all_pairs_are_tukey_s(number):
    """Independent, of equal variance: the studentised range over √2."""
    pairs = AllPairs(0.3**2 * np.eye(number), 0.05)
    tukey = stats.studentized_range(number, math.inf)
    assert pairs.quantile == pytest.approx(tukey.ppf(0.95) / math.sqrt(2.0), rel=0.01)
    assert np.all(pairs.errors[~np.eye(number, dtype=bool)] == pytest.approx(0.3 * math.sqrt(2.0)))
    for t in (1.0, 2.5, 3.5):
        found = pairs.adjust(Contrast(t, 1.0, 0.0, math.inf)).p_value
        expected = tukey.sf(t * math.sqrt(2.0))
        assert abs(found - expected) < simulation_error(expected)


def test_what_all_configurations_share_cancels_in_pairs():
    alone_, shared = (AllPairs(np.eye(6) + common, 0.05) for common in (0.0, 100.0))
    np.testing.assert_allclose(alone_.errors, shared.errors)
    assert alone_.quantile == pytest.approx(shared.quantile, rel=1e-3)


def test_many_configurations_have_a_bound_of_their_range(monkeypatch):
    """Beyond a thousand the range over the smallest error: never below the quantile of all pairs."""
    covariance = np.diag(np.linspace(1.0, 2.0, 30))
    exact = AllPairs(covariance, 0.05).quantile
    monkeypatch.setattr("kdfast.report.families._MOST_PAIRED", 29)
    assert AllPairs(covariance, 0.05).quantile > exact


def test_pairs_of_equal_networks():
    pairs = AllPairs(np.ones((3, 3)), 0.05)
    found = pairs.adjust(Contrast(0.0, 0.0, 0.0, math.inf))
    assert (found.p_value, found.low, found.high) == (1.0, 0.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_a_variance_that_rounding_makes_negative_is_none():
    """Two networks that score alike: what they share cancels, but for rounding."""
    covariance = np.array([[-1.4e-17, 1.4e-17], [1.4e-17, -1.4e-17]])
    contrast = Contrast(0.0, 0.0, 0.0, math.inf)
    assert AllPairs(0.1 + covariance, 0.05).adjust(contrast).p_value == 1.0
    assert [one.p_value for one in adjust([contrast, contrast], covariance, 0.05)] == [1.0, 1.0]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(2, 10), st.integers(1, 10))
def test_intervals_of_pairs_agree_with_p_values(seed, number, rank):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(number, rank))
    values = factor @ rng.normal(size=rank) * rng.choice([0.5, 2.0, 5.0])
    pairs = AllPairs(factor @ factor.T, 0.05)
    for i in range(number):
        for j in range(i):
            found = pairs.adjust(Contrast(values[i] - values[j], pairs.errors[i, j] ** 2, 0.0, math.inf))
            assert (found.p_value < LEVEL_OF_REPORT) == (not found.low <= 0.0 <= found.high)
