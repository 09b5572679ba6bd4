"""Effects of T and α: against statsmodels, pandas and scipy; no claims without an effect."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from kdfast.distill.schedules import RunConfig
from kdfast.report import effects
from kdfast.report.comparisons import Configurations, configurations
from kdfast.report.sampling import Estimates
from kdfast.report.summaries import correlations
from kdfast.store.grid import grid
from tests.report.simulated import STUDIES, noise_factor, not_above_binomial

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
    assert (found.r, found.low, found.high) == pytest.approx((r, *ends))
    assert effects.correlation(x[:3], y[:3]) is None
    assert effects.correlation(x, np.full(20, 0.1)) is None


def test_linear_model_is_statsmodels_ols():
    frame, y = settings_of(), noise()
    model = effects.linear_model(estimates_of(y), frame)
    slopes = model.slopes
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
    assert model.untold == []


def test_linear_model_of_constants():
    """Where no value is scheduled the last one is the initial one: its slope is there, and not dropped as collinear."""
    frame = settings_of(CONSTANT)
    y = 0.8 + 0.1 * frame["alpha_init"].to_numpy() + 1e-4 * np.random.default_rng(8).normal(size=len(frame))
    model = effects.linear_model(estimates_of(y, configs=CONSTANT), frame)
    assert model.settings == ["ln T_init", "α_init"]
    assert list(model.slopes) == ["ln T_init", "α_init", "ln T_init × α_init"]
    assert model.untold == []
    assert model.slopes["α_init"].value == pytest.approx(0.1, abs=1e-3)
    assert model.slopes["α_init"].p_value < 1e-6


def test_linear_model_names_what_it_cannot_tell():
    """T halved in every configuration: ln T_last moves with ln T_init."""
    configs = [RunConfig(t, a, t / 2) for t in (4.0, 6.0, 8.0, 10.0) for a in (0.3, 0.5, 0.9)]
    frame = settings_of(configs)
    model = effects.linear_model(estimates_of(noise()[: len(configs)], configs=configs), frame)
    assert model.settings == ["ln T_init", "ln T_last", "α_init"]
    assert "α_init" in model.slopes
    assert {"ln T_init", "ln T_last"} <= set(model.untold)
    assert not set(model.untold) & set(model.slopes)


@pytest.mark.slow
def test_no_false_trends_among_all_settings():
    """T and α do nothing: any of the four sentences on trends says otherwise in at most 5 % of studies."""
    frame, rng, studies = settings_of(CONSTANT), np.random.default_rng(9), 600
    factors = {"auc": noise_factor(len(frame), seed=1), "rejection": noise_factor(len(frame), seed=2, size=0.7)}
    scatter = {"auc": 0.001, "rejection": 0.15}
    claims = naive = 0
    for _ in range(studies):
        values = {m: f @ rng.normal(size=f.shape[1]) + scatter[m] * rng.normal(size=len(f)) for m, f in factors.items()}
        study = SimpleNamespace(
            settings=frame,
            students={m: estimates_of(values[m], factors[m], CONSTANT) for m in factors},
            done=frame.assign(auc_student=values["auc"], bkg_rej_50=values["rejection"]),
            modelled=("auc", "rejection"),
        )
        found = correlations(study)
        claims += min(c.slope_p_holm for c in found) < 0.05
        naive += min(c.slope_p_value for c in found) < 0.05
    assert not_above_binomial(claims, studies, 0.05)
    assert naive > 0.1 * studies


def test_variance_shares_are_sums_of_squares():
    """Type II by hand: what a factor adds to the other factors."""
    frame, y = settings_of(), noise(1)
    shares, _ = effects.variance_shares(estimates_of(y), frame)
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


def test_expected_noise():
    """Equal configurations with known noise: all of the variance, on average."""
    rng = np.random.default_rng(2)
    factor = 0.01 * np.hstack([np.ones((len(GRID), 1)), 0.3 * np.eye(len(GRID))])
    ratios = [
        effects.variance_shares(estimates_of(0.8 + factor @ rng.normal(size=factor.shape[1]), factor), settings_of())[1]
        for _ in range(12)
    ]
    assert np.mean(ratios) == pytest.approx(1.0, rel=0.12)


def test_grids_too_small_say_so():
    configs = grid(temperature=[3.0], alpha=[0.5])
    assert (
        effects.variance_shares(estimates_of([0.8], configs=configs), settings_of(configs))
        == "the grid varies no setting"
    )
    configs = grid(temperature=[3.0, 5.0], alpha=[0.5])
    shares = effects.variance_shares(estimates_of([0.8, 0.9], configs=configs), settings_of(configs))
    assert "too small" in shares
    assert effects.linear_model(estimates_of([0.8, 0.9], configs=configs), settings_of(configs)) is None


def test_group_differences_compare_like_with_like():
    """α raises the AUC, strategies do nothing: their raw means differ, the adjusted ones do not."""
    frame = settings_of()
    y = 0.8 + 0.1 * frame["alpha_init"].to_numpy() + 1e-4 * np.random.default_rng(3).normal(size=len(frame))
    raw = pd.Series(y, frame.index).groupby(frame["strategy"]).mean()
    assert abs(raw["combined"] - raw["baseline"]) > 0.003
    found = effects.group_differences(
        estimates_of(y), frame["strategy"], frame[["temp_init", "alpha_init"]], "combined"
    )
    assert {f.group for f in found} == {"baseline", "tempanneal", "alphasched"}
    for difference in found:
        assert abs(difference.contrast.value) < 1e-4
        assert difference.p_holm > 0.01
    by_alpha = effects.group_differences(estimates_of(y), frame["alpha_init"].map(str), frame[["temp_init"]], "0.9")
    for difference in by_alpha:
        assert difference.contrast.value == pytest.approx(0.1 * (float(difference.group) - 0.9), abs=1e-3)
        assert difference.p_holm < 1e-10


def test_groups_that_the_grid_cannot_tell():
    configs = [c for c in GRID if (c.strategy, c.alpha_init) in {("baseline", 0.3), ("tempanneal", 0.9)}]
    frame = settings_of(configs)
    found = effects.group_differences(
        estimates_of(np.linspace(0.8, 0.9, len(configs)), configs=configs),
        frame["strategy"],
        frame[["alpha_init"]],
        "baseline",
    )
    assert found == []


def shared_noise():
    """Test jets' noise of a real kind: networks of similar α err alike, so that trends in α come about by chance."""
    frame = settings_of(CONSTANT)
    distance = np.subtract.outer(frame["alpha_init"].to_numpy(), frame["alpha_init"].to_numpy())
    covariance = 0.005**2 * (0.9 + 0.08 * np.exp(-((distance / 0.3) ** 2)) + 0.02 * np.eye(len(frame)))
    return frame, np.linalg.cholesky(covariance)


