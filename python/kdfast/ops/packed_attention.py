"""constituent_attention for the lock-step engine: rows with padding, and a seed that a captured step reads anew."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdfast.ops.constituent_attention import constituent_attention
from kdfast.ops.packed_rows import Dropout, PackedRows

__all__ = ["packed_attention", "packed_attention_reference"]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """Like q: attention within each jet, as constituent_attention has it, zeros in the padding. Differentiable.

    q, k, v: [K, M, H, d], the last dimension contiguous.
    """
    return packed_attention_reference(q, k, v, rows, dropout)


def packed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> Tensor:
    """The specification, in any floating dtype."""
    count = int(rows.count)
    p, seed = (0.0, 0) if dropout is None else dropout
    q, k, v = q[:, :count], k[:, :count], v[:, :count]
    out = constituent_attention(q, k, v, rows.offsets, dropout_p=p, seed=seed)
    return F.pad(out, (0, 0, 0, 0, 0, len(rows.jet) - count))
