"""What follows the matrix of a dense block, for K members at once: D(GELU(BatchNorm(y))), D: dropout.

BatchNorm (Ioffe & Szegedy, ICML'15) over the rows that are there: constituents or jets. In training the batch's mean
and (biased) variance, and running statistics that move by a tenth towards the batch's, of the variance the unbiased
one; otherwise, and where there is one row only, the running statistics.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference, wide

__all__ = ["batch_norm_gelu", "batch_norm_gelu_reference"]

EPS, MOMENTUM = 1e-5, 0.1


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
    return batch_norm_gelu_reference(y, gamma, beta, running_mean, running_variance, rows, dropout, training=training)


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
    x, count = rows.clear(wide(y)), rows.count
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
