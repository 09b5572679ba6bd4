"""The model of a lock-step training step on a GPU: bytes and FLOP of each kernel and matrix product, by formula.

A model, not a measurement: it counts the bytes that move through DRAM if nothing stays in caches, and the FLOP of
products. `bash ci/gpu profile` divides it by measured times. `python -m bench.step_model` prints it, with the least
time that these bytes and FLOP take on a card.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from kdfast.models import PRESETS, ModelConfig
from kdfast.models.build import build_network
from kdfast.models.packed import dropout_uses
from kdfast.ops.dropout_masks import mask_bytes

# DRAM in bytes/s, and dense FLOP/s with bf16 operands and with fp32 ones without TF32, by the vendor's data sheets.
CARDS = {"H100": (3.35e12, 989e12, 67e12), "A100": (2.04e12, 312e12, 19.5e12), "L4": (0.30e12, 121e12, 30e12)}
STUDY_STEPS = 50 * (21_000 // 512)  # epochs and their steps
STUDY_MEMBERS = 132


@dataclass(frozen=True)
class Batch:
    """jets, their constituents, Σ n² over the jets, rows with padding (those of matrix products), Σ ⌈n/16⌉², and
    Σ ⌈n/32⌉, the pieces that warps of attention take."""

    jets: int
    rows: int
    squares: int
    capacity: int
    tiles: int
    pieces: int


@dataclass(frozen=True)
class Work:
    """What all calls of one kernel in a step move and compute. label: as bench/gpu/trace.py has it."""

    label: str
    calls: int
    bytes: float
    flops: float = 0.0


def step_work(config: ModelConfig, members: int, batch: Batch, precision: str) -> list[Work]:
    """Every kernel of one step of K members of a JetTransformer with a cached teacher and attention transfer."""
    return [
        *_products(config, members, batch, precision),
        *_attention(config, members, batch, precision),
        *_between_products(config, members, batch, precision),
        *_pooling_and_loss(config, members, batch),
        *_copies(config, members, batch, precision),
        *_parameters(config, members, precision),
        _masks(config, batch),
    ]


def product(members: int, rows: int, inner: int, columns: int, size: int) -> tuple[float, float]:
    """(bytes, FLOP) of [K, rows, inner] · [K, inner, columns] in elements of `size` bytes."""
    elements = rows * inner + inner * columns + rows * columns
    return float(members * elements * size), 2.0 * members * rows * inner * columns


def _products(config: ModelConfig, members: int, batch: Batch, precision: str) -> list[Work]:
    """Linear layers on constituents: y = x Wᵀ, dx = dy W, dW = dyᵀ x; the embedding's input needs no dx."""
    size = _size(precision)
    width = config.width
    shapes = {
        "embed": (config.num_features, width, 1, 4),
        "qkv": (width, 3 * width, config.layers, size),
        "out": (width, width, config.layers, size),
        "ffn_in": (width, config.ffn, config.layers, size),
        "ffn_out": (config.ffn, width, config.layers, size),
    }
    works = []
    for name, (inner, columns, layers, bytes_each) in shapes.items():
        passes = 2 if name == "embed" else 3
        moved, flops = product(members, batch.capacity, inner, columns, bytes_each)
        calls = passes * layers
        works.append(Work(f"product {name}", calls, calls * moved, calls * flops))
    return works


def _attention(config: ModelConfig, members: int, batch: Batch, precision: str) -> list[Work]:
    """Forward reads q, k, v and writes out and lse; backward reads q, k, v, ∂out twice: 2, 5 and 4 products of n² d.
    Each pass over the pairs reads dropout's mask, 32 bytes a tile: one pass, two and one. In bf16 the bias of qkv is
    added as q and v are loaded; for its gradient each piece of the rows leaves a sum of dq and one of dv."""
    size = _size(precision)
    calls = config.layers
    row = config.width * size  # of one of q, k, v, all heads
    rows = float(members * calls * batch.rows)
    pairs = 2.0 * members * calls * batch.squares * config.width
    heads = config.heads
    masks = float(members * calls * batch.tiles * heads * 32)
    sums = float(members * calls * batch.pieces * config.width * 4) if precision == "bf16" else 0.0
    works = [
        Work("constituent_attention: attend", calls, rows * (4 * row + 4 * heads) + masks, 2 * pairs),
        Work(
            "constituent_attention: query_gradients", calls, rows * (5 * row + 20 * heads) + 2 * masks + sums, 5 * pairs
        ),
        Work("constituent_attention: key_gradients", calls, rows * (6 * row + 16 * heads) + masks + sums, 4 * pairs),
    ]
    return works + [Work("constituent_attention: add_bias_sums", calls, 2 * sums)] * (precision == "bf16")


