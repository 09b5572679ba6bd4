"""The numbers of the report's object against pandas and direct computations, on a synthetic study of three seeds."""

import math

import numpy as np
import pandas as pd
import pytest

from kdfast.report.analysis import analyse
from kdfast.report.findings import beats_baseline, is_supported, versus
from kdfast.report.sampling import auc_estimates
from kdfast.report.schema import Analysis, Comparison, Estimate
from kdfast.study.grid import grid
from kdfast.study.results import open_study
from tests.report.fake_study import make_study

CONFIGS = grid(
    temperature=[3.0, 5.0, 10.0], alpha=[0.3, 0.7, 0.9], temperature_final=[1.0, 2.0], alpha_final=[0.1]
)  # 54 configurations
SEEDS = (7, 8, 9)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("analysis") / "study", CONFIGS, seeds=SEEDS)


@pytest.fixture(scope="module")
def report(study) -> Analysis:
    return analyse(study)


@pytest.fixture(scope="module")
def table(study):
    return open_study(study.path).results


def group(report, setting):
    return next(found for found in report.groups if found.setting == setting)


@pytest.mark.parametrize(("setting", "labels"), [("temp_init", str), ("alpha_init", str), ("strategy", str)])
def test_groups(report, table, setting, labels):
    rows = group(report, setting).groups
    expected = table.groupby(setting)
    assert {row.label for row in rows} == {labels(value) for value in expected.groups}
    for value, runs in expected:
        (row,) = [row for row in rows if row.label == labels(value)]
        assert row.runs == len(runs)
        for summary, column in ((row.auc, "auc_student"), (row.rejection, "bkg_rej_50")):
            values = runs[column]
            numbers = (summary.mean, summary.std, summary.variance, summary.min, summary.max)
            assert numbers == pytest.approx((values.mean(), values.std(), values.var(), values.min(), values.max()))
        assert row.consistency == pytest.approx(1 / (runs["auc_student"].std() + 0.001))


def test_improvement_over_constant(report, table):
    means = table.groupby("strategy")[["auc_student", "bkg_rej_50"]].mean()
    for row in group(report, "strategy").groups:
        assert row.auc_over_constant == pytest.approx(
            means.loc[row.label, "auc_student"] - means.loc["baseline", "auc_student"]
        )
        assert row.rejection_over_constant == pytest.approx(
            means.loc[row.label, "bkg_rej_50"] - means.loc["baseline", "bkg_rej_50"]
        )


def test_ranges(report, table):
    scheduled = table.dropna(subset=["temp_final"])
    means = scheduled.groupby(["temp_init", "temp_final"])["auc_student"].mean().sort_values(ascending=False)
    rows = group(report, "temp_range").groups
    assert [row.label for row in rows] == [f"{first} → {last}" for first, last in means.index]
    assert [row.auc.mean for row in rows] == pytest.approx(list(means))
    assert sum(row.runs for row in rows) == len(scheduled)


def test_pairs_and_grid(report, table):
    means = table.groupby(["temp_init", "alpha_init"])[["auc_student", "bkg_rej_50"]].mean()
    assert [pair.auc for pair in report.pairs] == pytest.approx(sorted(means["auc_student"], reverse=True))
    for i, temp in enumerate(report.grid.temp_init):
        for j, alpha in enumerate(report.grid.alpha_init):
            assert report.grid.auc[i][j] == pytest.approx(means.loc[(temp, alpha), "auc_student"])
            assert report.grid.rejection[i][j] == pytest.approx(means.loc[(temp, alpha), "bkg_rej_50"])


def test_distribution_and_top_quartile(report, table):
    assert report.distribution.auc.std == pytest.approx(table["auc_student"].std())
    assert report.distribution.runs == len(CONFIGS) * len(SEEDS)
    top = table.nlargest(math.ceil(len(table) / 4), "auc_student")
    quartile = report.top_quartile
    assert quartile.runs == len(top) == 41
    assert quartile.mean_temp_init == pytest.approx(top["temp_init"].mean())
    assert quartile.mean_alpha_init == pytest.approx(top["alpha_init"].mean())
    assert quartile.shares["α_init ≥ 0.7"] == pytest.approx((top["alpha_init"] >= 0.7).mean())
    assert quartile.shares["combined"] == pytest.approx((top["strategy"] == "combined").mean())
    assert quartile.all_shares["T_init ≥ 7"] == pytest.approx((table["temp_init"] >= 7).mean())
    assert sum(quartile.shares[name] for name in report.strategies) == pytest.approx(1.0)
    assert report.strategies == {name: int((table["strategy"] == name).sum()) for name in report.strategies}


