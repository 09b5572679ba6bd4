"""What `kdfast doctor` says of this machine."""

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import torch

from kdfast import doctor
from kdfast.cli import main
from kdfast.ops import backend


def test_doctor(capsys, monkeypatch):
    monkeypatch.setenv("KDFAST_BACKEND", "reference")
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for text in ("kdfast ", "torch ", "h5py ", "kdfast._cpu ", "kdfast._cuda ", "threads ", "sample.h5"):
        assert text in out, text
    assert "reference, forced by KDFAST_BACKEND" in out
    assert re.search(r"KDFAST_BACKEND +reference", out)
    monkeypatch.setenv("KDFAST_BACKEND", "refrence")
    assert main(["doctor"]) == 0
    assert "unknown backend 'refrence'" in capsys.readouterr().out


def test_doctor_says_why_the_kernels_are_not_in_use():
    command = [sys.executable, "-m", "kdfast", "doctor"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "KDFAST_ISA": "avx9000"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"kdfast._cpu +(not in use: .*avx9000|not in use: the compiled module)", done.stdout)


def test_doctor_says_what_is_missing_for_the_gpu(monkeypatch):
    def line():
        return doctor.examine()["modules"]["kdfast._cuda"]

    missing = "the compiled module kdfast._cuda is missing; a build with nvcc brings it"
    monkeypatch.setattr(backend, "why_no_cuda", missing)
    assert line() == f"not in use: {missing}"
    module = SimpleNamespace(
        cuda_version="13.0", architectures="80 90", oldest_driver="580.65.06", code_capability=bool
    )
    monkeypatch.setattr(backend, "_cuda", module)
    monkeypatch.setattr(backend, "why_no_cuda", None)
    built = r"\(CUDA 13.0, compute capabilities 80 90, driver 580.65.06 or newer\)"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert re.fullmatch(f"not in use: torch .* is a build without CUDA {built}", line())
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert re.fullmatch(f"not in use: torch sees no GPU {built}", line())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
    monkeypatch.setattr(torch.cuda, "device", lambda gpu: nullcontext())
    backend.why_no_code.cache_clear()
    assert re.fullmatch(f"in use for tensors on a GPU {built}", line())
    why = "this build of kdfast._cuda has code for compute capabilities 80 90, not for GPU 0's"
    assert doctor.examine()["modules"]["GPUs"] == f"Card 0 (not in use: {why}), Card 1"
