"""Logs of jobs: what they say comes back, and damage is an error."""

import re
import subprocess
import sys

import numpy as np
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.importers.found import LONGEST_LINE, Notes, read_lines
from kdfast.importers.run_log import read_run_log
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from tests.importers.imports import (
    BOTH,
    CONSTANT,
    GENUINE,
    jobs_of_the_study,
    line_of,
    line_of_text,
    quietly,
    warned,
)
from tests.report.study_logs import Job, log_text, write_logs


def test_a_genuine_log(tmp_path):
    study = quietly(GENUINE, tmp_path / "s")
    (row,) = (row for _, row in study.results.iterrows())
    assert row["run_name"] == "combined_T10.0to1.0_A0.9to0.3"
    assert (row["strategy"], row["temp_init"], row["temp_final"]) == ("combined", 10.0, 1.0)
    assert (row["alpha_init"], row["alpha_final"], row["seed"], row["status"]) == (0.9, 0.3, 0, "done")
    assert (row["auc_student"], row["bkg_rej_50"], row["auc_val"]) == (0.8909, 12.62, 0.8632)
    assert (row["auc_teacher"], row["auc_baseline"]) == (0.9283, 0.8970)
    store = StudyStore.open(study.path)
    assert store.get(RunKey.teacher(0)).metrics == {"auc": 0.9283, "bkg_rej_50": 27.55}
    assert store.get(RunKey.of(None, 0)).metrics == {"auc": 0.8970, "bkg_rej_50": 10.82}
    assert (study.status()["status"] == "done").all()


def test_logs_give_their_own_figures_back(tmp_path):
    jobs = jobs_of_the_study()
    write_logs(tmp_path / "logs", jobs)
    table = quietly(tmp_path / "logs", tmp_path / "s").results.set_index("run_name")
    assert len(table) == 132
    for job in jobs:
        row = table.loc[job.config.name]
        assert (row["auc_student"], row["bkg_rej_50"]) == (job.auc, job.rejection)
        assert (row["auc_val"], row["auc_teacher"], row["auc_baseline"]) == (0.8199, 0.9210, 0.8040)
        assert RunConfig.from_name(row.name) == job.config
        assert row["strategy"] == job.config.strategy


def test_curves_epochs_and_seed(tmp_path):
    epochs = [(5, 0.71, 0.79, 0.79), (10, float("nan"), 0.80, 0.81), (15, 0.6, 0.805, 0.8125)]
    path = tmp_path / "transformer_1.out"
    path.write_text(log_text(Job(BOTH, epochs=epochs, early=18, auc_val=None)))
    study = quietly(path, tmp_path / "s", seed=7)
    result = StudyStore.open(study.path).get(RunKey("student", BOTH.name, 7))
    assert result.curves["epoch"] == [5, 10, 15]
    np.testing.assert_array_equal(result.curves["loss"], [0.71, np.nan, 0.6])
    assert result.curves["auc_val"] == [0.79, 0.80, 0.805]
    assert (result.metrics["auc_val"], result.metrics["epochs"]) == (0.8125, 18)
    assert (
        result.message == f"from {path}, line {path.read_text().splitlines().index(line_of(path, 'Student with')) + 1}"
    )


def test_older_logs_have_no_banner(tmp_path):
    (tmp_path / "a.out").write_text(log_text(Job(BOTH), with_banner=False))
    assert quietly(tmp_path / "a.out", tmp_path / "s").results["run_name"][0] == BOTH.name
    # what a job was called by, and its numbers, stand in its command line too
    text = log_text(Job(BOTH, name="my_run"))
    text = re.sub(r"  (Run Name|Temperature|Alpha).*\n", "", text)
    (tmp_path / "b.out").write_text(text)
    study, texts = warned(tmp_path / "b.out", tmp_path / "t")
    assert study.results["run_name"][0] == BOTH.name
    assert texts == [
        f"{tmp_path / 'b.out'}, line 1: the run's name 'my_run' does not match its T and α: imported as {BOTH.name}"
    ]


