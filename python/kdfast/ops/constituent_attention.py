"""Attention among the constituents of a jet, on packed jets.

For a jet with n constituents, and each head:

    s_ij = scale · q_i · k_j + bias_ij,   P = softmax over j,   out_i = Σ_j P̃_ij v_j,

where P̃ is P after dropout: Philox at the counter (jet's position in the batch, head, i, j // 8), see ops/philox.py.
lse_i = log Σ_j exp(s_ij) is all that is kept of the scores; the backward pass computes them again.
"""

import math

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops._arrays import check_offsets
from kdfast.ops.philox import dropout_keep, dropout_scale

__all__ = ["constituent_attention", "constituent_attention_reference", "padded_attention"]

_BLOCK = 2**24  # elements of a score matrix that the reference holds at a time


def constituent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Scaled dot-product attention within each jet; no constituent sees another jet's.

    q, k, v: [M, H, d], or [K, M, H, d] for K members that share the jets; M constituents, H heads, d features a head.
        Slices of one projection are taken as they are: only the last dimension must be contiguous to save a copy.
    offsets: [B + 1] int64, where each jet begins. bias: [H, Σ n_b²] or [K, H, Σ n_b²], added to the scores: each jet's
        n × n block (query, key) after the other. scale: 1 / √d where None.
    dropout_p: in [0, 1), the probability that an attention weight is dropped (rounded to 1/65536); seed: 64 bits, one
        for each use (philox.derive_seed). All members draw the same mask.
    Returns a tensor like q. Raises ConfigError for dropout_p outside [0, 1), DataError for shapes that don't fit.
    """
    scale = _check(q, k, v, offsets, bias, scale, dropout_p)
    return constituent_attention_reference(q, k, v, offsets, bias=bias, scale=scale, dropout_p=dropout_p, seed=seed)


def padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """`constituent_attention` for padded jets: q, k, v [B, N, H, d], mask [B, N] (True: a constituent).

    bias: [B, H, N, N]. Padding gets zeros and zero gradients, so does a jet without constituents; what stands in
    padding (NaN too) is never read. Dropout counts the constituents of a jet that are there.
    """
    if q.dim() != 4 or mask.shape != q.shape[:2] or mask.dtype != torch.bool:
        shapes = f"q {list(q.shape)}, mask {mask.dtype} {list(mask.shape)}"
        raise DataError(f"q must be [B, N, H, d] and mask bool [B, N]: {shapes}", where="mask")
    rows = mask.flatten().nonzero()[:, 0]
    offsets = torch.cat([rows.new_zeros(1), mask.sum(1).cumsum(0)])
    if bias is not None:
        pairs = (mask[:, :, None] & mask[:, None, :]).flatten().nonzero()[:, 0]
        bias = bias.transpose(0, 1).flatten(1).index_select(1, pairs)
    packed = [x.flatten(0, 1).index_select(0, rows) for x in (q, k, v)]
    out = constituent_attention(*packed, offsets, bias=bias, scale=scale, dropout_p=dropout_p, seed=seed)
    return out.new_zeros(q.flatten(0, 1).shape).index_copy(0, rows, out).view(q.shape)


def constituent_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The specification of `constituent_attention`, on any device, in any dtype, differentiable more than once."""
    return _reference(q, k, v, offsets, bias, q.shape[-1] ** -0.5 if scale is None else scale, dropout_p, seed)[0]


