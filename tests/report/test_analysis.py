"""The numbers of the report's object against pandas and direct computations, on a synthetic study of three seeds."""

import math

import numpy as np
import pandas as pd
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.report.analysis import analyse
from kdfast.report.comparisons import holm
from kdfast.report.findings import _group_findings, beats_baseline, is_supported, versus
from kdfast.report.sampling import auc_estimates
from kdfast.report.schema import Analysis, Comparison, Estimate, Group, GroupTable, MetricSummary
from kdfast.report.texts import report_texts
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from kdfast.study.imports import import_study
from kdfast.study.results import open_study
from tests.report.fake_study import SMALL_GRID, make_study, separation

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
    teacher = study.get(RunKey.teacher(42)).metrics
    baseline = np.mean([study.get(RunKey.of(None, seed)).metrics["auc"] for seed in SEEDS])
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


def sentences_of(made, topic):
    return [finding for finding in analyse(made).findings if finding.topic == topic]


def compared_group(label, value, p_holm):
    """A group whose difference to the reference is value ± 0.01."""
    difference = comparison(value, value - 0.01, value + 0.01, p_holm / 3, p_holm)
    summary = MetricSummary(mean=0.8, std=0.1, variance=0.01, min=0.7, max=0.9)
    return Group(
        label=label,
        runs=9,
        auc=summary,
        rejection=summary,
        consistency=None,
        auc_over_constant=None,
        rejection_over_constant=None,
        auc_difference=None if value == 0.0 else difference,
    )


@pytest.mark.parametrize(
    ("differences", "supported", "parts"),
    [
        (
            {"0.5": (-0.03, 0.001), "0.7": (-0.02, 0.01)},
            True,
            ["higher mean AUC than each of the other 2", "0.5 by +0.03"],
        ),
        ({"0.5": (-0.03, 0.001), "0.7": (-0.05, 0.2)}, True, ["than 0.5 (5 %", "over initial α 0.5 by +0.0300"]),
        ({"0.5": (-0.005, 0.2), "0.7": (0.005, 0.3)}, False, ["any of the other 2", "over initial α 0.5 +0.0050"]),
        ({"0.5": (-0.005, 0.2)}, False, ["not seen to differ from the other one at equal"]),
        (
            {"0.5": (0.03, 0.001)},
            True,
            ["raw mean", "at equal ones initial α 0.5 is higher, by +0.0300 (95 % interval +0.0200"],
        ),
        (
            {"0.5": (0.03, 0.001), "0.7": (0.02, 0.01), "1.0": (-0.04, 0.001)},
            True,
            ["0.5 is higher, by +0.0300", "and so is 0.7", "it is higher than 1.0, over initial α 1.0 by +0.0400"],
        ),
    ],
)
def test_sentences_on_groups(report, differences, supported, parts):
    """The group of the highest raw mean is the reference; a difference that the test supports is never denied."""
    groups = [compared_group("0.9", 0.0, 1.0), *(compared_group(label, *d) for label, d in differences.items())]
    table = GroupTable(setting="alpha_init", reference="0.9", reference_rejection=None, groups=groups)
    (found,) = _group_findings(table, "auc")
    assert found.text.startswith("Initial α 0.9 has ")
    assert found.supported == supported
    for part in parts:
        assert part in found.text, found.text
    assert ("not seen to differ from any" in found.text or "from the other one at" in found.text) == (not supported)


