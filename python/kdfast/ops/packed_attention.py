"""constituent_attention for the lock-step engine: rows with padding, and a seed that a captured step reads anew."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import _joined
from kdfast.ops import constituent_attention_cuda as _cuda
from kdfast.ops.constituent_attention import constituent_attention, kernel_of
from kdfast.ops.packed_rows import Dropout, PackedRows

__all__ = ["attention_plan", "packed_attention", "packed_attention_reference"]


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None = None, plan: Tensor | None = None
) -> Tensor:
    """Like q: attention within each jet, as constituent_attention has it, zeros in the padding. Differentiable.

    q, k, v: [K, M, H, d], the last dimension contiguous. plan: attention_plan of these rows; None: made for this call.
    """
    if not _takes_kernel(q):
        return packed_attention_reference(q, k, v, rows, dropout)
    _joined.watch(q, k, v)
    return _PackedAttention.apply(q, k, v, rows, dropout, _make_plan(rows) if plan is None else plan)


def attention_plan(q: Tensor, rows: PackedRows) -> Tensor | None:
    """The kernels' list of work for calls with such q and these rows, as they are now; None where no kernel runs.

    It serves all layers of a step, forward and backward. A captured step makes its own, anew at each replay.
    """
    return _make_plan(rows) if _takes_kernel(q) else None


def _takes_kernel(q: Tensor) -> bool:
    return q.numel() > 0 and kernel_of(q) == "cuda"


def _make_plan(rows: PackedRows) -> Tensor:
    return _cuda.make_plan(rows.offsets, len(rows.jet))[0]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None, plan: Tensor
    ) -> Tensor:
        ctx.rows, ctx.scale, ctx.plan = rows, q.shape[-1] ** -0.5, plan
        ctx.p, ctx.seed = (0.0, 0) if dropout is None else dropout
        out, lse = _cuda.forward(q, k, v, rows.offsets, None, ctx.scale, ctx.p, ctx.seed, plan)
        ctx.save_for_backward(q, k, v, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, lse = ctx.saved_tensors
        rest = (ctx.rows.offsets, None, lse, ctx.scale, ctx.p, ctx.seed, True, ctx.plan)
        dq, dk, dv, _ = _cuda.backward(grad_out, q, k, v, *rest)
        return dq, dk, dv, None, None, None


def packed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> Tensor:
    """The specification, in any floating dtype."""
    count = int(rows.count)
    p, seed = (0.0, 0) if dropout is None else dropout
    q, k, v = q[:, :count], k[:, :count], v[:, :count]
    out = constituent_attention(q, k, v, rows.offsets, dropout_p=p, seed=seed)
    return F.pad(out, (0, 0, 0, 0, 0, len(rows.jet) - count))