def test_correlations(report, table):
    means = table.groupby("run_name")[["temp_init", "alpha_init", "auc_student", "bkg_rej_50"]].mean()
    for c in report.correlations:
        column = {"auc": "auc_student", "rejection": "bkg_rej_50"}[c.metric]
        assert c.r_runs == pytest.approx(np.corrcoef(table[c.setting], table[column])[0, 1])
        assert c.r == pytest.approx(np.corrcoef(means[c.setting], means[column])[0, 1])
        assert c.low < c.r < c.high
        assert c.slope.value == pytest.approx(np.polyfit(means[c.setting], means[column], 1)[0])
        assert c.slope.error_test > 0


def test_runs(report, table):
    low, high = table[["auc_student", "bkg_rej_50"]].min(), table[["auc_student", "bkg_rej_50"]].max()
    for run, row in zip(report.runs, table.itertuples(), strict=True):
        assert (run.run_name, run.seed) == (row.run_name, row.seed)
        assert run.auc.value == pytest.approx(row.auc_student)
        assert run.rejection["50"].value == pytest.approx(row.bkg_rej_50)
        assert run.survivors["50"] == row.n_bkg_50
        assert run.auc_gain == pytest.approx(row.auc_student - row.auc_baseline)
        scaled = [(getattr(row, name) - low[name]) / (high[name] - low[name]) for name in ("auc_student", "bkg_rej_50")]
        assert run.combined == pytest.approx(np.mean(scaled))
        assert run.rank == 1 + int((table["auc_student"] > row.auc_student).sum())
        assert run.seconds_to_best == pytest.approx(12.0 * 4 / 6)


def test_configurations(report, table, study):
    means = table.groupby("run_name")[["auc_student", "bkg_rej_50", "auc_val"]].agg(["mean", "std"])
    assert [row.rank_auc for row in report.configurations] == sorted(row.rank_auc for row in report.configurations)
    for row in report.configurations:
        own = means.loc[row.run_name]
        assert row.auc.value == pytest.approx(own["auc_student", "mean"])
        assert row.auc_std == pytest.approx(own["auc_student", "std"])
        assert row.rejection.value == pytest.approx(own["bkg_rej_50", "mean"])
        assert row.auc_validation == pytest.approx(own["auc_val", "mean"])
        assert row.auc.error == pytest.approx(math.hypot(row.auc.error_test, row.auc.error_runs))
        assert row.auc.low < row.auc.value < row.auc.high


def test_the_test_jets_part_is_delong_s(report, study):
    """The mean over seeds of one configuration minus that of the baseline: from the mean of the placements."""
    jets, name = study.shared("test"), report.configurations[0].run_name
    scores = np.stack(
        [
            study.get(kind, n, seed).arrays["scores_test"]
            for kind, n in (("student", name), ("baseline", "baseline"))
            for seed in SEEDS
        ]
    )
    estimates = auc_estimates(jets["labels"], scores.astype(float), jets["weights"].astype(float))
    weights = np.repeat([1 / 3, -1 / 3], 3)
    difference = report.configurations[0].auc_vs_baseline.difference
    assert difference.value == pytest.approx(weights @ estimates.values)
    assert difference.error_test == pytest.approx(np.linalg.norm(weights @ estimates.factor))


