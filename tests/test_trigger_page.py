"""Each command and each block of Python of docs/how-to/trigger.md, run on a small study."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdfast
from kdfast.cli import main
from kdfast.models import DeepSets
from kdfast.study.results import StudyResults
from tests.models.test_plain import tagger_of
from tests.study.small_sweep import small_sweep
from tests.synthetic import synthetic_jets
from tests.undrawn import undrawn_figures

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "trigger.md"

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:kdfast.ops.encoder runs its PyTorch reference")]
pytest.importorskip("onnxruntime")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the studies that the page speaks of; the page's commands have been run in it."""
    folder = tmp_path_factory.mktemp("trigger")
    with undrawn_figures():
        study: StudyResults = small_sweep(folder / "demo")
    assert (study.path / "models" / "best_student.safetensors").exists()
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "level1" / "models").mkdir(parents=True)
    tagger_of(DeepSets(seed=1), synthetic_jets(50)).save(folder / "level1" / "models" / "best_student.safetensors")
    here = Path.cwd()
    os.chdir(folder)
    try:
        for line in "".join(blocks("text")).splitlines():
            if line.startswith("kdfast "):
                more = ["--seconds", "0.01"] if "latency" in line else []
                assert main([*shlex.split(line)[1:], *more]) == 0, line
        yield folder
    finally:
        os.chdir(here)


def test_the_files_are_there(folder: Path) -> None:
    for name in ("tagger.onnx", "newest.onnx", "tagger-int8.onnx", "tagger-fp16.onnx"):
        assert (folder / name).exists()


def test_the_python(folder: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        if "hls4ml" in block:
            continue
        if "_inductor" in block and shutil.which("c++") is None:
            continue
        with warnings.catch_warnings():
            if "_inductor" in block:
                warnings.simplefilter("ignore")  # torch's own
            exec(compile(block, str(PAGE), "exec"), names)
    assert names["best"]["status"] == "done"
    tagger = kdfast.load_model("demo/models/best_student.safetensors")
    np.testing.assert_allclose(names["probability"], tagger.predict(names["view"], prepared=True), rtol=0, atol=1e-5)
    logits = torch.as_tensor(names["logits"])  # of one jet, by AOTInductor, where there is a compiler
    torch.testing.assert_close(logits, tagger.logits(names["view"], prepared=True)[: len(logits)], rtol=0, atol=1e-4)


def test_the_firmware(folder: Path) -> None:
    pytest.importorskip("hls4ml")
    (block,) = (block for block in blocks("python") if "hls4ml" in block)
    names: dict[str, Any] = {"kdfast": kdfast, "np": np, "torch": torch}
    exec(compile(block, str(PAGE), "exec"), names)
    assert names["difference"] < 0.01


@pytest.mark.parametrize("layer", [torch.nn.MultiheadAttention(16, 2), torch.nn.GELU()])
def test_what_hls4ml_does_not_take(layer: torch.nn.Module) -> None:
    hls4ml = pytest.importorskip("hls4ml")
    network = torch.nn.Sequential(torch.nn.Linear(16, 16), layer)
    with pytest.raises(Exception, match=f"Unsupported layer {type(layer).__name__}"):
        hls4ml.utils.config_from_pytorch_model(network, (16,), backend="Vitis")


def test_the_program_in_cpp(folder: Path) -> None:
    lines = [line for line in "".join(blocks("text")).splitlines() if line.startswith(("cmake", "./"))]
    assert len(lines) == 3
    shutil.rmtree("build-trigger", ignore_errors=True)
    (folder / "jets.csv").write_text("jet,pt,eta,phi,energy\n0,50,0.1,0.2,60\n1,30,0.2,0.1,40\n1,20,0.3,0.1,30\n")
    for line in lines:
        done = subprocess.run(shlex.split(line), capture_output=True, text=True)
        if "C++ package is missing" in done.stderr:
            assert os.environ.get("KDFAST_TRIGGER_CPP") != "required"
            pytest.skip("onnxruntime's C++ package is missing")
        assert done.returncode == 0, done.stderr
    assert len((folder / "scores.csv").read_text().splitlines()) == 3
