"""The command line: what it prints, where, and its exit status; never a traceback unless it is asked for."""

import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

import kdfast
from kdfast import report
from kdfast.cli import main
from kdfast.cli.common import print_results
from kdfast.distill.schedules import RunConfig
from kdfast.errors import DataError, KdfastWarning
from kdfast.jets.features import Standardisation
from kdfast.jets.readers import sample
from kdfast.models import PRESETS, JetTransformer, ModelConfig, Preparation, Tagger, load_model
from kdfast.models.scoring import write_scores
from kdfast.report.figures.style import exports
from kdfast.store.keywords import GRID_LISTS, HLT_FILES, SETTINGS
from kdfast.study.imports import import_study
from kdfast.study.results import open_study
from tests.report.fake_study import make_study
from tests.undrawn import undrawn_figures

SAMPLE = Path(kdfast.__file__).parent / "jets" / "data" / "sample.h5"
COMMANDS = ["sweep", "status", "verify", "report", "refine", "import"]
COMMANDS += ["prepare", "predict", "generate", "export", "latency", "bench", "doctor"]
TINY = ["--temperature", "3", "--alpha", "0.5", "--epochs", "1", "--teacher-epochs", "1", "--max-jets", "800"]
TINY += ["--model", "small", "--teacher-model", "small", "--max-constituents", "10", "--batch-size", "64"]
TINY += ["--warmup-epochs", "1"]


def environment(**more):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


def start(*arguments, **more):
    run = [sys.executable, "-m", "tests.study.run_cli", *map(str, arguments)]
    return subprocess.Popen(run, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**more))


@pytest.fixture(scope="module", autouse=True)
def _undrawn():
    with undrawn_figures():
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of one student, swept by the command line."""
    out = tmp_path_factory.mktemp("cli") / "study"
    assert main(["sweep", "--out", str(out), "--quiet", *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def jets_file(tmp_path_factory):
    """The first 300 jets of the bundled sample as a file of a user's, without labels."""
    path = tmp_path_factory.mktemp("jets") / "unlabelled.h5"
    with h5py.File(SAMPLE) as source, h5py.File(path, "w") as file:
        for name in source:
            if name != "labels":
                file.create_dataset(name, data=source[name][:300])
    return path


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kdfast {kdfast.__version__}\n"


