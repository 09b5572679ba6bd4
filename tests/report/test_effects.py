"""Effects of T and α: against statsmodels, pandas and scipy; no claims without an effect."""

import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats

from kdfast.distill.schedules import RunConfig
from kdfast.report import effects
from kdfast.report.comparisons import Configurations, configurations
from kdfast.report.effects import Effects
from kdfast.report.families import LEVEL_OF_REPORT, level_of
from kdfast.report.sampling import Estimates
from kdfast.store.grid import grid
from tests.report.fake_study import SMALL_GRID
from tests.report.simulated import noise_factor, not_above_binomial

GRID = grid("study")
CONSTANT = [config for config in GRID if config.strategy == "baseline"]


def settings_of(configs=GRID):
    """The frame that effects.settings_frame gives for these configurations."""
    columns = {
        "run_name": [c.name for c in configs],
        "strategy": [c.strategy for c in configs],
        "temp_init": [c.temp_init for c in configs],
        "temp_final": [c.temp_final for c in configs],
        "alpha_init": [c.alpha_init for c in configs],
        "alpha_final": [c.alpha_final for c in configs],
    }
    return effects.settings_frame(
        pd.DataFrame(columns).astype({"temp_final": float, "alpha_final": float}), columns["run_name"]
    )


def estimates_of(values, factor=None, configs=GRID) -> Configurations:
    factor = np.zeros((len(configs), 1)) if factor is None else factor
    return configurations(Estimates(np.asarray(values), factor), [c.name for c in configs], [42] * len(configs))


def noise(seed=0):
    return 0.8 + 0.01 * np.random.default_rng(seed).normal(size=len(GRID))


def test_settings():
    frame = settings_of()
    assert frame.loc["baseline_T7.0_A0.5", ["temp_last", "alpha_last"]].tolist() == [7.0, 0.5]
    assert frame.loc["combined_T10.0to1.0_A0.9to0.3", ["temp_last", "alpha_last"]].tolist() == [1.0, 0.3]


def test_correlation():
    x, y = np.arange(20.0), np.arange(20.0) + 10 * np.random.default_rng(0).normal(size=20)
    found = effects.correlation(x, y)
    r = np.corrcoef(x, y)[0, 1]
    ends = np.tanh(np.arctanh(r) + np.array([-1, 1]) * stats.norm.isf(0.025) / math.sqrt(17))
    assert (found["r"], found["low"], found["high"]) == pytest.approx((r, *ends))
    assert effects.correlation(x[:3], y[:3]) is None
    assert effects.correlation(x, np.full(20, 0.1)) is None


def slopes_of(model):
    """The slopes of a linear model, by term."""
    return {term.name: term.slope for term in model.terms}


def test_linear_model_is_statsmodels_ols():
    frame, y = settings_of(), noise()
    model = effects.linear_model(estimates_of(y), frame, "auc")
    slopes = slopes_of(model)
    table = pd.DataFrame({"y": y})
    logs = {
        "a": np.log(frame["temp_init"]),
        "b": np.log(frame["temp_last"]),
        "c": frame["alpha_init"],
        "d": frame["alpha_last"],
    }
    for name, values in logs.items():
        table[name] = (values - values.mean()).to_numpy()
    theirs = smf.ols("y ~ (a + b + c + d)**2", table).fit()
    np.testing.assert_allclose([s.value for s in slopes.values()], theirs.params[1:], rtol=1e-6)
    np.testing.assert_allclose([s.error for s in slopes.values()], theirs.bse[1:], rtol=1e-6)
    assert (model.df, model.r_squared) == (theirs.df_resid, pytest.approx(theirs.rsquared))
    assert list(slopes)[:4] == model.settings == ["ln T_init", "ln T_last", "α_init", "α_last"]
    assert model.undetermined == []


def test_linear_model_of_constants():
    """Where no value is scheduled the last one is the initial one: its slope is there, and not dropped as collinear."""
    frame = settings_of(CONSTANT)
    y = 0.8 + 0.1 * frame["alpha_init"].to_numpy() + 1e-4 * np.random.default_rng(8).normal(size=len(frame))
    model = effects.linear_model(estimates_of(y, configs=CONSTANT), frame, "auc")
    slopes = slopes_of(model)
    assert model.settings == ["ln T_init", "α_init"]
    assert list(slopes) == ["ln T_init", "α_init", "ln T_init × α_init"]
    assert model.undetermined == []
    slope = slopes["α_init"]
    assert slope.value == pytest.approx(0.1, abs=1e-3)
    assert 2.0 * stats.t.sf(slope.value / slope.error, model.df) < 1e-6


