"""What a model says of jets: logits, and the teacher's targets, computed once and cached on disk."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor

from kdfast.distill.attention_transfer import attention_summary
from kdfast.distill.pack import Targets, View
from kdfast.files import write_content, writing_errors
from kdfast.models.config import OwnModel
from kdfast.models.evaluation import evaluate_model, evaluate_on_device
from kdfast.models.network import Network

__all__ = ["predict_logits", "teacher_targets"]


def predict_logits(model: Network, view: View) -> Tensor:
    """Logits of a view's jets in evaluation mode: [B] where the model has one output, else [B, C]."""
    answers = _releasing(view, evaluate_model(model, view.features, view.offsets))
    logits = torch.cat([logits for logits, _, _ in answers])
    return logits[:, 0] if logits.shape[1] == 1 else logits


def teacher_targets(model: Network, view: View, cache_folder: Path | None = None, device: str = "cpu") -> Targets:
    """The teacher's logits and pooling-attention summaries for the training view.

    cache_folder: where they are kept between runs, in a file named by the fingerprint of weights and inputs
    and by the SHA-256 of its own content; one that does not match, or can't be read, is removed and computed
    anew. Raises StudyError where it can't be written. device: where they are computed; a GPU's are the CPU's
    but for rounding.
    """
    folder = None if cache_folder is None else Path(cache_folder)
    fingerprint = "" if folder is None else _fingerprint(model, view)
    for path in sorted(folder.glob(f"{fingerprint}.*.safetensors")) if folder is not None else ():
        targets = _cached(path)
        if targets is not None and len(targets.logits) == len(view):
            return targets
        path.unlink(missing_ok=True)
    if device == "cpu" or isinstance(model.config, OwnModel):
        model = model.to(device)
        batches = evaluate_model(model, view.features, view.offsets)
    else:
        batches = evaluate_on_device(model, view.features, view.offsets, device)
    parts: list[tuple[Tensor, ...]] = []
    for logits, attention, offsets in _releasing(view, batches):
        parts.append((logits,) if attention is None else (logits, *attention_summary(attention, offsets)))
    targets = Targets(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))
    if folder is not None:
        content = save({name: tensor for name, tensor in vars(targets).items() if tensor is not None})
        path = folder / f"{fingerprint}.{hashlib.sha256(content).hexdigest()}.safetensors"
        with writing_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            write_content(path, content)
    return targets


_Answer = tuple[Tensor, Tensor | None, Tensor]
_HASHED = 1 << 22  # rows at a time
_BATCHES = 64  # after which the pages of mapped views are given back


def _releasing(view: View, answers: Iterable[_Answer]) -> Iterator[_Answer]:
    for number, answer in enumerate(answers, 1):
        yield answer
        if number % _BATCHES == 0:
            view.release()
    view.release()


def _cached(path: Path) -> Targets | None:
    """The targets of a cached file; None where it is damaged."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a link might lead anywhere, at a pipe we would wait
            return None
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.suffixes[0][1:]:
            return None
        return Targets(**load(content))
    except (safetensors.SafetensorError, OSError, TypeError):
        return None


def _fingerprint(model: Network, view: View) -> str:
    """SHA-256 over the model's sizes and weights and the view's inputs."""
    digest = hashlib.sha256(model.config.model_dump_json().encode())
    for name, tensor in [*model.state_dict().items(), ("features", view.features), ("offsets", view.offsets)]:
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        for part in tensor.detach().split(_HASHED) if tensor.ndim else [tensor]:
            digest.update(part.contiguous().numpy().data)
            view.release()
    return digest.hexdigest()
