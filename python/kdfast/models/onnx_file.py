"""A tagger as an ONNX file: written, checked against `predict`, and described by its own metadata."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.errors import ConfigError, ModelError
from kdfast.files import write_content, writing_errors
from kdfast.jets.features import FEATURE_NAMES
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import sample
from kdfast.metrics import roc_auc
from kdfast.models.config import OwnModel
from kdfast.models.tagger import Tagger

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["PRECISIONS", "OnnxFile", "export_tagger", "onnx_bytes", "padded_batches", "session"]

PRECISIONS = ("fp32", "fp16", "int8")
LARGEST_DIFFERENCE = 1e-4  # of a logit in fp32
_CHECKED = 1_000  # jets
_SAMPLED = 4_000  # jets of the bundled sample, for the AUC
_BATCH = 200  # jets at a time, padded to the largest of them


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that was written.

    Attributes
    ----------
    path : pathlib.Path
    precision : str
        "fp32", "fp16" or "int8".
    opset : int
    jets : int
        Jets on which it was compared with `predict`.
    difference : float
        The largest \\|Δlogit\\| of these jets.
    labelled : int
        Jets of known label among them; 0 where there are none, or the model has several classes.
    auc, auc_before : float or None
        Of the file and of the model, on the labelled jets.
    """

    path: Path
    precision: str
    opset: int
    jets: int
    difference: float
    labelled: int
    auc: float | None
    auc_before: float | None

    def __str__(self) -> str:
        text = f"largest |Δlogit| on {self.jets:,} jets: {self.difference:.1e}"
        if self.auc is None or self.auc_before is None:
            return text
        change = self.auc - self.auc_before
        return f"{text}; AUC {self.auc_before:.5f} → {self.auc:.5f} ({change:+.5f}) on {self.labelled:,} jets"


def export_tagger(
    tagger: Tagger,
    out: Path,
    *,
    opset: int = 17,
    precision: str = "fp32",
    jets: PackedJets | None = None,
    about: Mapping[str, Any] | None = None,
) -> OnnxFile:
    """Writes an ONNX file after a comparison with the tagger; see `kdfast.export_onnx`.

    about: more metadata (study, run, seed, model_sha256).
    """
    given = sample()[:_SAMPLED] if jets is None else jets
    if precision == "fp32":
        given = given[:_CHECKED]
    view = tagger.preparation.view_of(given)
    before = tagger.logits(view, prepared=True).numpy()

    metadata = _metadata(tagger, precision) | {key: str(value) for key, value in (about or {}).items()}
    content = onnx_bytes(tagger, opset, precision, metadata)
    running = session(content)
    batches = [*padded_batches(view, _BATCH), np.zeros((1, 3, 4), np.float32)]  # the last jet is empty
    scores = np.concatenate([running.run(None, {"jets": x})[0] for x in batches])
    after, empty = scores[:-1], scores[-1:]
    difference = float(np.abs(after - before).max())
    if not np.isfinite(empty).all() or not np.isfinite(difference):
        raise ModelError("a score of the ONNX file is not finite: it is not written", where=str(out))
    if precision == "fp32" and difference > LARGEST_DIFFERENCE:
        what = f"a logit of the ONNX file differs by {difference:.1e} from predict, more than {LARGEST_DIFFERENCE:.0e}"
        raise ModelError(f"{what}: it is not written", where=str(out), hint="try another opset")

    labelled = np.isin(given.labels, (0, 1)) & (before.shape[1] == 1)
    both = len(np.unique(given.labels[labelled])) == 2
    aucs = [
        roc_auc(given.labels[labelled], logits[labelled, 0], given.weights[labelled]) if both else None
        for logits in (after, before)
    ]
    with writing_errors(out, ModelError):
        write_content(out, content)
    return OnnxFile(out, precision, opset, len(view), difference, int(labelled.sum()) if both else 0, *aucs)