def test_linear_model_names_what_it_cannot_tell():
    """T halved in every configuration: ln T_last moves with ln T_init."""
    configs = [RunConfig(t, a, t / 2) for t in (4.0, 6.0, 8.0, 10.0) for a in (0.3, 0.5, 0.9)]
    frame = settings_of(configs)
    model = effects.linear_model(estimates_of(noise()[: len(configs)], configs=configs), frame, "auc")
    assert model.settings == ["ln T_init", "ln T_last", "α_init"]
    assert "α_init" in slopes_of(model)
    assert {"ln T_init", "ln T_last"} <= set(model.undetermined)
    assert not set(model.undetermined) & set(slopes_of(model))


def test_variance_shares_are_sums_of_squares():
    """Type II by hand: what a factor adds to the other factors."""
    frame, y = settings_of(), noise(1)
    shares = {name: share for name, (share, _) in effects.variance_shares(estimates_of(y), frame).items()}
    coded = {
        "T_init": frame["temp_init"],
        "T_final": frame["temp_final"].fillna(-1),
        "α_init": frame["alpha_init"],
        "α_final": frame["alpha_final"].fillna(-1),
    }

    def rss(*names, crossed=False):
        columns = [np.ones(len(y)), *(pd.get_dummies(coded[n], dtype=float).to_numpy().T for n in names)]
        if crossed:
            columns.append(
                pd.get_dummies(coded["T_init"].map(str) + coded["α_init"].map(str), dtype=float).to_numpy().T
            )
        x = np.vstack(columns).T
        return float(np.square(y - x @ np.linalg.pinv(x) @ y).sum())

    total, names = float(np.square(y - y.mean()).sum()), list(coded)
    for name in ("T_final", "α_final"):  # beside which the crossed term stands
        others = [n for n in names if n != name]
        assert shares[name] == pytest.approx((rss(*others, crossed=True) - rss(*names, crossed=True)) / total)
    for name in ("T_init", "α_init"):  # without their own product
        others = [n for n in names if n != name]
        assert shares[name] == pytest.approx((rss(*others) - rss(*names)) / total)
    assert shares["T_init × α_init"] == pytest.approx((rss(*names) - rss(*names, crossed=True)) / total)
    assert shares["rest"] == pytest.approx(rss(*names, crossed=True) / total)


def crossed():
    """Sixteen configurations, each level of a setting with each of the others, and noise that they share."""
    return settings_of(SMALL_GRID), noise_factor(len(SMALL_GRID), correlation=0.8)


def test_variance_shares_are_statsmodels_analysis_of_variance():
    frame, factor = settings_of(), noise_factor(len(GRID))
    y = noise(4) + 0.02 * frame["alpha_init"].to_numpy() * frame["temp_init"].to_numpy() / 10
    shares = effects.variance_shares(estimates_of(y, factor), frame)
    table = frame.assign(y=y)
    model = smf.ols("y ~ C(temp_level) + C(alpha_level) + C(temp_init) * C(alpha_init)", table).fit()
    theirs = sm.stats.anova_lm(model, typ=2)["sum_sq"] / np.square(y - y.mean()).sum()
    names = {
        "T_init": "C(temp_init)",
        "T_final": "C(temp_level)",
        "α_init": "C(alpha_init)",
        "α_final": "C(alpha_level)",
    }
    names |= {"T_init × α_init": "C(temp_init):C(alpha_init)", "rest": "Residual"}
    assert set(shares) == set(names)
    for name, row in names.items():
        assert shares[name][0] == pytest.approx(theirs[row])


def test_shares_of_a_crossed_grid_add_up():
    """To the variance; what noise makes of each adds up to what it makes of the whole: tr(C V C)/yᵀCy, C centring."""
    frame, factor = crossed()
    y = noise(5)[: len(frame)]
    shares = effects.variance_shares(estimates_of(y, factor, SMALL_GRID), frame)
    assert sum(share for share, _ in shares.values()) == pytest.approx(1.0)
    centre = np.eye(len(y)) - 1.0 / len(y)
    of_noise = np.trace(centre @ factor @ factor.T @ centre) / (y @ centre @ y)
    assert sum(part for _, part in shares.values()) == pytest.approx(of_noise)
    assert all(part > 0.0 for _, part in shares.values())


