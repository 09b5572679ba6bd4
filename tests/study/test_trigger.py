"""From a study to a trigger: which network is exported, and what its file says of it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kdfast
from kdfast.cli import main
from kdfast.errors import ConfigError, StudyError
from kdfast.models.onnx_file import padded_batches, session
from kdfast.store.store import StudyStore
from kdfast.store.verify import repair
from kdfast.study.results import StudyResults
from kdfast.study.trigger import _flops, chosen_run
from tests.study.small_sweep import small_jets

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def metadata(path: Path) -> dict[str, str]:
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def test_the_best_student_of_a_study(swept: StudyResults, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    jets = small_jets()
    assert main(["export", str(swept.path), "--onnx"]) == 0
    best = swept.best("auc")
    path = Path(f"{best['run_name']}.seed42.onnx")
    assert str(path) in capsys.readouterr().out
    told = metadata(path)
    assert (told["study"], told["run"], told["seed"]) == (swept.path.name, best["run_name"], "42")
    weights = swept.path / "models" / "best_student.safetensors"
    assert told["model_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    tagger = kdfast.load_model(weights)
    x = next(padded_batches(tagger.preparation.view_of(jets), len(jets)))
    logits = session(path.read_bytes()).run(None, {"jets": x})[0]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), tagger.predict(jets), rtol=0, atol=1e-5)


def test_a_named_run(swept: StudyResults, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "teacher.onnx"
    arguments = ["export", str(swept.path), "--run", "teacher", "--onnx", "--int8", "--out", str(out)]
    assert main(arguments) == 0
    assert "AUC" in capsys.readouterr().out
    told = metadata(out)
    assert (told["run"], told["precision"]) == ("teacher", "int8")
    assert told["view"].startswith("offline:")


def test_the_default_run_of_a_seed(swept: StudyResults) -> None:
    store = StudyStore.open(swept.path)
    assert chosen_run(store) == chosen_run(store, seed=42) == chosen_run(store, str(swept.best("auc")["run_name"]))
    with pytest.raises(StudyError, match="no student of this study has finished"):
        chosen_run(store, seed=7)
    with pytest.raises(ConfigError, match="no run is named 'techer'"):
        chosen_run(store, "techer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a format\n--onnx writes"),
        (["--onnx", "--fp16", "--int8"], "--fp16, --int8: give one of them"),
        (["--onnx", "--opset", "9"], "opset: must lie in 15 … 20"),
    ],
)
def test_wrong_options(options: list[str], message: str, swept: StudyResults, capsys: Any) -> None:
    assert main(["export", str(swept.path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_has_no_runs(swept: StudyResults, capsys: Any) -> None:
    model = swept.path / "models" / "best_student.safetensors"
    assert main(["export", str(model), "--onnx", "--run", "teacher"]) == 2
    assert "this is not a study" in capsys.readouterr().err


# ---- latency


@pytest.fixture
def measured(swept: StudyResults, tmp_path: Path) -> Path:
    """A copy of the small sweep, with latencies."""
    study = Path(shutil.copytree(swept.path, tmp_path / "study"))
    rows = kdfast.latency(study, jets=small_jets(), seconds=0.01)
    assert list(dict.fromkeys(rows["run_name"])) == [swept.best("auc")["run_name"], "teacher"]
    assert list(zip(rows["engine"], rows["batch"], strict=True))[:4] == [
        ("onnxruntime", 1),
        ("kdfast", 1),
        ("onnxruntime", 100),
        ("kdfast", 100),
    ]
    assert (rows["p50_us"] <= rows["p99_us"]).all()
    assert (rows["calls"] >= 20).all()
    return study


def test_latencies_are_stored_with_the_study(measured: Path) -> None:
    study = kdfast.open_study(measured)
    assert len(set(study._microseconds())) == 1  # the students have one size
    assert study.best("auc", max_latency_us=1e9)["run_name"] == study.best("auc")["run_name"]
    with pytest.raises(StudyError, match=r"at most 0.5 µs\nthe fastest takes \d+ µs"):
        study.best("auc", max_latency_us=0.5)
    assert study.verify().intact
    assert not study.verify().notes

    before = StudyStore.open(measured).latencies()
    kdfast.latency(measured, run="teacher", jets=small_jets(), seconds=0.0)
    after = StudyStore.open(measured).latencies()
    changed = {key.name for key in after if after[key] != before[key]}
    assert changed == {"teacher"}


def test_a_damaged_latency_is_found_and_removed(measured: Path) -> None:
    document = next((measured / "latency").glob("teacher*/latency.json"))
    document.write_text(document.read_text().replace('"parameters": ', '"parameters": 1'))
    found, done = repair(measured)
    assert [finding.path for finding in found.findings] == [f"latency/{document.parent.name}/latency.json"]
    assert any("removed" in line for line in done)
    assert kdfast.open_study(measured).verify().intact


def test_without_latencies_best_says_what_to_run(swept: StudyResults) -> None:
    with pytest.raises(StudyError, match="run `kdfast latency"):
        swept.best("auc", max_latency_us=100.0)


def test_operations_are_those_of_the_matrix_products(swept: StudyResults) -> None:
    tagger = kdfast.load_model(swept.path / "models" / "best_student.safetensors")
    size = tagger.model.config
    width, ffn, heads = size.width, size.ffn, size.pooling_heads
    layers = size.layers * (4 * width**2 + 2 * width * ffn)
    per_constituent = 2 * (size.num_features * width + layers + width * (width + heads))
    per_pair = 4 * size.layers * width
    head = 2 * (width**2 + 2 * width**2 + width * (width // 2) + width // 2)
    assert _flops(tagger) == (head, per_constituent, per_pair)


def test_the_command_prints_a_table(swept: StudyResults, capsys: Any) -> None:
    model = swept.path / "models" / "best_student.safetensors"
    assert main(["latency", str(model), "--seconds", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert "best_student.safetensors" in printed
    assert printed.count("onnxruntime") == printed.count("kdfast ") == 2
    assert "constituents on average, one thread" in printed
