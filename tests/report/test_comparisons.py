"""Paired comparisons on shared jets and seeds: against statsmodels and theory; coverage, false claims by simulation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests

from kdfast.report.comparisons import Baselines, baseline, best_of_equals, configurations, holm, to_separate
from kdfast.report.families import LEVEL_OF_REPORT, AllPairs, adjust
from kdfast.report.fitting import Contrast, Part, Scatter, fit
from kdfast.report.ranking import _best_set, rank_agreement
from kdfast.report.sampling import Estimates, auc_estimates
from tests.report.simulated import STUDIES, noise_factor, not_above_binomial, within_binomial

CONFIGS, SEEDS = 6, 4

# Simulated studies where each simulates its own family of tests.
FAMILIES = 300
NAMES = [f"c{c}" for c in range(CONFIGS) for _ in range(SEEDS)]
BLOCKS = [s for _ in range(CONFIGS) for s in range(SEEDS)]


def simulated(truth, seed_spread, studies, seed=0, factor=None):
    """Studies of CONFIGS × SEEDS runs: truth [CONFIGS], test jets' noise with a known factor, a seed's common effect,
    and noise of each run."""
    rng = np.random.default_rng(seed)
    factor = noise_factor(CONFIGS * SEEDS) if factor is None else factor
    for _ in range(studies):
        values = np.repeat(np.asarray(truth, float), SEEDS) + factor @ rng.normal(size=factor.shape[1])
        values += np.tile(0.004 * rng.normal(size=SEEDS), CONFIGS) + seed_spread * rng.normal(size=len(values))
        yield configurations(Estimates(values, factor), NAMES, BLOCKS)


def best_set(students, level=LEVEL_OF_REPORT):
    """The set of the best, with a level of its own."""
    study = SimpleNamespace(students={"auc": students}, pairs={"auc": AllPairs(students.noise(), level)})
    return _best_set(study, "auc")


def differences(*compared):
    return Baselines(compared[0].students, compared).differences()


def covariance_of(*compared):
    """Of all errors."""
    _, known, scatters = differences(*compared)
    assert all(isinstance(scatter, Scatter) for scatter in scatters)  # as these have few runs
    return known + sum(scatter.covariance for scatter in scatters)


def error_of(contrast):
    """With mean squares for the variances that are estimated from few runs, less what of these the test jets make."""
    known = contrast.test_variance + contrast.run_variance - sum(part.variance for part in contrast.parts)
    return math.sqrt(known + sum(part.mean_square - part.test for part in contrast.parts))


def as_family(*compared, level=LEVEL_OF_REPORT):
    contrasts, covariance, scatters = differences(*compared)
    return adjust(contrasts, covariance, level, scatters)


def gains(compared):
    """Each configuration minus the baseline by name, and (None) their mean."""
    contrasts, _, _ = differences(compared)
    return dict(zip((*compared.students.names, None), contrasts, strict=True))


def claims_of(compared, level=LEVEL_OF_REPORT):
    """Whether any of these is significant, as one family."""
    return any(one.p_value < LEVEL_OF_REPORT for one in as_family(compared, level=level))


# ---- least squares with two sources of error


def test_fit_is_ordinary_least_squares_without_shared_noise():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(30), rng.normal(size=(30, 3))])
    y = x @ [1.0, 2.0, 0.0, -1.0] + rng.normal(size=30)
    ours, theirs = fit(Estimates(y, np.zeros((30, 1))), x), sm.OLS(y, x).fit()
    np.testing.assert_allclose(ours.coefficients, theirs.params)
    assert ours.df == theirs.df_resid
    for i, weights in enumerate(np.eye(4)):
        contrast = ours.contrast(weights)
        assert contrast.error == pytest.approx(theirs.bse[i])
        assert contrast.p_value == pytest.approx(theirs.pvalues[i])
        np.testing.assert_allclose(contrast.interval, theirs.conf_int()[i])


def test_fit_with_shared_noise_alone_is_generalised_least_squares_with_its_known_covariance():
    rng = np.random.default_rng(1)
    x = np.column_stack([np.ones(12), rng.normal(size=12)])
    factor = noise_factor(12, size=1.0)
    ours = fit(Estimates(x @ [1.0, 2.0], factor), x)  # no scatter about the model
    assert ours.run_variance == 0.0
    solve = np.linalg.inv(x.T @ x) @ x.T
    np.testing.assert_allclose(ours.factor @ ours.factor.T, solve @ factor @ factor.T @ solve.T)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 6, 8, 10, 19, 29])
@pytest.mark.parametrize("test_variance", [0.0, 1.0, 50.0])
def test_the_p_value_is_the_level_whose_bounds_reach_the_value(df, test_variance):
    """A variance of few degrees of freedom has a bound of its own: for all, whatever the jets' part is."""
    falling = []
    for value in (0.5, 2.0, 5.0, 20.0, 100.0):
        part = Part(2.0, 2.0, df)
        contrast = Contrast(value, test_variance, 2.0, 2.0 * df, (part,))
        p = contrast.p_value
        smallest = p < 1.01e-16  # where the search ends
        assert smallest or p == 1.0 or contrast.half_width(p) == pytest.approx(value, rel=1e-4)
        assert not smallest or contrast.half_width(p) <= value
        assert contrast.times(-1.0).p_value == p
        assert p >= 2.0 * stats.norm.sf(value / math.sqrt(2.0 + test_variance))
        falling.append(p)
    assert np.all(np.diff(falling) <= 0.0)
    assert falling[0] == 1.0 or falling[0] > 0.5


