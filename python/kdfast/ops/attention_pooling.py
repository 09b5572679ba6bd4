"""Pooling of a jet's constituents by one learned query, for K members at once, without keys or values.

With k = W_k x + b_k the query's score of a constituent is q·k = (W_kᵀ q)·x + q·b_k, whose last term is the same for
all of a jet and drops out of the softmax; and Σ_t w_t (W_v x_t + b_v) = W_v Σ_t w_t x_t + b_v Σ_t w_t. So each head
needs only its direction u = W_kᵀ q / √d, and gives the weighted sum of the constituents and the sum of the weights:

    w = softmax over a jet of x·u,    w̃ = D(w),    pooled = Σ_t w̃_t x_t,    kept = Σ_t w̃_t,

D: dropout (Philox at the counter (jet, 0, constituent, head // 8)).
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference

__all__ = ["attention_pooling", "attention_pooling_reference"]


def attention_pooling(
    x: Tensor, direction: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(pooled [K, B, H, D], kept [K, B, H], attention [K, M]: the weights' mean over heads, before dropout).

    x: [K, M, D], float32. direction: [K, H, D]. Differentiable, through all three. An empty jet gives zeros.
    """
    return attention_pooling_reference(x, direction, rows, dropout)


def attention_pooling_reference(
    x: Tensor, direction: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, in any floating dtype."""
    members, _, width = x.shape
    heads, jets = direction.shape[1], rows.jets
    scores = rows.clear(x @ direction.transpose(1, 2))  # [K, M, H]
    jet = torch.where(rows.valid, rows.jet, jets)  # the padding's own
    index = jet[None, :, None].expand(members, -1, heads)
    top = scores.new_full((members, jets + 1, heads), -torch.inf).scatter_reduce(1, index, scores.detach(), "amax")
    exp = torch.exp(scores - top[:, jet])
    total = exp.new_zeros(members, jets + 1, heads).index_add(1, jet, exp)
    weights = rows.clear(exp / total[:, jet])
    dropped = rows.clear(drop_reference(weights, rows, dropout))
    kept = dropped.new_zeros(members, jets + 1, heads).index_add(1, jet, dropped)[:, :-1]
    terms = rows.clear(x)[:, :, None] * dropped[..., None]
    pooled = terms.new_zeros(members, jets + 1, heads, width).index_add(1, jet, terms)[:, :-1]
    return pooled, kept, weights.mean(-1)
