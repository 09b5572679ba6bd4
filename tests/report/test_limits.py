"""Rejections that are lower limits, as no background survives: marked, and in no comparison."""

import re

import numpy as np
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.metrics import background_rejection
from kdfast.report.analysis import analyse
from kdfast.report.families import LEVEL_OF_REPORT, level_of
from kdfast.report.rendering import report_texts
from kdfast.report.schema.values import Claim
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult
from kdfast.study.results import open_study
from tests.report.fake_study import SMALL_GRID, make_study, separation
from tests.report.reported import imported, in_one_line, reported


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
        assert row.in_best_set_rejection is not None
        assert row.gap_recovered_rejection is None
        assert row.gap_recovered_auc is not None
    assert "rejection" in found.mean_vs_baseline
    assert {table.reference_rejection for table in found.groups} != {None}
    assert "gap recovered in rejection" in {item.what for item in found.missing}


def test_a_configuration_s_limit_is_its_own(limits):
    """Its number is marked; the others are compared with the baseline as before, by a model without it."""
    limited = {run.run_name for run in limits.runs if run.survivors["50"] == 0}
    assert 0 < len(limited) < len(SMALL_GRID)
    for row in limits.configurations:
        assert row.rejection.lower_limit == (row.run_name in limited)
        assert (row.rejection_vs_baseline is None) == (row.run_name in limited)
        assert row.in_best_set_rejection is None
        assert row.rejection.lower_limit or row.rejection.low < row.rejection.value < row.rejection.high
    compared = [row.rejection_vs_baseline for row in limits.configurations if row.rejection_vs_baseline]
    p = sorted((c.p_value, c.p_adjusted) for c in compared)
    assert np.all(np.diff([adjusted for _, adjusted in p]) >= 0.0)
    scale = LEVEL_OF_REPORT / level_of("main", "rejection")
    for own, adjusted in p:  # between one test and as many as there are, with the configurations' mean
        assert min(1.0, 0.9 * own * scale) <= adjusted <= 1.0
    assert p[0][1] <= min(1.0, (len(p) + 1) * scale * p[0][0])
    counts = [f.numbers for f in limits.findings if f.code is Claim.BASELINE_COUNTS]
    assert [(n["metric"], n["compared"], n["limits"]) for n in counts] == [
        ("auc", len(SMALL_GRID), 0),
        ("rejection", len(p), len(limited)),
    ]


@pytest.mark.parametrize("missing", [0, 6], ids=["balanced", "seeds missing"])
def test_a_single_run_s_limit_is_in_no_other_number(tmp_path, missing):
    """One run of 32 is a limit, on validation and test: the others' rejections are those of a study without that
    configuration."""
    spoiled = SMALL_GRID[9]

    def made(folder, configs, found):
        make_study(tmp_path / folder, configs, seeds=(1,), jets=500, settings={"seeds": [1, 2]})
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
    assert f"interval of the rejection of {row.run_name}" in {item.what for item in found.missing}
    assert report_texts(found)


def test_limits_enter_no_comparison_of_settings(limits):
    for parts in (limits.correlations, limits.importance, limits.models, limits.variance_shares, limits.top_two):
        assert {part.metric for part in parts} == {"auc"}
    assert all(g.rejection_difference is None for table in limits.groups for g in table.groups)
    for finding in limits.findings:
        assert finding.numbers.get("metric") != "rejection" or finding.topic == "improvement", finding.text
    assert any("by rejection at 50 %" in item.what for item in limits.missing)
    assert (limits.distribution.rejection.std, limits.distribution.rejection_error) == (None, None)


def test_networks_that_separate_all_jets(tmp_path):
    """Their AUC of 1 has no error, but scores are there: no sentence denies it."""
    found = analyse(make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2), jets=300, strength=lambda _: 30.0))
    assert {row.auc.value for row in found.configurations} == {1.0}
    assert found.study.scored
    for finding in found.findings:
        assert finding.topic != "precision"
        assert finding.numbers.get("scored", True)
    assert report_texts(found)


def test_limits_share_the_first_place(limits):
    """A measured value is not called the highest next to a limit, which may be higher."""
    assert {row.rejection.lower_limit for row in limits.configurations if row.rank_rejection == 1} == {True}
    assert all(row.rank_rejection == 1 for row in limits.configurations if row.rejection.lower_limit)
    by_name = {row.run_name: row for row in limits.configurations}
    (winner,) = (w for w in limits.winners if w.goal == "rejection")
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
    assert f"Alpha 0.9: Mean AUC {high.auc.mean:.4f}, BKG {shown}" in texts["ANALYSIS_SUMMARY.txt"]
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
    assert Claim.NO_SCORES in {finding.code for finding in found.findings}
    assert ">200.00" in report_texts(found)["ANALYSIS_SUMMARY.txt"]


def test_lower_limits_are_marked(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], jets=40)
    result = store.get(RunKey("student", "baseline_T3.0_A0.5", 42))
    labels = store.shared("test")["labels"]
    perfect = labels * 2.0 + np.arange(40) / 100
    rejection = background_rejection(labels, perfect, 0.5, store.shared("test")["weights"])
    assert rejection.is_lower_limit
    metrics = {**result.metrics, **{f"bkg_rej_{p}": rejection.value for p in (30, 50, 80)}}
    metrics |= {f"n_bkg_{p}": 0 for p in (30, 50, 80)}
    config = RunConfig(5.0, 0.5)
    arrays = {"scores_validation": result.arrays["scores_validation"], "scores_test": perfect}
    store.write(StoredResult("student", config.name, 42, config, metrics={**metrics, "auc_val": 1.0}, arrays=arrays))
    whole, texts = reported(store)
    text = in_one_line(texts["results_summary.txt"])
    assert f">{rejection.value:.2f}" in text
    assert "there the rejection is a 68 % lower limit" in text
    assert any(item.what == "comparisons of configurations and settings by rejection at 50 %" for item in whole.missing)
    assert all("inf" not in text.replace("info", "") for text in texts.values())


def test_a_range_of_limits_is_marked_at_both_ends(tmp_path):
    whole, texts = reported(
        make_study(tmp_path / "s", [RunConfig(3.0, 0.9), RunConfig(7.0, 0.5)], strength=lambda _: 9.0)
    )
    assert all(run.survivors["50"] == 0 for run in whole.runs)
    assert re.search(r"  - Background Rejection: >[\d.]+ - >[\d.]+\n", texts["ANALYSIS_SUMMARY.txt"])