@pytest.mark.parametrize(
    ("differences", "untold", "parts"),
    [
        (
            {"0.5": (-0.03, 0.001)},
            ["0.7"],
            ["higher mean AUC than initial α 0.5, at equal", "For 0.7 this can't be told"],
        ),
        (
            {"0.1": (-0.03, 0.001), "0.5": (-0.03, 0.001)},
            ["0.7", "1.0"],
            ["higher mean AUC than each of 0.1, 0.5, at", "For 0.7, 1.0 this can't be told"],
        ),
        (
            {"0.1": (-0.01, 0.2), "0.5": (-0.01, 0.2)},
            ["0.7"],
            ["from any of 0.1, 0.5 at equal", "For 0.7 this can't be"],
        ),
        ({"0.5": (-0.01, 0.2)}, ["0.7"], ["not seen to differ from initial α 0.5 at equal", "together with it."]),
        ({"0.5": (0.03, 0.001)}, ["0.7"], ["0.5 is higher, by", "For 0.7 this can't be told"]),
    ],
)
def test_groups_that_cannot_be_told_are_named(differences, untold, parts):
    """They are none of "the others" that the reference is compared with."""
    groups = [compared_group("0.9", 0.0, 1.0), *(compared_group(label, *d) for label, d in differences.items())]
    groups += [compared_group(label, 0.0, 1.0) for label in untold]
    table = GroupTable(setting="alpha_init", reference="0.9", reference_rejection=None, groups=groups)
    (found,) = _group_findings(table, "auc")
    for part in parts:
        assert part in found.text, found.text
    assert "other one" not in found.text
    assert "each of the other" not in found.text


def test_a_group_that_is_higher_at_equal_settings(tmp_path):
    """Annealed runs are better at equal α, but more of the constant ones have a high α, so that their raw mean is
    higher."""
    configs = [RunConfig(t, a) for t in (3.0, 5.0, 7.0, 10.0) for a in (0.3, 0.9, 0.95, 1.0)]
    configs += [RunConfig(t, a, 1.0) for t in (3.0, 5.0, 7.0, 10.0) for a in (0.3, 0.35, 0.4, 0.9)]

    def strength(config):
        return 1.25 if config is None else 1.25 + config.alpha_init + 0.25 * (config.strategy == "tempanneal")

    made = make_study(tmp_path / "study", configs, jets=1000, strength=strength)
    (found,) = sentences_of(made, "strategy_auc")
    assert found.supported
    assert "constant (baseline) has the highest raw mean AUC" in found.text
    assert "at equal ones the strategy temperature annealing is higher, by +0.0" in found.text


def test_a_grid_of_constants_has_its_slopes(tmp_path):
    """α matters much: the linear model's sentence says so, and names the settings that are there."""
    made = make_study(
        tmp_path / "study",
        grid(temperature=[3.0, 5.0, 7.0, 10.0], alpha=[0.3, 0.5, 0.7, 0.9], temperature_final=(), alpha_final=()),
        strength=lambda config: 1.25 if config is None else 1.25 + 0.6 * config.alpha_init,
    )
    (found,) = sentences_of(made, "model_auc")
    assert "on ln T_init, α_init and their product (" in found.text
    assert "these slopes differ from 0 (Holm): α_init +" in found.text
    assert found.supported


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_what_a_difference_is_known_to(tmp_path, seeds):
    made = make_study(tmp_path / "study", SMALL_GRID, seeds=seeds)
    text = sentences_of(made, "precision")[0].text
    assert ("the difference of two configurations' means over seeds is known to" in text) == (len(seeds) > 1)
    assert ("the difference of two runs is known to" in text) == (len(seeds) == 1)


def test_seeds_that_tell_nothing(tmp_path):
    """Two seeds, but one run of each configuration: nothing tells what a seed does, and the report says so."""
    half = len(SMALL_GRID) // 2
    make_study(tmp_path / "study", SMALL_GRID[:half], seeds=(1,))
    found = analyse(make_study(tmp_path / "study", SMALL_GRID[half:], seeds=(2,), teacher=False))
    assert found.study.seeds == [1, 2]
    assert found.distribution.seed_df == 0
    assert "variance between seeds" in {lack.what for lack in found.missing}
    texts = {finding.topic: finding.text for finding in found.findings}
    assert "trained networks, not configurations" in texts["seeds"]
    assert texts["strategy_auc"].startswith("Among these networks, whose seeds' part is not known")
    assert "16 trained networks can't be told from the best" in texts["best_auc"]


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
    assert ("variance between seeds" in {lack.what for lack in found.missing}) == (not known)
    texts = [finding.text for finding in found.findings]
    assert any("how much another seed would change them is not known" in text for text in texts) == (not known)
    assert not any(text.startswith("Of 1") or "mean of all" in text for text in texts)
    assert sum(row.run_name in f.text for f in found.findings if f.topic == "improvement") == 2
    assert report_texts(found)


def imported(folder):
    import_study(folder / "runs.csv", folder / "study")
    return StudyStore.open(folder / "study")