def onnx_bytes(
    tagger: Tagger, opset: int = 17, precision: str = "fp32", metadata: Mapping[str, str] | None = None
) -> bytes:
    """The content of an ONNX file. Raises ConfigError, ModelError; see `kdfast.export_onnx`."""
    try:
        import onnx
        import onnxruntime  # noqa: F401

        from kdfast.models.onnx_graph import OPSETS, onnx_model
    except ImportError as error:
        hint = "pip install 'kdfast[onnx]'"
        raise ConfigError(f"ONNX files need onnx and onnxruntime ({error})", where="onnx", hint=hint) from None
    if opset not in OPSETS:
        raise ConfigError(f"must lie in {OPSETS[0]} … {OPSETS[-1]}, is {opset}", where="opset")
    if precision not in PRECISIONS:
        raise ConfigError(f"must be one of {', '.join(PRECISIONS)}, is {precision!r}", where="precision")
    config = tagger.model.config
    if isinstance(config, OwnModel):
        model = _by_torch(tagger, opset, precision, config.name)
    else:
        model = onnx_model(tagger.to_torch(), config.num_classes, opset, precision == "fp16")
    onnx.helper.set_model_props(model, dict(metadata or {}))
    return (_int8(model) if precision == "int8" else model).SerializeToString()


def _by_torch(tagger: Tagger, opset: int, precision: str, where: str) -> ModelProto:
    """A network of one's own, by torch's exporter: it may use any function of torch."""
    if precision == "fp16":
        raise ModelError("fp16 is for the package's own networks", where=where, hint="export fp32 or int8")
    plain = tagger.to_torch()
    sizes = {0: torch.export.Dim("jets", min=1, max=1 << 20), 1: torch.export.Dim("constituents", min=1, max=1 << 12)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of torchvision, which is not needed
    how: dict[str, Any] = {"opset_version": opset, "dynamic_shapes": (sizes,), "dynamo": True, "verbose": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                plain, (torch.zeros(3, 7, 4),), input_names=["jets"], output_names=["logits"], **how
            )
    except Exception as error:  # of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "to_torch() gives it as a plain module, for torch.export and other exporters"
        raise ModelError(f"torch can't export it to ONNX ({reason})", where=where, hint=hint) from error
    assert program is not None
    return program.model_proto


def session(content: bytes, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU. threads: 0, its own choice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def padded_batches(view: PackedJets, jets: int) -> Iterator[NDArray[np.float32]]:
    """The jets [b, N, 4] in batches of this size, N ≥ 1 being the largest number of constituents among them."""
    for start in range(0, len(view), jets):
        part = view[start : start + jets]
        yield part.to_padded(max(1, int(part.counts.max())))[0]


def _int8(model: ModelProto) -> ModelProto:
    """Weights of the matrix products in 8 bits, a scale per output, and their inputs quantized as they come.

    reduce_range: 7 bits, so that processors without VNNI do not saturate.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises to infer shapes first, which these graphs don't need, unless they are marked so.
    mark = model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        quantized = onnx.load(target)
    quantized.metadata_props.remove(mark)
    quantized.ir_version = model.ir_version
    return quantized


def _metadata(tagger: Tagger, precision: str) -> dict[str, str]:
    """What a user of the file has to know, as text."""
    preparation = tagger.preparation
    card = preparation.to_json()
    scaling = card.pop("standardisation")
    most = "all" if preparation.max_constituents is None else f"the {preparation.max_constituents} hardest"
    if preparation.view == "offline":
        view = "offline: above the pT threshold of the offline view"
    elif preparation.hlt is None:
        view = "hlt: jets as the trigger reconstructs them"
    else:
        view = "hlt: jets as the trigger reconstructs them; the model was trained on an emulation, see preparation"
    return {
        "kdfast": __version__,
        "inputs": "jets [jets, constituents, 4] float32: pt, eta, phi, energy; a row with pt = 0 is padding",
        "units": "pt and energy in GeV, eta without unit, phi in rad",
        "outputs": "logits [jets, classes] float32; probability of signal: sigmoid (one class), softmax (several)",
        "view": f"{view}; {most} constituents; no threshold, limit or emulation is applied in this file",
        "preparation": json.dumps(card),
        "features": ", ".join(FEATURE_NAMES),
        "standardisation": json.dumps(scaling),
        "precision": precision,
        "parameters": str(sum(each.numel() for each in tagger.model.parameters())),
        "model_sha256": hashlib.sha256(tagger.to_bytes()).hexdigest(),
    }