def _reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, scale: float, dropout_p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """(out, lse): jets padded to the longest of a block of jets, whose scores are few enough for the memory."""
    if q.dim() == 3:
        out, lse = _reference(q[None], k[None], v[None], offsets, bias, scale, dropout_p, seed)
        return out[0], lse[0]
    members, constituents, heads, _ = q.shape
    check_offsets(offsets, constituents)
    longest = int(offsets.diff().max()) if len(offsets) > 1 else 0
    step = max(1, _BLOCK // max(1, members * heads * longest**2))
    pair_offsets = torch.cat([offsets.new_zeros(1), offsets.diff().square().cumsum(0)])
    outs, lses = [q[:, :0]], [q[:, :0, :, 0]]
    for first in range(0, len(offsets) - 1, step):
        ends = offsets[first : first + step + 1]
        begin, end = int(ends[0]), int(ends[-1])
        block = None
        if bias is not None:
            block = bias[..., int(pair_offsets[first]) : int(pair_offsets[first + len(ends) - 1])]
        q_block, k_block, v_block = (x[:, begin:end] for x in (q, k, v))
        out, lse = _attend_block(q_block, k_block, v_block, ends.diff(), block, scale, dropout_p, seed, first)
        outs.append(out)
        lses.append(lse)
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    counts: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int,
    first_jet: int,
) -> tuple[Tensor, Tensor]:
    """One padded computation for the jets of q, k, v [K, m, H, d], which have counts [b] constituents."""
    members, _, heads, d = q.shape
    jets, n = len(counts), int(counts.max())
    position = torch.arange(n, device=q.device)
    valid = position < counts[:, None]
    rows = valid.flatten().nonzero()[:, 0]

    def pad(x: Tensor) -> Tensor:  # [K, m, H, d] → [K, b, n, H, d]
        return x.new_zeros(members, jets * n, heads, d).index_copy(1, rows, x).view(members, jets, n, heads, d)

    scores = torch.einsum("kbihd,kbjhd->kbhij", pad(q * scale), pad(k))
    if bias is not None:
        pairs = (valid[:, :, None] & valid[:, None, :]).flatten().nonzero()[:, 0]
        padded = bias.new_zeros(*bias.shape[:-1], jets * n * n).index_copy(-1, pairs, bias)
        scores = scores + padded.view(*bias.shape[:-1], jets, n, n).transpose(-4, -3)
    # An empty jet sees one key of zeros, so that no row is without a number; its rows are not taken below.
    key_valid = position < counts.clamp(min=1)[:, None]
    scores = scores.masked_fill(~key_valid[:, None, None, :], -torch.inf)
    weights = scores.softmax(-1)
    if dropout_p > 0:
        jet = torch.arange(first_jet, first_jet + jets, device=q.device)[:, None, None]
        head = torch.arange(heads, device=q.device)[:, None]
        keep = dropout_keep(seed, dropout_p, jet, head, position, n)
        weights = torch.where(keep, weights * dropout_scale(dropout_p), 0.0)
    out = torch.einsum("kbhij,kbjhd->kbihd", weights, pad(v))
    lse = scores.detach().logsumexp(-1).transpose(-2, -1)
    return out.flatten(1, 2).index_select(1, rows), lse.flatten(1, 2).index_select(1, rows)


def _check(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, scale: float | None, dropout_p: float
) -> float:
    """Raises for arguments that don't fit; returns the scale."""
    if q.dim() not in (3, 4) or not q.is_floating_point():
        raise DataError(f"must be floating-point [M, H, d] or [K, M, H, d], is {q.dtype} {list(q.shape)}", where="q")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype:
            raise DataError(f"is {x.dtype} {list(x.shape)}, but q is {q.dtype} {list(q.shape)}", where=name)
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.numel() == 0:
        raise DataError(f"must be int64 [B + 1], is {offsets.dtype} {list(offsets.shape)}", where="offsets")
    if bias is not None:
        heads = q.shape[-2]
        pairs = int(offsets.diff().square().sum())
        if list(bias.shape) not in ([heads, pairs], [*q.shape[:-3], heads, pairs]):
            raise DataError(
                f"must be [H, Σ n²] = {[heads, pairs]} or [K, H, Σ n²], is {list(bias.shape)}", where="bias"
            )
    if not 0 <= dropout_p < 1:  # NaN fails too
        raise ConfigError(f"a dropout probability must lie in [0, 1), is {dropout_p}", where="dropout_p")
    if scale is None:
        return 1.0 / math.sqrt(q.shape[-1])
    if not math.isfinite(scale):
        raise ConfigError(f"must be finite, is {scale}", where="scale")
    return float(scale)
