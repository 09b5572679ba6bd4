"""KDFAST_CUDA=ON|OFF|AUTO: when CMake builds kdfast._cuda, and what it says where it can't."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(not (ROOT / "CMakeLists.txt").exists(), reason="needs the source tree"),
    pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("ninja") is None, reason="needs cmake and ninja"),
    pytest.mark.slow,
]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")


def configure(folder: Path, cuda: str, *, gpus: str = "", nvcc: bool = True) -> tuple[int, str]:
    """(exit status, output) of CMake with programs as they are, but for nvidia-smi, which names `gpus`."""
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
    if pybind11.returncode:
        pytest.skip("needs pybind11")
    programs = folder / "programs"
    programs.mkdir()
    smi = programs / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{gpus}'\n")
    smi.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("CUDACXX", "CUDA_PATH", "CUDAARCHS")}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    if not nvcc:
        environment["CUDACXX"] = str(programs / "no-nvcc")
    settings = {
        "KDFAST_CUDA": cuda,
        "pybind11_DIR": pybind11.stdout.strip(),
        "Python_EXECUTABLE": sys.executable,
    }
    command = ["cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja"]
    command += [f"-D{name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("cuda", ["OFF", "AUTO"])
def test_off_and_auto_without_a_gpu_build_none(tmp_path: Path, cuda: str) -> None:
    status, said = configure(tmp_path, cuda)
    assert status == 0, said
    assert "kdfast._cuda: OFF" in said
    assert "_cuda.dir" not in (tmp_path / "build" / "build.ninja").read_text()


def test_auto_with_a_gpu_but_no_compiler_builds_none(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "AUTO", gpus="GPU 0: any", nvcc=False)
    assert status == 0, said
    assert "_cuda.dir" not in (tmp_path / "build" / "build.ninja").read_text()


def test_on_without_a_compiler_is_an_error(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "ON", nvcc=False)
    assert status != 0
    assert "no-nvcc" in said


def test_another_word_is_an_error(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "maybe")
    assert status != 0
    assert "KDFAST_CUDA: maybe is none of ON, OFF, AUTO" in said


@needs_nvcc
def test_on_builds_for_the_gpus_of_a_release(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "ON")
    assert status == 0, said
    assert "kdfast._cuda: ON" in said
    rules = (tmp_path / "build" / "build.ninja").read_text()
    for capability in (75, 80, 86, 89, 90, 100, 120):
        assert f"code=[sm_{capability}]" in rules or f"code=[compute_{capability},sm_{capability}]" in rules


@needs_nvcc
def test_auto_with_a_gpu_builds_for_it(tmp_path: Path) -> None:
    status, said = configure(tmp_path, "AUTO", gpus="GPU 0: any")
    assert status == 0, said
    rules = (tmp_path / "build" / "build.ninja").read_text()
    assert "_cuda.dir" in rules
    assert "sm_120" not in rules or "sm_75" not in rules  # not the release's list


def test_a_release_is_built_by_a_cuda_of_older_drivers() -> None:
    """CUDA 12.8 or 12.9: drivers from 550.54.14 on, and compute capability 12.0, which older ones don't know."""
    project = (ROOT / "pyproject.toml").read_text()
    config = project[project.index("[tool.cibuildwheel]") : project.index("[tool.repo-review]")]
    assert '"cmake.define.KDFAST_CUDA" = "ON"' in config
    (version,) = set(re.findall(r"cuda-(?:minimal-build-)?(\d+[.-]\d+)", config.replace("12-9", "12.9")))
    assert version in ("12.8", "12.9")
    binding = (ROOT / "csrc/bindings/gpu/cuda_module.cpp").read_text()
    assert 'CUDART_VERSION >= 13000 ? "580.65.06" : "550.54.14"' in binding
    architectures = re.search(r"set\(KDFAST_CUDA_ARCHITECTURES (75.*?)\)", (ROOT / "CMakeLists.txt").read_text())
    assert architectures is not None
    assert architectures[1].split()[-1] == "120"  # code, and PTX for later GPUs
    page = (ROOT / "docs/explanation/kernels.md").read_text()
    assert f"built with CUDA {version}" in page
