"""A model's answers for many jets, by the compiled encoder where it can."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.models.jet_transformer import JetTransformer
from kdfast.ops import backend, encoder

__all__ = ["evaluate_model"]

# Jets a call: enough to hide it, few enough for their pooled rows.
_BATCH = 1024


def evaluate_model(
    model: JetTransformer, features: Tensor, offsets: Tensor, *, reference: bool = False
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(logits [b, C], pooling weights [m], offsets [b + 1] from 0) of one batch of jets after the other.

    features: [M, F] standardised. offsets: [B + 1] int64. reference: by the model's own forward pass, as where the
    compiled encoder can't take the model.
    """
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
    copy = JetTransformer(model.config)
    copy.load_state_dict(model.state_dict())
    compiled = encoder.Encoder(model.config, flatten_parameters(copy), flatten_running(copy))
    features, offsets = features.contiguous(), offsets.contiguous()
    for start in batches:
        part = offsets[start : start + _BATCH + 1]
        logits, weights = compiled.logits(features, offsets, start, len(part) - 1, torch.get_num_threads(), True)
        assert weights is not None
        yield logits, weights, part - part[0]