def test_no_command_prints_help(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(capsys, command):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: kdfast {command}" in out
    assert re.search(rf"Examples?:\n    kdfast {command}", out)


def test_every_setting_is_an_option_in_its_section(capsys):
    main(["sweep", "--help"])
    out = capsys.readouterr().out
    for setting in (*SETTINGS, *GRID_LISTS, *HLT_FILES):
        if setting.keyword != "data":
            section = re.search(rf"^{setting.panel}:\n(  .*\n)+", out, re.MULTILINE)
            assert section is not None, setting.panel
            assert f"  {setting.option} {setting.metavar} " in section[0]


def test_examples_name_options_that_exist(capsys):
    for command in COMMANDS:
        main([command, "--help"])
        examples, options = capsys.readouterr().out.split("Options:")
        for option in re.findall(r"(?<= )--?[a-z][a-z0-9-]*", examples):
            assert re.search(rf"{option}\b", options), (command, option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swep"], "kdfast: No such command 'swep'"),
        (["sweep", "--ouut", "x"], "kdfast sweep: No such option: --ouut"),
        (["sweep", "--epochs", "0"], "kdfast: --epochs: must be ≥ 1, is 0"),
        (["sweep", "--epochs", "few"], "kdfast sweep: Invalid value for '--epochs'"),
        (["sweep", "--learning-rate", "-1"], "kdfast: --learning-rate: must be > 0, is -1"),
        (["sweep", "--data-seed", "-1"], "kdfast: --data-seed: must be ≥ 0, is -1"),
        (["sweep", "--fractions", "0.5", "0.5", "0.5"], "kdfast: --fractions: must be three numbers > 0 that add up"),
        (["sweep", "--temperature", "0", "--alpha", "0.5"], "temperature must be finite and above 0, is 0.0"),
        (["sweep", "--temperature", "3", "--alpha", "1.5"], "α must lie in [0, 1], is 1.5"),
        (["sweep", "--grid", "wid"], "unknown grid 'wid'\ndid you mean 'wide'?"),
        (["sweep", "--hlt", "nominl"], "unknown HLT preset 'nominl'\ndid you mean 'nominal'?"),
        (["sweep", "--model", "smal"], "unknown model preset 'smal'\ndid you mean 'small'?"),
        (["sweep", "--grid", "wide", "--temperature", "3"], "--grid and --temperature exclude each other"),
        (["sweep", "--grid", "wide", "--alpha-final", "1"], "--grid and --alpha-final exclude each other"),
        (["sweep", "--temperature", "3"], "kdfast: --alpha: is missing\na grid of your own needs both"),
        (["sweep", "--teacher", "."], ": is not a file"),
        (["status", str(SAMPLE)], "sample.h5: holds no study"),
        (["verify", str(SAMPLE)], "sample.h5: holds no study"),
        (["sweep", "--hlt", "mild", "--hlt-data", "a.h5"], "--hlt and --hlt-data exclude each other"),
        (["sweep", "--hlt-data", "nowhere.h5"], "nowhere.h5: there is no such file"),
        (["sweep", "--max-constituents", "al"], 'kdfast: --max-constituents: must be a whole number ≥ 1 or "all"'),
        (["sweep", "--device", "gpu"], "kdfast: --device: unknown device 'gpu'\ndid you mean 'cuda'?"),
        (["sweep", "--device", "cuda:99"], "device 'cuda:99': "),
        (["sweep", "nowhere.h5"], "nowhere.h5: "),
        (["sweep", "--config", "nowhere.toml"], "nowhere.toml: can't be read"),
        (["sweep", "--teacher", "nowhere.safetensors"], "nowhere.safetensors: there is no such model file"),
        (["sweep", "--teacher", "text.npy"], "text.npy: is not an array written by numpy.save"),
        (["sweep", "--teacher", "nowhere.npy"], "nowhere.npy: can't be read (No such file or directory)"),
        (["sweep", "--out", "/proc/kdfast", *TINY], "/proc/kdfast: can't be written"),
        (["status"], "kdfast status: Missing argument 'STUDY'"),
        (["status", "nowhere"], "kdfast: nowhere: does not exist\ngive the folder that `kdfast sweep --out` wrote"),
        (["report", "."], "kdfast: .: holds no study"),
        (["predict", "nowhere", "jets.h5", "--out", "x.h5"], "kdfast: nowhere: there is no such model file"),
        (["generate", "--jets", "3", "--out", "x.h5", "--seed", "1"], "kdfast: jets: must be an even number"),
    ],
)
def test_errors_are_two_lines_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("text.npy").write_text("no array")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    # progress may come first; the error itself is one or two lines
    error = captured.err[captured.err.index("kdfast") :] if captured.err.startswith("kdfast") else captured.err
    assert len(error.splitlines()) <= 3
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.slow
def test_hints_name_options(tmp_path, capsys):
    bad = tmp_path / "bad.h5"
    with h5py.File(SAMPLE) as source, h5py.File(bad, "w") as file:
        for name in source:
            file[name] = source[name][:10]
        file["fjet_m"][3] = np.nan
    assert main(["sweep", str(bad), "--out", str(tmp_path / "study")]) == 2
    hint = "row 3: is not finite (nan)\n--on-bad drop leaves such jets out and counts them\n"
    assert capsys.readouterr().err.endswith(hint)
    with pytest.raises(DataError, match="\non_bad='drop' leaves such jets out"):
        kdfast.load_jets(bad)
    with h5py.File(bad, "r+") as file:
        for name in ("fjet_clus_pt", "fjet_clus_eta", "fjet_clus_phi", "fjet_clus_E"):
            file[name][...] = file[name][:][:, ::-1]
        file["fjet_m"][3] = 1e5
    for on_bad in ("error", "drop"):
        assert main(["sweep", str(bad), "--on-bad", on_bad, "--out", str(tmp_path / "study")]) == 2
        assert capsys.readouterr().err.endswith("\n--sort takes constituents in any order\n")
    assert main(["sweep", str(bad), "--sort", "--out", str(tmp_path / "study")]) == 2
    assert "too few jets to split" in capsys.readouterr().err


