"""constituent_attention for the lock-step engine: rows with padding, and a seed that a captured step reads anew."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import constituent_attention_cuda as _cuda
from kdfast.ops import gpu
from kdfast.ops.constituent_attention import constituent_attention_qkvpacked, kernel_of
from kdfast.ops.constituent_attention_reference import AttentionCall
from kdfast.ops.packed_rows import Dropout, PackedRows, wide

__all__ = ["adds_bias", "attention_plan", "packed_attention", "packed_attention_reference"]

_NO_DROPOUT = (0.0, 0, None)


def packed_attention(
    qkv: Tensor,
    rows: PackedRows,
    dropout: Dropout | None = None,
    plan: Tensor | None = None,
    bias: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """[K, M, H, d]: attention within each jet, as constituent_attention_qkvpacked has it, zeros in the padding.

    qkv: [K, M, 3, H, d], the last dimension contiguous. plan: attention_plan of these rows; None: made for
    this call. bias: [K, 3 H d] of the layer that gives qkv, where adds_bias: the parameter, whose gradient
    goes to its place (gradient_place), and the same numbers in qkv's type.
    """
    if not _takes_kernel(qkv, rows):
        return packed_attention_reference(qkv, rows, dropout, None if bias is None else bias[0])
    parameter, rounded = (None, None) if bias is None else bias
    return _PackedAttention.apply(qkv, parameter, rounded, rows, dropout, _make_plan(rows) if plan is None else plan)


def adds_bias(like: Tensor, rows: PackedRows, dropout: Dropout | None) -> bool:
    """Whether packed_attention adds a bias while it loads qkv, which is then neither read nor written for it.

    In 16-bit training with masks: other calls would pay for it with the instructions that it takes.
    """
    masked = dropout is not None and dropout.p > 0 and dropout.mask is not None
    return masked and _takes_kernel(like, rows) and _cuda.adds_projection_bias(like)


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
    def forward(
        ctx: Any,
        qkv: Tensor,
        bias: Tensor | None,
        rounded_bias: Tensor | None,
        rows: PackedRows,
        dropout: Dropout | None,
        plan: Tensor,
    ) -> Tensor:
        p, seed, ctx.masks = _NO_DROPOUT if dropout is None else dropout
        ctx.call = AttentionCall(rows.offsets, None, qkv.shape[-1] ** -0.5, p, seed)
        ctx.plan = plan
        q, k, v = qkv.unbind(-3)
        out, lse = _cuda.forward(q, k, v, ctx.call, plan, ctx.masks, rounded_bias)
        ctx.save_for_backward(qkv, lse, rounded_bias)
        ctx.bias = bias
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, lse, rounded_bias = ctx.saved_tensors
        q, k, v = qkv.unbind(-3)
        grad = qkv.new_empty(qkv.shape)
        (grad_bias,), _ = gpu.member_gradients(ctx.bias)
        grads = grad.unbind(-3)
        _cuda.backward(grad_out, q, k, v, lse, ctx.call, grads, ctx.plan, ctx.masks, rounded_bias, grad_bias)
        return grad, grad_bias, None, None, None, None


def packed_attention_reference(
    qkv: Tensor, rows: PackedRows, dropout: Dropout | None = None, bias: Tensor | None = None
) -> Tensor:
    """The specification, in any floating dtype."""
    if bias is not None:
        qkv = (wide(qkv) + bias.view(len(bias), 1, *qkv.shape[2:])).to(qkv.dtype)
    count = int(rows.count)
    p, seed, _ = _NO_DROPOUT if dropout is None else dropout
    out = constituent_attention_qkvpacked(qkv[:, :count], rows.offsets, dropout_p=p, seed=seed)
    return F.pad(out, (0, 0, 0, 0, 0, len(rows.jet) - count))
