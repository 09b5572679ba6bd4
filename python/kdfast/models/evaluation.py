"""A model's answers for many jets, by the compiled kernels where they can, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kdfast.models.build import pack_networks
from kdfast.models.compiled import CompiledModel, runs_compiled
from kdfast.models.flat import flat, tensors_of
from kdfast.models.network import Network
from kdfast.ops.packed_rows import PackedRows

__all__ = ["evaluate_model", "evaluate_on_device"]

# Jets a call: enough to hide it, few enough for their pooled rows.
_BATCH = 1024


def evaluate_model(
    model: Network, features: Tensor, offsets: Tensor, *, reference: bool = False
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """(logits [b, C], pooling weights [m], offsets [b + 1] from 0) of one batch of jets after the other.

    features: [M, F] standardised. offsets: [B + 1] int64. Weights are None where the network has none.
    reference: by the model's own forward pass, on its own device, as where the compiled kernels can't take
    it; results are on the CPU. Raises ModelError for features of another model.
    """
    config = model.config
    config.check_features(features)
    parameters, running = tensors_of(model)
    device = parameters[0].device
    reason = None if parameters[0].dtype == torch.float32 else "the weights are not float32"
    if reference or not runs_compiled(config, features.device.type, reason):
        model.eval()
        for rows, part in _batches(features, offsets):
            with torch.no_grad():
                logits, weights = model(rows.to(device), part.to(device), return_attention=True)
            yield logits.cpu(), None if weights is None else weights.cpu(), part
        return
    compiled = CompiledModel(config, flat(parameters), flat(running))
    features = features.contiguous()
    offsets = offsets.contiguous()
    jets = offsets.shape[0] - 1
    for start in range(0, jets, _BATCH):
        count = min(jets - start, _BATCH)
        logits, weights = compiled.logits(features, offsets, start, count, torch.get_num_threads(), True)
        part = offsets if count == jets else offsets[start : start + count + 1]
        yield logits, weights, part - part[0] if start else part


@torch.no_grad()
def evaluate_on_device(
    model: Network, features: Tensor, offsets: Tensor, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """As evaluate_model, in float32 by the ops of the lock-step engine; results stay on the device."""
    config = model.config
    config.check_features(features)
    parameters, running = (flat(tensors)[None].to(device) for tensors in tensors_of(model))
    packed = pack_networks(config, parameters, running)
    for x, bounds in _batches(features, offsets):
        part = bounds.to(device)
        logits, weights = packed.logits(x.to(device), PackedRows.of_constituents(part), training=False)
        yield logits[0], None if weights is None else weights[0], part


def _batches(features: Tensor, offsets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(features, offsets from 0) of one batch of jets after the other."""
    for start in range(0, len(offsets) - 1, _BATCH):
        bounds = offsets[start : start + _BATCH + 1]
        yield features[bounds[0] : bounds[-1]], bounds - bounds[0]