@pytest.mark.parametrize("df", [1, 2, 3, 4, 6, 8, 10, 19, 29, 40])
def test_a_variance_from_runs_alone_is_student_s_t(df):
    for t in (0.5, 2.0, 5.0, 20.0):
        contrast = Contrast(0.3 * t, 0.0, 0.09, df, (Part(0.09, 0.09, df),))
        assert contrast.p_value == pytest.approx(2.0 * stats.t.sf(t, df), rel=1e-4)


@pytest.mark.parametrize("df", [1, 2, 4, 16])
@pytest.mark.parametrize("ratio", [0.05, 0.5, 3.0, 100.0])
def test_the_sum_of_a_normal_error_and_student_s_t(ratio, df):
    """Against scipy's integral."""
    contrast = Contrast(0.0, 1.0, ratio**2, df, (Part(ratio**2, ratio**2, df),))
    distances = np.array([0.1, 1.0, 3.0, 8.0]) * contrast.error
    for distance, found in zip(distances, contrast.bound.beyond(distances), strict=True):
        right, _ = integrate.quad(
            lambda z, d=distance: 2.0 * stats.t.sf((d - z) / ratio, df) * stats.norm.pdf(z),
            *(-12.0, 12.0),
            points=[min(distance, 11.0)],
            limit=400,
        )
        assert found == pytest.approx(right, rel=1e-5)
        assert contrast.half_width(found) == pytest.approx(distance, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("level", [0.05, 0.002])
def test_few_degrees_of_freedom_hold_small_levels(ratio, level):
    """Test jets' part of known variance 1, and one of `ratio` of three runs: claims no more often than the level."""
    rng, studies, df = np.random.default_rng(12), 40_000, 2
    values = rng.normal(size=studies) + math.sqrt(ratio) * rng.normal(size=studies)
    estimated = ratio * rng.chisquare(df, studies) / df
    claims = 0
    for value, variance in zip(values, estimated, strict=True):
        contrast = Contrast(value, 1.0, variance, math.inf, (Part(variance, variance, df),))
        claims += abs(value) > contrast.half_width(level)
    assert not_above_binomial(claims, studies, level)


def test_what_the_design_cannot_tell_is_none():
    x = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    model = fit(Estimates(np.arange(3.0), np.zeros((3, 1))), x)
    assert model.contrast(np.array([1.0, 0.0])) is None
    assert model.contrast(np.array([1.0, 1.0])).value == pytest.approx(1.0)


@pytest.mark.slow
@pytest.mark.parametrize("seed_spread", [0.0, 0.001, 0.004])
def test_coverage_of_differences(seed_spread):
    truth = [0.0, 0.001, 0.002, 0.003, 0.004, 0.005]
    hits, run_variance = 0, []
    for study in simulated(truth, seed_spread, STUDIES):
        low, high = study.difference("c4", "c1").interval
        hits += low <= 0.003 <= high
        run_variance.append(study.model.run_variance)
    if seed_spread:
        assert within_binomial(hits, STUDIES, 0.95)
        assert np.mean(run_variance) == pytest.approx(seed_spread**2, rel=0.2)
    else:  # a variance is never below 0, so that without any the intervals are a little wide
        assert hits / STUDIES >= 0.94


@pytest.mark.slow
def test_coverage_of_absolute_values():
    """A seed moves all configurations alike: that counts in the number of one, not in differences."""
    hits = 0
    for study in simulated([0.8] * CONFIGS, 0.002, STUDIES, factor=noise_factor(CONFIGS * SEEDS, size=0.001)):
        low, high = study.estimate("c2").interval
        hits += low <= 0.8 <= high
    assert 0.93 <= hits / STUDIES <= 0.985  # three degrees of freedom of the seeds' common variance


def test_different_seeds():
    """A seed that lifts all configurations does not favour those that have it."""
    names, seeds = ["a", "a", "a", "b", "b"], [1, 2, 3, 1, 2]
    values = np.array([0.80, 0.81, 0.90, 0.70, 0.71])  # b + 0.1; seed 3: + 0.1
    study = configurations(Estimates(values, np.zeros((5, 1))), names, seeds)
    assert study.difference("a", "b").value == pytest.approx(0.1)
    np.testing.assert_allclose(study.values, [0.8366667, 0.7366667], atol=1e-6)


@pytest.mark.parametrize("runs", [4, 7])
def test_means_that_the_runs_do_not_tell(runs):
    """Each run a seed of its own: there is no mean over all seeds, and a configuration's number is that of its runs."""
    names, seeds = ["a", "b", "c", "d", "a", "b", "c"][:runs], list(range(runs))
    values = np.array([0.90, 0.80, 0.82, 0.81, 0.92, 0.78, 0.82])[:runs]
    factor = noise_factor(runs, size=0.001)
    study = configurations(Estimates(values, factor), names, seeds)
    assert not study.connected
    own = {name: [k for k in range(runs) if names[k] == name] for name in "abcd"}
    assert list(study.values) == pytest.approx([values[rows].mean() for rows in own.values()])
    assert study.seeds_known == (runs > 4)
    difference = study.difference("a", "b")
    assert difference.value == pytest.approx(values[own["a"]].mean() - values[own["b"]].mean())
    shared = factor[own["a"]].mean(axis=0) - factor[own["b"]].mean(axis=0)
    assert difference.test_variance == pytest.approx(shared @ shared)
    assert (difference.run_variance > 0) == (runs > 4)
    compared = baseline(study, Estimates(values[:2] - 0.1, factor[:2]), [0, 1])
    assert compared.value == pytest.approx(values[:2].mean() - 0.1)
    assert gains(compared)["d"].value == pytest.approx(0.81 - compared.value)


@pytest.mark.slow
def test_coverage_of_means_that_share_no_seeds():
    """What a seed does to all is then part of the rest, and intervals of differences hold it."""
    rng, hits = np.random.default_rng(7), 0
    names, seeds = ["a"] * 4 + ["b"] * 4, list(range(8))
    factor = noise_factor(8, size=0.001)
    for _ in range(STUDIES):
        values = np.repeat([0.8, 0.81], 4) + factor @ rng.normal(size=factor.shape[1]) + 0.005 * rng.normal(size=8)
        low, high = configurations(Estimates(values, factor), names, seeds).difference("b", "a").interval
        hits += low <= 0.01 <= high
    assert within_binomial(hits, STUDIES, 0.95)


def test_one_seed_is_delong_s_test():
    rng = np.random.default_rng(3)
    labels = np.arange(600) % 2
    shared = rng.normal(size=600)
    scores = np.stack([shared + 0.3 * rng.normal(size=600) + d * labels for d in (1.0, 1.1)])
    estimates = auc_estimates(labels, scores, np.ones(600))
    study = configurations(estimates, ["a", "b"], [1, 1])
    covariance = estimates.factor @ estimates.factor.T
    difference = study.difference("b", "a")
    assert not study.seeds_known
    assert difference.error == pytest.approx(math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    z = (estimates.values[1] - estimates.values[0]) / difference.error
    assert difference.p_value == pytest.approx(2 * stats.norm.sf(abs(z)))


def with_baseline(seed_spread, studies, seed=0, seeds=SEEDS):
    """Equal configurations, and a baseline that a seed moves by itself: it does not share the teacher's targets.
    seeds: how many the baseline has."""
    rng, runs = np.random.default_rng(seed), CONFIGS * SEEDS
    factor = noise_factor(runs + SEEDS)
    for _ in range(studies):
        values = 0.8 + factor @ rng.normal(size=factor.shape[1]) + 0.0005 * rng.normal(size=len(factor))
        values += np.tile(0.004 * rng.normal(size=SEEDS), CONFIGS + 1)
        values[runs:] += seed_spread * rng.normal(size=SEEDS)
        students = configurations(Estimates(values[:runs], factor[:runs]), NAMES, BLOCKS)
        last = runs + seeds
        yield baseline(students, Estimates(values[runs:last], factor[runs:last]), range(seeds))


@pytest.mark.slow
@pytest.mark.parametrize("seed_spread", [0.0005, 0.005])
def test_no_false_gain_over_a_baseline_with_seeds_of_its_own(seed_spread):
    claims = hits = 0
    for compared in with_baseline(seed_spread, FAMILIES):
        claims += claims_of(compared)
        low, high = gains(compared)[None].interval
        hits += low <= 0.0 <= high
    assert not_above_binomial(claims, FAMILIES, 0.05)
    assert hits / FAMILIES >= 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_no_false_gain_over_a_baseline_of_few_seeds(seeds):
    """An unfinished study: with one seed's baseline and students of four, another seed's is not known."""
    claims = 0
    for compared in with_baseline(0.005, FAMILIES, seeds=seeds):
        claims += compared is not None and claims_of(compared)
    assert not_above_binomial(claims, FAMILIES, 0.05)
    assert (compared is None) == (seeds == 1)


def test_the_baseline_is_paired_by_seed():
    """By hand: differences in each seed, and their mean."""
    (compared,) = with_baseline(0.003, 1)
    students = compared.students
    by_seed = students.runs.values[students.rows].mean(axis=1)
    own = compared.value - students.values.mean()
    assert gains(compared)[None].value == pytest.approx(-own)
    assert gains(compared)["c2"].value == pytest.approx(students.values[2] - compared.value)
    assert compared.level.df == SEEDS - 1
    assert compared.value == pytest.approx(own + by_seed.mean())


def test_the_covariance_of_gains():
    """Its diagonal is the squared errors of the contrasts; two gains differ as their configurations do; the last is the
    mean of the configurations' gains."""
    (compared,) = with_baseline(0.003, 1)
    contrasts, covariance = differences(compared)[0], covariance_of(compared)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [error_of(c) for c in contrasts])
    paired = compared.students.difference("c1", "c4")
    assert contrasts[1].value - contrasts[4].value == pytest.approx(paired.value)
    assert covariance[1, 1] + covariance[4, 4] - 2 * covariance[1, 4] == pytest.approx(error_of(paired) ** 2)
    mean = np.r_[np.full(CONFIGS, 1 / CONFIGS), 0.0]
    assert contrasts[-1].value == pytest.approx(np.mean([c.value for c in contrasts[:-1]]))
    np.testing.assert_allclose(mean @ covariance[:, :-1], covariance[-1, :-1])
    assert mean @ covariance @ mean == pytest.approx(error_of(contrasts[-1]) ** 2)


def test_each_configuration_has_the_baseline_of_its_group():
    """Contrasts of a group as without the others; of different baselines only jets and configurations are shared."""
    rng = np.random.default_rng(9)
    factor = noise_factor((CONFIGS + 2) * SEEDS)
    values = 0.8 + factor @ rng.normal(size=factor.shape[1]) + 0.002 * rng.normal(size=len(factor))
    runs = CONFIGS * SEEDS
    students = configurations(Estimates(values[:runs], factor[:runs]), NAMES, BLOCKS)
    groups = [[0, 2], [1, *range(3, CONFIGS)]]
    parts = [slice(runs, runs + SEEDS), slice(runs + SEEDS, None)]
    each = [
        baseline(students, Estimates(values[part], factor[part]), range(SEEDS), group)
        for part, group in zip(parts, groups, strict=True)
    ]
    together = Baselines(students, tuple(each))
    contrasts, covariance = together.differences()[0], covariance_of(*each)
    assert together.names == students.names
    for one, group in zip(each, groups, strict=True):
        alone, own = differences(one)[0], covariance_of(one)
        assert Baselines(students, (one,)).names == tuple(students.names[i] for i in group)
        for i, contrast in zip(group, alone, strict=False):
            assert contrasts[i].value == pytest.approx(contrast.value)
            assert contrasts[i].value == pytest.approx(students.values[i] - one.value)
            assert contrasts[i].error == pytest.approx(contrast.error)
            assert together.of(students.names[i]) is one
        np.testing.assert_allclose(covariance[np.ix_(group, group)], own[:-1, :-1])
    assert contrasts[-1].value == pytest.approx(np.mean([c.value for c in contrasts[:-1]]))
    assert error_of(contrasts[-1]) == pytest.approx(math.sqrt(covariance[-1, -1]))
    assert covariance[-1, -1] == pytest.approx(covariance[:-1, :-1].mean())


@pytest.mark.slow
def test_no_false_gain_over_several_baselines():
    rng = np.random.default_rng(10)
    factor = noise_factor((CONFIGS + 2) * SEEDS)
    runs = CONFIGS * SEEDS
    half = CONFIGS // 2
    claims = 0
    for _ in range(FAMILIES):
        values = 0.8 + factor @ rng.normal(size=factor.shape[1]) + 0.0005 * rng.normal(size=len(factor))
        values += np.tile(0.004 * rng.normal(size=SEEDS), CONFIGS + 2)
        values[runs:] += 0.003 * rng.normal(size=2 * SEEDS)
        students = configurations(Estimates(values[:runs], factor[:runs]), NAMES, BLOCKS)
        first, second = (
            baseline(students, Estimates(values[part], factor[part]), range(SEEDS), group)
            for part, group in (
                (slice(runs, runs + SEEDS), range(half)),
                (slice(runs + SEEDS, None), range(half, CONFIGS)),
            )
        )
        tested = as_family(first, second)
        claims += any(one.p_value < LEVEL_OF_REPORT for one in tested)
    assert not_above_binomial(claims, FAMILIES, 0.05)


def test_the_mean_gain_is_a_paired_t_test():
    """Without noise that runs share: of the baseline and the mean of the configurations in each seed."""
    rng = np.random.default_rng(8)
    values = 0.8 + 0.01 * rng.normal(size=CONFIGS * SEEDS)
    own = 0.79 + 0.01 * rng.normal(size=SEEDS)
    students = configurations(Estimates(values, np.zeros((len(values), 1))), NAMES, BLOCKS)
    compared = baseline(students, Estimates(own, np.zeros((SEEDS, 1))), range(SEEDS))
    by_seed = values.reshape(CONFIGS, SEEDS).mean(axis=0)
    theirs = stats.ttest_rel(by_seed, own)
    mean = gains(compared)[None]
    assert (mean.df, mean.p_value) == (SEEDS - 1, pytest.approx(theirs.pvalue))
    np.testing.assert_allclose(mean.interval, theirs.confidence_interval(0.95))


def test_four_runs_are_no_certainty():
    """Two configurations by two seeds, exactly on the model: its one degree of freedom shows no scatter, which is not
    an error of 0 with p = 0."""
    values = np.array([0.80, 0.81, 0.82, 0.83])
    students = configurations(Estimates(values, np.zeros((4, 1))), ["a", "a", "b", "b"], [1, 2, 1, 2])
    assert students.model.df == 1
    difference = students.difference("b", "a")
    assert (difference.value, difference.p_value) == (pytest.approx(0.02), 1.0)
    assert AllPairs(students.noise(), 0.05).adjust(difference).p_value == 1.0
    compared = baseline(students, Estimates(values[:2] - 0.1, np.zeros((2, 1))), [1, 2])
    assert {one.p_value for one in as_family(compared)} == {1.0}


def test_one_configuration_s_seeds():
    """Its runs' own scatter is the variance between seeds: Student's t of its values, and of its gain in each seed."""
    values, own = np.array([0.80, 0.83, 0.81]), np.array([0.79, 0.80, 0.80])
    study = configurations(Estimates(values, np.zeros((3, 1))), ["a"] * 3, [1, 2, 3])
    assert study.seeds_known
    estimate, expected = study.estimate("a"), stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (estimate.df, estimate.test_variance) == (2, 0.0)
    np.testing.assert_allclose(estimate.interval, expected)
    gain = gains(baseline(study, Estimates(own, np.zeros((3, 1))), [1, 2, 3]))["a"]
    assert gain.p_value == pytest.approx(stats.ttest_rel(values, own).pvalue)
    assert baseline(study, Estimates(own[:1], np.zeros((1, 1))), [1]) is None


# ---- many comparisons


@pytest.mark.parametrize("number", [1, 2, 30])
def test_holm_s_p_values(number):
    p = np.random.default_rng(number).uniform(size=number) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    assert holm([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed_spread", [0.0005, 0.003])
def test_false_claims_without_an_effect(seed_spread):
    """Equal configurations: how often any two are called different, or the set of the best leaves out any."""
    claims = missed = 0
    for study in simulated([0.8] * CONFIGS, seed_spread, FAMILIES, seed=4):
        pairs = AllPairs(study.noise(), LEVEL_OF_REPORT)
        p = [pairs.adjust(study.difference(f"c{i}", f"c{j}")).p_value for i in range(CONFIGS) for j in range(i)]
        claims += min(p) < LEVEL_OF_REPORT
        missed += len(best_set(study)) < CONFIGS
    assert not_above_binomial(claims, FAMILIES, 0.05)
    assert not_above_binomial(missed, FAMILIES, 0.05)


@pytest.mark.slow
def test_the_set_of_the_best():
    """It holds the best in 95 % of studies, and leaves out what is clearly worse."""
    missed = sizes = 0
    for study in simulated([0.80, 0.80, 0.801, 0.79, 0.79, 0.77], 0.001, FAMILIES, seed=5):
        inside = best_set(study)
        missed += "c2" not in inside
        sizes += len(inside)
        assert "c5" not in inside
    assert not_above_binomial(missed, FAMILIES, 0.05)
    assert 2.0 < sizes / FAMILIES < 4.0


def test_the_set_of_the_best_by_hand():
    """Those that no other exceeds by more than Tukey's quantile times the error of their difference."""
    for study in simulated([0.80, 0.80, 0.801, 0.799, 0.798, 0.79], 0.001, 20, seed=6):
        pairs = AllPairs(study.noise(), LEVEL_OF_REPORT)
        expected = set()
        for one in study.names:
            differences = [study.difference(other, one) for other in study.names if other != one]
            level = 2.0 * stats.norm.sf(pairs.quantile)
            beaten = [d.value > d.half_width(level) for d in differences]
            if not any(beaten):
                expected.add(one)
        assert best_set(study) == expected


def test_equal_networks():
    """Two names of one network: no error, no difference."""
    factor = np.tile(noise_factor(1), (2, 1))
    study = configurations(Estimates(np.array([0.8, 0.8]), factor), ["a", "b"], [1, 1])
    assert study.difference("a", "b").p_value == 1.0
    assert best_set(study) == {"a", "b"}


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_best_of_132_equal_ones(correlation):
    """2.6 σ √(1 − ρ) too high."""
    covariance = 0.01**2 * ((1.0 - correlation) * np.eye(132) + correlation)
    assert best_of_equals(covariance) == pytest.approx(2.63 * 0.01 * math.sqrt(1 - correlation), rel=0.03)


def test_a_choice_on_validation_carries_the_seeds_luck_alone():
    """Chosen by x = seed + validation noise, quoted by seed + test noise: E = σ_s²/√(σ_s² + σ_v²) · 2.6."""
    seeds, validation = 0.02**2 * np.eye(132), 0.01**2 * np.eye(132)
    expected = 2.63 * 0.02**2 / math.hypot(0.02, 0.01)
    assert best_of_equals(seeds + validation, seeds) == pytest.approx(expected, rel=0.03)
    assert best_of_equals(validation, 0.0 * seeds) == pytest.approx(0.0, abs=1e-9)


def test_seeds_and_jets_to_separate():
    """With as many as it says, the difference is (1.96 + 0.84) errors."""
    difference = Contrast(0.003, test_variance=1e-6, run_variance=2e-6, df=20.0)
    seeds, jets = to_separate(difference, seeds=3, jets=1000)
    allowed = (0.003 / (1.95996 + 0.84162)) ** 2
    assert 1e-6 + 2e-6 * 3 / seeds <= allowed < 1e-6 + 2e-6 * 3 / (seeds - 1)
    assert jets is None  # the seeds' part alone is too large
    few = Contrast(0.005, 2e-6, 1e-6, 20.0)
    _, jets = to_separate(few, seeds=3, jets=1000)
    allowed = (0.005 / (1.95996 + 0.84162)) ** 2
    assert 1e-6 + 2e-6 * 1000 / jets <= allowed
    assert to_separate(Contrast(0.0, 1e-6, 0.0, math.inf), seeds=1, jets=10) == (None, None)


@pytest.mark.slow
def test_networks_of_seeds_on_jets():
    """End to end from scores: four equal configurations with seeds of different strength; claims and coverage."""
    rng = np.random.default_rng(6)
    jets, configs, seeds = 400, 4, 3
    labels = np.arange(jets) % 2
    names, blocks = [f"c{c}" for c in range(configs) for _ in range(seeds)], list(range(seeds)) * configs
    claims = hits = 0
    for _ in range(FAMILIES):
        strength = (
            1.2 + 0.08 * rng.normal(size=(configs * seeds, 1)) + 0.1 * np.tile(rng.normal(size=seeds), configs)[:, None]
        )
        scores = rng.normal(size=jets) + 0.4 * rng.normal(size=(configs * seeds, jets)) + strength * labels
        study = configurations(auc_estimates(labels, scores, np.ones(jets)), names, blocks)
        pairs = AllPairs(study.noise(), LEVEL_OF_REPORT)
        differences = [study.difference(f"c{i}", f"c{j}") for i in range(configs) for j in range(i)]
        claims += min(pairs.adjust(difference).p_value for difference in differences) < LEVEL_OF_REPORT
        low, high = differences[0].interval
        hits += low <= 0.0 <= high
    assert not_above_binomial(claims, FAMILIES, 0.05)
    assert within_binomial(hits, FAMILIES, 0.95)


# ---- the order of configurations under different seeds


def agreement_of(students, **options):
    study = SimpleNamespace(students={"auc": students}, comparable=("auc",), stages=1)
    return rank_agreement(study, **options)


def test_rank_agreement_is_the_mean_of_spearman_s():
    (study,) = simulated([0.8] * CONFIGS, 0.003, 1, seed=9)
    found = agreement_of(study)
    by_seed = study.runs.values[study.rows]
    pairs = [stats.spearmanr(by_seed[i], by_seed[j]).statistic for i in range(SEEDS) for j in range(i)]
    assert found.rho == pytest.approx(np.mean(pairs))
    assert (found.seeds, found.configurations) == (SEEDS, CONFIGS)
    assert found.p_adjusted >= found.p_value


def test_equal_configurations_on_common_jets_agree_by_the_jets_alone():
    """Each configuration's runs fluctuate with the same jets: ρ is what those jets make, and is expected as such."""
    of_configs = noise_factor(CONFIGS, correlation=0.5)
    factor = np.repeat(of_configs, SEEDS, axis=0)
    rhos, expected = [], []
    for study in simulated([0.8] * CONFIGS, 0.002, 150, seed=10, factor=factor):
        found = agreement_of(study, simulated=300)
        rhos.append(found.rho)
        expected.append(found.expected)
    assert np.mean(rhos) > 0.4
    assert np.mean(expected) == pytest.approx(np.mean(rhos), abs=4 * np.std(rhos) / math.sqrt(len(rhos)) + 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.5, 0.95])
def test_equal_configurations_do_not_agree(correlation):
    factor = np.repeat(noise_factor(CONFIGS, correlation=correlation), SEEDS, axis=0)
    claims = 0
    for study in simulated([0.8] * CONFIGS, 0.002, FAMILIES, seed=11, factor=factor):
        claims += agreement_of(study, simulated=400).p_value < 0.05
    assert not_above_binomial(claims, FAMILIES, 0.05)


def test_different_configurations_agree():
    """Far apart compared with seeds and jets: each study says so, at the report's own level."""
    truth = 0.8 + 0.02 * np.arange(CONFIGS)
    for study in simulated(truth, 0.002, 10, seed=12):
        found = agreement_of(study)
        assert found.rho > 0.9
        assert found.p_adjusted < LEVEL_OF_REPORT


def test_no_agreement_where_nothing_can_agree():
    (study,) = simulated([0.8] * CONFIGS, 0.002, 1)
    assert agreement_of(study.without("c0", "c1", "c2")) is None  # three have few orders
    assert rank_agreement(SimpleNamespace(students={"auc": study}, comparable=(), stages=1)) is None
    one = configurations(study.runs.rows(study.rows[0]), study.names, [0] * CONFIGS)
    assert agreement_of(one) is None