@pytest.mark.parametrize(
    ("marker", "reason"),
    [("STEP 3", "AUC"), ("Student with KD", "AUC"), ("Background Rejection", "background rejection")],
)
def test_a_log_cut_short_is_left_out(tmp_path, marker, reason):
    good, cut = write_logs(tmp_path / "logs", [Job(CONSTANT), Job(BOTH)])
    text = cut.read_text()
    cut.write_text(text[: text.index(marker) + 10])
    study, texts = warned([good, cut], tmp_path / "s")
    assert list(study.results["run_name"]) == [CONSTANT.name]
    lines = cut.read_text().count("\n") + 1
    assert texts == [f"{cut}, line {lines}: the run has no {reason} of the student (the log ends here): left out"]


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        ("Student with KD                              0.8", "AUC"),
        ("Student with KD                              0.8909", "AUC"),
        ("  Student:  1", "background rejection"),
        ("  Student:  12.", "background rejection"),
        ("  Student:  12.62", "background rejection"),  # nobody knows whether a digit more was to come
    ],
)
def test_a_log_cut_inside_a_number_is_left_out(tmp_path, cut, reason):
    (good,) = write_logs(tmp_path / "logs", [Job(CONSTANT)])
    path, text = tmp_path / "cut.out", GENUINE.read_text()
    path.write_text(text[: text.index(cut) + len(cut)])
    study, texts = warned([good, path], tmp_path / "s")
    assert list(study.results["run_name"]) == [CONSTANT.name]
    line = path.read_text().count("\n") + 1
    assert texts == [f"{path}, line {line}: the run has no {reason} of the student (the log ends here): left out"]


def test_what_ends_a_log_may_lack_its_newline(tmp_path):
    path = tmp_path / "a.out"
    text = log_text(Job(BOTH))
    path.write_text(text[: text.index("Training completed successfully") + 31])
    assert quietly(path, tmp_path / "s").results["bkg_rej_50"][0] == 9.44


def test_a_number_is_never_parted_where_a_long_line_is(tmp_path):
    """Progress bars without a newline are read in pieces; a result behind them stays whole."""
    path, text = tmp_path / "a.out", log_text(Job(BOTH, auc=0.8242))
    result = line_of_text(text, "Student with KD")
    bar = "#" * 49 + "\r"
    for short in range(1, len(result)):  # characters of the result that fit into the first piece
        filled = bar * ((LONGEST_LINE - short) // len(bar))
        padding = "#" * (LONGEST_LINE - short - len(filled) - 1) + "\r"
        path.write_text(text.replace(result, filled + padding + result))
        student, *_ = read_run_log(path, read_lines(path), Notes())
        assert student.metrics["auc"] == 0.8242


@pytest.mark.parametrize("lost", ["Temperature Final", "Alpha Init", "Alpha Final"])
def test_a_damaged_banner_is_mended_by_the_command_line(tmp_path, lost):
    path = tmp_path / "a.out"
    path.write_text(re.sub(rf"  {lost}.*\n", "", GENUINE.read_text()))
    assert quietly(path, tmp_path / "s").results["run_name"][0] == BOTH.name


def test_a_damaged_banner_without_a_command_line_leaves_the_name(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(re.sub(r"  Temperature Final.*\n|python .*\n", "", GENUINE.read_text()))
    assert quietly(path, tmp_path / "s").results["run_name"][0] == BOTH.name


def test_failed_training(tmp_path):
    text = log_text(Job(BOTH))
    late, early = tmp_path / "late.out", tmp_path / "early.out"
    late.write_text(text.replace("completed successfully", "failed with exit code: 1"))
    early.write_text(text.split("FINAL")[0] + "Training failed with exit code: 137\n")
    study, texts = warned([late, early], tmp_path / "s")
    assert study.results["status"][0] == "done"
    assert [text.split(": ", 1)[1] for text in texts] == [
        "training failed with exit code: 1, after the results were written: they are kept",
        "the run has no AUC of the student (training failed with exit code: 137): left out",
    ]


def test_a_requeued_job_appends_to_its_log(tmp_path):
    path = tmp_path / "a.out"
    first, again = Job(BOTH, auc=0.81), Job(BOTH, auc=0.82)
    path.write_text(log_text(first).split("FINAL")[0] + log_text(first, 2) + log_text(again, 3))
    study, texts = warned(path, tmp_path / "s")
    assert list(study.results["auc_student"]) == [0.82]
    assert "no AUC of the student" in texts[0]
    assert re.search(
        r"is given again: AUC 0.82, rejection 9.44; before: AUC 0.81.*a.out, line \d+\); the last one counts", texts[1]
    )


def test_repeated_sections(tmp_path):
    path = tmp_path / "a.out"
    text = log_text(Job(BOTH))
    results = text[text.index("Model  ") : text.index("Analysis:")]
    path.write_text(text.replace(results, results.replace("0.8242", "0.8100") + results + results))
    study, texts = warned(path, tmp_path / "s")
    assert study.results["auc_student"][0] == 0.8242
    assert len(texts) == 1
    assert re.search(
        r"line \d+: the AUC of the student is given again: 0.8242, before 0.81; the last one counts", texts[0]
    )


def test_nan_results_are_a_diverged_run(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH, auc=float("nan"))) + log_text(Job(CONSTANT), 2))
    study = quietly(path, tmp_path / "s")
    table = study.results.set_index("run_name")
    assert table.loc[BOTH.name, "status"] == "diverged"
    assert np.isnan(table.loc[BOTH.name, "auc_student"])
    status = study.status().set_index("run_name")
    assert status.loc[BOTH.name, "message"].startswith("the AUC is NaN (from ")


