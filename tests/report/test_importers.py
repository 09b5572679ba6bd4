"""Importing other people's logs: what they say comes back, and what is wrong with them is told."""

import re
import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast.cli import main
from kdfast.distill.schedules import RunConfig
from kdfast.errors import DataError, KdfastWarning, StudyError
from kdfast.report.importers import import_study
from kdfast.report.importers.csv_table import read_csv
from kdfast.report.importers.found import Notes
from kdfast.report.importers.run_log import read_run_log
from kdfast.report.importers.search_results import read_search_results
from kdfast.report.table import selected_on
from kdfast.study.grid import grid
from kdfast.study.results import NEED_SCORES, open_study
from kdfast.study.store import StudyStore
from tests.report.fake_study import make_study
from tests.report.study_logs import HEADER, Job, block, log_text, summary_text, write_logs

GENUINE = Path(__file__).parent / "data" / "transformer_1000001.out"
BOTH, CONSTANT = RunConfig(10.0, 0.9, 1.0, 0.3), RunConfig(7.0, 0.5)


def jobs_of_the_study():
    """132 jobs with numbers of four and two decimals, as logs print them."""
    rng = np.random.default_rng(3)
    return [
        Job(config, auc=round(rng.uniform(0.80, 0.83), 4), rejection=round(rng.uniform(7.5, 10.0), 2))
        for config in grid("study")
    ]


def quietly(*arguments, **options):
    """An import that has nothing to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return import_study(*arguments, **options)


def told(*arguments, **options):
    """An import and what it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = import_study(*arguments, **options)
    texts = [str(warning.message) for warning in caught if warning.category is KdfastWarning]
    assert study.imported["notes"] == texts  # kept in the provenance too
    return study, texts


def is_not_there(out):
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def test_a_genuine_log(tmp_path):
    study = quietly(GENUINE, tmp_path / "s")
    (row,) = (row for _, row in study.results.iterrows())
    assert row["run_name"] == "combined_T10.0to1.0_A0.9to0.3"
    assert (row["strategy"], row["temp_init"], row["temp_final"]) == ("combined", 10.0, 1.0)
    assert (row["alpha_init"], row["alpha_final"], row["seed"], row["status"]) == (0.9, 0.3, 42, "done")
    assert (row["auc_student"], row["bkg_rej_50"], row["auc_val"]) == (0.8909, 12.62, 0.8632)
    assert (row["auc_teacher"], row["auc_baseline"]) == (0.9283, 0.8970)
    store = StudyStore.open(study.path)
    assert store.get("teacher", "teacher", 42).metrics == {"auc": 0.9283, "bkg_rej_50": 27.55}
    assert store.get("baseline", "baseline", 42).metrics == {"auc": 0.8970, "bkg_rej_50": 10.82}
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


def test_the_summary_file_gives_its_own_figures_back(tmp_path):
    jobs = jobs_of_the_study()
    path = tmp_path / "hyperparameter_search_results.txt"
    path.write_text(summary_text(jobs))
    table = quietly(path, tmp_path / "s").results.set_index("run_name")
    assert {name: (row["auc_student"], row["bkg_rej_50"]) for name, row in table.iterrows()} == {
        job.config.name: (job.auc, job.rejection) for job in jobs
    }
    assert table["auc_teacher"].isna().all()


def test_logs_and_their_summary_agree(tmp_path):
    jobs = jobs_of_the_study()
    write_logs(tmp_path / "logs", jobs)
    (tmp_path / "logs" / "hyperparameter_search_results.txt").write_text(summary_text(jobs))
    study = quietly(tmp_path / "logs", tmp_path / "s")
    assert len(study.results) == 132
    assert study.results["auc_val"].notna().all()  # the logs' runs, which say more
    assert len(study.imported["files"]) == 133


