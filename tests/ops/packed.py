"""Packed rows for tests: jets of given sizes in a fixed capacity."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdfast.ops.packed_rows import PackedRows


def rows_of(counts: Sequence[int], padding: int = 5) -> PackedRows:
    """Jets of so many constituents, and rows behind them that are not there."""
    offsets = torch.nn.functional.pad(torch.tensor(counts, dtype=torch.int64).cumsum(0), (1, 0))
    return PackedRows.of_constituents(offsets, int(offsets[-1]) + padding)


def spoiled(x: Tensor, rows: PackedRows, dim: int = 1) -> Tensor:
    """x with NaN in its padding along dim."""
    x = x.clone()
    x.narrow(dim, int(rows.count), x.shape[dim] - int(rows.count)).fill_(torch.nan)
    return x