def _between_products(config: ModelConfig, members: int, batch: Batch, precision: str) -> list[Work]:
    """The residual stream and BatchNorm are float32; what goes into or comes out of products has `size` bytes, and what
    dropout keeps an eighth of a byte."""
    size = _size(precision)
    bit = 1 / 8
    layers = config.layers
    wide = float(members * batch.rows * config.width)
    hidden = float(members * batch.rows * config.ffn * layers)
    heads = float(members * batch.jets * config.width)  # rows that are jets
    jets = heads * 2.5  # dense1, dense2, and dense3 of half the width
    first, both, last = 1, 2 * layers - 1, 1  # calls without y, with y and norm, without norm
    forward = first * (8 + size) + both * (8 + 2 * size + bit) + last * (8 + size + bit)
    backward = first * (12 + size) + both * (12 + 2 * size + bit) + last * (8 + size + bit)
    calls = 2 * layers + 2  # and the pooled jets' norm
    return [
        Work("residual_norm: forward", calls, wide * forward + heads * 12),
        Work("residual_norm: backward", calls, wide * backward + heads * 16),
        Work("bias_gelu: forward", layers, hidden * (2 * size + bit)),
        Work("bias_gelu: backward", layers, hidden * (3 * size + bit)),
        Work("batch_norm_gelu: moments_of_blocks", 4, (wide + jets) * 4),
        Work("batch_norm_gelu: forward", 4, (wide + jets) * (8 + bit)),
        Work("batch_norm_gelu: backward_sums", 4, (wide + jets) * (8 + bit)),
        Work("batch_norm_gelu: backward_rows", 4, (wide + jets) * (12 + bit)),
    ]


def _pooling_and_loss(config: ModelConfig, members: int, batch: Batch) -> list[Work]:
    rows = float(members * batch.rows)
    products = rows * config.width * config.pooling_heads
    weights = 4 * config.pooling_heads
    return [
        Work("attention_pooling: pool", 1, rows * (4 * config.width + weights + 5), 4 * products),
        Work("attention_pooling: pool_backward", 1, rows * (8 * config.width + weights + 5), 8 * products),
        Work("attention_transfer: transfer", 1, rows * 8),
        Work("distill_loss: two_classes", 1, float(members * batch.jets * 8)),
    ]


def _copies(config: ModelConfig, members: int, batch: Batch, precision: str) -> list[Work]:
    """PyTorch's own kernels between ours. In fp32 qkv's bias goes into the output before its product reads it there,
    and its gradient is a sum over rows; products in bf16 write bf16, so their weights' gradients are cast. The
    pooling's query, keys and values have no op that writes their gradients in place."""
    size = _size(precision)
    layers = config.layers
    qkv = float(members * layers * batch.capacity * 3 * config.width)
    weights = float(members * layers * (4 * config.width**2 + 2 * config.width * config.ffn))
    pooling = float(members * (2 * config.width**2 + 3 * config.width))
    works = [Work("copy: gradients of the pooling", 3, pooling * 8)]
    if precision == "bf16":
        return [*works, Work("cast: gradients of weights", 4 * layers, weights * 6)]
    bias = Work("copy: bias of qkv", layers, qkv * 2 * size)
    return [*works, bias, Work("sum: gradient of qkv's bias", layers, qkv * size)]


def _parameters(config: ModelConfig, members: int, precision: str) -> list[Work]:
    """In bf16 the update also writes the weights that the next step's products read."""
    parameters = float(members * build_network(config).num_parameters())
    rounded = 2 if precision == "bf16" else 0
    return [Work("adamw: sum_squares", 1, parameters * 4), Work("adamw: update", 1, parameters * (28 + rounded))]


def _masks(config: ModelConfig, batch: Batch) -> Work:
    """What dropout keeps, written once for all members."""
    moved = sum(mask_bytes(use, batch.rows, batch.jets, batch.tiles) for use in dropout_uses(config))
    return Work("dropout_masks: draw", 1, float(moved))


def _size(precision: str) -> int:
    return 2 if precision == "bf16" else 4


def least_seconds(work: Work, card: str, precision: str) -> float:
    """Of all calls: DRAM's or the multipliers' time, whichever is longer."""
    bandwidth, bf16, fp32 = CARDS[card]
    return max(work.bytes / bandwidth, work.flops / (bf16 if precision == "bf16" else fp32))


def study_batch() -> Batch:
    """512 jets of 23 to 40 constituents, as the benchmarks have them."""
    counts = [23 + jet % 18 for jet in range(512)]
    rows = sum(counts)
    tiles = sum((-(-count // 16)) ** 2 for count in counts)
    pieces = sum(-(-count // 32) for count in counts)
    return Batch(len(counts), rows, sum(count * count for count in counts), -(-rows // 64) * 64, tiles, pieces)


def table(config: ModelConfig, members: int, precision: str, card: str) -> str:
    """In Markdown; the last line is the sum."""
    works = step_work(config, members, study_batch(), precision)
    lines = ["| kernel | calls | GB | GFLOP | least ms |", "|---|---:|---:|---:|---:|"]
    for work in works:
        least = least_seconds(work, card, precision) * 1e3
        lines.append(f"| {work.label} | {work.calls} | {work.bytes / 1e9:.2f} | {work.flops / 1e9:.0f} | {least:.2f} |")
    total = sum(least_seconds(work, card, precision) for work in works)
    moved = sum(work.bytes for work in works) / 1e9
    flops = sum(work.flops for work in works) / 1e9
    lines.append(f"| sum | {sum(w.calls for w in works)} | {moved:.1f} | {flops:.0f} | {total * 1e3:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="The model of a training step on a GPU; nothing is measured.")
    parser.add_argument("--members", type=int, default=STUDY_MEMBERS)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--card", choices=CARDS, default="H100")
    options = parser.parse_args()
    config = PRESETS["study"]
    assert isinstance(config, ModelConfig)
    print(table(config, options.members, options.precision, options.card))
    works = step_work(config, options.members, study_batch(), options.precision)
    total = sum(least_seconds(work, options.card, options.precision) for work in works)
    print(f"\n{STUDY_STEPS} steps: {total * STUDY_STEPS:.0f} s at least, by the model")


if __name__ == "__main__":
    main()