def test_noise_makes_what_is_expected_of_each_share():
    """Equal configurations: on average over studies each term's sum of squares is what is said of noise."""
    frame, factor = crossed()
    rng, studies = np.random.default_rng(2), 200
    taken, expected = [], []
    for _ in range(studies):
        y = factor @ rng.normal(size=factor.shape[1])
        found = effects.variance_shares(estimates_of(0.8 + y, factor, SMALL_GRID), frame)
        total = float(np.square(y - y.mean()).sum())
        taken.append([share * total for share, _ in found.values()])
        expected.append([part * total for _, part in found.values()])
    np.testing.assert_allclose(np.std(expected, axis=0), 0.0, atol=1e-12)  # known before the data are
    error = np.std(taken, axis=0) / math.sqrt(studies)
    np.testing.assert_array_less(np.abs(np.mean(taken, axis=0) - expected[0]), 4.0 * error)


def test_seeds_are_part_of_the_expected_noise():
    rng, seeds = np.random.default_rng(3), 4
    names = [c.name for c in SMALL_GRID for _ in range(seeds)]
    values = 0.8 + 0.01 * rng.normal(size=len(names))
    runs = configurations(Estimates(values, np.zeros((len(names), 1))), names, list(range(seeds)) * len(SMALL_GRID))
    shares = effects.variance_shares(runs, settings_of(SMALL_GRID))
    assert sum(part for _, part in shares.values()) == pytest.approx(1.0, rel=0.5)


def test_grids_too_small_say_so():
    configs = grid(temperature=[3.0], alpha=[0.5])
    assert (
        effects.variance_shares(estimates_of([0.8], configs=configs), settings_of(configs))
        == "the grid varies no setting"
    )
    configs = grid(temperature=[3.0, 5.0], alpha=[0.5])
    shares = effects.variance_shares(estimates_of([0.8, 0.9], configs=configs), settings_of(configs))
    assert "too small" in shares
    assert effects.linear_model(estimates_of([0.8, 0.9], configs=configs), settings_of(configs), "auc") is None


# ---- the family of effects


LEVEL = level_of("effects", "auc")


def effects_of(values, factor=None, configs=GRID, level=LEVEL):
    return Effects(estimates_of(values, factor, configs), settings_of(configs), level)


def pair(found, table, one, other):
    """The difference of two groups, in this order."""
    if ("pair", table, one, other) in found:
        return found["pair", table, one, other].contrast
    return found["pair", table, other, one].contrast.times(-1.0)


def test_effects_of_groups_are_statsmodels():
    """Each pair of groups in a model with the other settings as factors; errors from the scatter about it."""
    frame, y = settings_of(), noise(2) + 0.01 * settings_of()["alpha_init"].to_numpy()
    found = effects_of(y).found
    table = frame.assign(y=y)
    model = smf.ols("y ~ C(alpha_init) + C(temp_init) + C(temp_level) + C(alpha_level)", table).fit()
    for other in ("0.5", "0.7", "0.9"):
        contrast = pair(found, "alpha_init", other, "0.3")
        name = f"C(alpha_init)[T.{other}]"
        assert (contrast.value, contrast.error) == pytest.approx((model.params[name], model.bse[name]))
        assert contrast.p_value == pytest.approx(model.pvalues[name])
    model = smf.ols("y ~ C(strategy, Treatment('baseline')) + C(temp_init) + C(alpha_init)", table).fit()
    for other in ("tempanneal", "alphasched", "combined"):
        contrast = pair(found, "strategy", other, "baseline")
        name = f"C(strategy, Treatment('baseline'))[T.{other}]"
        assert (contrast.value, contrast.error) == pytest.approx((model.params[name], model.bse[name]))


def test_slopes_are_statsmodels():
    frame, y = settings_of(), noise(3) + 0.01 * settings_of()["alpha_init"].to_numpy()
    found = effects_of(y).found
    for setting in ("temp_init", "alpha_init"):
        model = smf.ols(f"y ~ {setting}", frame.assign(y=y)).fit()
        contrast = found["slope", setting].contrast
        assert (contrast.value, contrast.error) == pytest.approx((model.params[setting], model.bse[setting]))
    both = smf.ols("y ~ temp_init + alpha_init", frame.assign(y=y)).fit()
    sizes = {name: abs(both.params[name]) * np.std(frame[name]) for name in ("temp_init", "alpha_init")}
    assert found["importance", "alpha_init", "temp_init"].contrast.value == pytest.approx(
        sizes["alpha_init"] - sizes["temp_init"]
    )


