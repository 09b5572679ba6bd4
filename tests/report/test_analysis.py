"""The numbers of the report's object against pandas and direct computations, on a synthetic study of three seeds."""

import math

import numpy as np
import pytest

from kdfast.report.analysis import analyse
from kdfast.report.rendering import report_texts
from kdfast.report.sampling import auc_estimates
from kdfast.report.schema import Analysis
from kdfast.report.schema.values import Claim
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.study.results import open_study
from tests.report.fake_study import SMALL_GRID, make_study
from tests.report.reported import imported

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
        assert c.slope.difference.value == pytest.approx(np.polyfit(means[c.setting], means[column], 1)[0])
        assert c.slope.difference.error_test > 0
        assert c.slope.p_adjusted >= c.slope.p_value


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
            study.get(RunKey(kind, n, seed)).arrays["scores_test"]
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
    chosen = {winner.goal: winner for winner in report.winners}
    assert chosen["auc"].configuration == by_name["auc_val"].idxmax()
    assert chosen["rejection"].configuration == by_name["bkg_rej_50_val"].idxmax()
    scaled = (by_name - by_name.min()) / (by_name.max() - by_name.min())
    assert chosen["combined"].configuration == scaled.mean(axis=1).idxmax()
    constant = by_name[by_name.index.str.startswith("baseline")]
    assert chosen["constant"].configuration == constant["auc_val"].idxmax()
    steadiest = max(group(report, "strategy").groups, key=lambda row: row.consistency).label
    assert chosen["consistent"].configuration == by_name[by_name.index.str.startswith(steadiest)]["auc_val"].idxmax()
    assert chosen["auc"].highest_on_test == report.configurations[0].run_name
    assert chosen["auc"].best_set_size == sum(row.in_best_set_auc for row in report.configurations)
    assert chosen["auc"].excess_on_test > chosen["auc"].excess_chosen > 0
    assert report.configurations[0].in_best_set_auc


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
    teacher = study.get(RunKey.teacher(42)).metrics
    baseline = np.mean([study.get(RunKey.of(None, seed)).metrics["auc"] for seed in SEEDS])
    for row in report.configurations[:5]:
        gap = row.gap_recovered_auc
        assert gap.value == pytest.approx((row.auc.value - baseline) / (teacher["auc"] - baseline))
        assert (gap.low is None) == (gap.high is None)
        assert gap.low is None or gap.low < gap.value < gap.high


def test_it_comes_back_from_json(report):
    assert Analysis.model_validate_json(report.model_dump_json()) == report


# ---- seeds


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_one_configuration(tmp_path, seeds):
    """With several seeds its numbers hold their scatter, and the sentences say no less."""
    found = analyse(make_study(tmp_path / "study", SMALL_GRID[:1], seeds=seeds))
    known = len(seeds) > 1
    (row,) = found.configurations
    assert found.distribution.seed_df == len(seeds) - 1
    assert (found.distribution.auc_seed_std, found.distribution.auc_seed_common_std) == (None, None)
    numbers = [row.auc, row.rejection, row.auc_vs_baseline.difference, row.rejection_vs_baseline.difference]
    assert [estimate.error_runs is not None for estimate in numbers] == [known] * 4
    assert row.auc.error == pytest.approx(math.hypot(row.auc.error_test, row.auc.error_runs or 0.0))
    assert ("variance between seeds" in {item.what for item in found.missing}) == (not known)
    assert (Claim.SEED_VARIANCE_UNKNOWN in {finding.code for finding in found.findings}) == (not known)
    gap = row.gap_recovered_auc
    assert gap.low < gap.value < gap.high
    improvements = [finding for finding in found.findings if finding.topic == "improvement"]
    assert [finding.numbers["one"] for finding in improvements] == [row.run_name] * 2
    assert report_texts(found)


def test_each_run_a_seed_of_its_own(tmp_path):
    """No number is made up that no run has."""
    rows = [(3.0, 1, 0.90, 20), (5.0, 2, 0.80, 10), (7.0, 3, 0.82, 11), (10.0, 4, 0.81, 11)]
    lines = [f"baseline_T{t}_A0.5,{seed},{auc},{rejection}" for t, seed, auc, rejection in rows]
    (tmp_path / "runs.csv").write_text("\n".join(["run_name,seed,auc_student,bkg_rej_50", *lines]) + "\n")
    found = analyse(imported(tmp_path))
    values = {row.temp_init: (row.auc.value, row.rejection.value) for row in found.configurations}
    for t, _, auc, rejection in rows:
        assert values[t] == pytest.approx((auc, rejection))
    assert "means over common seeds" in {item.what for item in found.missing}
    assert "BEST OVERALL AUC: 0.9000" in report_texts(found)["ANALYSIS_SUMMARY.txt"]


@pytest.mark.parametrize("seeds", [(1,), (9,), (1, 2)], ids=["one shared", "none shared", "two shared"])
def test_a_baseline_of_fewer_seeds_than_the_students(tmp_path, seeds):
    made = make_study(tmp_path / "study", SMALL_GRID[:4], seeds=(1, 2, 3), baseline_seeds=seeds)
    found = analyse(made)
    reasons = [item.reason for item in found.missing if item.what == "tests of improvements over the baseline"]
    known = len(seeds) > 1
    assert len(reasons) == (not known)
    if reasons:
        assert reasons[0].startswith("only seed 1 has both" if seeds == (1,) else "no seed has both")
    assert set(found.mean_vs_baseline) == ({"auc", "rejection"} if known else set())
    for row in found.configurations:
        compared = (row.auc_vs_baseline, row.rejection_vs_baseline, row.gap_recovered_auc, row.gap_recovered_rejection)
        assert [c is not None for c in compared] == [known] * 4
    assert ("improvement" in {finding.topic for finding in found.findings}) == known
    assert [run.auc_gain is not None for run in found.runs] == [run.seed in seeds for run in found.runs]
    assert report_texts(found)


# ---- pT


def with_pt(folder, pt):
    """A study whose test jets have this pT, of their labels."""
    store = make_study(folder / "study", SMALL_GRID[:2], jets=1000, kinematics=False)
    pt = pt(np.asarray(store.shared("test")["labels"]))
    mass = np.random.default_rng(0).normal(80.0, 10.0, len(pt))
    store.write_shared("test_kinematics", {"pt": pt, "eta": 0.0 * pt, "mass": mass})
    return analyse(store)


@pytest.mark.parametrize("label", [0, 1, None])
def test_jets_without_a_pt(tmp_path, label):
    """All of a class, or all: there is nothing by pT, and the rest of the report stands."""
    found = with_pt(
        tmp_path, lambda labels: np.where((labels == label) | (label is None), np.nan, 600.0 + 1.0 * labels)
    )
    assert found.by_pt == found.pt_differences == []
    assert found.mass_sculpting
    lost = 1000 if label is None else 500
    assert f"{lost} of 1000 test jets in the bins of pT" in {item.what for item in found.missing}
    assert report_texts(found)
