"""K networks of one family as one, in lock-step: batched matrix products over [K, M, D].

The same functions of the same parameters as K models of models/jet_transformer.py, dropout included, or of
models/deep_sets.py. Everything between the products is one op for all members.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, overload

import torch
from torch import Tensor

from kdfast.models.config import DeepSetsConfig, ModelConfig
from kdfast.models.layers import segment_max, segment_sum
from kdfast.models.linear import packed_linear
from kdfast.models.network import Network
from kdfast.ops.attention_pooling import attention_pooling
from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.dropout_masks import MaskUse, dropout_masks
from kdfast.ops.packed_attention import adds_bias, attention_plan, packed_attention
from kdfast.ops.packed_rows import Dropout, PackedRows, wide
from kdfast.ops.philox import UInt64s, fold_seed
from kdfast.ops.residual_norm import residual_norm

__all__ = ["PackedDeepSets", "PackedNetwork", "PackedTransformer", "dropout_seeds", "dropout_uses"]


class PackedNetwork(ABC):
    """K members on flat buffers.

    model: for sizes, names and shapes alone. parameters: [K, P], each row in the order of model.parameters().
    running: [K, R], mean and variance of each BatchNorm, as models/flat.py has them. Both are shared with the
    caller. precision: "fp32" (the parameters' own), or "bf16": operands of the matrix products in bfloat16.
    gradient: [K, P], where write_gradient writes. rounded: [K, P], the parameters in bfloat16; None: made
    here.
    """

    def __init__(
        self,
        model: Network,
        parameters: Tensor,
        running: Tensor,
        precision: str = "fp32",
        *,
        gradient: Tensor | None = None,
        rounded: Tensor | None = None,
    ) -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else parameters.dtype
        self.config = model.config
        self.members = len(parameters)
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._parameters = {name: part.requires_grad_() for name, part in _views(parameters.detach(), self._shapes)}
        if gradient is not None:
            for name, place in _views(gradient, self._shapes):
                self._parameters[name].grad = place
        rounded = parameters.detach().to(self.dtype) if rounded is None else rounded
        self._operands = dict(_views(rounded, self._shapes))
        moments = ("running_mean", "running_var")
        shapes = {name: buffer.shape for name, buffer in model.named_buffers() if name.endswith(moments)}
        self._running = dict(_views(running, shapes))

    @abstractmethod
    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(logits [K, B, C], pooling attention [K, M], averaged over heads) of one batch of jets, the same for all.

        features: [M, F]. seeds: int64, those of the step's dropout; None: no dropout. The attention is None
        where there is none.
        """

    def write_gradient(self, loss: Tensor) -> None:
        """The derivatives of a scalar that logits went into, to `gradient`. Most ops write theirs there themselves."""
        parameters = list(self._parameters.values())
        for parameter, found in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            assert parameter.grad is not None
            if found.data_ptr() != parameter.grad.data_ptr():
                parameter.grad.copy_(found)

    def matrix(self, x: Tensor, name: str) -> Tensor:
        """x Wᵀ of a linear layer, for x [K, M, D]."""
        return packed_linear(x, *self._parameter(f"{name}.weight", x.dtype))

    def affine(self, x: Tensor, name: str) -> Tensor:
        """x Wᵀ + b of a linear layer."""
        weight, bias = (self._parameter(f"{name}.{part}", x.dtype) for part in ("weight", "bias"))
        return packed_linear(x, *weight, *bias)

    def _parameter(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A parameter, and what a product with operands of this type reads of it."""
        parameter = self._parameters[name]
        return parameter, self._operands[name] if dtype == self.dtype else parameter.detach()

    def moments(self, norm: str) -> tuple[Tensor, Tensor]:
        """Running mean and variance [K, D] of a BatchNorm."""
        return self._running[f"{norm}.running_mean"], self._running[f"{norm}.running_var"]


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    """Each name's part of flat [K, …], as [K, *shape]."""
    parts = flat.split([shape.numel() for shape in shapes.values()], 1)
    for (name, shape), part in zip(shapes.items(), parts, strict=True):
        yield name, part.view(len(flat), *shape)


class PackedDeepSets(PackedNetwork):
    """K DeepSets on flat buffers. running: [K, 0]. "bf16" is for the products on constituents."""

    config: DeepSetsConfig

    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, None]:
        """See PackedNetwork; there is neither attention nor dropout, and training changes nothing."""
        config = self.config
        x = rows.clear(features).to(self.dtype).expand(self.members, -1, -1)
        for layer in range(config.layers):
            x = torch.relu(self.affine(x, f"constituent.{layer}"))
        x = wide(x).transpose(0, 1)  # the reductions want the rows first
        mean = segment_sum(x, rows.offsets) / rows.offsets.diff().clamp(min=1)[:, None, None]
        maximum = segment_max(x, rows.offsets, rows.jet)
        h = torch.cat([mean, maximum], dim=2).transpose(0, 1)
        for layer in range(config.head_layers):
            h = torch.relu(self.affine(h, f"jet.{layer}"))
        return self.affine(h, "classify"), None


@overload
def dropout_seeds(seed: int, layers: int) -> list[int]: ...
@overload
def dropout_seeds(seed: UInt64s, layers: int) -> list[UInt64s]: ...
def dropout_seeds(seed: Any, layers: int) -> list[Any]:
    """The keys of a step's dropout in the order of use, for the step's key `seed`, or for each of an array of
    them; JetTransformer's own."""
    embed, pool, *dense = (fold_seed(fold_seed(seed, place), 0) for place in range(5))
    encoder = [fold_seed(fold_seed(seed, 5 + layer), part) for layer in range(layers) for part in range(4)]
    return [embed, *encoder, pool, *dense]


def dropout_uses(config: ModelConfig) -> list[MaskUse]:
    """Where a step uses dropout, in the order of dropout_seeds."""
    width = MaskUse("rows", config.width)
    layer = [MaskUse("pairs", config.heads), width, MaskUse("rows", config.ffn), width]
    dense = [MaskUse("jets", columns) for columns in (config.width, config.width, config.width // 2)]
    return [width, *layer * config.layers, MaskUse("rows", config.pooling_heads), *dense]


class PackedTransformer(PackedNetwork):
    """K JetTransformers on flat buffers. seeds of `logits`: dropout_seeds of the step."""

    config: ModelConfig

    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """See PackedNetwork."""
        config = self.config
        p = self._parameters
        like = features.new_empty(0, config.width // config.heads, dtype=self.dtype)  # of qkv
        plan = attention_plan(like, rows)
        uses = dropout_uses(config)
        given = [None] * len(uses) if seeds is None else dropout_masks(rows, uses, config.dropout, seeds, plan)
        drops: Iterator[Dropout | None] = iter(given)
        matrix, affine = self.matrix, self.affine
        members = self.members
        capacity = len(features)
        width = config.width
        features = rows.clear(features)

        def dense(x: Tensor, of: PackedRows, name: str) -> Tensor:
            gamma, beta = norm(f"{name}.norm")
            mean, variance = self.moments(f"{name}.norm")
            y = affine(x, f"{name}.linear")
            return batch_norm_gelu(y, gamma, beta, mean, variance, of, next(drops), training=training)

        def norm(name: str) -> tuple[Tensor, Tensor]:
            return p[f"{name}.weight"], p[f"{name}.bias"]

        x = dense(features.expand(members, -1, -1), rows, "embed")
        x, n = residual_norm(x, None, None, *norm("encoder.0.norm1"), rows, dtype=self.dtype)
        for layer in range(config.layers):
            name = f"encoder.{layer}"
            last = layer + 1 == config.layers
            drop = next(drops)
            folds = adds_bias(like, rows, drop)
            bias = self._parameter(f"{name}.qkv.bias", self.dtype) if folds else None
            qkv = (matrix if folds else affine)(n, f"{name}.qkv").view(members, capacity, 3, config.heads, -1)
            attended = packed_attention(qkv, rows, drop, plan, bias).flatten(2)
            y = matrix(attended, f"{name}.out")
            x, n = residual_norm(x, y, p[f"{name}.out.bias"], *norm(f"{name}.norm2"), rows, next(drops), self.dtype)
            hidden = bias_gelu(matrix(n, f"{name}.ffn_in"), p[f"{name}.ffn_in.bias"], rows, next(drops))
            gamma, beta = (None, None) if last else norm(f"encoder.{layer + 1}.norm1")
            y = matrix(hidden, f"{name}.ffn_out")
            x, n = residual_norm(x, y, p[f"{name}.ffn_out.bias"], gamma, beta, rows, next(drops), self.dtype)

        jets = PackedRows.of_jets(rows.jets, features.device)
        heads = config.pooling_heads
        query = affine(p["pool.query"][:, None], "pool.q").view(members, heads, 1, -1) * (width // heads) ** -0.5
        key, value = p["pool.kv.weight"].view(members, 2, heads, width // heads, width).unbind(1)
        value_bias = p["pool.kv.bias"].view(members, 2, heads, 1, -1)[:, 1]
        pooled, kept, attention = attention_pooling(x, (query @ key)[:, :, 0], rows, next(drops))
        by_head = pooled.transpose(1, 2) @ value.transpose(2, 3) + value_bias * kept.transpose(1, 2)[..., None]
        h = affine(by_head.transpose(1, 2).flatten(2), "pool.out")
        _, h = residual_norm(h, None, None, *norm("pool_norm"), jets)
        h = dense(h, jets, "dense1")
        h = h + dense(h, jets, "dense2")
        return affine(dense(h, jets, "dense3"), "classify"), attention