def test_a_study_of_kdfast_comes_back_from_its_table(tmp_path):
    path = make_study(tmp_path / "own", seeds=(1, 2), diverged=("baseline_T7.0_A0.5",)).path
    open_study(path).report()
    own = open_study(path).results
    table = quietly(path / "results_summary.csv", tmp_path / "s").results
    pd.testing.assert_frame_equal(table.drop(columns="auc_teacher"), own.drop(columns="auc_teacher"))
    np.testing.assert_array_equal(table["auc_teacher"], own["auc_teacher"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run_name,auc,rejection\nbaseline_T7.0_A0.5,0.81,8.5\n", ("baseline_T7.0_A0.5", 0.81, 8.5)),
        (
            "Temperature;Alpha;AUC Student;Background Rejection\n7;0.5;0.81;8.5\n",
            ("baseline_T7.0_A0.5", 0.81, 8.5),
        ),
        (
            "\ufeffT_init\tT_final\talpha_init\talpha_final\tstudent_auc\tbkg_rej_50\r\n7\t1\t0.5\tconstant\t.81\t8.5\r\n",
            ("tempanneal_T7.0to1.0_A0.5", 0.81, 8.5),
        ),
    ],
)
def test_csv_dialects(tmp_path, text, expected):
    path = tmp_path / "table.csv"
    path.write_text(text)
    row = quietly(path, tmp_path / "s").results.iloc[0]
    assert (row["run_name"], row["auc_student"], row["bkg_rej_50"]) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run_name,auc\nbaseline_T7.0_A0.5,0.81\n", "line 1: has no column bkg_rej_50\nit has run_name, auc; needed"),
        ("T,auc,rejection\n7,0.81,8.5\n", r"line 1: has no column run_name \(or temp_init and alpha_init\)"),
        ("run_name,auc,rejection\nx,0.81,8.5\n", "line 2: 'x' is not the name of a run, and no T and α are given"),
        ("run,auc,rejection\nbaseline_T7_A0.5,high,8.5\n", "line 2: auc must be a number, is 'high'"),
        ("run,auc,rejection\nbaseline_T7_A0.5,1.2,8.5\n", "line 2: the AUC is 1.2, which it can't be"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8,0.5\n", "line 2: the rejection is 0.5, which it can't be"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8,inf\n", "line 2: the rejection is infinite: no background"),
        ("run,auc,rejection\nbaseline_T7_A0.5,.8\n", "line 2: has 2 cells, the header has 3"),
        ("run,auc,rejection,seed\nbaseline_T7_A0.5,.8,8,1.5\n", "line 2: seed must be a whole number, is '1.5'"),
        ('run,auc,rejection\n"baseline,.8,8\n', "line 2: can't be read as CSV"),
        ("T,A,auc,rejection\n7,1.5,.8,8\n", r"line 2, alpha_init: α must lie in \[0, 1\], is 1.5"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=f"table.csv, {message}"):
        import_study(path, tmp_path / "s")
    is_not_there(tmp_path / "s")


def test_unknown_columns_are_named(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("run,auc,rejection,colour\nbaseline_T7_A0.5,.8,8,red\nbaseline_T3_A0.5,,,red\n")
    study, texts = told(path, tmp_path / "s")
    assert texts == [
        f"{path}, line 1: columns that are not known are passed over: 'colour'",
        f"{path}, line 3: the AUC is missing: the row is left out",
    ]
    assert len(study.results) == 1


# ---- without scores


def test_what_is_impossible_without_scores(tmp_path):
    study = quietly(GENUINE, tmp_path / "s")
    assert study.impossible == NEED_SCORES
    assert list(study.has_scores) == [False]
    with pytest.raises(
        StudyError, match=r"combined_T10.0to1.0_A0.9to0.3 has no scores per jet: it is imported from .*out"
    ):
        study.scores("combined_T10.0to1.0_A0.9to0.3")
    own = open_study(make_study(tmp_path / "own", [BOTH, CONSTANT], diverged=(CONSTANT.name,)).path)
    assert own.impossible == ()
    assert dict(zip(own.results["run_name"], own.has_scores, strict=True)) == {BOTH.name: True, CONSTANT.name: False}
    assert own.imported is None


def test_an_imported_study_is_reported(tmp_path, capsys):
    write_logs(tmp_path / "logs", jobs_of_the_study())
    assert main(["import", str(tmp_path / "logs"), "--out", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path / 's'}: 132 runs, 132 done\n")
    for analysis in NEED_SCORES:
        assert f"  {analysis}\n" in out
    assert main(["report", str(tmp_path / "s")]) == 0
    assert "132 of 132 runs are done" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "s" / "results_summary.csv")) == 132
    assert main(["status", str(tmp_path / "s")]) == 0


def test_the_best_of_an_imported_study(tmp_path):
    jobs = [Job(BOTH, auc=0.82, rejection=8.0, auc_val=0.80), Job(CONSTANT, auc=0.81, rejection=9.0, auc_val=0.81)]
    logs = write_logs(tmp_path / "logs", jobs)
    study = quietly(logs, tmp_path / "s")
    assert study.best("auc")["run_name"] == CONSTANT.name  # by its validation AUC, which logs give
    assert study.best("bkg_rej_50")["run_name"] == CONSTANT.name
    assert [selected_on(study.results, metric) for metric in ("auc", "bkg_rej_50")] == ["validation", "test"]
    (tmp_path / "all.txt").write_text(summary_text(jobs))
    study = quietly(tmp_path / "all.txt", tmp_path / "t")
    assert study.best("auc")["run_name"] == BOTH.name
    with pytest.raises(StudyError, match="no run of this study has a background rejection at 30 %"):
        study.best("bkg_rej_30")


def test_a_sweep_does_not_go_on_with_an_imported_study(tmp_path, capsys):
    quietly(GENUINE, tmp_path / "s")
    assert main(["sweep", "--out", str(tmp_path / "s"), "--quiet"]) == 2
    assert "does not say what it was made with" in capsys.readouterr().err


# ---- what logs say beside their results


def test_curves_epochs_and_seed(tmp_path):
    epochs = [(5, 0.71, 0.79, 0.79), (10, float("nan"), 0.80, 0.81), (15, 0.6, 0.805, 0.8125)]
    path = tmp_path / "transformer_1.out"
    path.write_text(log_text(Job(BOTH, epochs=epochs, early=18, auc_val=None)))
    study = quietly(path, tmp_path / "s", seed=7)
    result = StudyStore.open(study.path).get("student", BOTH.name, 7)
    assert result.curves["epoch"] == [5, 10, 15]
    np.testing.assert_array_equal(result.curves["loss"], [0.71, np.nan, 0.6])
    assert result.curves["auc_val"] == [0.79, 0.80, 0.805]
    assert (result.metrics["auc_val"], result.metrics["epochs"]) == (0.8125, 18)
    assert (
        result.message == f"from {path}, line {path.read_text().splitlines().index(line_of(path, 'Student with')) + 1}"
    )


def line_of(path, start):
    return next(line for line in path.read_text().splitlines() if line.startswith(start))


def test_older_logs_have_no_banner(tmp_path):
    (tmp_path / "a.out").write_text(log_text(Job(BOTH), with_banner=False))
    assert quietly(tmp_path / "a.out", tmp_path / "s").results["run_name"][0] == BOTH.name
    # what a job was called by, and its numbers, stand in its command line too
    text = log_text(Job(BOTH, name="my_run"))
    text = re.sub(r"  (Run Name|Temperature|Alpha).*\n", "", text)
    (tmp_path / "b.out").write_text(text)
    study, texts = told(tmp_path / "b.out", tmp_path / "t")
    assert study.results["run_name"][0] == BOTH.name
    assert texts == [
        f"{tmp_path / 'b.out'}, line 1: 'my_run' is not the name of a run; by its T and α it is {BOTH.name}"
    ]


# ---- damage


def test_a_name_that_contradicts_its_numbers(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH, more={"Temperature Init": "7.0", "Alpha Final": "constant"})))
    study, texts = told(path, tmp_path / "s")
    (text,) = texts
    assert text.startswith(f"{path}, line 1: 'combined_T10.0to1.0_A0.9to0.3' contradicts its numbers: ")
    assert "temp_init is 10.0 by its name, 7.0 by its numbers" in text
    assert "alpha_final is 0.3 by its name, constant by its numbers" in text
    assert study.results["run_name"][0] == "tempanneal_T7.0to1.0_A0.9"
    table = tmp_path / "table.csv"
    table.write_text("run,strategy,auc,rejection\ncombined_T7_A0.5,combined,.8,8\n")
    study, texts = told(table, tmp_path / "t")
    assert study.results["run_name"][0] == "baseline_T7.0_A0.5"
    assert texts == [
        f"{table}, line 2: 'combined_T7_A0.5': these values are of the strategy 'baseline'; kept as baseline_T7.0_A0.5",
        f"{table}, line 2: the strategy is 'combined' by its column, 'baseline' by T and α; kept: the latter",
    ]


