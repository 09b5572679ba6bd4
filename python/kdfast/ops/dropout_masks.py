"""What a step's dropout keeps, as bits: all members of a pack draw the same masks, so they are drawn once.

The kernels of the lock-step engine read them where they are given, and draw the same bits where they are not
(ops/philox.py). Bits are 1 where an element is kept:

    rows   uint8 [M, ⌈D/8⌉]      bit e of byte g is feature 8 g + e; not written behind the last row
    jets   uint8 [B, ⌈D/8⌉]      the same of rows that are jets
    pairs  int32 [tiles, 8]      attention's weights in tiles of 16 × 16, jet by jet, head by head: the tiles of 16
                                 queries along the keys, then those of the next 16. Bit j of word r is key j for
                                 query r, bit 16 + j key j for query r + 8, also beyond the end of a jet
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdfast.ops import backend, gpu
from kdfast.ops.packed_rows import Dropout, PackedRows
from kdfast.ops.philox import dropout_keep, dropout_threshold

__all__ = ["MaskUse", "dropout_masks", "mask_bytes", "mask_reference"]

# Of a step; beyond, each kernel draws its own. 512 jets of 200 constituents take a fifth in the study's model.
_MOST_BYTES = 1 << 30
_KINDS = ("rows", "jets", "pairs")
_ALIGNMENT = 16  # bytes
_TILE_BYTES = 32


class MaskUse(NamedTuple):
    """Where a step uses dropout. columns: features of rows or jets, heads of pairs."""

    of: Literal["rows", "jets", "pairs"]
    columns: int


def mask_bytes(use: MaskUse, capacity: int, jets: int, tiles: int) -> int:
    """Of a use's mask, in a batch of that capacity of rows; tiles: see PackedRows."""
    if use.of == "pairs":
        return tiles * use.columns * _TILE_BYTES
    size = (capacity if use.of == "rows" else jets) * (-(-use.columns // 8))
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def dropout_masks(
    rows: PackedRows, uses: Sequence[MaskUse], p: float, seeds: Tensor, plan: Tensor | None
) -> list[Dropout]:
    """The uses of a step's dropout, with their masks where the kernels of ops/packed_attention.py run.

    p: probability. seeds: int64 [uses]. plan: attention_plan of the rows; None: no masks.
    """
    drops = [Dropout(p, seed) for seed in seeds]
    if plan is None or p == 0 or rows.tiles is None:
        return drops
    sizes = [mask_bytes(use, len(rows.jet), rows.jets, rows.tiles) for use in uses]
    if sum(sizes) == 0 or sum(sizes) > _MOST_BYTES:
        return drops
    memory = torch.empty(sum(sizes), dtype=torch.uint8, device=seeds.device)
    most = backend.cuda_module().dropout_masks_uses
    for first in range(0, len(uses), most):
        table = []
        for number in range(first, min(first + most, len(uses))):
            of, columns = uses[number]
            table += [sum(sizes[:number]), _KINDS.index(of), columns]
        inputs = (rows.count, rows.jet, rows.position, plan, seeds[first : first + most].contiguous())
        scalars = (rows.jets, len(rows.jet), tuple(table), dropout_threshold(p))
        gpu.call("dropout_masks", inputs, (memory,), *scalars)
    parts = memory.split(sizes)
    return [drop._replace(mask=_shaped(part, use, rows)) for drop, part, use in zip(drops, parts, uses, strict=True)]


def _shaped(part: Tensor, use: MaskUse, rows: PackedRows) -> Tensor:
    """Of the shape and type that the module's head says."""
    if use.of == "pairs":
        return part.view(torch.int32).view(-1, 8)
    count = len(rows.jet) if use.of == "rows" else rows.jets
    octets = -(-use.columns // 8)
    return part[: count * octets].view(count, octets)


def mask_reference(rows: PackedRows, use: MaskUse, p: float, seed: int) -> Tensor:
    """The specification. Of rows and pairs that are there: rows [count, ⌈D/8⌉], pairs [H Σ ⌈n/16⌉², 8]."""
    if use.of == "pairs":
        return _pairs_reference(rows.offsets, use.columns, p, seed)
    if use.of == "jets":
        jet = torch.arange(rows.jets)
        position = torch.zeros_like(jet)
    else:
        jet, position = (x[: int(rows.count)] for x in (rows.jet, rows.position))
    octets = -(-use.columns // 8)
    keep = dropout_keep(seed, p, jet, torch.zeros_like(jet), position, 8 * octets)
    return (keep.view(len(jet), octets, 8) << torch.arange(8)).sum(-1).to(torch.uint8)


def _pairs_reference(offsets: Tensor, heads: int, p: float, seed: int) -> Tensor:
    words = [torch.empty(0, 8, dtype=torch.int64)]
    for jet, n in enumerate(offsets.diff().tolist()):
        tiles = -(-n // 16)
        query = torch.arange(16 * tiles)
        head = torch.arange(heads)[:, None]
        keep = dropout_keep(seed, p, torch.tensor(jet), head, query, 16 * tiles)
        # [head, tile of queries, half of it, query, tile of keys, key] → [head, tiles, query, half, key]
        keep = keep.view(heads, tiles, 2, 8, tiles, 16).permute(0, 1, 4, 3, 2, 5)
        words.append((keep.reshape(-1, 8, 32) << torch.arange(32)).sum(-1))
    return torch.cat(words).to(torch.int32)