def test_impossible_results_are_left_out(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH, auc=1.5)) + log_text(Job(CONSTANT, teacher=(0.9, float("inf"))), 2))
    study, texts = warned(path, tmp_path / "s")
    assert list(study.results["run_name"]) == [CONSTANT.name]
    assert study.results["auc_teacher"].isna().all()
    assert any("the AUC must lie in [0, 1], is 1.5: the run is left out" in text for text in texts)
    assert any("the rejection is infinite" in text for text in texts)


def test_progress_bars_in_one_line(tmp_path):
    path = tmp_path / "a.out"
    bar = "".join(f"Epoch {n}%|####\r" for n in range(20_000))
    path.write_text(log_text(Job(BOTH, epochs=[(5, 0.7, 0.8, 0.8)])).replace("Ep 5", f"{bar}Ep 5"))
    study = quietly(path, tmp_path / "s")
    result = StudyStore.open(study.path).get(RunKey("student", BOTH.name, 0))
    assert result.curves["epoch"] == [5]
    assert result.message.endswith(
        f"line {path.read_bytes().decode().split(chr(10)).index(line_of(path, 'Student with')) + 1}"
    )


@pytest.mark.slow
def test_memory_stays_flat(tmp_path):
    """A log of 150 MB, most of it one line, is read within 40 MB."""
    path = tmp_path / "a.out"
    head, tail = log_text(Job(BOTH)).split("FINAL")
    with open(path, "w") as file:
        file.write(head)
        for _ in range(75):
            file.write("Ep 5: loss=0.5, val_auc=0.8, best=0.8\n" * 13_000)  # half a megabyte of lines
            file.write("step 1/100 |####      |\r" * 64_000)  # 1.5 MB of one line
        file.write("\nFINAL" + tail)
    assert path.stat().st_size > 140e6
    code = """
import resource, sys
from pathlib import Path
from kdfast.importers.csv_table import read_csv
from kdfast.importers.found import Notes
from kdfast.importers.found import read_lines
from kdfast.importers.run_log import read_run_log
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = Path(sys.argv[1])
student, *_ = read_run_log(path, read_lines(path), Notes())
print(student.config.name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    name, kilobytes = done.stdout.split()
    assert name == BOTH.name
    assert int(kilobytes) < 40_000