def test_a_run_under_a_wrong_name_does_not_replace_the_true_one(tmp_path):
    true, wrong = Job(CONSTANT, auc=0.81), Job(CONSTANT, name=BOTH.name, auc=0.5)
    study, texts = told(write_logs(tmp_path / "logs", [true, wrong]), tmp_path / "s")
    assert study.results["auc_student"][0] == 0.81
    assert "contradicts its numbers" in texts[0]
    assert texts[1].endswith("whose name and numbers agree")


@pytest.mark.parametrize(
    ("marker", "reason"),
    [("STEP 3", "AUC"), ("Student with KD", "AUC"), ("Background Rejection", "background rejection")],
)
def test_a_log_cut_short_is_left_out(tmp_path, marker, reason):
    good, cut = write_logs(tmp_path / "logs", [Job(CONSTANT), Job(BOTH)])
    text = cut.read_text()
    cut.write_text(text[: text.index(marker) + 10])
    study, texts = told([good, cut], tmp_path / "s")
    assert list(study.results["run_name"]) == [CONSTANT.name]
    lines = cut.read_text().count("\n") + 1
    assert texts == [f"{cut}, line {lines}: the run has no student's {reason} (the log ends here): left out"]


def test_nothing_but_logs_cut_short(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH)).split("FINAL")[0])
    with (
        pytest.warns(KdfastWarning, match="the log ends here"),
        pytest.raises(DataError, match=r"a.out: no run with results is there\nsee the warnings"),
    ):
        import_study(path, tmp_path / "s")
    is_not_there(tmp_path / "s")


