"""Logs of several kinds become one study: conflicts, encodings, files that are no logs, the disk."""

import json
import resource

import pandas as pd
import pytest

from kdfast.cli import main
from kdfast.errors import DataError, KdfastWarning, StudyError
from kdfast.store.grid import grid
from kdfast.store.table import selected_on
from kdfast.study.imports import import_study
from kdfast.study.results import NEED_SCORES, open_study
from tests.importers.imports import BOTH, CONSTANT, GENUINE, is_not_there, jobs_of_the_study, quietly, warned
from tests.report.fake_study import make_study
from tests.report.study_logs import Job, log_text, summary_text, write_logs


def test_logs_and_their_summary_agree(tmp_path):
    jobs = jobs_of_the_study()
    write_logs(tmp_path / "logs", jobs)
    (tmp_path / "logs" / "hyperparameter_search_results.txt").write_text(summary_text(jobs))
    study = quietly(tmp_path / "logs", tmp_path / "s")
    assert len(study.results) == 132
    assert study.results["auc_val"].notna().all()  # the logs' runs, which say more
    assert len(study.imported["files"]) == 133


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
    assert "132 of 132 students are done" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "s" / "results_summary.csv")) == 132
    assert main(["status", str(tmp_path / "s")]) == 0


def test_an_import_is_complete_as_it_is(tmp_path, capsys):
    """Also without a teacher, a baseline, or a seed of a configuration."""
    (tmp_path / "mine.csv").write_text(
        "temperature,alpha,seed,auc,bkg_rej_50\n3,0.5,1,0.8,8\n3,0.5,2,0.81,9\n7,0.5,1,0.8,8\n"
    )
    out = str(tmp_path / "s")
    assert main(["import", str(tmp_path / "mine.csv"), "--out", out]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 3 runs, 3 done\n")
    for watch in ([], ["--watch"]):
        assert main(["status", out, *watch]) == 0
        assert capsys.readouterr().out == f"{out}: 3 runs, 3 done\n"
    assert main(["report", out]) == 0
    assert "3 of 3 students are done" in capsys.readouterr().out
    report = (tmp_path / "s" / "report.json").read_text()
    assert json.loads(report)["study"]["counts"] == {"done": 3}
    assert "not trained yet" not in report
    for command in (["worker", "--store", out], ["script", "slurm", out]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "was imported: it has no packs to " in error
        assert "--plan-only" not in error
    (tmp_path / "s" / "results" / "student.baseline_T7.0_A0.5.seed1" / "result.json").write_text("{}")
    assert main(["status", out]) == 1
    assert "3 runs, 2 done, 1 damaged" in capsys.readouterr().out


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


def test_a_name_that_contradicts_its_numbers(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH, more={"Temperature Init": "7.0", "Alpha Final": "constant"})))
    study, texts = warned(path, tmp_path / "s")
    (text,) = texts
    name = "'combined_T10.0to1.0_A0.9to0.3'"
    expected = f"the run's name {name} does not match its T and α: imported as tempanneal_T7.0to1.0_A0.9"
    assert text == f"{path}, line 1: {expected}"
    assert study.results["run_name"][0] == "tempanneal_T7.0to1.0_A0.9"


def test_a_table_that_contradicts_itself_is_refused(tmp_path):
    table = tmp_path / "table.csv"
    for head, cells, message in (
        ("run", "combined_T7_A0.5", "'combined_T7_A0.5': these values are of the strategy 'constant'"),
        (
            "run,strategy",
            "baseline_T7_A0.5,combined",
            "the strategy is 'combined', but T and α are those of 'baseline'",
        ),
    ):
        table.write_text(f"{head},auc,rejection\n{cells},.8,8\n")
        with pytest.raises(DataError, match=message):
            import_study(table, tmp_path / "t")


def test_nothing_but_logs_cut_short(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH)).split("FINAL")[0])
    with (
        pytest.warns(KdfastWarning, match="the log ends here"),
        pytest.raises(DataError, match=r"a.out: no run with results found\nsee the warnings"),
    ):
        import_study(path, tmp_path / "s")
    is_not_there(tmp_path / "s")


def test_nothing_but_diverged_runs(tmp_path):
    path = tmp_path / "a.out"
    path.write_text(log_text(Job(BOTH, auc=float("nan"))))
    line = path.read_text()[: path.read_text().index("Student with")].count("\n") + 1
    with pytest.raises(DataError) as caught:
        quietly(path, tmp_path / "s")
    assert str(caught.value) == (
        f"{path}: no run with results found (1 diverged, e.g. {BOTH.name}: the AUC is NaN, from {path}, line {line})"
    )
    is_not_there(tmp_path / "s")
    path.write_text("".join(log_text(Job(config, auc=float("nan"))) for config in grid("study")[:3]))
    with pytest.raises(DataError, match=r"a\.out: no run with results found .3 diverged, e.g. "):
        import_study(path, tmp_path / "s")


def test_a_run_given_twice(tmp_path):
    first, last = write_logs(tmp_path / "logs", [Job(BOTH, auc=0.83), Job(BOTH, auc=0.81)])
    study, (text,) = warned(tmp_path / "logs", tmp_path / "s")
    assert study.results["auc_student"][0] == 0.81
    assert text.startswith(f"{last}, line ")
    assert f"{BOTH.name} is given again: AUC 0.81, rejection 9.44; before: AUC 0.83, rejection 9.44 ({first}, l" in text
    assert text.endswith("the last one counts")
    # a job's own log counts, whatever the order
    (tmp_path / "all.txt").write_text(summary_text([Job(BOTH, auc=0.7)]))
    study, (text,) = warned([last, tmp_path / "all.txt"], tmp_path / "t")
    assert study.results["auc_student"][0] == 0.81
    assert "before: AUC 0.7," in text


def test_teachers_that_differ(tmp_path):
    jobs = [Job(config, teacher=(0.92, 30.0)) for config in grid("study")[:3]]
    jobs.insert(0, Job(BOTH, teacher=(0.95, 40.0)))
    study, (text,) = warned(write_logs(tmp_path / "logs", jobs), tmp_path / "s")
    assert (study.results["auc_teacher"] == 0.92).all()
    assert "teacher is given again: AUC 0.92, rejection 30.0; before: AUC 0.95, rejection 40.0" in text


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-16-be"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "a.out"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path.write_bytes((mark + log_text(Job(BOTH))).replace("\n", "\r\n").encode(encoding))
    assert quietly(path, tmp_path / "s").results["auc_student"][0] == 0.8242


def test_a_wrong_encoding_causes_a_warning(tmp_path):
    path = tmp_path / "a.out"
    path.write_bytes(log_text(Job(BOTH)).replace("Node: node17", "Node: Köln").encode("latin-1"))
    study, texts = warned(path, tmp_path / "s")
    assert study.results["auc_student"][0] == 0.8242
    assert texts == [f"{path}, line 5: bytes that are not utf-8 text are replaced by �"]


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
        ([tmp_path / "empty"], "empty: has no file to import"),
    ):
        assert main(["import", *map(str, paths), "--out", str(tmp_path / "s")]) == 2
        assert message in capsys.readouterr().err
    study = quietly(GENUINE, tmp_path / "empty").path  # an empty folder may be used
    before = sorted(study.rglob("*"))
    assert main(["import", str(GENUINE), "--out", str(study)]) == 2
    assert f"{study}: is not empty" in capsys.readouterr().err
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
