"""ONNX files of taggers: equal to predict, at every opset, with metadata that explains them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import kdfast
from kdfast.errors import ConfigError, ModelError
from kdfast.jets.hlt import emulate_hlt
from kdfast.jets.packed import PackedJets
from kdfast.models import JetTransformer, plain
from kdfast.models.onnx_file import session
from tests.models.test_plain import models, own, padded, tagger_of
from tests.synthetic import synthetic_jets

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

pytestmark = pytest.mark.filterwarnings("ignore:kdfast.ops.encoder runs its PyTorch reference")


@pytest.fixture(scope="module")
def jets() -> PackedJets:
    return synthetic_jets(120, seed=1)


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    return session(path.read_bytes()).run(["logits"], {"jets": x.numpy()})[0]


@pytest.mark.parametrize("opset", range(15, 21))
@pytest.mark.parametrize("model", models())
def test_every_opset_gives_the_scores_of_predict(model: Any, opset: int, jets: PackedJets, tmp_path: Path) -> None:
    tagger = tagger_of(model(), jets)
    written = kdfast.export_onnx(tagger, tmp_path / "tagger.onnx", opset=opset, jets=jets)
    assert (written.jets, written.opset, written.precision) == (120, opset, "fp32")
    assert written.difference < 1e-5
    document = onnx.load(written.path)
    assert [(each.domain, each.version) for each in document.opset_import] == [("", opset)]
    assert document.ir_version <= 9  # onnxruntime 1.20 reads up to 10
    scores = run(written.path, padded(emulate_hlt(jets, seed=3)))
    probability = 1 / (1 + np.exp(-scores)) if scores.shape[1] == 1 else torch.tensor(scores).softmax(1).numpy()
    np.testing.assert_allclose(probability, tagger.predict(jets), rtol=0, atol=1e-5)


def test_the_file_explains_itself(jets: PackedJets, tmp_path: Path) -> None:
    tagger = tagger_of(JetTransformer("small", seed=4), jets)
    tagger.save(tmp_path / "tagger.safetensors")
    written = kdfast.export_onnx(tmp_path / "tagger.safetensors", jets=jets)
    assert written.path == tmp_path / "tagger.onnx"
    document = onnx.load(written.path)
    told = {each.key: each.value for each in document.metadata_props}
    assert told["kdfast"] == kdfast.__version__ == document.producer_version
    assert "pt = 0 is padding" in told["inputs"]
    assert "GeV" in told["units"]
    assert told["view"].startswith("hlt:")
    assert json.loads(told["preparation"])["hlt"] == "nominal"
    assert json.loads(told["standardisation"]) == tagger.preparation.standardisation.to_dict()
    assert len(told["model_sha256"]) == 64
    dims = [dim.dim_param or dim.dim_value for dim in document.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["jets", "constituents", 4]


@pytest.mark.parametrize(("precision", "size"), [("fp16", 0.65), ("int8", 0.65)])
def test_smaller_files_state_their_auc(precision: str, size: float, jets: PackedJets, tmp_path: Path) -> None:
    tagger = tagger_of(JetTransformer("medium", seed=4), jets)
    full = kdfast.export_onnx(tagger, tmp_path / "fp32.onnx", jets=jets)
    written = kdfast.export_onnx(tagger, tmp_path / "small.onnx", precision=precision, jets=jets)
    assert written.path.stat().st_size < size * full.path.stat().st_size
    assert written.auc is not None
    assert written.auc_before is not None
    assert abs(written.auc - written.auc_before) < 0.05
    assert written.labelled == 120
    assert f"AUC {written.auc_before:.5f} → {written.auc:.5f}" in str(written)


def test_a_logit_that_differs_is_an_error_and_no_file(
    jets: PackedJets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger = tagger_of(JetTransformer("small", seed=4), jets)
    monkeypatch.setattr(plain, "NO_AXIS", 1e6)  # no jet has an axis
    with pytest.raises(ModelError, match=r"a logit of the ONNX file differs by .* it is not written"):
        kdfast.export_onnx(tagger, tmp_path / "tagger.onnx", jets=jets)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"opset": 14}, "opset: must lie in 15 … 20, is 14"),
        ({"precision": "int4"}, "precision: must be one of fp32, fp16, int8"),
        ({"run": "teacher"}, "run: names a run of a study"),
        ({"out": None}, "out: must name the file"),
    ],
)
def test_arguments_are_checked(arguments: Any, message: str, jets: PackedJets, tmp_path: Path) -> None:
    tagger = tagger_of(JetTransformer("small", seed=4), jets)
    with pytest.raises(ConfigError, match=message):
        kdfast.export_onnx(tagger, **{"out": tmp_path / "tagger.onnx", "jets": jets} | arguments)


@pytest.mark.slow
def test_a_network_of_ones_own_is_exported_by_torch(jets: PackedJets, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    tagger = own("attentive", jets)
    written = kdfast.export_onnx(tagger, tmp_path / "own.onnx", opset=18, jets=jets)
    assert written.difference < 1e-5
    view = emulate_hlt(jets, seed=3)
    for part in (view[:1], view[3:20]):  # its sizes are dynamic
        np.testing.assert_allclose(run(written.path, padded(part)), tagger.logits(part, prepared=True), atol=1e-5)
    with pytest.raises(ModelError, match="fp16 is for the package's own networks"):
        kdfast.export_onnx(tagger, tmp_path / "half.onnx", precision="fp16", jets=jets)


def test_a_function_without_a_translation_is_named(jets: PackedJets, tmp_path: Path) -> None:
    class Strange(torch.nn.Module):
        def forward(self, x: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
            return torch.erfinv(x).sum(1)

    from kdfast.models.onnx_graph import onnx_model

    module = tagger_of(JetTransformer("small", seed=4), jets).to_torch()
    module.network = Strange()
    with pytest.raises(ModelError, match="ONNX: erfinv has no translation"):
        onnx_model(module, 1, 17, False)


def test_a_missing_package_names_the_extra(jets: PackedJets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"kdfast\[onnx\]"):
        kdfast.export_onnx(tagger_of(JetTransformer("small", seed=4), jets), tmp_path / "tagger.onnx", jets=jets)