def test_failed_training(tmp_path):
    text = log_text(Job(BOTH))
    late, early = tmp_path / "late.out", tmp_path / "early.out"
    late.write_text(text.replace("completed successfully", "failed with exit code: 1"))
    early.write_text(text.split("FINAL")[0] + "Training failed with exit code: 137\n")
    study, texts = told([late, early], tmp_path / "s")
    assert study.results["status"][0] == "done"
    assert [text.split(": ", 1)[1] for text in texts] == [
        "training failed with exit code: 1, after the results were written: they are kept",
        "the run has no student's AUC (training failed with exit code: 137): left out",
    ]


def test_a_requeued_job_appends_to_its_log(tmp_path):
    path = tmp_path / "a.out"
    first, again = Job(BOTH, auc=0.81), Job(BOTH, auc=0.82)
    path.write_text(log_text(first).split("FINAL")[0] + log_text(first, 2) + log_text(again, 3))
    study, texts = told(path, tmp_path / "s")
    assert list(study.results["auc_student"]) == [0.82]
    assert "no student's AUC" in texts[0]
    assert re.search(
        r"is given again: AUC 0.81, rejection 9.44; kept: AUC 0.82.* of .*a.out, line \d+, the last one", texts[1]
    )


def test_repeated_sections(tmp_path):
    path = tmp_path / "a.out"
    text = log_text(Job(BOTH))
    results = text[text.index("Model  ") : text.index("Analysis:")]
    path.write_text(text.replace(results, results.replace("0.8242", "0.8100") + results + results))
    study, texts = told(path, tmp_path / "s")
    assert study.results["auc_student"][0] == 0.8242
    assert len(texts) == 1
    assert re.search(
        r"line \d+: the AUC of the student is given again: 0.8242, on line \d+ 0.81; kept: the last", texts[0]
    )


