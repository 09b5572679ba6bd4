"""A model's answers for many jets, by the compiled encoder where it can, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdfast.models import encoder
from kdfast.models.flat import flat_parameters, flat_running
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.packed_transformer import PackedTransformer
from kdfast.ops import backend
from kdfast.ops.packed_rows import PackedRows

__all__ = ["evaluate_model", "evaluate_on_device"]

# Jets a call: enough to hide it, few enough for their pooled rows.
_BATCH = 1024


def evaluate_model(
    model: JetTransformer, features: Tensor, offsets: Tensor, *, reference: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits [b, C], pooling weights [m], offsets [b + 1] from 0) of one batch of jets after the other.

    features: [M, F] standardised. offsets: [B + 1] int64. reference: by the model's own forward pass, as
    where the compiled encoder can't take the model. Raises ModelError for features of another model.
    """
    model.config.check_features(features)
    if not reference:
        reason = encoder.unsupported(model.config)
        if next(model.parameters()).dtype != torch.float32:
            reason = "the weights are not float32"
        reference = backend.choose("encoder", features.device.type, reason) != "cpu"
    batches = range(0, len(offsets) - 1, _BATCH)
    if reference:
        model.eval()
        for start in batches:
            part = offsets[start : start + _BATCH + 1]
            with torch.no_grad():
                answers = model(features[part[0] : part[-1]], part - part[0], return_attention=True)
            yield (*answers, part - part[0])
        return
    compiled = encoder.Encoder(model.config, flat_parameters(model), flat_running(model))
    features = features.contiguous()
    offsets = offsets.contiguous()
    for start in batches:
        part = offsets[start : start + _BATCH + 1]
        logits, weights = compiled.logits(features, offsets, start, len(part) - 1, torch.get_num_threads(), True)
        assert weights is not None
        yield logits, weights, part - part[0]


@torch.no_grad()
def evaluate_on_device(
    model: JetTransformer, features: Tensor, offsets: Tensor, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """As evaluate_model, in float32 by the ops of the lock-step engine; results stay on the device."""
    model.config.check_features(features)
    parameters, running = (flat[None].to(device) for flat in (flat_parameters(model), flat_running(model)))
    packed = PackedTransformer(model.config, parameters, running)
    for start in range(0, len(offsets) - 1, _BATCH):
        bounds = offsets[start : start + _BATCH + 1]
        part = (bounds - bounds[0]).to(device)
        rows = PackedRows.of_constituents(part)
        logits, weights = packed.logits(features[bounds[0] : bounds[-1]].to(device), rows, training=False)
        yield logits[0], weights[0], part