def test_groups_compare_like_with_like():
    """α raises the AUC, strategies do nothing: their raw means differ, the adjusted ones do not."""
    frame = settings_of()
    y = 0.8 + 0.1 * frame["alpha_init"].to_numpy() + 1e-4 * np.random.default_rng(3).normal(size=len(frame))
    raw = pd.Series(y, frame.index).groupby(frame["strategy"]).mean()
    assert abs(raw["combined"] - raw["baseline"]) > 0.003
    own = effects_of(y)
    for key, tested in own.adjusted.items():
        if key[:2] == ("pair", "strategy"):
            assert abs(tested.contrast.value) < 1e-4
            assert tested.p_value > 0.05
        if key[:2] == ("pair", "alpha_init"):
            assert tested.contrast.value == pytest.approx(0.1 * (float(key[2]) - float(key[3])), abs=1e-3)
            assert tested.p_value < 0.01


def test_planned_contrasts_of_a_known_truth():
    """α helps, a high T hurts, schedules do nothing: sign and size, by statsmodels of the truth without noise."""
    frame = settings_of()
    rng = np.random.default_rng(1)
    y = 0.8 + 0.02 * frame["alpha_init"].to_numpy() + 0.001 * (frame["temp_init"].to_numpy() <= 5.0)
    own = effects_of(y + 5e-5 * rng.normal(size=len(y)))
    found = {question: own.adjusted["planned", question] for question in effects.PLANNED}
    table = frame.assign(y=y, alpha=frame["alpha_init"] > 0.6, temp=frame["temp_init"] > frame["temp_init"].median())
    table = table.astype({"alpha": float, "temp": float})
    of_alpha = smf.ols("y ~ alpha + C(temp_init) + C(temp_level) + C(alpha_level)", table).fit()
    assert found["alpha"].contrast.value == pytest.approx(of_alpha.params["alpha"], rel=0.02)
    assert 0.004 < found["alpha"].low < found["alpha"].high < 0.012  # two steps of 0.2 in α
    sides = table[table["temp_init"] != 5.0] if table["temp_init"].nunique() % 2 else table
    of_temperature = smf.ols("y ~ temp + C(alpha_init) + C(temp_level) + C(alpha_level)", sides).fit()
    assert found["temperature"].contrast.value == pytest.approx(of_temperature.params["temp"], rel=0.1)
    assert found["temperature"].high < 0.0
    for question in ("annealing", "scheduling"):
        assert abs(found[question].contrast.value) < 1e-4
        assert found[question].p_value > 0.05


@pytest.mark.parametrize(("question", "column"), [("annealing", "temp_final"), ("scheduling", "alpha_final")])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_planned_schedules_are_scheduled_minus_constant(question, column, sign):
    """Schedules alone matter: whichever comes first in the grid, the difference is that of the schedule."""
    for configs in (GRID, GRID[::-1]):
        frame = settings_of(configs)
        y = 0.8 + sign * 0.004 * frame[column].notna().to_numpy() + noise(6) / 100
        own = effects_of(y, configs=configs)
        tested = own.adjusted["planned", question]
        assert tested.contrast.value == pytest.approx(sign * 0.004, rel=0.1)
        assert tested.p_value < 0.05
        assert own.found["planned", question].direction @ y == pytest.approx(tested.contrast.value)
        others = [own.adjusted["planned", other].p_value for other in effects.PLANNED if other != question]
        assert min(others) > 0.05


def test_the_middle_of_three_values_takes_no_side():
    configs = grid(temperature=[3.0, 5.0, 10.0], alpha=[0.3, 0.5, 0.9], temperature_final=(), alpha_final=())
    configs += [c for c in SMALL_GRID if c.strategy == "tempanneal" and c.temp_init == 3.0]
    frame = settings_of(configs)
    y = 0.8 + 0.01 * (frame["alpha_init"].to_numpy() == 0.5) + noise(7)[: len(configs)] / 1e4
    effect = effects_of(y, configs=configs).found["planned", "alpha"]
    assert abs(effect.contrast.value) < 1e-4
    assert np.all(effect.direction[frame["alpha_init"] == 0.5] == 0.0)


def test_a_direction_is_the_weights_of_its_contrast():
    """So are all correlations of the family: each effect is a combination of the estimates, with weights of sum 0."""
    y, factor = noise(8), noise_factor(len(GRID))
    for key, effect in effects_of(y, factor).found.items():
        assert effect.direction @ y == pytest.approx(effect.contrast.value, abs=1e-12), key
        assert effect.direction.sum() == pytest.approx(0.0, abs=1e-9), key
        assert np.square(effect.direction @ factor).sum() == pytest.approx(effect.contrast.test_variance), key


def test_groups_that_the_grid_cannot_separate():
    configs = [c for c in GRID if (c.strategy, c.alpha_init) in {("baseline", 0.3), ("tempanneal", 0.9)}]
    found = effects_of(np.linspace(0.8, 0.9, len(configs)), configs=configs).found
    assert [key for key in found if key[:2] == ("pair", "strategy")] == []
    assert ("planned", "alpha") not in found


