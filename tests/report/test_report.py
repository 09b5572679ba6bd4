"""The files of a report: which are written, whole or not at all, and what happens to unfinished or damaged studies."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from kdfast import report
from kdfast.cli import main
from kdfast.distill.schedules import RunConfig
from kdfast.errors import StudyError
from kdfast.report import analysis as analysis_module
from kdfast.report.figures import ORDER
from kdfast.report.rendering import TEXTS
from kdfast.report.schema import Analysis
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.verify import verify
from kdfast.study.results import open_study
from tests.report.fake_study import PROVENANCE, SETTINGS, make_study
from tests.report.reported import in_one_line, reported, small
from tests.undrawn import undrawn_figures


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    with undrawn_figures():
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The study's 132 configurations."""
    return make_study(tmp_path_factory.mktemp("studies") / "study", latency=True)


@pytest.fixture(scope="module")
def paths(study):
    return report.write(study)


def read(paths):
    return {name: paths[name].read_text() for name in TEXTS}


def analysis(paths):
    return Analysis.model_validate_json(paths["report.json"].read_bytes())


def test_files(study, paths):
    assert {name: path.relative_to(study.path).as_posix() for name, path in paths.items()} == {
        "report.json": "report.json",
        "results_summary.csv": "results_summary.csv",
        **{name: name for name in TEXTS},
        "models/teacher.safetensors": "models/teacher.safetensors",
        "models/baseline.safetensors": "models/baseline.safetensors",
        "models/best_student.safetensors": "models/best_student.safetensors",
        "report.html": "report.html",
        **{
            f"figures/{name}.{kind}": f"figures/{name}.{kind}"
            for name in ORDER
            if name != "race"
            for kind in ("pdf", "png")
        },
    }
    best = open_study(study.path).best("auc")
    assert paths["models/best_student.safetensors"].read_bytes() == study.model_file(
        study.get(RunKey("student", best["run_name"], 42))
    )
    assert paths["models/teacher.safetensors"].read_bytes() == study.model_file(study.get(RunKey.teacher(42)))
    table = pd.read_csv(paths["results_summary.csv"])
    assert len(table) == 132
    assert (table["status"] == "done").all()


@pytest.mark.slow
def test_rebuilding_gives_the_same_files(study, paths):
    before = {path: path.read_bytes() for path in paths.values()}
    for path in before:
        path.unlink()
    again = report.write(StudyStore.open(study.path))
    assert {path: path.read_bytes() for path in again.values()} == before


def test_of_two_reports_at_once_one_waits(tmp_path, monkeypatch):
    """Else their files could be mixed, and not be what report.sha256 says."""
    store, going, second = small(tmp_path / "study"), [], threading.Thread()
    write = report._write

    def slow(folder, contents):
        nonlocal second
        going.append("in")
        if not second.ident:
            second = threading.Thread(target=report.write, args=(store,))
            second.start()
            second.join(0.5)
        written = write(folder, contents)
        going.append("out")
        return written

    monkeypatch.setattr(report, "_write", slow)
    report.write(store)
    second.join()
    assert going == ["in", "out", "in", "out"]
    assert verify(store.path).intact


def test_a_result_that_comes_meanwhile_is_in_no_part_of_the_report(tmp_path, monkeypatch):
    """Workers may be at the study."""
    store = small(tmp_path / "study")
    one = next(result for result in store.results() if result.kind == "student")
    late = replace(one, seed=99, arrays=dict(one.arrays), state=dict(one.state))
    genuine = analysis_module.analyse_networks

    def analyse(*arguments):
        found = genuine(*arguments)
        store.write(late)
        return found

    monkeypatch.setattr(analysis_module, "analyse_networks", analyse)
    paths = report.write(store)
    analysis = Analysis.model_validate_json(paths["report.json"].read_bytes())
    rows = pd.read_csv(paths["results_summary.csv"])
    told = {(run.run_name, run.seed) for run in analysis.runs}
    assert set(zip(rows["run_name"], rows["seed"], strict=True)) == told
    assert 99 not in set(rows["seed"])


