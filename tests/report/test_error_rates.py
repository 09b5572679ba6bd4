"""How often a whole report is wrong, and whether it finds an effect like the reproduced study's: simulated studies."""

import numpy as np
import pytest

from bench.error_rates import Truth, _Covariance, false_statements, published, rates, studies
from kdfast.report.comparisons import configurations
from kdfast.report.effects import Effects
from kdfast.report.families import LEVEL_OF_REPORT, level_of
from kdfast.report.sampling import Estimates
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from tests.report.fake_study import SMALL_GRID
from tests.report.simulated import not_above_binomial
from tests.report.test_effects import settings_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "spread", "tails"), [(1, 0.001, "normal"), (1, 0.009, "heavy"), (3, 0.001, "heavy"), (3, 0.009, "normal")]
)
def test_reports_without_an_effect_are_rarely_wrong(seeds, spread, tails):
    """Any false statement anywhere in a report counts, at most in 6 % of them: a few studies show what fails grossly;
    `python -m bench.error_rates` simulates hundreds."""
    number = 30
    found = rates(Truth(seeds, spread, tails, configurations=tuple(SMALL_GRID)), number)
    assert not_above_binomial(round(found.false * number), number, 0.06), found
    assert not_above_binomial(round((1.0 - found.coverage) * number), number, 0.06), found


@pytest.mark.slow
def test_refined_reports_without_an_effect_are_rarely_wrong():
    """The leaders are those of the highest validation AUC: their luck is no evidence."""
    truth = Truth(2, 0.006, configurations=tuple(SMALL_GRID), leaders=3, further=4)
    number = 20
    found = rates(truth, number)
    assert not_above_binomial(round(found.false * number), number, 0.06), found


@pytest.mark.slow
def test_false_statements_are_recognised():
    """A truth that says the opposite of what a report found: each of its statements is then false."""

    def helps(config):
        return 0.05 * config.alpha_init

    def hurts(config):
        return -helps(config)

    options = {"seeds": 5, "seed_spread": 0.001, "configurations": tuple(SMALL_GRID)}
    ((analysis, true),) = studies(Truth(**options, effect=helps), 1)
    right = set(false_statements(analysis, Truth(**options, effect=helps), true))
    assert not {"improvement", "mean", "best set"} & right
    wrong = set(false_statements(analysis, Truth(**options, effect=hurts), true))
    assert {"improvement", "mean", "best set"} <= wrong
    effects = {"planned_alpha_auc", "correlation_auc", "alpha_init_auc"}
    assert effects <= set(false_statements(analysis, Truth(**options), true))


# ---- power


def copies(effect, scatter, number):
    """Studies of the published grid with one seed: an effect of each configuration, test jets' noise of trained
    students, and scatter from run to run; yields effects and Pearson's r of α."""
    grid_of_study = grid("study")
    covariance = _Covariance(grid_of_study)
    names = [config.name for config in grid_of_study]
    rows = [covariance.row("auc", RunKey("student", n, 1), np.random.default_rng([1, *n.encode()])) for n in names]
    factor = np.array(rows)
    frame = settings_of(grid_of_study)
    alpha = frame["alpha_init"].to_numpy()
    truth = np.array([effect(config) for config in grid_of_study])
    for k in range(number):
        rng = np.random.default_rng([5, k])
        auc = 0.82 + truth + factor @ rng.normal(size=factor.shape[1]) + scatter * rng.normal(size=len(names))
        estimates = configurations(Estimates(auc, factor), names, [1] * len(names))
        yield Effects(estimates, frame, level_of("effects", "auc")), float(np.corrcoef(alpha, auc)[0, 1])


def found(effects):
    """Whether a report of them says that α helps."""
    tested = [effects.adjusted["slope", "alpha_init"], effects.adjusted["planned", "alpha"]]
    return any(one.p_value < LEVEL_OF_REPORT and one.low > 0.0 for one in tested)


@pytest.mark.slow
def test_the_published_study_s_effect_is_found():
    """r of 0.62 over the 132 runs, whose AUC spreads by 0.0037: in at least 95 % of its copies."""
    number = 40
    hits, r = 0, []
    for effects, correlation in copies(published, 0.0025, number):
        hits += found(effects)
        r.append(correlation)
    assert np.mean(r) == pytest.approx(0.62, abs=0.03)
    assert hits >= 0.95 * number


@pytest.mark.slow
def test_no_effect_is_not_found_by_the_same_tests():
    """At most at the family's level, in either direction."""
    number = 60
    hits = 0
    for effects, _ in copies(lambda config: 0.0, 0.0025, number):
        hits += min(one.p_value for one in effects.adjusted.values()) < LEVEL_OF_REPORT
    assert not_above_binomial(hits, number, level_of("effects", "auc"))