def test_each_run_a_seed_of_its_own(tmp_path):
    """No number is made up that no run has."""
    rows = [(3.0, 1, 0.90, 20), (5.0, 2, 0.80, 10), (7.0, 3, 0.82, 11), (10.0, 4, 0.81, 11)]
    lines = [f"baseline_T{t}_A0.5,{seed},{auc},{rejection}" for t, seed, auc, rejection in rows]
    (tmp_path / "runs.csv").write_text("\n".join(["run_name,seed,auc_student,bkg_rej_50", *lines]) + "\n")
    found = analyse(imported(tmp_path))
    values = {row.temp_init: (row.auc.value, row.rejection.value) for row in found.configurations}
    for t, _, auc, rejection in rows:
        assert values[t] == pytest.approx((auc, rejection))
    assert "means over common seeds" in {lack.what for lack in found.missing}
    assert "BEST OVERALL AUC: 0.9000" in report_texts(found)["ANALYSIS_SUMMARY.txt"]


@pytest.mark.parametrize("seeds", [(1,), (9,), (1, 2)], ids=["one shared", "none shared", "two shared"])
def test_a_baseline_of_fewer_seeds_than_the_students(tmp_path, seeds):
    made = make_study(tmp_path / "study", SMALL_GRID[:4], seeds=(1, 2, 3), baseline_seeds=seeds)
    found = analyse(made)
    reasons = [lack.reason for lack in found.missing if lack.what == "tests of improvements over the baseline"]
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
    assert f"{lost} of 1000 test jets in the bins of pT" in {lack.what for lack in found.missing}
    assert report_texts(found)


def test_a_trend_in_pt_names_its_bins(tmp_path):
    """Signal above 800 GeV alone: bins below are left out, and the first that is there is not the lowest of all."""

    def spectra(labels):
        rng = np.random.default_rng(1)
        return np.where(labels == 1, rng.uniform(800.0, 1200.0, len(labels)), rng.uniform(450.0, 1200.0, len(labels)))

    found = with_pt(tmp_path, spectra)
    assert any(lack.what.startswith("AUC and rejection in") for lack in found.missing)
    own = [b for b in found.by_pt if b.role == "teacher"]
    assert own[0].pt_low > 600.0
    (text,) = [f.text for f in found.findings if f.topic == "pt" and "teacher" in f.text]
    for b in (own[0], own[-1]):
        assert f"{b.pt_low:.0f} to {b.pt_high:.0f} GeV" in text
    assert "lowest" not in text


# ---- lower limits


def strong(config):
    """So strong that for high α no background of 250 jets survives at 50 %."""
    return 2.0 if config is None else 2.2 + 1.3 * config.alpha_init


@pytest.fixture(scope="module", params=[(1,), (1, 2)], ids=["one seed", "two seeds"])
def limits(tmp_path_factory, request):
    """Some configurations' rejections are lower limits."""
    folder = tmp_path_factory.mktemp("limits") / "study"
    return analyse(make_study(folder, SMALL_GRID, seeds=request.param, jets=500, strength=strong))


def test_a_limit_of_the_teacher_is_the_teacher_s(tmp_path):
    """It spoils the gap recovered in rejection, and nothing else."""
    found = analyse(make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2), teacher_strength=6.0))
    (teacher,) = (network for network in found.networks if network.role == "teacher")
    assert teacher.survivors["50"] == 0
    assert teacher.rejection["50"].lower_limit
    for row in found.configurations:
        assert not row.rejection.lower_limit
        assert row.rejection.low < row.rejection.value < row.rejection.high
        assert row.rejection_vs_baseline is not None
        assert row.beside_best_rejection is not None
        assert row.gap_recovered_rejection is None
        assert row.gap_recovered_auc is not None
    assert "rejection" in found.mean_vs_baseline
    assert {table.reference_rejection for table in found.groups} != {None}
    assert "gap recovered in rejection" in {lack.what for lack in found.missing}