@pytest.mark.parametrize(("temperatures", "df"), [([3.0, 5.0], 1), ([3.0, 5.0, 7.0, 10.0], 3)])
def test_too_few_degrees_of_freedom_are_no_basis_of_a_test(temperatures, df):
    """Two values of α at each T: the scatter about rows and columns has one degree of freedom, or three."""
    configs = grid(temperature=temperatures, alpha=[0.3, 0.9], temperature_final=(), alpha_final=())
    y = 0.8 + 0.01 * settings_of(configs)["alpha_init"].to_numpy()  # exactly on the model
    found = effects_of(y, configs=configs).found
    assert (("pair", "alpha_init", "0.3", "0.9") in found) == (df >= 3)
    assert (("planned", "alpha") in found) == (df >= 3)


def test_no_scatter_and_no_error_is_no_discovery():
    """Numbers without errors that lie exactly on a line: p = 1, and not 0."""
    configs = grid(temperature=[3.0, 5.0, 7.0, 10.0], alpha=[0.3, 0.9], temperature_final=(), alpha_final=())
    y = 0.8 + 0.01 * settings_of(configs)["alpha_init"].to_numpy()
    tested = effects_of(y, configs=configs).adjusted
    assert tested
    assert {one.p_value for one in tested.values()} == {1.0}


def shared_noise():
    """Test jets' noise of a real kind: networks of similar α err alike, so that trends in α come about by chance."""
    frame = settings_of(CONSTANT)
    distance = np.subtract.outer(frame["alpha_init"].to_numpy(), frame["alpha_init"].to_numpy())
    covariance = 0.005**2 * (0.9 + 0.08 * np.exp(-((distance / 0.3) ** 2)) + 0.02 * np.eye(len(frame)))
    return frame, np.linalg.cholesky(covariance)


@pytest.mark.slow
def test_no_claims_without_an_effect():
    """Any effect of the family, where shared test jets make trends that are not there; and each by itself at 5 %."""
    frame, factor = shared_noise()
    rng, studies = np.random.default_rng(4), 200
    alpha = frame["alpha_init"].to_numpy()
    single = {("slope", "alpha_init"): 0, ("planned", "alpha"): 0, ("importance", "alpha_init", "temp_init"): 0}
    family = naive = 0
    for _ in range(studies):
        y = 0.8 + factor @ rng.normal(size=factor.shape[1])
        own = effects_of(y, factor, CONSTANT, level=LEVEL_OF_REPORT)
        for key in single:
            single[key] += own.found[key].contrast.p_value < 0.05
        family += min(one.p_value for one in own.adjusted.values()) < 0.05
        naive += stats.pearsonr(alpha, y).pvalue < 0.05
    assert not_above_binomial(family, studies, 0.05), family
    for key, number in single.items():
        assert not_above_binomial(number, studies, 0.05), (key, number)
    assert naive > 0.2 * studies  # what a correlation's own p-value would have claimed


@pytest.mark.slow
def test_no_claims_where_seeds_differ_in_their_trends():
    """In each seed α has a trend of its own, on average none."""
    rng, seeds, studies = np.random.default_rng(7), 4, 150
    names, blocks = [c.name for c in CONSTANT for _ in range(seeds)], list(range(seeds)) * len(CONSTANT)
    frame = settings_of(CONSTANT)
    runs = np.repeat(frame["alpha_init"].to_numpy(), seeds)
    slopes = family = 0
    for _ in range(studies):
        trends = np.tile(0.01 * rng.normal(size=seeds), len(frame))
        values = 0.8 + trends * runs + 0.0005 * rng.normal(size=len(runs))
        estimates = configurations(Estimates(values, np.zeros((len(runs), 1))), names, blocks)
        own = Effects(estimates, frame, LEVEL_OF_REPORT)
        slopes += own.found["slope", "alpha_init"].contrast.p_value < 0.05
        family += min(one.p_value for one in own.adjusted.values()) < 0.05
    assert not_above_binomial(slopes, studies, 0.05), slopes
    assert not_above_binomial(family, studies, 0.05), family


def test_power():
    """A real slope of eight errors is seen, with its size inside the simultaneous interval."""
    frame, factor = shared_noise()
    y = 0.8 + 0.03 * frame["alpha_init"].to_numpy() + factor @ np.random.default_rng(5).normal(size=factor.shape[1])
    slope = effects_of(y, factor, CONSTANT).adjusted["slope", "alpha_init"]
    assert slope.p_value < 0.05
    assert 0.0 < slope.low <= 0.03 <= slope.high