def test_winners_are_chosen_on_validation(report, table):
    by_name = table.groupby("run_name")[["auc_val", "bkg_rej_50_val"]].mean()
    chosen = {winner.wish: winner for winner in report.winners}
    assert chosen["auc"].configuration == by_name["auc_val"].idxmax()
    assert chosen["rejection"].configuration == by_name["bkg_rej_50_val"].idxmax()
    scaled = (by_name - by_name.min()) / (by_name.max() - by_name.min())
    assert chosen["combined"].configuration == scaled.mean(axis=1).idxmax()
    constant = by_name[by_name.index.str.startswith("baseline")]
    assert chosen["constant"].configuration == constant["auc_val"].idxmax()
    steadiest = max(group(report, "strategy").groups, key=lambda row: row.consistency).label
    assert chosen["consistent"].configuration == by_name[by_name.index.str.startswith(steadiest)]["auc_val"].idxmax()
    assert chosen["auc"].highest_on_test == report.configurations[0].run_name
    assert chosen["auc"].beside_best == sum(row.beside_best_auc for row in report.configurations)
    assert chosen["auc"].excess_on_test > chosen["auc"].excess_chosen > 0
    assert report.configurations[0].beside_best_auc


def test_pareto_front(report):
    for row in report.configurations:
        dominated = any(
            other.auc.value >= row.auc.value
            and other.rejection.value >= row.rejection.value
            and (other.auc.value, other.rejection.value) != (row.auc.value, row.rejection.value)
            for other in report.configurations
        )
        assert row.pareto != dominated


def test_gap_recovered(report, study):
    teacher = study.get("teacher", "teacher", 42).metrics
    baseline = np.mean([study.get("baseline", "baseline", seed).metrics["auc"] for seed in SEEDS])
    for row in report.configurations[:5]:
        gap = row.gap_recovered_auc
        assert gap.value == pytest.approx((row.auc.value - baseline) / (teacher["auc"] - baseline))
        assert gap.low < gap.value < gap.high


def test_it_comes_back_from_json(report):
    assert Analysis.model_validate_json(report.model_dump_json()) == report


# ---- sentences


def comparison(value, low, high, p, p_holm=None):
    return Comparison(difference=Estimate(value=value, low=low, high=high), relative=None, p_value=p, p_holm=p_holm)


UP, DOWN = "+0.0100 (95 % interval +0.0020 to +0.0180)", "-0.0100 (95 % interval -0.0180 to -0.0020)"
OPEN = "+0.0100 (95 % interval -0.0020 to +0.0220)"


@pytest.mark.parametrize(
    ("compared", "text"),
    [
        (comparison(0.01, 0.002, 0.018, 0.01), f"A has a higher AUC than B: {UP}, p = 0.01."),
        (comparison(-0.01, -0.018, -0.002, 0.01), f"A has a lower AUC than B: {DOWN}, p = 0.01."),
        (comparison(0.01, -0.002, 0.022, 0.1), f"No difference in AUC seen between A and B: {OPEN}, p = 0.1."),
        (
            comparison(0.01, 0.002, 0.018, 0.01, 0.5),
            f"No difference in AUC seen between A and B: {UP}, p = 0.01 by itself, p = 0.5 after Holm's correction.",
        ),
    ],
)
def test_sentences(compared, text):
    found = versus("A", "B", compared, "auc")
    assert found.text == text
    assert found.supported == is_supported(compared) == ("No difference" not in text)


def test_what_beats_the_baseline(report):
    row = report.configurations[0]
    better, worse = comparison(0.01, 0.002, 0.018, 0.001, 0.01), comparison(-1.0, -1.5, -0.5, 0.001, 0.01)
    unseen = comparison(0.01, -0.002, 0.022, 0.1, 1.0)
    for auc, rejection, expected in (
        (better, unseen, True),
        (unseen, unseen, False),
        (better, worse, False),
        (None, None, False),
    ):
        assert (
            beats_baseline(row.model_copy(update={"auc_vs_baseline": auc, "rejection_vs_baseline": rejection}))
            == expected
        )


def test_a_strong_effect_is_found(report):
    """The synthetic study's α helps: the report says so, and does not say so of the strategies."""
    texts = {finding.topic: finding for finding in report.findings}
    assert texts["correlation_auc"].supported
    by_topic = pd.Series([f.topic for f in report.findings])
    assert {"precision", "improvement", "best_auc", "seeds", "pareto", "mass", "calibration", "pt"} <= set(by_topic)