def test_a_configuration_s_limit_is_its_own(limits):
    """Its number is marked; the others are compared with the baseline as before, by a model without it."""
    limited = {run.run_name for run in limits.runs if run.survivors["50"] == 0}
    assert 0 < len(limited) < len(SMALL_GRID)
    for row in limits.configurations:
        assert row.rejection.lower_limit == (row.run_name in limited)
        assert (row.rejection_vs_baseline is None) == (row.run_name in limited)
        assert row.beside_best_rejection is None
        assert row.rejection.lower_limit or row.rejection.low < row.rejection.value < row.rejection.high
    p = [row.rejection_vs_baseline.p_value for row in limits.configurations if row.rejection_vs_baseline]
    own = [row.rejection_vs_baseline.p_holm for row in limits.configurations if row.rejection_vs_baseline]
    assert own == pytest.approx(holm(p))
    start = f"Of {len(p)} {'trained networks' if len(limits.study.seeds) == 1 else 'configurations'}"
    (text,) = [f.text for f in limits.findings if f.text.startswith(start) and "rejection" in f.text]
    assert f"{len(limited)} more are not compared" in text or "1 more is not compared" in text


@pytest.mark.parametrize("missing", [0, 6], ids=["balanced", "seeds missing"])
def test_a_single_run_s_limit_is_in_no_other_number(tmp_path, missing):
    """One run of 32 is a limit, on validation and test: the others' rejections are those of a study without that
    configuration."""
    spoiled = SMALL_GRID[9]

    def made(folder, configs, found):
        make_study(tmp_path / folder, configs, seeds=(1,), jets=500)
        return make_study(tmp_path / folder, found, seeds=(2,), jets=500, teacher=False, strength=one_limit)

    def one_limit(config):
        return 20.0 if config == spoiled else separation(config)

    later = SMALL_GRID[missing:]
    whole = analyse(made("whole", SMALL_GRID, later))
    rest = analyse(made("rest", *([c for c in part if c != spoiled] for part in (SMALL_GRID, later))))
    expected = {row.run_name: row for row in rest.configurations}
    own = [run.rejection["50"].value for run in whole.runs if run.run_name == spoiled.name]
    for row in whole.configurations:
        if row.run_name == spoiled.name:
            assert row.rejection.value == pytest.approx(np.mean(own))
            assert row.rejection.lower_limit
            continue
        assert row.rejection == expected[row.run_name].rejection
        assert row.rejection.low < row.rejection.value < row.rejection.high
        assert row.rejection_validation == pytest.approx(expected[row.run_name].rejection_validation)


def test_an_interval_that_holds_everything_is_none(tmp_path):
    """Two seeds that differ much: Student's t of one degree of freedom is 12.7, on the logarithm's scale."""
    for seed, strength in ((1, 0.5), (2, 2.5)):
        made = make_study(
            tmp_path / "study", SMALL_GRID[:1], seeds=(seed,), teacher=seed == 1, strength=lambda _, s=strength: s
        )
    found = analyse(made)
    (row,) = found.configurations
    assert row.rejection.error > 0.8 * row.rejection.value
    assert (row.rejection.low, row.rejection.high) == (None, None)
    assert f"interval of the rejection of {row.run_name}" in {lack.what for lack in found.missing}
    assert report_texts(found)


def test_limits_enter_no_comparison_of_settings(limits):
    for parts in (limits.correlations, limits.importance, limits.models, limits.variance_shares, limits.top_two):
        assert {part.metric for part in parts} == {"auc"}
    assert all(g.rejection_difference is None for table in limits.groups for g in table.groups)
    for finding in limits.findings:
        assert "rejection" not in finding.text or finding.topic == "improvement", finding.text
    assert any("by rejection at 50 %" in lack.what for lack in limits.missing)
    assert (limits.distribution.rejection.std, limits.distribution.rejection_error) == (None, None)


def test_networks_that_separate_all_jets(tmp_path):
    """Their AUC of 1 has no error, but scores are there: no sentence denies it."""
    found = analyse(make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2), jets=300, strength=lambda _: 30.0))
    assert {row.auc.value for row in found.configurations} == {1.0}
    assert found.study.scored
    for finding in found.findings:
        assert "Without scores" not in finding.text
        assert "scatter of runs alone" not in finding.text
        assert "scatter alone" not in finding.text
        assert finding.topic != "precision"
    assert report_texts(found)


