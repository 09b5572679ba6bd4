"""What follows a layer's first matrix, for K members at once: D(GELU(u + bias)), D: dropout, GELU the exact one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import backend, gpu
from kdfast.ops.arrays import DTYPE_CODES
from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference, wide

__all__ = ["bias_gelu", "bias_gelu_reference"]


def bias_gelu(u: Tensor, bias: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """[K, M, D] of u's dtype, differentiable. u: [K, M, D]; bias: [K, D], float32."""
    features = u.shape[-1]
    unsupported = None if features % 8 == 0 else f"{features} features are not a multiple of 8"
    if u.numel() == 0 or not gpu.takes("bias_gelu", u, unsupported):
        return bias_gelu_reference(u, bias, rows, dropout)
    return _BiasGelu.apply(u, bias, rows, dropout)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, bias: Tensor, rows: PackedRows, dropout: Dropout | None) -> Tensor:
        u = gpu.aligned(u)
        inputs, settings = gpu.rows_and_dropout(rows, dropout)
        vectors, strides = gpu.member_vectors(bias)
        out = torch.empty_like(u)
        gpu.call("bias_gelu", (u, *vectors, *inputs), (out,), *u.shape, *strides, *settings, DTYPE_CODES[u.dtype])
        ctx.save_for_backward(u, *vectors)
        ctx.vector = bias
        ctx.rows = rows
        ctx.dropout = dropout
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        u, bias = ctx.saved_tensors
        inputs, settings = gpu.rows_and_dropout(ctx.rows, ctx.dropout)
        grad_u = torch.empty_like(u)
        (grad_bias,), (stride,) = gpu.member_gradients(ctx.vector)
        workspace = torch.empty(
            backend.cuda_module().bias_gelu_workspace(*u.shape), dtype=torch.float32, device=u.device
        )
        gpu.call(
            "bias_gelu_backward",
            (gpu.aligned(grad_out), u, bias, *inputs),
            (grad_u, grad_bias, workspace),
            *u.shape,
            bias.stride(0),
            stride,
            *settings,
            DTYPE_CODES[u.dtype],
        )
        return grad_u, grad_bias, None, None


def bias_gelu_reference(u: Tensor, bias: Tensor, rows: PackedRows, dropout: Dropout | None = None) -> Tensor:
    """The specification, in any floating dtype."""
    activated = F.gelu(wide(rows.clear(u)) + bias[:, None])
    return rows.clear(drop_reference(activated, rows, dropout)).to(u.dtype)
