"""Layers of JetTransformer on packed constituents [M, …] with offsets [B + 1].

Dropout takes its decisions from Philox, by a layer's `dropout_seed`; None switches it off. See
ops/dropout.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdfast.models.config import ModelConfig
from kdfast.ops.constituent_attention import constituent_attention_qkvpacked
from kdfast.ops.dropout import dropout
from kdfast.ops.philox import fold_seed

__all__ = ["BatchNorm", "DenseBlock", "EncoderLayer", "Linear", "PoolingAttention"]


class Linear(nn.Linear):
    """A linear layer of zeros, until JetTransformer's `initialise` sets its weights.

    (torch's own draws them from its global generator, which belongs to the user.)
    """

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes its running statistics where a training batch has fewer than two rows."""

    def forward(self, x: Tensor) -> Tensor:
        training = self.training and len(x) > 1
        momentum = 0.1 if self.momentum is None else self.momentum
        moments = (self.running_mean, self.running_var)
        return F.batch_norm(x, *moments, self.weight, self.bias, training, momentum, self.eps)


class DenseBlock(nn.Module):
    """Linear → BatchNorm → GELU → dropout, on rows: constituents (with offsets) or jets (offsets None)."""

    def __init__(self, inputs: int, outputs: int, p: float) -> None:
        super().__init__()
        self.linear = Linear(inputs, outputs)
        self.norm = BatchNorm(outputs)
        self.p = p

    def forward(self, x: Tensor, offsets: Tensor | None, dropout_seed: int | None) -> Tensor:
        return drop(F.gelu(self.norm(self.linear(x))), offsets, self.p, dropout_seed, 0)


class EncoderLayer(nn.Module):
    """Pre-norm transformer encoder layer: x + attention(LN(x)), then x + FFN(LN(x)) with GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.head_dim = width // config.heads
        self.p = config.dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.ffn_in = Linear(width, config.ffn)
        self.ffn_out = Linear(config.ffn, width)

    def forward(self, x: Tensor, offsets: Tensor, dropout_seed: int | None) -> Tensor:
        qkv = self.qkv(self.norm1(x)).view(len(x), 3, self.heads, self.head_dim)
        if dropout_seed is None:
            attended = constituent_attention_qkvpacked(qkv, offsets)
        else:
            seed = fold_seed(dropout_seed, 0)
            attended = constituent_attention_qkvpacked(qkv, offsets, dropout_p=self.p, seed=seed)
        x = x + drop(self.out(attended.flatten(1)), offsets, self.p, dropout_seed, 1)
        hidden = drop(F.gelu(self.ffn_in(self.norm2(x))), offsets, self.p, dropout_seed, 2)
        return x + drop(self.ffn_out(hidden), offsets, self.p, dropout_seed, 3)


class PoolingAttention(nn.Module):
    """One learned query attends over a jet's constituents: softmax(q·k / √d) v per head, then a projection.

    Returns the pooled rows [B, width] (an empty jet's: the projection's bias) and the weights [M], averaged
    over heads, before dropout; they sum to 1 over a jet's constituents.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.pooling_heads
        self.head_dim = width // config.pooling_heads
        self.p = config.dropout
        self.query = nn.Parameter(torch.empty(width))
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, offsets: Tensor, dropout_seed: int | None) -> tuple[Tensor, Tensor]:
        q = self.q(self.query).view(self.heads, self.head_dim) * self.head_dim**-0.5
        k, v = self.kv(x).view(len(x), 2, self.heads, self.head_dim).unbind(1)
        weights = segment_softmax((k * q).sum(-1), offsets)
        dropped = drop(weights, offsets, self.p, dropout_seed, 0)
        pooled = segment_sum((dropped.unsqueeze(-1) * v).flatten(1), offsets)
        return self.out(pooled), weights.mean(-1)


def drop(x: Tensor, offsets: Tensor | None, p: float, dropout_seed: int | None, part: int) -> Tensor:
    """Dropout by the part-th seed of a layer; x itself where dropout_seed is None."""
    return x if dropout_seed is None or p == 0 else dropout(x, offsets, p, fold_seed(dropout_seed, part))


def segment_sum(x: Tensor, offsets: Tensor) -> Tensor:
    """[B, …] sums of x [M, …] over each jet's rows; zeros for an empty jet."""
    return torch.segment_reduce(x, "sum", offsets=offsets, axis=0, unsafe=True, initial=0)


def segment_max(x: Tensor, offsets: Tensor, jet: Tensor | None = None) -> Tensor:
    """[B, …] maxima of x [M, …] ≥ 0 over each jet's rows; zeros for an empty jet. jet: [M], each row's, where known.

    Rows that share a maximum share its gradient evenly. (By torch's own each of them gets all of a negative
    one.)
    """
    values = x.detach()
    top = torch.segment_reduce(values, "max", offsets=offsets, axis=0, unsafe=True, initial=0)
    if not x.requires_grad:
        return top
    if jet is None:
        jet = torch.repeat_interleave(offsets.diff(), output_size=len(x))
    is_top = (values == top[jet]).to(x.dtype)
    share = is_top / segment_sum(is_top, offsets).clamp(min=1)[jet]
    return top + segment_sum((x - values) * share, offsets)  # the second term is 0: it has the gradient


def segment_softmax(scores: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of scores [M, H] over each jet's rows."""
    jet = torch.repeat_interleave(offsets.diff(), output_size=len(scores))
    top = torch.segment_reduce(scores.detach(), "max", offsets=offsets, axis=0, unsafe=True)
    exp = torch.exp(scores - top[jet])
    return exp / segment_sum(exp, offsets)[jet]