def test_limits_share_the_first_place(limits):
    """A measured value is not called the highest beside a limit, which may be higher."""
    assert {row.rejection.lower_limit for row in limits.configurations if row.rank_rejection == 1} == {True}
    assert all(row.rank_rejection == 1 for row in limits.configurations if row.rejection.lower_limit)
    by_name = {row.run_name: row for row in limits.configurations}
    (winner,) = (w for w in limits.winners if w.wish == "rejection")
    assert by_name[winner.highest_on_test].rejection.lower_limit
    if by_name[winner.configuration].rejection.lower_limit:
        assert winner.highest_on_test == winner.configuration


def test_one_order_of_limits_and_values(tmp_path):
    """No survivor, on validation and test, stands above one survivor, though its limit is the lower number."""
    rows = ["3.0_A0.5,0.95,200,0,0.95,200,0", "5.0_A0.5,0.90,220,1,0.90,220,1", "7.0_A0.5,0.80,20,9,0.80,20,9"]
    head = "run_name,auc_student,bkg_rej_50,n_bkg_50,auc_val,bkg_rej_50_val,n_bkg_50_val"
    (tmp_path / "runs.csv").write_text("\n".join([head, *(f"baseline_T{row}" for row in rows)]) + "\n")
    found = analyse(imported(tmp_path))
    assert found.study.selected_on == "validation"
    by_name = {row.run_name: row for row in found.configurations}
    first = by_name["baseline_T3.0_A0.5"]
    assert (first.rank_rejection, first.rank_combined, first.combined, first.pareto) == (1, 1, 1.0, True)
    assert (first.rejection_validation_limit, first.combined_validation) == (True, 1.0)
    assert not any(row.pareto for row in by_name.values() if row is not first)
    for winner in found.winners:
        assert (winner.configuration, winner.highest_on_test) == (first.run_name, first.run_name)
    texts = report_texts(found)
    assert "BEST BACKGROUND REJECTION: >200.00" in texts["ANALYSIS_SUMMARY.txt"]
    top = texts["results_summary.txt"].split("BY BACKGROUND REJECTION AT 50 %")[1]
    assert top.index("T3.0_A0.5") < top.index("T5.0_A0.5")
    assert ">200.0000" in top
    results = open_study(tmp_path / "study")
    assert results.best("bkg_rej_50")["run_name"] == results.best("combined")["run_name"] == first.run_name


def test_means_of_limits_are_marked(limits):
    texts = report_texts(limits)
    alpha = next(table for table in limits.groups if table.setting == "alpha_init")
    (high,) = (g for g in alpha.groups if g.label == "0.9")
    assert high.rejection.limits == sum(r.survivors["50"] == 0 for r in limits.runs if r.alpha_init == 0.9) > 0
    shown = f">{high.rejection.mean:.2f}"
    assert f"Alpha 0.9: Mean AUC = {high.auc.mean:.4f}, Mean BKG = {shown}" in texts["ANALYSIS_SUMMARY.txt"]
    (line,) = [x for x in texts["hyperparameter_analysis.txt"].splitlines() if x.startswith("  0.9  ") and ">" in x]
    assert shown in line.split()
    best = max(r.rejection["50"].value for r in limits.runs)
    assert f" - >{best:.2f}" in texts["ANALYSIS_SUMMARY.txt"]
    grids = texts["results_summary.txt"].split("MEAN REJECTION AT 50 %")[1].split("MISSING")[0]
    assert grids.count(">") == sum(n > 0 for row in limits.grid.rejection_limits for n in row) > 0


def test_an_imported_limit_keeps_its_mark(tmp_path):
    (tmp_path / "runs.csv").write_text(
        "run_name,auc_student,bkg_rej_50,n_bkg_50\nbaseline_T3.0_A0.5,0.9,200,0\nbaseline_T5.0_A0.5,0.8,100,2\n"
    )
    found = analyse(imported(tmp_path))
    assert {row.temp_init: row.rejection.lower_limit for row in found.configurations} == {3.0: True, 5.0: False}
    assert not found.study.scored
    assert "Without scores per jet" in next(f.text for f in found.findings if f.topic == "precision")
    assert ">200.00" in report_texts(found)["ANALYSIS_SUMMARY.txt"]
