"""The files that a study's report consists of."""

import re

import numpy as np
import pandas as pd
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.errors import StudyError
from kdfast.metrics import background_rejection
from kdfast.study.grid import grid
from kdfast.study.results import open_study
from kdfast.study.store import StoredResult, StudyStore
from tests.report.fake_study import PROVENANCE, SETTINGS, make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study's 132 configurations."""
    return make_study(tmp_path_factory.mktemp("studies") / "study")


def small(path, **options):
    return make_study(path, grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0]), **options)


def section(text, title):
    """The lines below a heading."""
    match = re.search(rf"-+\n{re.escape(title)}.*\n-+\n((?:.*\n)*?)(?=-{{50}}|\Z)", text)
    assert match, title
    return match[1].rstrip()


def numbers(line):
    return [float(word) for word in line.split() if re.fullmatch(r"[-+]?\d+(\.\d+)?", word)]


def test_files(study):
    paths = study.rebuild_summaries()
    assert {name: path.relative_to(study.path).as_posix() for name, path in paths.items()} == {
        "report.json": "report.json",
        "results_summary.csv": "results_summary.csv",
        "results_summary.txt": "results_summary.txt",
        "teacher": "models/teacher.safetensors",
        "baseline": "models/baseline.safetensors",
        "best_student": "models/best_student.safetensors",
        "roc_pdf": "roc.pdf",
        "roc_png": "roc.png",
    }
    assert paths["roc_png"].read_bytes().startswith(b"\x89PNG")
    assert paths["roc_pdf"].read_bytes().startswith(b"%PDF")
    best = open_study(study.path).best("auc")
    assert paths["best_student"].read_bytes() == study.model_file(study.get("student", best["run_name"], 42))
    assert paths["teacher"].read_bytes() == study.model_file(study.get("teacher", "teacher", 42))
    table = pd.read_csv(paths["results_summary.csv"])
    assert len(table) == 132
    assert (table["status"] == "done").all()


def test_rebuilding_gives_the_same_files(study):
    before = {path: path.read_bytes() for path in study.rebuild_summaries().values()}
    for path in before:
        path.unlink()
    again = StudyStore.open(study.path).rebuild_summaries()
    assert {path: path.read_bytes() for path in again.values()} == before


def test_summary_says_what_the_table_holds(study):
    paths = study.rebuild_summaries()
    text, table = paths["results_summary.txt"].read_text(), open_study(study.path).results
    assert "Runs: 132, of which 132 are done" in text
    assert "VALIDATION" in text

    lines = section(text, "BY INITIAL TEMPERATURE").splitlines()
    assert len(lines) == 1 + 4
    for line, (value, group) in zip(lines[1:], table.groupby("temp_init"), strict=True):
        auc, rejection = group["auc_student"], group["bkg_rej_50"]
        expected = [
            value,
            len(group),
            auc.mean(),
            auc.std(),
            auc.max(),
            rejection.mean(),
            rejection.std(),
            rejection.max(),
        ]
        np.testing.assert_allclose(numbers(line), expected, atol=0.0051)
        assert f"{auc.mean():.4f}" in line
    assert len(section(text, "BY INITIAL MIXING WEIGHT").splitlines()) == 1 + 4
    assert len(section(text, "TEMPERATURE RANGES").splitlines()) == 1 + 8
    assert len(section(text, "ALPHA RANGES").splitlines()) == 1 + 7
    ranges = [line.split()[4] for line in section(text, "TEMPERATURE RANGES").splitlines()[1:]]
    assert ranges == sorted(ranges, reverse=True)

    strategies = section(text, "BY STRATEGY")
    for name, count in (("baseline", 16), ("tempanneal", 32), ("alphasched", 28), ("combined", 56)):
        auc = table[table["strategy"] == name]["auc_student"]
        (line,) = [line for line in strategies.splitlines() if line.startswith(f"  {name} (")]
        assert f" {count} " in line
        assert f"{1 / (auc.std() + 0.001):.2f}" in line

    grids = section(text, "GRID T_init × α_init: mean AUC").splitlines()
    assert grids[1].split() == [
        "3.0",
        *(f"{v:.4f}" for v in table[table["temp_init"] == 3].groupby("alpha_init")["auc_student"].mean()),
    ]

    r = np.corrcoef(table["alpha_init"], table["auc_student"])[0, 1]
    assert f"{r:+.3f}" in section(text, "CORRELATION")
    assert "(33 of 132 runs" in section(text, "DISTRIBUTION")

    best = open_study(study.path).best("auc")
    leaders = section(text, "TOP 10 BY VALIDATION AUC").splitlines()
    assert best["run_name"] in leaders[1]
    rank = int((table["auc_student"] > best["auc_student"]).sum()) + 1
    assert leaders[1].split()[5] == str(rank)
    carry = section(text, "WHAT THESE NUMBERS CAN CARRY")
    assert "Test jets: 900 (450 signal, 450 background)" in carry
    assert "With one seed" in carry


