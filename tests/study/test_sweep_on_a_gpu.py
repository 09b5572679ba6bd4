"""A whole sweep on a GPU: teacher, targets, baseline and students, stored and read as those of a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdfast.store.store import StudyStore
from tests.cuda_kernels import needs_gpu
from tests.study.small_sweep import small_sweep


@needs_gpu
def test_a_sweep_on_a_gpu_finds_what_one_on_a_cpu_finds(tmp_path: Path) -> None:
    for package in ("jinja2", "matplotlib", "mplhep", "statsmodels"):
        pytest.importorskip(package, reason="a sweep ends with its report")
    swept = {name: small_sweep(tmp_path / name[:4], device=name, precision="fp32") for name in ("cpu", "cuda:0")}
    results = {name: study.results for name, study in swept.items()}
    ours, expected = (results[device].sort_values("run_name").reset_index() for device in ("cuda:0", "cpu"))
    assert list(ours["run_name"]) == list(expected["run_name"])
    assert (ours["status"] == expected["status"]).all()
    # Of some 60 jets a few pairs change places by rounding.
    np.testing.assert_allclose(ours["auc_val"], expected["auc_val"], atol=0.02)
    assert torch.cuda.max_memory_allocated() > 0


@needs_gpu
def test_a_sweep_on_a_gpu_that_has_bf16_takes_it_by_default(tmp_path: Path) -> None:
    for package in ("jinja2", "matplotlib", "mplhep", "statsmodels"):
        pytest.importorskip(package, reason="a sweep ends with its report")
    study = small_sweep(tmp_path / "study", device="cuda:0")
    expected = "bf16" if torch.cuda.get_device_capability(0) >= (8, 0) else "fp32"
    assert StudyStore.open(study.path).settings["precision"] == expected
    assert (study.results["status"] == "done").all()