@pytest.mark.slow
def test_no_claims_without_an_effect():
    """Slopes, groups and the comparison of α with T, where shared test jets make trends that are not there."""
    frame, factor = shared_noise()
    rng = np.random.default_rng(4)
    alpha, temp = frame["alpha_init"].to_numpy(), frame["temp_init"].to_numpy()
    false = {"slope": 0, "importance": 0, "groups": 0, "naive": 0}
    studies = STUDIES
    for _ in range(studies):
        estimates = estimates_of(0.8 + factor @ rng.normal(size=factor.shape[1]), factor, CONSTANT)
        false["slope"] += effects.slopes(estimates, alpha)[0].p_value < 0.05
        false["importance"] += effects.slopes(estimates, temp, alpha)[2].p_value < 0.05
        best = str(pd.Series(estimates.values).groupby(alpha).mean().idxmax())
        groups = effects.group_differences(estimates, frame["alpha_init"].map(str), frame[["temp_init"]], best)
        false["groups"] += any(g.p_holm < 0.05 for g in groups)
        false["naive"] += stats.pearsonr(alpha, estimates.values).pvalue < 0.05
    for claim in ("slope", "importance", "groups"):
        assert not_above_binomial(false[claim], studies, 0.05), (claim, false)
    assert false["naive"] > 0.2 * studies  # what a correlation's own p-value would have claimed


@pytest.mark.slow
def test_no_claims_where_seeds_differ_in_their_trends():
    """In each seed α has a trend of its own, on average none."""
    rng, seeds = np.random.default_rng(7), 4
    names, blocks = [c.name for c in CONSTANT for _ in range(seeds)], list(range(seeds)) * len(CONSTANT)
    frame = settings_of(CONSTANT)
    alpha = frame["alpha_init"].to_numpy()
    runs = np.repeat(alpha, seeds)
    claims = {"slope": 0, "groups": 0}
    for _ in range(STUDIES // 2):
        trends = np.tile(0.01 * rng.normal(size=seeds), len(alpha))
        values = 0.8 + trends * runs + 0.0005 * rng.normal(size=len(runs))
        estimates = configurations(Estimates(values, np.zeros((len(runs), 1))), names, blocks)
        claims["slope"] += effects.slopes(estimates, alpha)[0].p_value < 0.05
        groups = effects.group_differences(estimates, frame["alpha_init"].map(str), frame[["temp_init"]], "0.3")
        claims["groups"] += min(g.p_holm for g in groups) < 0.05
    for claim, number in claims.items():
        assert not_above_binomial(number, STUDIES // 2, 0.05), (claim, number)


def test_power():
    """A real slope of five errors is seen."""
    frame, factor = shared_noise()
    y = 0.8 + 0.02 * frame["alpha_init"].to_numpy() + factor @ np.random.default_rng(5).normal(size=factor.shape[1])
    (slope,) = effects.slopes(estimates_of(y, factor, CONSTANT), frame["alpha_init"].to_numpy())
    assert slope.p_value < 0.01
    low, high = slope.interval
    assert low <= 0.02 <= high


@pytest.mark.slow
def test_equal_spread():
    rng = np.random.default_rng(6)
    same = [rng.normal(size=40) for _ in range(3)]
    assert effects.equal_spread(same) == pytest.approx(stats.levene(*same, center="median").pvalue)
    assert effects.equal_spread([same[0], 5 * same[1]]) < 0.001
    assert effects.equal_spread([same[0], same[1][:2]]) is None
    rejected = sum(effects.equal_spread([rng.normal(size=20), rng.normal(size=30)]) < 0.05 for _ in range(STUDIES))
    assert not_above_binomial(rejected, STUDIES, 0.05)


def test_rank_agreement():
    names, seeds = pd.Series(["a", "b", "c", "d"] * 2), pd.Series([1] * 4 + [2] * 4)
    values = pd.Series([1.0, 2.0, 3.0, 4.0, 1.0, 3.0, 2.0, 4.0])
    ((one, two, rho, p, number),) = effects.rank_agreement(values, names, seeds)
    assert (one, two, number) == (1, 2, 4)
    assert rho == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert p == pytest.approx(4 / 24)  # the same order and the three that exchange neighbours
    assert effects.rank_agreement(values[:4], names[:4], seeds[:4]) == []