def test_no_sentence_calls_the_best_significant(study):
    text = study.rebuild_summaries()["results_summary.txt"].read_text()
    assert not re.search(r"significan(t|tly) (better|higher)|outperform", text)


def test_diverged_runs_are_listed_without_numbers(tmp_path):
    store = small(tmp_path / "s", diverged=("baseline_T7.0_A0.5",))
    paths = store.rebuild_summaries()
    text = paths["results_summary.txt"].read_text()
    assert "Runs: 4, of which 3 are done and 1 are not" in text
    assert "baseline_T7.0_A0.5, seed 42: diverged" in section(text, "RUNS WITHOUT A RESULT")
    row = pd.read_csv(paths["results_summary.csv"]).set_index("run_name").loc["baseline_T7.0_A0.5"]
    assert row["status"] == "diverged"
    assert row[["auc_student", "bkg_rej_50", "n_bkg_50", "auc_val", "best_epoch"]].isna().all()


def test_all_diverged(tmp_path):
    names = tuple(c.name for c in grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0]))
    paths = small(tmp_path / "s", diverged=names).rebuild_summaries()
    assert "best_student" not in paths
    assert "of which 0 are done" in paths["results_summary.txt"].read_text()


def test_nothing_trained_yet(tmp_path):
    store = StudyStore.create_or_open(tmp_path / "s", SETTINGS, PROVENANCE)
    paths = store.rebuild_summaries()
    assert list(paths) == ["report.json", "results_summary.csv", "results_summary.txt"]
    assert "Runs: 0" in paths["results_summary.txt"].read_text()
    assert len(open_study(store.path).results) == 0


def test_one_run_without_teacher_scores(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], teacher=False)
    paths = store.rebuild_summaries()
    assert "teacher" not in paths
    text = paths["results_summary.txt"].read_text()
    assert "Teacher AUC:           -" in text
    assert "nan" not in text.lower()


def test_several_seeds(tmp_path):
    store = small(tmp_path / "s", seeds=(1, 2))
    text = store.rebuild_summaries()["results_summary.txt"].read_text()
    assert "seeds: 1, 2" in text
    assert "(by seed)" in text
    assert "With one seed" not in text
    results = open_study(store.path)
    assert results.best()["seed"] in (1, 2)


def test_lower_limits_are_marked(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], jets=40)
    result = store.get("student", "baseline_T3.0_A0.5", 42)
    labels = store.shared("test")["labels"]
    perfect = labels * 2.0 + np.arange(40) / 100
    rejection = background_rejection(labels, perfect, 0.5)
    assert rejection.is_lower_limit
    metrics = {**result.metrics, **{f"bkg_rej_{p}": rejection.value for p in (30, 50, 80)}}
    metrics |= {f"n_bkg_{p}": 0 for p in (30, 50, 80)}
    config = RunConfig(5.0, 0.5)
    arrays = {"scores_validation": result.arrays["scores_validation"], "scores_test": perfect}
    store.write(StoredResult("student", config.name, 42, config, metrics={**metrics, "auc_val": 1.0}, arrays=arrays))
    text = store.rebuild_summaries()["results_summary.txt"].read_text()
    assert f">{rejection.value:.2f}" in text
    assert "there the rejection is a 68 % lower limit" in text
    assert "inf" not in text


def test_a_damaged_result_is_not_reported(tmp_path):
    store = small(tmp_path / "s")
    (folder,) = (store.path / "results").glob("student.baseline_T3.0*")
    (folder / "result.json").write_text("{}")
    with pytest.raises(
        StudyError, match=r"student\.baseline_T3\.0_A0\.5\.seed42: is damaged: result.json does not match"
    ):
        open_study(store.path).report()


def test_unwritable_report(tmp_path):
    store = small(tmp_path / "s")
    (store.path / "models").write_text("a file in the way")
    with pytest.raises(StudyError, match=r"can't be written: File exists\ngive a place that may be written"):
        store.rebuild_summaries()
