"""Pooling of a jet's constituents by one learned query, for K members at once, without keys or values.

With k = W_k x + b_k the query's score of a constituent is q·k = (W_kᵀ q)·x + q·b_k, whose last term is the
same for all of a jet and drops out of the softmax; and Σ_t w_t (W_v x_t + b_v) = W_v Σ_t w_t x_t + b_v Σ_t
w_t. So each head needs only its direction u = W_kᵀ q / √d, and gives the weighted sum of the constituents and
the sum of the weights:

    w = softmax over a jet of x·u,    w̃ = D(w),    pooled = Σ_t w̃_t x_t,    kept = Σ_t w̃_t,

D: dropout (Philox at the counter (jet, 0, constituent, head // 8)).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import backend, gpu
from kdfast.ops.packed_rows import Dropout, PackedRows, drop_reference

__all__ = ["attention_pooling", "attention_pooling_reference"]


def attention_pooling(
    x: Tensor, direction: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(pooled [K, B, H, D], kept [K, B, H], attention [K, M]: the weights' mean over heads, before dropout).

    x: [K, M, D], float32. direction: [K, H, D]. Differentiable, through all three. An empty jet gives zeros.
    """
    if _takes_kernel(x, direction, rows):
        return _AttentionPooling.apply(x, direction, rows, dropout)
    return attention_pooling_reference(x, direction, rows, dropout)


def attention_pooling_reference(
    x: Tensor, direction: Tensor, rows: PackedRows, dropout: Dropout | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, in any floating dtype."""
    members, _, width = x.shape
    heads = direction.shape[1]
    jets = rows.jets
    x = rows.clear(x)
    scores = x @ direction.transpose(1, 2)  # [K, M, H]
    jet = torch.where(rows.valid, rows.jet, jets)  # the padding's own
    index = jet[None, :, None].expand(members, -1, heads)
    top = scores.new_full((members, jets + 1, heads), -torch.inf).scatter_reduce(1, index, scores.detach(), "amax")
    exp = torch.exp(scores - top[:, jet])
    total = exp.new_zeros(members, jets + 1, heads).index_add(1, jet, exp)
    weights = rows.clear(exp / total[:, jet])
    dropped = rows.clear(drop_reference(weights, rows, dropout))
    kept = dropped.new_zeros(members, jets + 1, heads).index_add(1, jet, dropped)[:, :-1]
    terms = x[:, :, None] * dropped[..., None]
    pooled = terms.new_zeros(members, jets + 1, heads, width).index_add(1, jet, terms)[:, :-1]
    return pooled, kept, weights.mean(-1)


def _takes_kernel(x: Tensor, direction: Tensor, rows: PackedRows) -> bool:
    if x.numel() == 0 or rows.jets == 0:
        return False
    unsupported = None
    heads, width = direction.shape[1:]
    if x.dtype != torch.float32 or direction.dtype != torch.float32:
        unsupported = f"x and direction must be float32, are {x.dtype} and {direction.dtype}"
    elif backend.why_no_cuda is None and not backend.cuda_module().attention_pooling_takes(heads, width):
        unsupported = f"no kernel is made for {heads} heads of width {width}"
    return gpu.takes("attention_pooling", x, unsupported)


class _AttentionPooling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, direction: Tensor, rows: PackedRows, dropout: Dropout | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = gpu.aligned(x)
        direction = gpu.aligned(direction)
        offsets = rows.offsets.contiguous()
        members, capacity, width = x.shape
        heads = direction.shape[1]
        jets = rows.jets
        (*_, seed, mask), settings = gpu.rows_and_dropout(rows, dropout)
        pooled = x.new_empty(members, jets, heads, width)
        kept = x.new_empty(members, jets, heads)
        attention = x.new_empty(members, capacity)
        weights = x.new_empty(members, capacity, heads)
        ctx.scalars = (members, jets, capacity, heads, width, *settings)
        inputs = (x, direction, offsets, seed, mask)
        outputs = (pooled, kept, attention, weights)
        gpu.call("attention_pooling", inputs, outputs, *ctx.scalars)
        ctx.save_for_backward(*inputs, pooled, kept, weights)
        ctx.set_materialize_grads(False)
        return pooled, kept, attention

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_pooled: Tensor | None, grad_kept: Tensor | None, grad_attention: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, direction, offsets, seed, mask, pooled, kept, weights = ctx.saved_tensors
        members, jets, _, heads, width, *_ = ctx.scalars
        if grad_pooled is None:
            grad_pooled = x.new_zeros(members, jets, heads, width)
        grads = [
            gpu.aligned(grad_pooled),
            *(g if g is None else g.contiguous() for g in (grad_kept, grad_attention)),
        ]
        grad_x, grad_direction, grad_weights = map(torch.empty_like, (x, direction, weights))
        partial = x.new_empty(members, backend.cuda_module().attention_pooling_partials(jets), heads, width)
        inputs = (x, direction, offsets, seed, mask, pooled, kept, weights, *grads)
        outputs = (grad_x, grad_direction, grad_weights, partial)
        gpu.call("attention_pooling_backward", inputs, outputs, *ctx.scalars)
        return grad_x, grad_direction, None, None
