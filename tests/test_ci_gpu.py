"""ci/gpu without a GPU: what it says then, that no failure hides the next stage, and the files that it leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
GPU = {"name": "Some GPU 80GB", "driver": "1.2.3", "torch": "2.9 with CUDA 13.0"}

pytestmark = pytest.mark.skipif(not (ROOT / "ci/gpu").exists(), reason="needs the source tree")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_stages", ROOT / "ci/gpu_stages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_stages", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    return module


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_it_says_in_one_line_what_is_missing() -> None:
    done = subprocess.run(["bash", str(ROOT / "ci/gpu")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "gpu: no GPU here: nvidia-smi finds none\n"
    assert not done.stdout


def test_no_failure_hides_the_next_stage(
    stages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(machine: object, deadline: float) -> str:
        raise stages.StageError("3 failed")

    def broken(machine: object, deadline: float) -> str:
        raise ValueError("a fault of the script")

    functions = {"build": lambda *_: "built", "tests": failing, "sanitizers": broken, "benchmarks": lambda *_: "ran"}
    monkeypatch.setattr(stages, "STAGES", functions)
    monkeypatch.setattr("bench.gpu.timing.gpu_environment", lambda: GPU)
    assert not stages.run(tmp_path, tmp_path / "results", [])
    found = json.loads((tmp_path / "results/some-gpu-80gb.json").read_text())
    assert found["gpu"] == GPU | {"commit": found["gpu"]["commit"]}
    outcomes = [(stage["name"], stage["outcome"], stage["summary"]) for stage in found["stages"]]
    assert outcomes == [
        ("build", "passed", "built"),
        ("tests", "failed", "3 failed"),
        ("sanitizers", "failed", "ValueError: a fault of the script"),
        ("benchmarks", "passed", "ran"),
    ]
    assert "No benchmark has run." in (tmp_path / "results/some-gpu-80gb.md").read_text()
    assert "tests: failed in 0 s; 3 failed" in capsys.readouterr().out


def test_a_stage_that_takes_too_long_may_still_report(stages: ModuleType, tmp_path: Path) -> None:
    machine = stages.Machine(tmp_path)
    patient = "import time\ntry:\n    time.sleep(60)\nexcept KeyboardInterrupt:\n    print('what there is')"
    began = time.monotonic()
    status, output = machine.run("patient", [sys.executable, "-c", patient], time.monotonic() + 1)
    assert time.monotonic() - began < 10
    assert status is None
    assert output == "what there is\n"
    assert machine.run("quick", [sys.executable, "-c", "raise SystemExit(3)"], time.monotonic() + 30) == (3, "")


@pytest.mark.slow
def test_benchmarks_at_toy_sizes_make_json_and_markdown(stages: ModuleType, tmp_path: Path) -> None:
    """The real benchmarks, by pytest and to their files, on the CPU."""
    report = tmp_path / "report.json"
    command = [*stages.PYTEST, "bench/gpu", "-k", "bandwidth and bf16 or grid", "--benchmark-json", str(report)]
    environment = os.environ | {"KDFAST_BENCH_TOY": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # in a worker of xdist nothing is measured
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    from bench.gpu.results import Stage, write_results

    machine, text = write_results(tmp_path, GPU, [Stage("benchmarks", "passed", 7.0, "ran")], report)
    rows = {row["name"]: row for row in json.loads(machine.read_text())["benchmarks"]}
    assert len(rows) == 4
    assert rows["distill_loss_bandwidth[1-bf16]"]["baseline"] == "a copy of as many bytes"
    assert rows["grid"]["floor"] == 1.0
    assert rows["grid"]["plain"] == 600.0
    assert rows["grid"]["ratio"] == pytest.approx(600.0 / rows["grid"]["ours"])
    lines = text.read_text().splitlines()
    assert lines[0] == "# Some GPU 80GB"
    assert "- driver: 1.2.3" in lines
    assert "| benchmarks | passed | 7 | ran |" in lines
    assert sum(line.startswith(("| distill_loss_bandwidth", "| grid")) for line in lines) == 4


@pytest.mark.slow
def test_benchmarks_are_skipped_with_the_reason() -> None:
    command = [sys.executable, "-m", "pytest", "bench/gpu", "-q", "-p", "no:cacheprovider", "--benchmark-disable"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, "-k", "grid"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "no GPU can be used: " in done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.slow
def test_the_stage_of_tests_counts_and_names(stages: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "tests/ops"
    folder.mkdir(parents=True)
    (folder / "test_some.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    (folder / "test_none.py").write_text("")
    skipping = "import pytest\ndef test_c(): pytest.skip('no GPU')\ndef test_d(): pass\n"
    (tmp_path / stages.TENSORS_ON_A_GPU).write_text(skipping)
    machine = stages.Machine(tmp_path)
    with pytest.raises(stages.StageError) as error:
        stages.tests(machine, time.monotonic() + 60)
    said = str(error.value)
    assert said.startswith("2 passed, 1 failed, 1 skipped: ")
    assert "tests/ops/test_some.py" in said
    assert f"{stages.TENSORS_ON_A_GPU} skipped tests: nothing ran on the GPU" in said
    assert "test_none" not in said
    (folder / "test_some.py").write_text("def test_a(): pass\n")
    (tmp_path / stages.TENSORS_ON_A_GPU).write_text("def test_d(): pass\n")
    assert stages.tests(machine, time.monotonic() + 60) == "2 passed"


def test_a_sanitizer_that_is_missing_is_named(
    stages: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = stages.Machine(tmp_path)
    with pytest.raises(stages.StageError, match="compute-sanitizer"):
        stages.sanitizers(machine, time.monotonic() + 60)
