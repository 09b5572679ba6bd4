"""The report of a study with further axes: each is treated as T and α are."""

import json

import pytest

from kdfast.distill.schedules import RunConfig, settings_of
from kdfast.report import write
from kdfast.report.analysis import analyse
from kdfast.report.page import explorer, page
from kdfast.report.rendering import report_texts
from kdfast.store.grid import grid
from kdfast.store.table import csv_text, results_table
from tests.report.fake_study import SMALL_GRID, make_study
from tests.undrawn import undrawn_figures

AXES = {"learning_rate": [5e-4, 5e-3], "patience": [5, 8], "model": ["small", "medium"]}
GRID = grid(temperature=[3.0, 7.0], alpha=[0.3, 0.9], **AXES)
SEEDS = (42, 43, 44, 45, 46)
BETTER = {"medium": 0.6}


def strength(run) -> float:
    """Larger models and a higher learning rate help all, a teacher helps, and most of all with the small model."""
    settings = settings_of(run)
    found = 1.25 + 100.0 * settings.get("learning_rate", 5e-4) + BETTER.get(settings.get("model"), 0.0)
    if isinstance(run, RunConfig):
        found += 0.4 if settings.get("model") == "small" else 0.02
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    lists = {"temperature": [3.0, 7.0], "alpha": [0.3, 0.9], **AXES}
    path = tmp_path_factory.mktemp("axes") / "study"
    return make_study(path, GRID, seeds=SEEDS, strength=strength, settings={"grid": lists})


@pytest.fixture(scope="module")
def analysis(store):
    return analyse(store)


@pytest.mark.slow
def test_every_run_is_asked_for(analysis):
    assert analysis.study.counts == {"done": len(SEEDS) * len(GRID)}


def test_students_are_compared_with_the_baseline_of_their_settings(store, analysis):
    baselines = {(r.name, r.seed): r.metrics["auc"] for r in store.results() if r.kind == "baseline"}
    assert len(baselines) == len(SEEDS) * 8
    gains = {}
    for run in analysis.runs:
        name = RunConfig.from_name(run.run_name).baseline.name
        assert run.auc_gain == pytest.approx(run.auc.value - baselines[name, run.seed])
        gains.setdefault(run.run_name, []).append(run.auc_gain)
    for row in analysis.configurations:
        difference = row.auc_vs_baseline.difference
        assert difference.value == pytest.approx(sum(gains[row.run_name]) / len(SEEDS))
        assert row.auc_vs_baseline.supported == (row.settings["model"] == "small")
    mean = analysis.mean_vs_baseline["auc"].difference.value
    assert mean == pytest.approx(sum(map(sum, gains.values())) / len(analysis.runs))
    table = results_table(store.results())
    assert (table["auc_student"] - table["auc_baseline"]).mean() == pytest.approx(mean)
    average = table["auc_student"].mean()
    said = f"32 configurations average AUC {average:.4f}, their baselines {average - mean:.4f} (difference {mean:+.4f}"
    assert said in analysis.verdict.text
    (shown,) = (network for network in analysis.networks if network.role == "baseline")
    (student,) = (network for network in analysis.networks if network.role == "student")
    assert shown.run_name == RunConfig.from_name(student.run_name).baseline.name


def test_effects_of_axes_are_found_at_equal_other_settings(analysis):
    tables = {table.setting: table for table in analysis.groups}
    assert [group.label for group in tables["learning_rate"].groups] == ["0.0005", "0.005"]
    assert [group.label for group in tables["model"].groups] == ["medium", "small"]
    assert tables["model"].reference == "medium"
    (small,) = (group for group in tables["model"].groups if group.label == "small")
    assert small.auc_difference.supported
    assert small.auc_difference.difference.value < 0
    planned = {c.question: c for c in analysis.planned if c.metric == "auc"}
    assert set(planned) == {"temperature", "alpha", "learning_rate", "patience"}
    rate = planned["learning_rate"]
    assert (rate.one, rate.other) == ("high learning rate", "low learning rate")
    assert rate.comparison.supported
    assert not planned["patience"].comparison.supported
    symbols = {c.setting: c.symbol for c in analysis.correlations}
    assert symbols["learning_rate"] == "ln learning rate"  # a decade
    assert symbols["patience"] == "patience"
    pairs = {(i.one, i.other): i for i in analysis.importance if i.metric == "auc"}
    assert len(pairs) == 6
    assert pairs["ln learning rate", "T_init"].difference.supported
    assert pairs["patience", "ln learning rate"].difference.difference.value < 0
    (shares,) = (s.shares for s in analysis.variance_shares if s.metric == "auc")
    assert shares["learning rate"] + shares["model"] > 0.7
    (model,) = (m for m in analysis.models if m.metric == "auc")
    assert {"ln learning rate", "patience", "ln learning rate × patience"} <= {term.name for term in model.terms}
    assert analysis.top_quartile.all_shares["model small"] == 0.5


