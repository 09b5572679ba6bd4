"""Rows of K members' features [K, M, D], as the ops of the lock-step engine (distill/cuda_engine.py) take them.

All members see the same jets, so one description serves them. The capacity M is fixed, so that a step may be
captured once and replayed; the rows behind a batch's last one are padding: ops write zeros there, and nothing
in padding reaches a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kdfast.ops.philox import dropout_keep, dropout_scale

__all__ = ["Dropout", "PackedRows", "drop_reference", "gradient_place", "pair_tiles", "wide"]


@dataclass(frozen=True, eq=False)
class PackedRows:
    """count: [1], the rows that are there. jet, position: [M], a row's jet (its place in the batch), and
    which of the jet's constituents it is (0 for rows that are jets themselves). offsets: [B + 1], where each
    jet begins; the last one is count. All int64, on the features' device. tiles: the most that
    Σ ⌈n/16⌉² may be, tiles of 16 × 16 pairs, for which masks of attention have room; None: not known.
    """

    count: Tensor
    jet: Tensor
    position: Tensor
    offsets: Tensor
    tiles: int | None = None

    @property
    def jets(self) -> int:
        return len(self.offsets) - 1

    @property
    def valid(self) -> Tensor:
        """[M] bool."""
        return torch.arange(len(self.jet), device=self.jet.device) < self.count

    def clear(self, x: Tensor) -> Tensor:
        """x [..., M, D] with zeros in its padding."""
        return torch.where(self.valid[:, None], x, 0)

    @staticmethod
    def of_constituents(offsets: Tensor, capacity: int | None = None) -> PackedRows:
        """Rows that are the constituents of jets. capacity: None for no padding."""
        rows, tiles = torch.stack([offsets[-1], pair_tiles(offsets.diff()).sum()]).tolist()  # waits once
        jet = torch.repeat_interleave(offsets.diff())
        position = torch.arange(rows, device=offsets.device) - offsets[jet]
        padding = (0, (rows if capacity is None else capacity) - rows)
        jet, position = (torch.nn.functional.pad(x, padding) for x in (jet, position))
        return PackedRows(offsets[-1:], jet, position, offsets, tiles)

    @staticmethod
    def of_jets(jets: int, device: torch.device | str = "cpu") -> PackedRows:
        """Rows that are jets: one each, no padding."""
        offsets = torch.arange(jets + 1, device=device)
        return PackedRows(offsets[-1:], offsets[:-1], torch.zeros_like(offsets[:-1]), offsets)


def pair_tiles(counts: Tensor) -> Tensor:
    """Tiles of 16 × 16 pairs of jets of these numbers of constituents."""
    return ((counts + 15) // 16).square()


class Dropout(NamedTuple):
    """p: probability. seed: int64 [], this use's, on the features' device, so that a captured step reads a
    new one. mask: what it keeps, of ops/dropout_masks.py, for the kernels; None: they draw it."""

    p: float
    seed: Tensor
    mask: Tensor | None = None


def drop_reference(x: Tensor, rows: PackedRows, dropout: Dropout | None) -> Tensor:
    """Dropout of x [K, M, D], the same decisions for all members, as ops/dropout.py takes them; None: x itself."""
    if dropout is None or dropout.p == 0:
        return x
    head = torch.zeros_like(rows.jet)
    keep = dropout_keep(int(dropout.seed), dropout.p, rows.jet, head, rows.position, x.shape[-1])
    return torch.where(keep, x * dropout_scale(dropout.p), 0)


def gradient_place(parameter: Tensor) -> Tensor | None:
    """Where an op's backward pass writes the gradient of a parameter: its .grad, where that is set.

    The pass also returns it, so that torch.autograd.grad hands out that memory. A parameter with a .grad must
    go into one op only, and Tensor.backward would add the gradient to itself. None: the gradient goes to new
    memory.
    """
    return parameter.grad if parameter.is_leaf else None


def wide(x: Tensor) -> Tensor:
    """x in the precision that is computed in: float32 for 16-bit floats."""
    return x.float() if x.element_size() == 2 else x
