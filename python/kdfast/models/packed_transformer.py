"""K JetTransformers as one: batched matrix products over [K, M, D], everything between them one op for all members.

The same function of the same parameters as K models of models/jet_transformer.py, dropout included.
"""

from __future__ import annotations

from typing import Any, overload

from torch import Tensor

from kdfast.models.config import ModelConfig
from kdfast.models.packed_network import PackedNetwork
from kdfast.ops.attention_pooling import attention_pooling
from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.packed_attention import attention_plan, packed_attention
from kdfast.ops.packed_rows import Dropout, PackedRows
from kdfast.ops.philox import UInt64s, fold_seed
from kdfast.ops.residual_norm import residual_norm

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


class PackedTransformer(PackedNetwork):
    """K JetTransformers on flat buffers. seeds of `logits`: dropout_seeds of the step."""

    config: ModelConfig

    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, Tensor]:
        """See PackedNetwork."""
        config = self.config
        p = self._parameters
        drops = iter([None] * (4 * config.layers + 5) if seeds is None else [Dropout(config.dropout, s) for s in seeds])
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