def test_files_know_every_axis(store, analysis):
    head, first, *_ = csv_text(results_table(store.results())).splitlines()
    assert head.endswith(",learning_rate,patience,model")
    assert first.endswith((",0.0005,5,medium", ",0.0005,5,small"))
    texts = report_texts(analysis)
    for heading in ("BY LEARNING RATE", "BY PATIENCE", "BY MODEL"):
        assert heading in texts["hyperparameter_analysis.txt"]
    assert "4. LEARNING RATE" in texts["ANALYSIS_SUMMARY.txt"]
    assert "% model small [50%]" in texts["ANALYSIS_SUMMARY.txt"]
    assert "Learning rate: 0.005" in texts["ANALYSIS_SUMMARY.txt"]
    axes = {axis["key"]: axis for axis in json.loads(explorer(analysis).json)["axes"]}
    assert axes["model"]["names"] == ["medium", "small"]
    assert sorted(set(axes["learning_rate"]["values"])) == [5e-4, 5e-3]
    html = page(analysis, [])
    assert "By learning rate" in html
    assert ">Learning rate</th>" in html


def test_constant_runs_are_shown_as_constant(store, analysis, tmp_path):
    with undrawn_figures():
        write(store, tmp_path)
    for name in ("ANALYSIS_SUMMARY.txt", "detailed_comparison.txt", "report.html"):
        text = (tmp_path / name).read_text()
        assert "constant_T" in text
        assert "baseline_T" not in text.replace("student.baseline_T", "")  # the name of a file
    assert "constant_T" not in (tmp_path / "results_summary.csv").read_text()
    assert all(run.run_name.startswith("baseline_T") for run in analysis.runs)
    assert not any("baseline_T" in finding.text for finding in analysis.findings)


def test_runs_without_a_setting_have_the_studys_own(tmp_path):
    """An extended study: the sweep's own runs, and some with another learning rate."""
    more = grid(temperature=[3.0, 7.0], alpha=[0.3, 0.9], learning_rate=5e-3)
    study = make_study(tmp_path / "study", [*SMALL_GRID, *more], strength=strength)
    analysis = analyse(study)
    (table,) = (table for table in analysis.groups if table.setting == "learning_rate")
    assert [(group.label, group.runs) for group in table.groups] == [("0.0005", 16), ("0.005", 4)]
    rows = {row.run_name: row for row in analysis.configurations}
    assert rows[more[0].name].settings == {"learning_rate": 5e-3}
    assert rows[SMALL_GRID[0].name].settings == {}
    assert all(row.auc_vs_baseline is not None for row in rows.values())
    assert report_texts(analysis)


def test_a_missing_baseline_is_named(tmp_path):
    runs = grid(temperature=[3.0, 7.0], alpha=[0.3, 0.9], learning_rate=[5e-4, 5e-3])
    study = make_study(tmp_path / "study", runs, strength=strength, diverged=("baseline_lr0.005",))
    analysis = analyse(study)
    compared = {row.settings["learning_rate"] for row in analysis.configurations if row.auc_vs_baseline is not None}
    assert compared == {5e-4}
    assert any("improvements over baseline_lr0.005" in missing.what for missing in analysis.missing)
    assert analysis.mean_vs_baseline["auc"].difference.value == pytest.approx(
        sum(row.auc_vs_baseline.difference.value for row in analysis.configurations if row.auc_vs_baseline) / 4
    )
