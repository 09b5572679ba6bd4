"""What follows the matrix of a dense block, for K members at once: D(GELU(BatchNorm(y))), D: dropout.

BatchNorm (Ioffe & Szegedy, ICML'15) over the rows that are there: constituents or jets. In training the
batch's mean and (biased) variance, and running statistics that move by a tenth towards the batch's, of the
variance the unbiased one; otherwise, and where there is one row only, the running statistics.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import backend, gpu
from kdfast.ops.arrays import DTYPE_CODES
from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference, wide

__all__ = ["batch_norm_gelu", "batch_norm_gelu_reference"]

EPS = 1e-5
MOMENTUM = 0.1


def batch_norm_gelu(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    rows: PackedRows,
    dropout: Dropout | None = None,
    *,
    training: bool,
) -> Tensor:
    """[K, M, D] like y, differentiable by y, gamma and beta.

    y: [K, M, D]. gamma, beta: [K, D]. running_mean, running_variance: [K, D], moved in training.
    """
    running = running_mean, running_variance
    if y.numel() == 0 or not gpu.takes("batch_norm_gelu", y, _unsupported(y.shape[-1], running)):
        return batch_norm_gelu_reference(y, gamma, beta, *running, rows, dropout, training=training)
    return _BatchNormGelu.apply(y, gamma, beta, running, rows, dropout, training)


def _unsupported(features: int, running: tuple[Tensor, Tensor]) -> str | None:
    """Why the kernels can't take a call."""
    if features % 8 != 0:
        return f"{features} features are not a multiple of 8"
    if any(moment.dtype != torch.float32 or moment.stride(-1) != 1 for moment in running):
        return "the running statistics must be float32 with contiguous rows"
    return None


class _BatchNormGelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        gamma: Tensor,
        beta: Tensor,
        running: tuple[Tensor, Tensor],
        rows: PackedRows,
        dropout: Dropout | None,
        training: bool,
    ) -> Tensor:
        y = gpu.aligned(y)
        inputs, settings = gpu.rows_and_dropout(rows, dropout)
        vectors, strides = gpu.member_vectors(gamma, beta)
        out = torch.empty_like(y)
        statistics = torch.empty(3, y.shape[0], y.shape[2], dtype=torch.float32, device=y.device)
        workspace = torch.empty(
            backend.cuda_module().batch_norm_gelu_workspace(*y.shape), dtype=torch.float32, device=y.device
        )
        gpu.call(
            "batch_norm_gelu",
            (y, *vectors, *inputs),
            (out, statistics, *running, workspace),
            *y.shape,
            *strides,
            *(moment.stride(0) for moment in running),
            *settings,
            DTYPE_CODES[y.dtype],
            training,
        )
        ctx.save_for_backward(y, *vectors, statistics)
        ctx.vectors = gamma, beta
        ctx.rows = rows
        ctx.dropout = dropout
        ctx.training = training
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        y, gamma, beta, statistics = ctx.saved_tensors
        inputs, settings = gpu.rows_and_dropout(ctx.rows, ctx.dropout)
        grad_y = torch.empty_like(y)
        grad_vectors, strides = gpu.member_gradients(*ctx.vectors)
        workspace = torch.empty(
            backend.cuda_module().batch_norm_gelu_workspace(*y.shape), dtype=torch.float32, device=y.device
        )
        gpu.call(
            "batch_norm_gelu_backward",
            (gpu.aligned(grad_out), y, gamma, beta, statistics, *inputs),
            (grad_y, *grad_vectors, workspace),
            *y.shape,
            gamma.stride(0),
            beta.stride(0),
            *strides,
            *settings,
            DTYPE_CODES[y.dtype],
            ctx.training,
        )
        return grad_y, *grad_vectors, None, None, None, None


def batch_norm_gelu_reference(
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running_mean: Tensor,
    running_variance: Tensor,
    rows: PackedRows,
    dropout: Dropout | None = None,
    *,
    training: bool,
) -> Tensor:
    """The specification, in any floating dtype."""
    x = rows.clear(wide(y))
    count = rows.count
    mean = x.sum(1) / count
    centred = rows.clear(x - mean[:, None])
    squares = centred.square().sum(1)
    batch = (count > 1) & training
    with torch.no_grad():
        running_mean.copy_(torch.where(batch, running_mean.lerp(mean, MOMENTUM), running_mean))
        unbiased = squares / (count - 1).clamp(min=1)
        running_variance.copy_(torch.where(batch, running_variance.lerp(unbiased, MOMENTUM), running_variance))
    mean = torch.where(batch, mean, running_mean)
    variance = torch.where(batch, squares / count, running_variance)
    normal = (x - mean[:, None]) * torch.rsqrt(variance + EPS)[:, None]
    z = normal * gamma[:, None] + beta[:, None]
    return rows.clear(drop_reference(F.gelu(z), rows, dropout)).to(y.dtype)
