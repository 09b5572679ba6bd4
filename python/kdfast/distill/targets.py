"""What a model says of jets: logits, and the teacher's targets, computed once and cached on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from kdfast._files import write_content, writing_errors
from kdfast.distill.attention_transfer import attention_summary
from kdfast.distill.trainer import Targets, View
from kdfast.models.evaluation import evaluate_model
from kdfast.models.jet_transformer import JetTransformer

__all__ = ["predict_logits", "teacher_targets"]


def predict_logits(model: JetTransformer, view: View) -> Tensor:
    """Logits of a view's jets in evaluation mode: [B] where the model has one output, else [B, C]."""
    logits = torch.cat([logits for logits, _, _ in evaluate_model(model, view.features, view.offsets)])
    return logits[:, 0] if logits.shape[1] == 1 else logits


def teacher_targets(model: JetTransformer, view: View, cache_folder: Path | None = None) -> Targets:
    """The teacher's logits and pooling-attention summaries for the training view.

    cache_folder: where they are kept between runs, under the fingerprint of weights and inputs; a cached file that
    can't be read is computed anew. Raises StudyError where it can't be written.
    """
    path = None if cache_folder is None else Path(cache_folder) / f"{_fingerprint(model, view)}.safetensors"
    if path is not None and path.exists():
        try:
            cached = load_file(path)
            targets = Targets(cached["logits"], cached["attention_entropy"], cached["attention_max"])
            if len(targets.logits) == len(view):
                return targets
        except (safetensors.SafetensorError, OSError, KeyError):
            pass
    batches = evaluate_model(model, view.features, view.offsets)
    parts = [(logits, *attention_summary(attention, offsets)) for logits, attention, offsets in batches]
    logits, entropy, maximum = (torch.cat(column) for column in zip(*parts, strict=True))
    if path is not None:
        content = save({"logits": logits, "attention_entropy": entropy, "attention_max": maximum})
        with writing_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_content(path, content)
    return Targets(logits, entropy, maximum)


def _fingerprint(model: JetTransformer, view: View) -> str:
    """SHA-256 over the model's sizes and weights and the view's inputs."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in [*model.state_dict().items(), ("features", view.features), ("offsets", view.offsets)]:
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().data)
    return digest.hexdigest()
