"""constituent_attention in plain PyTorch: its specification, and what runs where there is no kernel."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kdfast.ops.arrays import check_offsets
from kdfast.ops.philox import dropout_keep, dropout_scale

__all__ = ["AttentionCall", "constituent_attention_reference", "reference_backward", "reference_forward"]

_BLOCK = 2**24  # elements of a score matrix held at a time


class AttentionCall(NamedTuple):
    """The arguments of a call other than q, k and v."""

    offsets: Tensor
    bias: Tensor | None
    scale: float
    dropout_p: float
    seed: int | Tensor


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
    if scale is None:
        scale = q.shape[-1] ** -0.5
    return reference_forward(q, k, v, AttentionCall(offsets, bias, scale, dropout_p, seed))[0]


def reference_forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """(out, lse), the latter without a gradient. Jets are padded to the longest, in blocks that fit into memory."""
    if q.dim() == 3:
        out, lse = reference_forward(q[None], k[None], v[None], call)
        return out[0], lse[0]
    bias = call.bias
    seed = int(call.seed)
    outs = []
    lses = []
    for block in _blocks(q, call.offsets):
        q_block, k_block, v_block = (x[:, block.rows] for x in (q, k, v))
        scores = block.scores(q_block * call.scale, k_block, None if bias is None else bias[..., block.pairs])
        weights = scores.softmax(-1)
        # The largest weight is exp(largest score − lse).
        lse = (scores.detach().amax(-1) - weights.detach().amax(-1).log()).transpose(-2, -1)
        weights = block.drop(weights, call.dropout_p, seed).to(v.dtype)  # bias may be of a wider type
        out = torch.einsum("kbhij,kbjhd->kbihd", weights, block.pad(v_block))
        outs.append(block.unpad(out))
        lses.append(block.unpad(lse))
    return torch.cat(outs, 1), torch.cat(lses, 1)


def reference_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of q, k, v and bias, written out, since autograd records nothing where ops run.

    dS = P ∘ (dP − Σ_j P dP), where dP is the gradient of P̃ after dropout's mask.
    """
    if q.dim() == 3:
        dq, dk, dv, dbias = reference_backward(grad_out[None], q[None], k[None], v[None], call)
        return dq[0], dk[0], dv[0], dbias
    bias = call.bias
    seed = int(call.seed)
    parts = []
    dbiases = []
    for block in _blocks(q, call.offsets):
        grad, q_block, k_block, v_block = (x[:, block.rows] for x in (grad_out, q, k, v))
        scaled_q = q_block * call.scale
        weights = block.scores(scaled_q, k_block, None if bias is None else bias[..., block.pairs]).softmax(-1)
        dropped = block.drop(weights, call.dropout_p, seed).to(v.dtype)
        grad = block.pad(grad)
        dv = torch.einsum("kbhij,kbihd->kbjhd", dropped, grad)
        dweights = torch.einsum("kbihd,kbjhd->kbhij", grad, block.pad(v_block)).to(weights.dtype)
        dweights = block.drop(dweights, call.dropout_p, seed)
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        narrow = dscores.to(q.dtype)
        dq = torch.einsum("kbhij,kbjhd->kbihd", narrow, block.pad(k_block)) * call.scale
        dk = torch.einsum("kbhij,kbihd->kbjhd", narrow, block.pad(scaled_q))
        parts.append([block.unpad(x) for x in (dq, dk, dv)])
        if bias is not None:
            dbiases.append(block.unpair(dscores))
    dq, dk, dv = (torch.cat(x, 1) for x in zip(*parts, strict=True))
    if bias is None:
        return dq, dk, dv, None
    dbias = torch.cat(dbiases, -1)
    return dq, dk, dv, (dbias if bias.dim() == 3 else dbias.sum(0)).to(bias.dtype)


def _blocks(q: Tensor, offsets: Tensor) -> Iterator["_Block"]:
    """Jets that are padded together, to the longest of all; one block at least."""
    members, constituents, heads, _ = q.shape
    check_offsets(offsets, constituents)
    longest = max([1, *offsets.diff().tolist()])
    step = max(1, _BLOCK // max(1, members * heads * longest**2))
    pair_offsets = torch.cat([offsets.new_zeros(1), offsets.diff().square().cumsum(0)])
    for first in range(0, max(1, len(offsets) - 1), step):
        yield _Block(first, offsets[first : first + step + 1], pair_offsets[first : first + step + 1])


class _Block:
    """Some jets of a batch, and how they are padded: to n constituents, b jets.

    rows, pairs: where their constituents, and the pairs of these, are among all.
    """

    def __init__(self, first_jet: int, offsets: Tensor, pair_offsets: Tensor) -> None:
        counts = offsets.diff()
        self.first_jet = first_jet
        self.jets = len(counts)
        self.rows = slice(int(offsets[0]), int(offsets[-1]))
        self.pairs = slice(int(pair_offsets[0]), int(pair_offsets[-1]))
        self.n = max([1, *counts.tolist()])  # an empty jet has one slot of padding
        self.position = torch.arange(self.n, device=offsets.device)
        valid = self.position < counts[:, None]
        # An empty jet sees one key of zeros, so that no row is without a number; its rows are not taken.
        self.no_key = ~(self.position < counts.clamp(min=1)[:, None])[:, None, None, :]
        self.slots = valid.flatten().nonzero()[:, 0]
        self.pair_slots = (valid[:, :, None] & valid[:, None, :]).flatten().nonzero()[:, 0]

    def pad(self, x: Tensor) -> Tensor:
        """[K, m, H, d] → [K, b, n, H, d]."""
        members, _, *each = x.shape
        padded = x.new_zeros(members, self.jets * self.n, *each).index_copy(1, self.slots, x)
        return padded.view(members, self.jets, self.n, *each)

    def unpad(self, x: Tensor) -> Tensor:
        """[K, b, n, H, …] → [K, m, H, …]."""
        return x.flatten(1, 2).index_select(1, self.slots)

    def unpair(self, scores: Tensor) -> Tensor:
        """[K, b, H, n, n] → [K, H, pairs]."""
        return scores.transpose(1, 2).flatten(2).index_select(2, self.pair_slots)

    def scores(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """[K, b, H, n, n], −inf where there is no key."""
        found = torch.einsum("kbihd,kbjhd->kbhij", self.pad(q), self.pad(k))
        if bias is not None:
            n = self.n
            lead = bias.shape[:-1]
            padded = bias.new_zeros(*lead, self.jets * n * n).index_copy(-1, self.pair_slots, bias)
            found = found + padded.view(*lead, self.jets, n, n).transpose(-4, -3)
        return found.masked_fill(self.no_key, -torch.inf)

    def drop(self, weights: Tensor, p: float, seed: int) -> Tensor:
        """Dropout of [K, b, H, n, n]."""
        if p == 0:
            return weights
        heads = weights.shape[2]
        jet = torch.arange(self.first_jet, self.first_jet + self.jets, device=weights.device)[:, None, None]
        head = torch.arange(heads, device=weights.device)[:, None]
        keep = dropout_keep(seed, p, jet, head, self.position, self.n)
        return torch.where(keep, weights * dropout_scale(p), 0.0)