def test_another_folder(tmp_path):
    store = small(tmp_path / "s")
    paths = open_study(store.path).report(tmp_path / "elsewhere" / "report")
    assert all(path.is_relative_to(tmp_path / "elsewhere") and path.exists() for path in paths.values())
    assert not (store.path / "report.json").exists()
    assert main(["report", str(store.path), "--out", str(tmp_path / "third"), "--quiet"]) == 0
    assert (tmp_path / "third" / "ANALYSIS_SUMMARY.txt").read_text() == read(paths)["ANALYSIS_SUMMARY.txt"]


def test_unwritable_report(tmp_path):
    store = small(tmp_path / "s")
    (store.path / "models").write_text("a file in the way")
    with pytest.raises(StudyError, match=r"can't be written: File exists\ngive a place that may be written"):
        report.write(store)


def test_a_damaged_result_is_not_reported(tmp_path):
    store = small(tmp_path / "s")
    (folder,) = (store.path / "results").glob("student.baseline_T3.0*")
    (folder / "result.json").write_text("{}")
    with pytest.raises(
        StudyError, match=r"student\.baseline_T3\.0_A0\.5\.seed42: is damaged: result.json does not match"
    ):
        open_study(store.path).report()
    assert not (store.path / "report.json").exists()


def test_the_command_counts_what_the_settings_ask_for(tmp_path, capsys):
    store = small(tmp_path / "s", diverged=("baseline_T7.0_A0.5",))
    assert main(["report", str(store.path)]) == 0
    assert capsys.readouterr().out.startswith("3 of 132 students are done\n")
    assert main(["status", str(store.path)]) == 1
    assert "134 runs, 128 missing, 5 done, 1 diverged" in capsys.readouterr().out  # with teacher and baseline


# ---- unfinished and unusable runs


def test_diverged_runs_are_listed_without_numbers(tmp_path):
    paths = report.write(small(tmp_path / "s", diverged=("baseline_T7.0_A0.5",)))
    for text in read(paths).values():
        assert "constant_T7.0_A0.5, seed 42: diverged (the loss is NaN in epoch 2)" in text
    row = pd.read_csv(paths["results_summary.csv"]).set_index("run_name").loc["baseline_T7.0_A0.5"]
    assert row["status"] == "diverged"
    assert row[["auc_student", "bkg_rej_50", "n_bkg_50", "auc_val", "best_epoch"]].isna().all()
    assert analysis(paths).study.counts == {"done": 3, "diverged": 1, "missing": 132 - 4}
    assert "Total Experiments: 3 done of 132" in read(paths)["ANALYSIS_SUMMARY.txt"]


def test_a_half_finished_study(tmp_path):
    whole, texts = reported(small(tmp_path / "s"))  # whose settings ask for 132
    (item,) = [item for item in whole.missing if "that the settings ask for" in item.what]
    assert item.what.startswith("128 runs")
    assert "not trained yet: baseline_T3.0_A0.3 (seed 42)" in item.reason
    assert "and 123 more (`kdfast status --json` names them)" in item.reason
    assert "Total Experiments: 4 done of 132 (4 configurations × 1 seed)" in texts["ANALYSIS_SUMMARY.txt"]
    assert "128 runs that the settings ask for: not trained yet" in in_one_line(texts["ANALYSIS_SUMMARY.txt"])


def test_all_diverged(tmp_path):
    names = tuple(c.name for c in grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0]))
    paths = report.write(small(tmp_path / "s", diverged=names))
    assert "models/best_student.safetensors" not in paths
    assert "No student has finished yet" in read(paths)["ANALYSIS_SUMMARY.txt"]


def test_nothing_trained_yet(tmp_path):
    store = StudyStore.create_or_open(tmp_path / "s", SETTINGS, PROVENANCE)
    paths = report.write(store)
    assert list(paths) == ["report.json", "results_summary.csv", *TEXTS, "report.html"]
    assert "134 runs that the settings ask for" in paths["results_summary.txt"].read_text()
    assert len(open_study(store.path).results) == 0


