"""One jet at a time, as a trigger scores them: predict, and the compiled kernels against onnxruntime, on one thread."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdfast
from bench.ratio import compare
from kdfast.jets.features import Standardisation, features
from kdfast.models import Preparation, Tagger, load_model
from kdfast.models.build import build_network
from kdfast.models.compiled import CompiledModel
from kdfast.models.config import model_config
from kdfast.models.flat import flat, tensors_of
from kdfast.models.onnx_file import onnx_bytes, padded_batches, session

PRESETS = ["deepsets", "tiny", "small", "demo", "medium", "study"]
CONSTITUENTS = 30  # at most, as a trigger's jets have


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tagger_of(preset: str, folder: Path) -> tuple[Tagger, kdfast.PackedJets]:
    """A tagger as it is read from a file, and 100 jets in its view."""
    jets = kdfast.sample()[:1000].hardest(CONSTITUENTS)
    preparation = Preparation("hlt", None, 0, CONSTITUENTS, Standardisation.fit(features(jets)))
    path = folder / "tagger.safetensors"
    Tagger(build_network(model_config(preset), seed=1), preparation).save(path)
    return load_model(path), jets[:100]


def alike(ours: Any, plain: Any) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(plain), rtol=0, atol=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_predict_of_one_jet(benchmark: Any, preset: str, tmp_path: Path) -> None:
    """All of `predict`, with checks and features, beside the bare module's forward pass on features."""
    tagger, jets = tagger_of(preset, tmp_path)
    jet = jets[0]
    inputs, offsets = tagger.preparation.inputs(jet)

    @torch.no_grad()
    def bare() -> torch.Tensor:
        return tagger.model(inputs, offsets).sigmoid()

    compare(
        benchmark,
        ours=lambda: tagger.predict(jet, prepared=True),
        plain=bare,
        check=alike,
        floor=None if preset == "deepsets" else 1 / 1.1,  # its forward pass takes less than features and checks
        aim=1.0,
        baseline="the bare module on features",
    )


@pytest.mark.parametrize("jets_a_call", [1, 100])
@pytest.mark.parametrize("preset", PRESETS)
def test_beside_onnxruntime(benchmark: Any, preset: str, jets_a_call: int, tmp_path: Path) -> None:
    """`Tagger.logits` beside the ONNX file: both from momenta to logits."""
    pytest.importorskip("onnxruntime")
    tagger, jets = tagger_of(preset, tmp_path)
    jets = jets[:jets_a_call]
    (padded,) = padded_batches(jets, jets_a_call)
    running = session(onnx_bytes(tagger), threads=1)
    compare(
        benchmark,
        ours=lambda: tagger.logits(jets, prepared=True),
        plain=lambda: running.run(None, {"jets": padded})[0],
        check=alike,
        floor=None,
        aim=1.0,
        baseline="onnxruntime",
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_kernels_beside_onnxruntime(benchmark: Any, preset: str, tmp_path: Path) -> None:
    """One jet by the kernels alone, features and encoder, without what `logits` checks.

    Training changes the weights at each step, so the encoder packs them at each call. For the study's model that is
    most of the time, and onnxruntime, which packs them once, is faster.
    """
    pytest.importorskip("onnxruntime")
    tagger, jets = tagger_of(preset, tmp_path)
    jet = jets[0]
    (padded,) = padded_batches(jet, 1)
    running = session(onnx_bytes(tagger), threads=1)
    config = tagger.model.config
    compiled = CompiledModel(config, *map(flat, tensors_of(tagger.model)))
    compare(
        benchmark,
        ours=lambda: compiled.logits(*tagger.preparation.inputs(jet), 0, 1, 1)[0],
        plain=lambda: running.run(None, {"jets": padded})[0],
        check=alike,
        floor=None,
        aim=1.0,
        baseline="onnxruntime",
    )