@pytest.mark.slow
def test_debug_shows_the_traceback():
    process = start("status", "nowhere", "--debug")
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "Traceback (most recent call last)" in errors
    assert "StudyError: nowhere: does not exist" in errors


def test_sweep_prints_the_best_and_the_files(study, capsys):
    assert main(["sweep", "--out", str(study), *TINY]) == 0  # all is there already
    captured = capsys.readouterr()
    assert "1 of 1 students are done" in captured.out
    assert "models/best_student.safetensors is the best by AUC" in captured.out
    assert "ranks the configurations" not in captured.out  # one seed
    assert "constant_T3.0_A0.5" in captured.out
    assert str(study / "report.html") in captured.out
    assert main(["sweep", "--out", str(study), "--quiet", *TINY]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_the_best_networks_in_a_terminal_of_80_columns(tmp_path, capsys, monkeypatch):
    longest = "combined_T10.0to1.0_A0.9to0.3"
    store = make_study(tmp_path / "study", [RunConfig(10.0, 0.9, 1.0, 0.3), RunConfig(7.0, 0.5)], seeds=(1, 2))
    report.write(store)
    monkeypatch.setattr("kdfast.cli.common.console", lambda: Console(width=80))
    print_results(open_study(store.path))
    out = capsys.readouterr().out
    assert max(map(len, out.split(str(store.path))[0].splitlines())) <= 80
    assert "Best single networks, chosen on validation jets; numbers from test jets" in out
    assert re.search(
        rf"^AUC +{longest}, +0\.\d{{4}} +[\d.]+ +0\.\d{{4}} +0\.\d{{4}}\n +seed [12] *$", out, re.MULTILINE
    )
    assert "ANALYSIS_SUMMARY.txt ranks the configurations by their means over seeds" in out
    (tmp_path / "mine.csv").write_text("temperature,alpha,auc,bkg_rej_50\n3,0.5,0.8,8\n")
    print_results(import_study(tmp_path / "mine.csv", tmp_path / "imported"))  # no baseline, no teacher
    assert re.search(r"^AUC +constant_T3.0_A0.5 +0.8000 +8.00 +- +-$", capsys.readouterr().out, re.MULTILINE)


def test_another_study_is_refused(study, capsys):
    assert main(["sweep", "--out", str(study), *TINY, "--hlt", "severe"]) == 2
    assert "hlt" in capsys.readouterr().err
    assert main(["sweep", "--out", str(study), *TINY, "--no-resume"]) == 2
    error = capsys.readouterr().err
    assert "holds a study already\ngive another folder, or leave out --no-resume (in Python, resume=False)" in error


@pytest.fixture
def without_reports(monkeypatch):
    monkeypatch.setattr(report, "write", lambda store: {})


@pytest.mark.slow
def test_what_files_give_is_known_to_later_commands(tmp_path, capsys, without_reports):
    """HLT jets and logits in files: the settings name them, and with these other commands go on."""
    jets, trigger, logits = tmp_path / "jets.h5", tmp_path / "trigger.h5", tmp_path / "logits.npy"
    with h5py.File(SAMPLE) as source, h5py.File(jets, "w") as offline, h5py.File(trigger, "w") as hlt:
        for name in source:
            offline[name] = source[name][:800]
            hlt[name] = source[name][:800, :20] if source[name].ndim == 2 else source[name][:800]
        np.save(logits, offline["labels"][:] - 0.5)
    out, other = str(tmp_path / "study"), str(tmp_path / "other")
    given = ["--hlt-data", str(trigger), "--teacher", str(logits), *TINY]
    assert main(["sweep", str(jets), "--out", out, "--quiet", "--plan-only", *given]) == 0
    assert main(["worker", "--store", out, "--quiet"]) == 0
    assert main(["refine", out, "--seeds", "2", "--quiet"]) == 0
    assert main(["sweep", "--config", f"{out}/study.toml", "--out", other, "--quiet"]) == 0
    study, again = open_study(out), open_study(other)
    assert study.settings["hlt"] == {"paths": [str(trigger)]}
    assert study.settings["teacher"] == str(logits)
    assert list(study.results["seed"]) == [42, 43]
    assert study.results[study.results["seed"] == 42].to_csv() == again.results.to_csv()
    assert main(["sweep", str(jets), "--out", out, "--teacher", str(logits), *TINY, "--hlt", "nominal"]) == 2
    assert re.search(r"holds another study: hlt is jets \w+ there, \{pt_threshold", capsys.readouterr().err)


def test_jets_from_python_are_asked_for_again(tmp_path, capsys, without_reports):
    sizes = {
        "model": "small",
        "teacher_model": "small",
        "epochs": 1,
        "warmup_epochs": 1,
        "batch_size": 64,
        "max_constituents": 10,
    }
    out, jets = tmp_path / "study", sample()[:800]
    kdfast.sweep(jets, out, hlt=jets, grid=kdfast.grid(temperature=3, alpha=0.5), progress=False, **sizes)
    assert main(["refine", str(out)]) == 2
    assert f"kdfast: {out}: was given its jets in Python, and does not hold them" in capsys.readouterr().err
    assert main(["sweep", str(SAMPLE), "--config", str(out / "study.toml"), "--out", str(tmp_path / "other")]) == 2
    assert "kdfast: --hlt: 'given' needs the HLT jets that were given in Python" in capsys.readouterr().err
    kdfast.refine(out, seeds=2, data=jets, hlt=jets, progress=False)
    assert open_study(out).settings["hlt"] == "given"


def test_a_path_that_is_no_text(tmp_path, capsys, without_reports):
    path = os.fsdecode(bytes(tmp_path / "a") + b"\xff.h5")
    shutil.copy(SAMPLE, path)
    for arguments in ([path], ["--hlt-data", path], ["--teacher", path]):
        assert main(["sweep", *arguments, "--out", str(tmp_path / "study")]) == 2
        assert "a\\udcff.h5': is not UTF-8, so study.toml can't hold it\nrename it" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
    assert main(["sweep", str(tmp_path / "a*.h5"), "--out", str(tmp_path / "study"), "--quiet", *TINY]) == 0


@pytest.mark.slow
def test_a_study_whose_name_is_no_text(study, tmp_path):
    """Where stdout takes UTF-8 alone, as in most terminals."""
    out = tmp_path / os.fsdecode(b"mine\xff")
    shutil.copytree(study, out)
    for command in (
        ["status"],
        ["status", "--json"],
        ["verify"],
        ["report"],
        ["report", study, "--out", tmp_path / "two"],
    ):
        process = start(command[0], out, *command[1:], PYTHONIOENCODING="utf-8:strict")
        printed, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, ""), command
        assert command[-1] == tmp_path / "two" or "mine\\udcff" in printed
    assert open_study(out).report()["report.json"].read_text().count('"name": "mine\\\\udcff"') == 1
    assert main(["sweep", "--out", str(out), "--quiet", *TINY]) == 0