def test_one_run_without_teacher(tmp_path):
    store = make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], teacher=False)
    paths = report.write(store)
    assert "models/teacher.safetensors" not in paths
    text = paths["results_summary.txt"].read_text()
    assert "the teacher: no finished one is stored" in text
    assert analysis(paths).configurations[0].gap_recovered_auc is None


def test_without_kinematics(tmp_path):
    whole, _ = reported(small(tmp_path / "s", kinematics=False))
    assert not whole.by_pt
    assert not whole.mass_sculpting
    assert whole.calibration
    assert any("does not hold pT and mass" in item.reason for item in whole.missing)


def replaced(store, name, scores):
    """The same result with other test scores."""
    result = store.get(RunKey("student", name, 42))
    arrays = {**result.arrays, "scores_test": scores}
    shutil.rmtree(store.path / "results" / result.key.folder)
    store.write(StoredResult("student", name, 42, result.config, metrics=result.metrics, arrays=arrays))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: np.where(np.arange(len(s)) < 3, np.nan, s), "3 of its 900 test scores are not finite"),
        (lambda s: np.zeros_like(s), "all its test scores are equal"),
        (lambda s: s[:-1], "it has 899 scores for 900 test jets"),
    ],
)
def test_unusable_scores(tmp_path, spoil, words):
    store = small(tmp_path / "s")
    name = "baseline_T3.0_A0.5"
    replaced(store, name, spoil(store.get(RunKey("student", name, 42)).arrays["scores_test"]))
    whole, texts = reported(store)
    assert any(item.what == f"student {name}, seed 42" and words in item.reason for item in whole.missing)
    assert name not in [row.run_name for row in whole.configurations]
    assert words in in_one_line(texts["ANALYSIS_SUMMARY.txt"])


def test_test_jets_of_one_class(tmp_path, capsys):
    store = small(tmp_path / "s")
    folder = store.path / "shared" / "test"
    jets = store.shared("test")
    shutil.rmtree(folder)
    store.write_shared("test", {**jets, "labels": np.ones_like(jets["labels"])})
    assert main(["report", str(store.path)]) == 2
    captured = capsys.readouterr()
    assert "the test jets hold no background of weight above 0" in captured.err
    assert "Traceback" not in captured.err
    assert not (store.path / "report.json").exists()


def test_the_table_has_the_statuses_of_the_analysis(tmp_path):
    store = small(tmp_path / "s", diverged=("baseline_T3.0_A0.5",))
    bad = store.get(RunKey("student", "baseline_T7.0_A0.5", 42))
    config = RunConfig(9.0, 0.5)
    scores = {**bad.arrays, "scores_test": np.full_like(bad.arrays["scores_test"], np.nan)}
    store.write(replace(bad, name=config.name, config=config, arrays=scores))
    store.write(replace(bad, name="again"))  # the same configuration under another name
    paths = report.write(store)
    table = pd.read_csv(paths["results_summary.csv"])
    runs = analysis(paths).runs
    assert dict(zip(table["run_name"], table["status"], strict=True)) == {run.run_name: run.status for run in runs}
    assert {run.status for run in runs} == {"done", "diverged", "unusable"}


def test_a_run_stored_under_two_names(tmp_path):
    store = small(tmp_path / "s")
    result = store.get(RunKey("student", "baseline_T3.0_A0.5", 42))
    store.write(StoredResult("student", "copy", 42, result.config, metrics=result.metrics, arrays=result.arrays))
    whole, _ = reported(store)
    assert len(whole.configurations) == 4
    (item,) = [item for item in whole.missing if "copy" in item.what]
    assert "same T, α and seed as baseline_T3.0_A0.5" in item.reason


def test_report_json_is_described(paths):
    """`python -m kdfast.report.schema` prints the JSON schema; each field of a report is in it."""
    printed = subprocess.run([sys.executable, "-m", "kdfast.report.schema"], capture_output=True, check=True).stdout
    schema = json.loads(printed)
    assert schema == Analysis.model_json_schema()
    assert set(json.loads(paths["report.json"].read_bytes())) == set(schema["properties"])
    for part in (schema, *schema["$defs"].values()):
        for name, field in part.get("properties", {}).items():
            assert {"type", "anyOf", "$ref", "enum", "const"} & set(field), (part["title"], name)
