"""ci/gpu without a GPU: what it says then, that no failure hides the next stage, and the files that it leaves."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
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
    monkeypatch.setattr(sys, "path", [str(ROOT), str(ROOT / "ci"), *sys.path])
    return module


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small tree of sources, the current folder."""
    root = tmp_path / "sources"
    for name in ("csrc/a.cu", "csrc/b.cu", "python/kdfast/a.py", "python/kdfast/_cpu.so", "tests/a.py", "bench/a.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        (root / name).write_text(name)
    monkeypatch.chdir(root)
    return root


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a GPU")
def test_it_says_in_one_line_what_is_missing() -> None:
    done = subprocess.run(["bash", str(ROOT / "ci/gpu")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "gpu: no GPU here: nvidia-smi finds none\n"
    assert not done.stdout


def test_a_local_version_of_torch_is_not_asked_for(stages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No index has 2.13.0+cu130; 2.13.0, which pip takes it for, may be had."""
    monkeypatch.setattr(stages, "version", {"torch": "2.13.0+cu130"}.__getitem__)
    wanted = stages.requirements()
    assert [line for line in wanted if line.startswith("torch")] == ["torch==2.13.0"]
    for name in ("pydantic", "pybind11", "cmake", "ninja", "pytest", "pytest-timeout", "hypothesis"):
        assert any(line.startswith(name) for line in wanted), name


def test_packages_that_are_there_are_not_brought(stages: ModuleType) -> None:
    from gpu_wheels import present_packages

    lines = ["NumPy==1.26.4", "typer==0.20", "rich", "tomli_w==1.2.0", "", "# a remark", "torch==2.11.0+cu130"]
    found = present_packages(lines, ["numpy>=1.26", "typer>=0.26", "rich>=13.7", "tomli-w>=1.0"])
    assert found == {"numpy", "rich", "tomli-w", "torch"}


@pytest.mark.slow
def test_wheels_are_installed_from_a_folder_next_to_torch(tmp_path: Path) -> None:
    """By the script's own function, without an index; a package that the folder doesn't have is an error."""
    name = "kdfast_made_up"
    with zipfile.ZipFile(tmp_path / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    requirements = tmp_path / "requirements.txt"
    public = version("torch").partition("+")[0]
    environment = os.environ | {"KDFAST_WHEELS": str(tmp_path)}

    def install() -> subprocess.CompletedProcess[str]:
        call = f". ci/common.sh; install_next_to_torch {sys.executable} {tmp_path}/venv {requirements}"
        return subprocess.run(["bash", "-c", call], cwd=ROOT, env=environment, capture_output=True, text=True)

    requirements.write_text(f"{name}>=1\ntorch=={public}\n")
    done = install()
    assert done.returncode == 0, done.stderr
    check = [f"{tmp_path}/venv/bin/python", "-c", f"import torch, {name}; print({name}.__file__)"]
    found = subprocess.run(check, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(tmp_path / "venv"))
    requirements.write_text(f"{name}>=2\n")
    done = install()
    assert done.returncode != 0
    assert name in done.stderr


def test_a_kept_tree_is_built_again_only_where_it_has_changed(
    stages: ModuleType, sources: Path, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    assert stages.synchronise(sources, tree)
    assert (tree / "csrc/a.cu").read_text() == "csrc/a.cu"
    assert not (tree / "python/kdfast/_cpu.so").exists()
    built = tree / "python/kdfast/_cuda.so"
    built.write_text("built in the tree")
    before = (tree / "csrc/a.cu").stat().st_mtime_ns
    os.utime(sources / "csrc/a.cu")  # as a fresh copy of the sources has it
    (sources / "python/kdfast/a.py").write_text("changed")
    assert not stages.synchronise(sources, tree)
    assert (tree / "csrc/a.cu").stat().st_mtime_ns == before
    assert (tree / "python/kdfast/a.py").read_text() == "changed"
    assert built.exists()
    (sources / "csrc/b.cu").unlink()
    assert stages.synchronise(sources, tree)
    assert not (tree / "csrc/b.cu").exists()


def test_no_failure_hides_the_next_stage(
    stages: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    sources: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build(machine: object, deadline: float) -> str:
        stages._built(machine).touch()
        return "built"

    def failing(machine: object, deadline: float) -> str:
        raise stages.StageError("3 failed")

    def broken(machine: object, deadline: float) -> str:
        raise ValueError("a fault of the script")

    functions = {"build": build, "grid": lambda *_: "ran", "tests": failing, "sanitizer": broken}
    monkeypatch.setattr(stages, "STAGES", functions)
    monkeypatch.setattr(stages, "environment", lambda machine: GPU)

    def outcomes() -> list[tuple[str, str, str]]:
        found = json.loads((tmp_path / "results/some-gpu-80gb.json").read_text())
        assert found["gpu"] == GPU
        return [(stage["name"], stage["outcome"], stage["summary"]) for stage in found["stages"]]

    tree = tmp_path / "tree"
    results = tmp_path / "results"
    assert not stages.run(tree, results, ["tests"])
    unbuilt = "kdfast._cuda is not built from these sources: bash ci/gpu build"
    assert outcomes() == [("tests", "failed", unbuilt)]
    assert not stages.run(tree, results, [])
    expected = [
        ("build", "passed", "built"),
        ("grid", "passed", "ran"),
        ("tests", "failed", "3 failed"),
        ("sanitizer", "failed", "ValueError: a fault of the script"),
    ]
    assert outcomes() == expected
    assert "No benchmark has run." in (results / "some-gpu-80gb.md").read_text()
    assert "tests: failed in 0 s; 3 failed" in capsys.readouterr().out
    # A call of one stage keeps what the others found.
    functions["tests"] = lambda *_: "7 passed"
    assert stages.run(tree, results, ["tests"])
    expected[2] = ("tests", "passed", "7 passed")
    assert outcomes() == expected
    (sources / "csrc/a.cu").write_text("changed")
    assert not stages.run(tree, results, ["tests"])
    assert outcomes()[2] == ("tests", "failed", unbuilt)
    with pytest.raises(SystemExit, match="no such stage: test; there are build, grid, tests, sanitizer"):
        stages.run(tree, results, ["test"])


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
    report = tmp_path / "kernels.json"
    command = [*stages.PYTEST, "bench/gpu", "-k", "bandwidth and bf16 or grid", "--benchmark-json", str(report)]
    environment = os.environ | {"KDFAST_BENCH_TOY": "1"}
    environment.pop("PYTEST_XDIST_WORKER", None)  # in a worker of xdist nothing is measured
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    from bench.gpu.results import Stage, write_results

    machine, text = write_results(tmp_path, GPU, [Stage("kernels", "passed", 7.0, "ran", "abc")], tmp_path)
    rows = {row["name"]: row for row in json.loads(machine.read_text())["benchmarks"]["kernels"]}
    assert len(rows) == 4
    assert rows["distill_loss_bandwidth[1-bf16]"]["baseline"] == "a copy of as many bytes"
    assert rows["grid"]["floor"] == 1.0
    assert rows["grid"]["plain"] == 600.0
    assert rows["grid"]["ratio"] == pytest.approx(600.0 / rows["grid"]["ours"])
    lines = text.read_text().splitlines()
    assert lines[0] == "# Some GPU 80GB"
    assert "- driver: 1.2.3" in lines
    assert "| kernels | passed | 7 | abc | ran |" in lines
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
        stages.sanitizer(machine, time.monotonic() + 60)
