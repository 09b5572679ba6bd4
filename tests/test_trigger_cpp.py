"""examples/trigger_cpp: built with onnxruntime's C++ package, its scores are those of predict.

KDFAST_TRIGGER_CPP=required makes a missing package an error, as ci/examples does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import kdfast
from kdfast.models import JetTransformer, Tagger
from tests.models.test_plain import tagger_of
from tests.synthetic import synthetic_jets

EXAMPLE = Path(__file__).parents[1] / "examples" / "trigger_cpp"
REQUIRED = os.environ.get("KDFAST_TRIGGER_CPP") == "required"

pytest.importorskip("onnxruntime")


def command(*words: str | Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert not ok or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        why = "there is no CMake or no C++ compiler"
    else:
        root = os.environ.get("ONNXRUNTIME_ROOT", "")
        done = command("cmake", "-S", EXAMPLE, "-B", build, f"-DONNXRUNTIME_ROOT={root}", ok=False)
        if done.returncode == 0:
            command("cmake", "--build", build)
            return build / "score_jets"
        assert "onnxruntime's C++ package is missing" in done.stderr, done.stderr
        why = "onnxruntime's C++ package is missing: install libonnxruntime-dev, or set ONNXRUNTIME_ROOT"
    assert not REQUIRED, why
    pytest.skip(why)


def written_as_the_readme_says(jets: kdfast.PackedJets, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the README's Python on these jets."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(kdfast, "sample", lambda: jets)
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 100])
def test_scores_are_those_of_predict(
    program: Path, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jets = synthetic_jets(250, seed=1)
    jets = jets.select_constituents(np.repeat(np.arange(250) % 11 > 0, jets.counts))  # some jets have none
    tagger = tagger_of(JetTransformer("small", seed=4), jets)
    tagger = Tagger(tagger.model, replace(tagger.preparation, hlt_seed=0))
    kdfast.export_onnx(tagger, tmp_path / "tagger.onnx", jets=jets)
    written_as_the_readme_says(jets, tmp_path, monkeypatch)
    done = command(program, "tagger.onnx", "jets.csv", "scores.csv", str(batch))
    assert "view: hlt" in done.stdout
    assert re.search(rf"250 jets, {batch} a call: p50 \S+ us, p99", done.stdout)
    scores = pd.read_csv("scores.csv")
    assert list(scores["jet"]) == list(range(250))
    np.testing.assert_allclose(scores["probability"], tagger.predict(jets)[:, 0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(scores["logit"], tagger.logits(jets)[:, 0], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_faults_are_named(program: Path, tmp_path: Path) -> None:
    (tmp_path / "jets.csv").write_text("jet,pt,eta,phi,energy\n0,1,2\n")
    done = command(program, tmp_path / "missing.onnx", tmp_path / "jets.csv", tmp_path / "out.csv", ok=False)
    assert done.returncode == 1
    assert "jets.csv, line 2: must be jet,pt,eta,phi,energy" in done.stderr
    assert command(program, ok=False).returncode == 2
