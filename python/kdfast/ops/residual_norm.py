"""The seam between two blocks of a pre-norm transformer, for K members at once: residual sum, then LayerNorm.

    x' = x + D(y + bias),    n = γ (x' − mean) / √(variance + ε) + β    over the features of each row,

D: dropout (Philox at the counter (jet, 0, constituent, feature // 8)); ε = 1e-5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference, wide

__all__ = ["residual_norm", "residual_norm_reference"]

EPS = 1e-5


def residual_norm(
    x: Tensor,
    y: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    rows: PackedRows,
    dropout: Dropout | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(x', n), both [K, M, D], differentiable.

    x: [K, M, D], float32. y: [K, M, D] and bias [K, D], or None: x' is x. gamma, beta: [K, D], or None: n is x' too.
    dtype: of n (None: x's); y may be of it too.
    """
    return residual_norm_reference(x, y, bias, gamma, beta, rows, dropout, dtype)


def residual_norm_reference(
    x: Tensor,
    y: Tensor | None,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    rows: PackedRows,
    dropout: Dropout | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification, in any floating dtype."""
    if y is not None and bias is not None:
        x = x + drop_reference(wide(y) + bias[:, None], rows, dropout)
    x = rows.clear(x)
    if gamma is None or beta is None:
        return x, x
    centred = x - x.mean(-1, keepdim=True)
    n = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS)
    return x, rows.clear(n * gamma[:, None] + beta[:, None]).to(dtype or x.dtype)
