"""What follows a layer's first matrix, for K members at once: D(GELU(u + bias)), D: dropout, GELU the exact one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference, wide

__all__ = ["bias_gelu", "bias_gelu_reference"]


def bias_gelu(u: Tensor, bias: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """[K, M, D] of u's dtype, differentiable. u: [K, M, D]; bias: [K, D], float32."""
    return bias_gelu_reference(u, bias, rows, dropout)


def bias_gelu_reference(u: Tensor, bias: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """The specification, in any floating dtype."""
    return rows.clear(drop_reference(F.gelu(wide(u) + bias[:, None]), rows, dropout)).to(u.dtype)
