"""Paired comparisons on shared jets and seeds: against statsmodels and theory; coverage, false claims by simulation."""

import math

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests

from kdfast.report.comparisons import (
    baseline,
    benjamini_hochberg,
    best_of_equals,
    best_set,
    configurations,
    holm,
    to_separate,
)
from kdfast.report.fitting import Contrast, fit
from kdfast.report.sampling import Estimates, auc_estimates
from tests.report.simulated import STUDIES, noise_factor, not_above_binomial, within_binomial

CONFIGS, SEEDS = 6, 4
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
    assert compared.difference("d").value == pytest.approx(0.81 - compared.value)


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
    for compared in with_baseline(seed_spread, STUDIES):
        claims += min(holm([compared.difference(f"c{i}").p_value for i in range(CONFIGS)])) < 0.05
        low, high = compared.mean_difference().interval
        hits += low <= 0.0 <= high
    assert not_above_binomial(claims, STUDIES, 0.05)
    assert hits / STUDIES >= 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_no_false_gain_over_a_baseline_of_few_seeds(seeds):
    """An unfinished study: with one seed's baseline and students of four, another seed's is not known."""
    claims = 0
    for compared in with_baseline(0.005, STUDIES, seeds=seeds):
        contrasts = (
            []
            if compared is None
            else [compared.mean_difference(), *(compared.difference(f"c{i}") for i in range(CONFIGS))]
        )
        p = [contrast.p_value for contrast in contrasts] or [1.0, 1.0]
        claims += min(p[0], *holm(p[1:])) < 0.05
    assert not_above_binomial(claims, STUDIES, 0.05)
    assert (compared is None) == (seeds == 1)


def test_the_baseline_is_paired_by_seed():
    """By hand: differences in each seed, and their mean."""
    (compared,) = with_baseline(0.003, 1)
    students = compared.students
    by_seed = students.runs.values[students.rows].mean(axis=1)
    own = compared.value - students.values.mean()
    assert compared.mean_difference().value == pytest.approx(-own)
    assert compared.difference("c2").value == pytest.approx(students.values[2] - compared.value)
    assert compared.level.df == SEEDS - 1
    assert compared.value == pytest.approx(own + by_seed.mean())


def test_one_configuration_s_seeds():
    """Its runs' own scatter is the variance between seeds: Student's t of its values, and of its gain in each seed."""
    values, own = np.array([0.80, 0.83, 0.81]), np.array([0.79, 0.80, 0.80])
    study = configurations(Estimates(values, np.zeros((3, 1))), ["a"] * 3, [1, 2, 3])
    assert study.seeds_known
    estimate, expected = study.estimate("a"), stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
    assert (estimate.df, estimate.test_variance) == (2, 0.0)
    np.testing.assert_allclose(estimate.interval, expected)
    gain = baseline(study, Estimates(own, np.zeros((3, 1))), [1, 2, 3]).difference("a")
    assert gain.p_value == pytest.approx(stats.ttest_rel(values, own).pvalue)
    assert baseline(study, Estimates(own[:1], np.zeros((1, 1))), [1]) is None


# ---- many comparisons


@pytest.mark.parametrize("number", [1, 2, 30])
def test_adjusted_p_values(number):
    p = np.random.default_rng(number).uniform(size=number) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
    assert holm([]) == benjamini_hochberg([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed_spread", [0.0005, 0.003])
def test_false_claims_without_an_effect(seed_spread):
    """Equal configurations: how often any is called better or worse than the first, and how often the set of the best
    leaves out the first."""
    claims = missed = 0
    for study in simulated([0.8] * CONFIGS, seed_spread, STUDIES, seed=4):
        p = [study.difference(f"c{i}", "c0").p_value for i in range(1, CONFIGS)]
        claims += min(holm(p)) < 0.05
        missed += "c0" not in best_set(study)
    assert not_above_binomial(claims, STUDIES, 0.05)
    assert not_above_binomial(missed, STUDIES, 0.05)


@pytest.mark.slow
def test_the_set_of_the_best():
    """It holds the best in 95 % of studies, and leaves out what is clearly worse."""
    missed = sizes = 0
    for study in simulated([0.80, 0.80, 0.801, 0.79, 0.79, 0.77], 0.001, STUDIES, seed=5):
        inside = best_set(study)
        missed += "c2" not in inside
        sizes += len(inside)
        assert "c5" not in inside
    assert not_above_binomial(missed, STUDIES, 0.05)
    assert 2.0 < sizes / STUDIES < 4.0


def test_equal_networks():
    """Two names of one network: no error, no difference."""
    factor = np.tile(noise_factor(1), (2, 1))
    study = configurations(Estimates(np.array([0.8, 0.8]), factor), ["a", "b"], [1, 1])
    assert study.difference("a", "b").p_value == 1.0
    assert best_set(study) == ["a", "b"]


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
    for _ in range(STUDIES):
        strength = (
            1.2 + 0.08 * rng.normal(size=(configs * seeds, 1)) + 0.1 * np.tile(rng.normal(size=seeds), configs)[:, None]
        )
        scores = rng.normal(size=jets) + 0.4 * rng.normal(size=(configs * seeds, jets)) + strength * labels
        study = configurations(auc_estimates(labels, scores, np.ones(jets)), names, blocks)
        contrasts = [study.difference(f"c{i}", "c0") for i in range(1, configs)]
        claims += min(holm([contrast.p_value for contrast in contrasts])) < 0.05
        low, high = contrasts[0].interval
        hits += low <= 0.0 <= high
    assert not_above_binomial(claims, STUDIES, 0.05)
    assert within_binomial(hits, STUDIES, 0.95)