def test_a_run_given_twice(tmp_path):
    first, last = write_logs(tmp_path / "logs", [Job(BOTH, auc=0.83), Job(BOTH, auc=0.81)])
    study, (text,) = told(tmp_path / "logs", tmp_path / "s")
    assert study.results["auc_student"][0] == 0.81
    assert text.startswith(f"{first}, line ")
    assert f"kept: AUC 0.81, rejection 9.44 of {last}, line " in text
    assert text.endswith(", the last one")
    # the log is believed, whatever the order
    (tmp_path / "all.txt").write_text(summary_text([Job(BOTH, auc=0.7)]))
    study, (text,) = told([last, tmp_path / "all.txt"], tmp_path / "t")
    assert study.results["auc_student"][0] == 0.81
    assert text.endswith("the job's own record")


def test_teachers_that_differ(tmp_path):
    jobs = [Job(config, teacher=(0.92, 30.0)) for config in grid("study")[:3]]
    jobs.insert(0, Job(BOTH, teacher=(0.95, 40.0)))
    study, (text,) = told(write_logs(tmp_path / "logs", jobs), tmp_path / "s")
    assert (study.results["auc_teacher"] == 0.92).all()
    assert "the AUC of the teacher is 0.95, in 3 of 4 places 0.92" in text


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
    study, texts = told(path, tmp_path / "s")
    assert list(study.results["run_name"]) == [CONSTANT.name]
    assert study.results["auc_teacher"].isna().all()
    assert any("the AUC is 1.5, which it can't be: the run is left out" in text for text in texts)
    assert any("the rejection is infinite" in text for text in texts)


def test_blocks_cut_short_repeated_and_mixed(tmp_path):
    path = tmp_path / "hyperparameter_search_results.txt"
    a, b, c, d = (Job(config, auc=0.81) for config in grid("study")[:4])
    cut = block(a)[: block(a).index("  AUC")]
    text = HEADER + cut + block(b) + block(c) + block(Job(c.config, auc=0.82)) + block(d)
    path.write_text(text)
    study, texts = told(path, tmp_path / "s")
    table = study.results.set_index("run_name")["auc_student"]
    assert table.to_dict() == {b.config.name: 0.81, c.config.name: 0.82, d.config.name: 0.81}
    assert texts[0] == f"{path}, line 7: the block of {a.config.name} is cut short: left out"
    assert "is given again: AUC 0.81" in texts[1]
    assert len(texts) == 2


def lines_of(job):
    """The lines of a block without the blank one before it: Run, T, α, rejection, AUC, Saved, rule."""
    return block(job).strip("\n").split("\n")


@pytest.mark.parametrize(
    "order", ["aabbbbbbbaaaaa", "abababababababab", "abaabbaabbaabb", "abaaaaaabbbbbb", "aaabbbaaaabbbb"]
)
def test_interleaved_blocks_never_give_one_run_the_results_of_another(order, tmp_path):
    a, b = Job(CONSTANT, auc=0.81, rejection=8.0), Job(RunConfig(7.0, 0.9), auc=0.82, rejection=9.0)
    rest = {"a": lines_of(a), "b": lines_of(b)}
    mixed = [rest[job].pop(0) for job in order if rest[job]]
    path = tmp_path / "all.txt"
    path.write_text(HEADER + "\n".join(mixed) + block(Job(BOTH)))
    study, texts = told(path, tmp_path / "s")
    table = study.results.set_index("run_name")
    assert BOTH.name in table.index
    truth = {job.config.name: (job.auc, job.rejection) for job in (a, b, Job(BOTH))}
    for name, row in table.iterrows():
        assert (row["auc_student"], row["bkg_rej_50"]) == truth[name]
    assert len(texts) >= 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "a.out"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + log_text(Job(BOTH))).replace("\n", "\r\n").encode(encoding))
    assert quietly(path, tmp_path / "s").results["auc_student"][0] == 0.8242


