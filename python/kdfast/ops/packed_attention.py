"""constituent_attention for the lock-step engine: rows with padding, and a seed that a captured step reads anew."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import _constituent_attention_cuda as _cuda
from kdfast.ops import _joined
from kdfast.ops.constituent_attention import constituent_attention, kernel_of
from kdfast.ops.packed_rows import Dropout, PackedRows

__all__ = ["packed_attention", "packed_attention_reference"]


def packed_attention(q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """Like q: attention within each jet, as constituent_attention has it, zeros in the padding. Differentiable.

    q, k, v: [K, M, H, d], the last dimension contiguous.
    """
    if q.numel() == 0 or kernel_of(q) != "cuda":
        return packed_attention_reference(q, k, v, rows, dropout)
    _joined.watch(q, k, v)
    return _PackedAttention.apply(q, k, v, rows, dropout)


# The kernels' list of work for a batch, which serves all layers, forward and backward.
_plans: WeakKeyDictionary[PackedRows, Tensor] = WeakKeyDictionary()


def _plan(rows: PackedRows) -> Tensor:
    if rows not in _plans:
        _plans[rows], _ = _cuda.make_plan(rows.offsets, len(rows.jet))
    return _plans[rows]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None) -> Tensor:
        ctx.rows, ctx.scale = rows, q.shape[-1] ** -0.5
        ctx.p, ctx.seed = (0.0, 0) if dropout is None else dropout
        out, lse = _cuda.forward(q, k, v, rows.offsets, None, ctx.scale, ctx.p, ctx.seed, _plan(rows))
        ctx.save_for_backward(q, k, v, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, lse = ctx.saved_tensors
        rest = (ctx.rows.offsets, None, lse, ctx.scale, ctx.p, ctx.seed, True, _plan(ctx.rows))
        dq, dk, dv, _ = _cuda.backward(grad_out, q, k, v, *rest)
        return dq, dk, dv, None, None


def packed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> Tensor:
    """The specification, in any floating dtype."""
    count = int(rows.count)
    p, seed = (0.0, 0) if dropout is None else dropout
    q, k, v = q[:, :count], k[:, :count], v[:, :count]
    out = constituent_attention(q, k, v, rows.offsets, dropout_p=p, seed=seed)
    return F.pad(out, (0, 0, 0, 0, 0, len(rows.jet) - count))
