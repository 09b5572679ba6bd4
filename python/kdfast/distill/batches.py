"""Batches of packed jets: an order that depends on seed and epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from kdfast.errors import DataError
from kdfast.ops.philox import derive_seed, philox4x32

__all__ = ["check_batch_weights", "epoch_batches", "gather", "scale_weights"]


def epoch_batches(seed: int, epoch: int, jets: int, batch_size: int, window: int | None = None) -> Tensor:
    """[steps, batch_size] positions of the jets of each batch; the last partial batch is dropped.

    A permutation: jets sorted by 63 Philox bits of (seed, "batches", epoch; position), ties by position.
    window: of more jets than this, only so many are shuffled together, so that few of them need to be in
    memory at a time; see `_windows`. None: all of them are.
    """
    bits = derive_seed(seed, "batches", epoch)
    if window is None or jets <= window:
        order = _shuffled(torch.arange(jets), bits)
    else:
        order = torch.cat([_shuffled(positions, bits) for positions in _windows(seed, epoch, jets, window)])
    steps = jets // batch_size
    return order[: steps * batch_size].view(steps, batch_size)


def _shuffled(positions: Tensor, seed: int) -> Tensor:
    zero = torch.zeros_like(positions)
    high, low, _, _ = philox4x32(seed, positions, zero, zero, zero)
    return positions[torch.argsort((high >> 1 << 32) | low, stable=True)]


_BLOCKS = 256  # a window


def _windows(seed: int, epoch: int, jets: int, window: int) -> Iterator[Tensor]:
    """Positions of the jets of one window after the other: _BLOCKS blocks of neighbouring jets from all over.

    So a window is a fair sample even of jets that are stored class by class, and read in few long pieces.
    """
    size = max(window // _BLOCKS, 1)
    blocks = _shuffled(torch.arange(-(-jets // size)), derive_seed(seed, "blocks", epoch))
    for chosen in blocks.split(window // size):
        positions = (chosen[:, None] * size + torch.arange(size)).flatten()
        yield positions[positions < jets]


def scale_weights(weights: Tensor) -> Tensor:
    """Weights of the training jets for losses, which are means: scaled by a power of 2 where they are huge or tiny.

    A batch's sum must be no more than the kernels hold, and its inverse no less.
    """
    exponent = math.frexp(float(weights.max()))[1]
    return weights if abs(exponent) < 32 else torch.ldexp(weights.double(), torch.tensor(-exponent)).float()


_LEAST_WEIGHT = 2.0**-100  # of a batch: kernels take no less


def check_batch_weights(weights: Tensor, seed: int, epochs: int, batch_size: int, window: int | None = None) -> None:
    """Raises DataError where all jets of a batch of some epoch have weight 0: its loss, a weighted mean, is undefined.

    Or so little weight relative to the others that it rounds to 0. weights: [B] of the training jets,
    scaled. The batches are drawn here only where there are enough jets of so little weight.
    """
    if int((weights <= _LEAST_WEIGHT).sum()) < batch_size:
        return
    for epoch in range(epochs):
        batches = epoch_batches(seed, epoch, len(weights), batch_size, window)
        if not (weights[batches].sum(1) > _LEAST_WEIGHT).all():
            what = f"all jets of a batch of epoch {epoch} have weight 0: its loss is undefined"
            raise DataError(what, where="weights", hint="take larger batches, or leave such jets out")


def gather(features: Tensor, offsets: Tensor, jets: Tensor) -> tuple[Tensor, Tensor]:
    """(features, offsets) of the given jets [b], packed in their order."""
    counts = offsets.diff()[jets]
    new_offsets = torch.zeros(len(jets) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=new_offsets[1:])
    shift = torch.repeat_interleave(offsets[jets] - new_offsets[:-1], counts)
    return features[torch.arange(len(shift)) + shift], new_offsets
