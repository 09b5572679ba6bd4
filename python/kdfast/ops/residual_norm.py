"""The seam between two blocks of a pre-norm transformer, for K members at once: residual sum, then LayerNorm.

    x' = x + D(y + bias),    n = γ (x' − mean) / √(variance + ε) + β    over the features of each row,

D: dropout (Philox at the counter (jet, 0, constituent, feature // 8)); ε = 1e-5.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import backend, gpu
from kdfast.ops.arrays import DTYPE_CODES
from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference, wide

__all__ = ["residual_norm", "residual_norm_reference"]

EPS = 1e-5
_MAX_FEATURES = 1024  # of the kernels: kMaxNormFeatures in csrc/residual_norm/residual_norm_gpu.h


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

    x: [K, M, D], float32. y: [K, M, D] and bias [K, D], or None: x' is x. gamma, beta: [K, D], or None: n is
    x' too. dtype: of n (None: x's); y may be of it too.
    """
    if y is None or bias is None:
        y = bias = None
    if gamma is None or beta is None:
        gamma = beta = None
        dtype = None if y is None else y.dtype
    dtype = dtype or x.dtype
    if x.numel() == 0 or not gpu.takes("residual_norm", x, _unsupported(x, y, dtype)):
        return residual_norm_reference(x, y, bias, gamma, beta, rows, dropout, dtype)
    total, norm = _ResidualNorm.apply(x, y, bias, gamma, beta, rows, dropout, dtype)
    return total, total if norm is None else norm


def _unsupported(x: Tensor, y: Tensor | None, dtype: torch.dtype) -> str | None:
    """Why the kernels can't take a call."""
    features = x.shape[-1]
    if features % 8 != 0 or features > _MAX_FEATURES:
        return f"{features} features are not a multiple of 8 up to {_MAX_FEATURES}"
    if x.dtype != torch.float32 or dtype not in DTYPE_CODES or (y is not None and y.dtype != dtype):
        return f"x of {x.dtype}, y of {None if y is None else y.dtype} with a norm in {dtype} is no combination it has"
    return None


class _ResidualNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        rows: PackedRows,
        dropout: Dropout | None,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        members, capacity, _ = x.shape
        inputs, settings = gpu.rows_and_dropout(rows, dropout)
        vectors, strides = gpu.member_vectors(bias, gamma, beta)
        total = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        norm = None if gamma is None else torch.empty(x.shape, dtype=dtype, device=x.device)
        moments = None if gamma is None else torch.empty(2, members, capacity, dtype=torch.float32, device=x.device)
        gpu.call(
            "residual_norm",
            (gpu.aligned(x), gpu.aligned(y), *vectors, *inputs),
            (total, norm, moments),
            *x.shape,
            *strides,
            *settings,
            DTYPE_CODES[dtype],
        )
        ctx.save_for_backward(total if norm is not None else None, moments, vectors[1])
        ctx.vectors = gamma, beta, bias
        ctx.rows = rows
        ctx.dropout = dropout
        ctx.dtype = dtype
        ctx.has_y = y is not None
        return total, norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, grad_norm: Tensor | None) -> tuple[Tensor | None, ...]:
        total, moments, gamma = ctx.saved_tensors
        given = grad_total if grad_total is not None else grad_norm
        if given is None:
            return (None,) * 8
        shape = given.shape
        device = given.device
        if grad_norm is None:
            total = moments = gamma = None
        inputs, settings = gpu.rows_and_dropout(ctx.rows, ctx.dropout)
        (gamma,), (stride,) = gpu.member_vectors(gamma)
        grad_x = torch.empty(shape, dtype=torch.float32, device=device)
        grad_y = torch.empty(shape, dtype=ctx.dtype, device=device) if ctx.has_y else None
        vectors, strides = gpu.member_gradients(*ctx.vectors)
        workspace = torch.empty(
            backend.cuda_module().residual_norm_workspace(*shape), dtype=torch.float32, device=device
        )
        gpu.call(
            "residual_norm_backward",
            (gpu.aligned(grad_total), gpu.aligned(grad_norm), total, moments, gamma, *inputs),
            (grad_x, grad_y, *vectors, workspace),
            *shape,
            stride,
            *strides,
            *settings,
            DTYPE_CODES[ctx.dtype],
        )
        grad_gamma, grad_beta, grad_bias = vectors
        return grad_x, grad_y, grad_bias, grad_gamma, grad_beta, None, None, None


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