@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        pytest.param(["report"], marks=pytest.mark.slow),
        pytest.param(["refine", "--seeds", "1"], marks=pytest.mark.slow),
    ],
)
def test_without_stdout(study, command):
    run = [sys.executable, "-m", "tests.study.run_cli", *command, *([] if command == ["doctor"] else [str(study)])]
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *run]
    done = subprocess.run(closed, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr


def test_status_and_report(study, capsys):
    assert main(["status", str(study)]) == 0
    assert capsys.readouterr().out == f"{study}: 3 runs, 3 done\n"
    with patch("kdfast.report.page.exports", exports):  # figures are drawn
        assert main(["report", str(study)]) == 0
    assert "1 of 1 students are done" in capsys.readouterr().out
    assert (study / "figures" / "roc.pdf").read_bytes().startswith(b"%PDF")


def test_status_names_what_is_missing_or_damaged(study, capsys, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    shutil.rmtree(copy / "results" / "student.baseline_T3.0_A0.5.seed42")
    (copy / "results" / "baseline.baseline.seed42" / "weights.safetensors").unlink()
    assert main(["status", str(copy)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert sorted(out[0].split(", ")[1:]) == ["1 damaged", "1 done", "1 missing"]
    assert out[1] == "  baseline baseline, seed 42: is damaged: weights.safetensors is missing"
    table = open_study(copy).status()
    assert dict(zip(table["kind"], table["status"], strict=True)) == {
        "teacher": "done",
        "baseline": "damaged",
        "student": "missing",
    }


def test_a_deleted_result_is_made_again_to_the_same_bits(study, capsys, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    (copy / "results" / "student.baseline_T3.0_A0.5.seed42" / "weights.safetensors").write_bytes(b"damaged")
    again = ["sweep", "--out", str(copy), "--quiet", "--config", str(study / "study.toml")]
    assert main(again) == 2
    assert "seed42: is damaged: weights.safetensors does not match its checksum" in capsys.readouterr().err
    shutil.rmtree(copy / "results" / "student.baseline_T3.0_A0.5.seed42")
    assert main(again) == 0
    assert (copy / "results_summary.csv").read_bytes() == (study / "results_summary.csv").read_bytes()


def test_predict_scores_files_without_labels(study, jets_file, tmp_path, capsys):
    model, out = study / "models" / "best_student.safetensors", tmp_path / "scores.h5"
    assert main(["predict", str(model), str(jets_file), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: scores of 300 jets\n"
    with h5py.File(out) as file:
        assert sorted(file) == ["index", "probability", "score"]
        scores, probability = file["score"][:], file["probability"][:]
        np.testing.assert_array_equal(file["index"], np.arange(300))
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-scores.astype(np.float64))), rtol=1e-5)
    np.testing.assert_array_equal(probability, load_model(model).predict(sample()[:300])[:, 0])


@pytest.mark.slow
def test_predict_reads_files_in_gev(study, jets_file, tmp_path, capsys):
    model, out, file = study / "models" / "best_student.safetensors", tmp_path / "scores.h5", tmp_path / "gev.h5"
    shutil.copy(jets_file, file)
    with h5py.File(file, "r+") as there:
        for name in ("fjet_clus_pt", "fjet_clus_E", "fjet_pt", "fjet_m"):
            there[name][...] = there[name][...] / np.float32(1000)
        there["labels"] = np.arange(300) % 2
    arguments = ["predict", str(model), str(file), "--out", str(out)]
    assert main(arguments) == 2
    assert re.search(r"the median jet pT is 0\.\d+ GeV if .*\n.* in GeV: --unit GeV reads", capsys.readouterr().err)
    assert main(["sweep", str(file), "--out", str(tmp_path / "study")]) == 2
    assert "\nthe file seems to be in GeV: --unit GeV reads it so" in capsys.readouterr().err
    assert main([*arguments, "--unit", "GeV"]) == 0
    with h5py.File(out) as scores:
        np.testing.assert_array_equal(scores["probability"], load_model(model).predict(sample()[:300])[:, 0])


def test_predict_does_not_replace_what_it_reads(study, jets_file, tmp_path, capsys):
    model, jets, link = tmp_path / "model.safetensors", tmp_path / "jets.h5", tmp_path / "link.h5"
    shutil.copy(study / "models" / "best_student.safetensors", model)
    shutil.copy(jets_file, jets)
    link.symlink_to(jets)
    before = [path.read_bytes() for path in (model, jets)]
    for out in (model, jets, link):
        assert main(["predict", str(model), str(tmp_path / "j*.h5"), "--out", str(out)]) == 2
        assert f"--out {out}: is one of the input files" in capsys.readouterr().err
    assert [path.read_bytes() for path in (model, jets)] == before


@pytest.mark.filterwarnings("default::kdfast.errors.KdfastWarning")
def test_predict_keeps_labels_and_says_why_it_cannot_write(tmp_path, capsys):
    tagger = Tagger(
        JetTransformer(ModelConfig(width=8, layers=1, heads=2, ffn=8)),
        Preparation("hlt", "nominal", 1, None, Standardisation(torch.zeros(7), torch.ones(7))),
    )
    jets = sample()[:40]
    path = write_scores(tmp_path / "scores.h5", tagger, jets)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["label"], jets.labels)
        score, probability = file["score"][:], file["probability"][:]
    table = pd.read_csv(write_scores(tmp_path / "scores.csv", tagger, jets))
    assert list(table) == ["index", "label", "score", "probability"]
    np.testing.assert_array_equal(table[["index", "label"]], np.stack([jets.index, jets.labels], axis=1))
    np.testing.assert_array_equal(table[["score", "probability"]].astype(np.float32), np.stack([score, probability], 1))
    tagger.save(tmp_path / "model.safetensors")
    for out, reason in (("no/scores.h5", "its folder does not exist"), (".", "Is a directory")):
        place = tmp_path / out
        arguments = ["predict", str(tmp_path / "model.safetensors"), str(SAMPLE), "--max-jets", "50"]
        assert main([*arguments, "--out", str(place)]) == 2
        assert f"{place}: can't be written: {reason}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
def test_a_sweep_that_a_signal_stops(tmp_path, number, status):
    out = tmp_path / "study"
    process = start("sweep", "--out", out, *TINY, "--epochs", "400")
    for line in process.stderr:
        if "teacher done" in line:
            break
    process.send_signal(number)
    for line in process.stderr:
        assert "Traceback" not in line
        if line.startswith("kdfast: stopped: finished runs are stored"):
            break
    process.send_signal(signal.SIGTERM)  # the last line is out, and the interpreter still at its end
    assert process.stderr.read() == ""
    process.communicate(timeout=60)
    assert process.returncode == status


def test_ctrl_c_elsewhere(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("kdfast.doctor.examine", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "kdfast: interrupted\n"


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error():
    process = start("doctor")
    process.stdout.close()
    process.wait()
    assert process.returncode in (0, 1)
    assert "Traceback" not in process.stderr.read()


@pytest.mark.filterwarnings("default::kdfast.errors.KdfastWarning")
def test_warnings_are_one_line(capsys, monkeypatch):
    def examine():
        warnings.warn("a slower path", KdfastWarning, stacklevel=1)
        return {}

    monkeypatch.setattr("kdfast.doctor.examine", examine)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().err == "kdfast: warning: a slower path\n"


# ---- completion


def completed(line, **more):
    """What bash offers after the line."""
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_KDFAST_COMPLETE": "complete_bash"}
    run = [sys.executable, "-m", "kdfast"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(**asked, **more), check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_commands_options_and_presets():
    assert set(completed("kdfast re")) == {"refine", "report"}
    assert completed("kdfast sweep --warm") == ["--warmup-epochs"]
    assert completed("kdfast sweep --hlt n") == ["nominal"]
    assert completed("kdfast sweep train.h5 --precision ") == ["fp32", "bf16"]
    assert set(completed("kdfast sweep --model ")) == set(PRESETS)


def test_a_shell_completes_the_runs_and_packs_of_a_study(tmp_path):
    path = make_study(tmp_path / "study", [RunConfig(3.0, 0.5), RunConfig(7.0, 0.5)], jets=100).path
    assert completed(f"kdfast export {path} --run ") == [
        "baseline",
        "baseline_T3.0_A0.5",
        "baseline_T7.0_A0.5",
        "teacher",
    ]
    assert completed(f"kdfast latency {path} --run t") == ["teacher"]
    (path / "packs" / "seed42.000").mkdir(parents=True)
    assert completed(f"kdfast worker --store {path} --pack ") == ["teacher", "seed42.000"]
    assert completed("kdfast worker --store nowhere --pack s") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed(tmp_path, shell):
    """In a home of its own."""
    home = environment(HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    run = [sys.executable, "-m", "kdfast", "--install-completion", shell]
    done = subprocess.run(run, capture_output=True, text=True, env=home, check=True)
    assert f"{shell} completion installed in {tmp_path}" in done.stdout
    scripts = [path.read_text() for path in tmp_path.rglob("*kdfast*") if path.is_file()]
    assert any("_KDFAST_COMPLETE" in script for script in scripts)
