"""constituent_attention for the lock-step engine: rows with padding, and a seed that a captured step reads anew."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import constituent_attention_cuda as _cuda
from kdfast.ops.constituent_attention import constituent_attention_qkvpacked, kernel_of
from kdfast.ops.constituent_attention_reference import AttentionCall
from kdfast.ops.packed_rows import Dropout, PackedRows

__all__ = ["attention_plan", "packed_attention", "packed_attention_reference"]

_NO_DROPOUT = (0.0, 0, None)


def packed_attention(
    qkv: Tensor, rows: PackedRows, dropout: Dropout | None = None, plan: Tensor | None = None
) -> Tensor:
    """[K, M, H, d]: attention within each jet, as constituent_attention_qkvpacked has it, zeros in the padding.

    qkv: [K, M, 3, H, d], the last dimension contiguous. plan: attention_plan of these rows; None: made for
    this call.
    """
    if not _takes_kernel(qkv, rows):
        return packed_attention_reference(qkv, rows, dropout)
    return _PackedAttention.apply(qkv, rows, dropout, _make_plan(rows) if plan is None else plan)


def attention_plan(like: Tensor, rows: PackedRows) -> Tensor | None:
    """The kernels' list of work for calls with these rows, as they are now; None where no kernel runs.

    like: a tensor of the type, head dimension (its last) and device of the calls' qkv; it may be empty.

    It serves all layers of a step, forward and backward. A captured step makes its own, anew at each replay.
    """
    return _make_plan(rows) if _takes_kernel(like, rows) else None


def _takes_kernel(qkv: Tensor, rows: PackedRows) -> bool:
    return len(rows.jet) > 0 and kernel_of(qkv) == "cuda"


def _make_plan(rows: PackedRows) -> Tensor:
    return _cuda.make_plan(rows.offsets, len(rows.jet), tiles=rows.tiles)[0]


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rows: PackedRows, dropout: Dropout | None, plan: Tensor) -> Tensor:
        p, seed, ctx.masks = _NO_DROPOUT if dropout is None else dropout
        ctx.call = AttentionCall(rows.offsets, None, qkv.shape[-1] ** -0.5, p, seed)
        ctx.plan = plan
        q, k, v = qkv.unbind(-3)
        out, lse = _cuda.forward(q, k, v, ctx.call, plan, ctx.masks)
        ctx.save_for_backward(qkv, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, lse = ctx.saved_tensors
        q, k, v = qkv.unbind(-3)
        grad = qkv.new_empty(qkv.shape)
        _cuda.backward(grad_out, q, k, v, lse, ctx.call, grad.unbind(-3), ctx.plan, ctx.masks)
        return grad, None, None, None


def packed_attention_reference(qkv: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """The specification, in any floating dtype."""
    count = int(rows.count)
    p, seed, _ = _NO_DROPOUT if dropout is None else dropout
    out = constituent_attention_qkvpacked(qkv[:, :count], rows.offsets, dropout_p=p, seed=seed)
    return F.pad(out, (0, 0, 0, 0, 0, len(rows.jet) - count))
