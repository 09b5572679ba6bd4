"""K JetTransformers as one: batched matrix products over [K, M, D], everything between them one op for all members.

The same function of the same parameters as K models of models/jet_transformer.py, dropout included.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, overload

import torch
from torch import Tensor

from kdfast.models.config import ModelConfig
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.layers import BatchNorm
from kdfast.ops.attention_pooling import attention_pooling
from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.packed_attention import attention_plan, packed_attention
from kdfast.ops.packed_rows import Dropout, PackedRows
from kdfast.ops.philox import UInt64s, fold_seed
from kdfast.ops.residual_norm import residual_norm
from kdfast.ops.undocumented import copy_each

__all__ = ["PackedTransformer", "dropout_seeds"]


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


class PackedTransformer:
    """K members on flat buffers.

    parameters: [K, P], each row in the order of JetTransformer.parameters(). running: [K, R], mean and
    variance of each BatchNorm, as models/flat.py has them. Both are shared with the caller. precision: "fp32"
    (the parameters' own), or "bf16": operands of the matrix products in bfloat16.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Tensor,
        running: Tensor,
        precision: str = "fp32",
    ) -> None:
        self.config = config
        self.dtype = torch.bfloat16 if precision == "bf16" else parameters.dtype
        model = JetTransformer(config)  # for names and shapes alone
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._parameters = {name: part.requires_grad_() for name, part in _views(parameters.detach(), self._shapes)}
        norms = [name for name, module in model.named_modules() if isinstance(module, BatchNorm)]
        moments = {
            f"{norm}.{moment}": model.get_buffer(f"{norm}.{moment}").shape for norm in norms for moment in _MOMENTS
        }
        self._running = dict(_views(running, moments))

    def write_gradient(self, loss: Tensor, gradient: Tensor) -> None:
        """The derivatives of a scalar that logits went into, to gradient [K, P]."""
        parts = [part for _, part in _views(gradient, self._shapes)]
        copy_each(parts, torch.autograd.grad(loss, list(self._parameters.values())))

    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """(logits [K, B, C], pooling attention [K, M], averaged over heads) of one batch of jets, the same for all.

        features: [M, F]. seeds: int64, dropout_seeds of the step; None: no dropout.
        """
        config = self.config
        p = self._parameters
        drops = iter([None] * (4 * config.layers + 5) if seeds is None else [Dropout(config.dropout, s) for s in seeds])
        members = len(p["pool.query"])
        capacity = len(features)
        width = config.width
        features = rows.clear(features)

        def matrix(x: Tensor, name: str) -> Tensor:
            weight = p[f"{name}.weight"].to(x.dtype)
            return torch.bmm(x, weight.transpose(1, 2))

        def affine(x: Tensor, name: str) -> Tensor:
            weight = p[f"{name}.weight"].to(x.dtype)
            bias = p[f"{name}.bias"].to(x.dtype)
            return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))

        def dense(x: Tensor, of: PackedRows, name: str) -> Tensor:
            gamma, beta = norm(f"{name}.norm")
            mean, variance = (self._running[f"{name}.norm.{moment}"] for moment in _MOMENTS)
            y = affine(x, f"{name}.linear")
            return batch_norm_gelu(y, gamma, beta, mean, variance, of, next(drops), training=training)

        def norm(name: str) -> tuple[Tensor, Tensor]:
            return p[f"{name}.weight"], p[f"{name}.bias"]

        x = dense(features.expand(members, -1, -1), rows, "embed")
        x, n = residual_norm(x, None, None, *norm("encoder.0.norm1"), rows, dtype=self.dtype)
        plan = None
        for layer in range(config.layers):
            name = f"encoder.{layer}"
            last = layer + 1 == config.layers
            qkv = affine(n, f"{name}.qkv").view(members, capacity, 3, config.heads, -1)
            if plan is None:
                plan = attention_plan(qkv, rows)
            attended = packed_attention(qkv, rows, next(drops), plan).flatten(2)
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


_MOMENTS = ("running_mean", "running_var")


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    """Each name's part of flat [K, …], as [K, *shape]."""
    parts = flat.split([shape.numel() for shape in shapes.values()], 1)
    for (name, shape), part in zip(shapes.items(), parts, strict=True):
        yield name, part.view(len(flat), *shape)