def test_a_wrong_encoding_is_told(tmp_path):
    path = tmp_path / "a.out"
    path.write_bytes(log_text(Job(BOTH)).replace("Node: node17", "Node: Köln").encode("latin-1"))
    study, texts = told(path, tmp_path / "s")
    assert study.results["auc_student"][0] == 0.8242
    assert texts == [f"{path}, line 5: not all is utf-8 text: the wrong bytes are replaced by �"]


def test_progress_bars_in_one_line(tmp_path):
    path = tmp_path / "a.out"
    bar = "".join(f"Epoch {n}%|####\r" for n in range(20_000))
    path.write_text(log_text(Job(BOTH, epochs=[(5, 0.7, 0.8, 0.8)])).replace("Ep 5", f"{bar}Ep 5"))
    study = quietly(path, tmp_path / "s")
    result = StudyStore.open(study.path).get("student", BOTH.name, 42)
    assert result.curves["epoch"] == [5]
    assert result.message.endswith(
        f"line {path.read_bytes().decode().split(chr(10)).index(line_of(path, 'Student with')) + 1}"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: is empty"),
        (b"\n  \n", "line 1: is empty"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "line 1: is a binary file, not text"),
        (b"Run: x\n\x00\x01\x02", "line 2: is a binary file"),
        (b"Dear diary,\ntoday I trained.\n", "line 1: is no run log of the study: none of its 2 lines is known"),
    ],
)
def test_files_that_are_no_logs(tmp_path, content, message, capsys):
    path = tmp_path / "a.out"
    path.write_bytes(content)
    assert main(["import", str(GENUINE), str(path), "--out", str(tmp_path / "s")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"kdfast: {path}, {message}")
    assert captured.out == ""
    is_not_there(tmp_path / "s")


def test_places_that_can_not_be_read_or_written(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for paths, message in (
        ([tmp_path / "none.out"], "none.out: there is no such file"),
        ([tmp_path / "empty"], "empty: holds no log to import"),
    ):
        assert main(["import", *map(str, paths), "--out", str(tmp_path / "s")]) == 2
        assert message in capsys.readouterr().err
    study = quietly(GENUINE, tmp_path / "empty").path  # an empty folder may be used
    before = sorted(study.rglob("*"))
    assert main(["import", str(GENUINE), "--out", str(study)]) == 2
    assert f"{study}: holds something already" in capsys.readouterr().err
    assert sorted(study.rglob("*")) == before
    assert main(["import", str(GENUINE), "--out", "/proc/kdfast"]) == 2
    assert "/proc/kdfast: can't be written" in capsys.readouterr().err


def test_a_full_disk_leaves_no_study(tmp_path):
    logs = write_logs(tmp_path / "logs", jobs_of_the_study()[:3])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        with pytest.raises(StudyError, match="can't be written"):
            import_study(logs, tmp_path / "s")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    is_not_there(tmp_path / "s")


def test_many_notes_on_one_file_are_counted(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text(HEADER + "Run: x\n" * 60 + block(Job(BOTH)))
    _, texts = told(path, tmp_path / "s")
    assert len(texts) == 21
    assert texts[-1] == f"{path}: and 40 more notes of this kind"


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
from kdfast.report.importers.csv_table import read_csv
from kdfast.report.importers.found import Notes
from kdfast.report.importers.lines import read_lines
from kdfast.report.importers.run_log import read_run_log
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
path = Path(sys.argv[1])
(run,) = read_run_log(path, read_lines(path), Notes())
print(run.config.name, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    name, kilobytes = done.stdout.split()
    assert name == BOTH.name
    assert int(kilobytes) < 40_000


# ---- any text


NUMBERS = st.floats(allow_nan=True, allow_infinity=True).map(str) | st.decimals(0, 100, places=4).map(str)
FRAGMENTS = st.sampled_from(
    log_text(Job(BOTH, epochs=[(5, 0.7, 0.8, 0.8)], early=9)).split("\n") + block(Job(CONSTANT)).split("\n")
)
LINES = FRAGMENTS | st.tuples(FRAGMENTS, NUMBERS).map(lambda pair: re.sub(r"\d+\.\d+", pair[1], pair[0])) | st.text()


@settings(deadline=None, max_examples=300)
@given(st.lists(LINES, max_size=60), st.sampled_from([read_run_log, read_search_results]))
def test_any_lines_give_runs_or_a_typed_error(lines, reader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KdfastWarning)
        try:
            runs = list(reader(Path("a"), enumerate(lines, 1), Notes()))
        except DataError as error:
            runs, where = [], error.where
        else:
            where = "a, line 1"
    assert where == "a, line 1"
    for run in runs:
        assert 1 <= run.place.line <= len(lines)
        if run.status == "done":
            assert 0.0 <= run.metrics["auc"] <= 1.0
            assert 1.0 <= run.metrics["bkg_rej_50"] < np.inf
        else:
            assert run.metrics.keys() <= {"epochs"}


CELLS = (
    st.sampled_from(["baseline_T7.0_A0.5", "0.81", "9.5", "nan", "", "7", '"', "a,b", "done"])
    | NUMBERS
    | st.text(max_size=8)
)
HEADS = st.permutations(["run_name", "auc", "bkg_rej_50", "T_init", "alpha", "seed", "epochs", "status", "x"])


@settings(deadline=None, max_examples=300)
@given(HEADS, st.integers(1, 9), st.lists(st.lists(CELLS, min_size=1, max_size=9), max_size=5), st.booleans())
def test_any_table_gives_runs_or_a_typed_error(heads, width, rows, fitting):
    lines = [",".join(heads[:width])]
    lines += [",".join((row * 9)[:width] if fitting else row) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KdfastWarning)
        try:
            runs = list(read_csv(Path("a"), enumerate(lines, 1), Notes()))
        except DataError as error:
            runs, where = [], error.where
        else:
            where = "a, line 1"
    assert re.match(r"a, line \d+", where)
    for run in runs:
        assert run.status == "diverged" or 0.0 <= run.metrics["auc"] <= 1.0


CONFIGS = st.builds(
    RunConfig,
    temp_init=st.decimals("0.05", 100, places=2).map(float),
    alpha_init=st.decimals(0, 1, places=2).map(float),
    temp_final=st.none() | st.decimals("0.05", 100, places=2).map(float),
    alpha_final=st.none() | st.decimals(0, 1, places=2).map(float),
).filter(lambda c: c.temp_final != c.temp_init and c.alpha_final != c.alpha_init)
JOBS = st.builds(
    Job,
    config=CONFIGS,
    auc=st.decimals(0, 1, places=4).map(float),
    rejection=st.decimals(1, 5000, places=2).map(float),
    early=st.none() | st.integers(1, 999),
    auc_val=st.decimals(0, 1, places=4).map(float),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(JOBS, min_size=1, max_size=5), st.booleans())
def test_whatever_jobs_write_comes_back(jobs, with_banner):
    """Logs of any numbers, one after the other in one file, and their blocks in a summary."""
    text = "".join(log_text(job, number, with_banner=with_banner) for number, job in enumerate(jobs))
    runs = list(read_run_log(Path("a"), enumerate(text.split("\n"), 1), Notes()))
    assert [run.config for run in runs] == [job.config for job in jobs]
    for run, job in zip(runs, jobs, strict=True):
        expected = {"auc": job.auc, "bkg_rej_50": job.rejection, "auc_val": job.auc_val, "epochs": job.early}
        assert run.metrics == {name: value for name, value in expected.items() if value is not None}
        assert run.consistent
    runs = list(read_search_results(Path("b"), enumerate(summary_text(jobs).split("\n"), 1), Notes()))
    assert [(run.config, dict(run.metrics)) for run in runs] == [
        (job.config, {"auc": job.auc, "bkg_rej_50": job.rejection}) for job in jobs
    ]
