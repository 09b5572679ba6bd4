"""The kernel of dropout_masks draws the specification's bits; kernels that read them compute the same as without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from kdfast.ops import constituent_attention_cuda, dropout_masks
from kdfast.ops.attention_pooling import attention_pooling
from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.constituent_attention_reference import AttentionCall
from kdfast.ops.dropout_masks import MaskUse, mask_reference
from kdfast.ops.packed_attention import attention_plan, packed_attention
from kdfast.ops.packed_rows import Dropout, PackedRows
from kdfast.ops.residual_norm import residual_norm
from tests.ops.backends import cuda_kernels
from tests.ops.packed import DTYPES, normal, rows_of, with_gradients

pytestmark = pytest.mark.cuda_kernels

P = 0.3
MIXED = [5, 0, 30, 1, 11, 17, 40, 33]
USES = [MaskUse("rows", 72), MaskUse("pairs", 3), MaskUse("rows", 4), MaskUse("jets", 24), MaskUse("jets", 8)]


def draw(rows: PackedRows, uses: Sequence[MaskUse], seeds: Sequence[int], p: float = P) -> list[Dropout]:
    """Inside `cuda_kernels`."""
    plan = attention_plan(torch.empty(0, 16), rows)
    assert plan is not None
    return dropout_masks.dropout_masks(rows, uses, p, torch.tensor(seeds), plan)


@pytest.mark.parametrize("counts", [MIXED, [0], [16], [200, 3, 0, 193], [n % 20 for n in range(600)]], ids=len)
@pytest.mark.parametrize("schedule", range(3))
def test_the_bits_of_the_specification(counts: list[int], schedule: int) -> None:
    rows = rows_of(counts, padding=5)
    seeds = [7, -5, 2**62, 1 << 33, 0]
    with cuda_kernels(schedule):
        drops = draw(rows, USES, seeds)
    for drop, use, seed in zip(drops, USES, seeds, strict=True):
        expected = mask_reference(rows, use, P, seed)
        assert drop.mask is not None
        assert torch.equal(drop.mask[: len(expected)], expected), f"{use}, {counts}"


def test_more_uses_than_a_launch_draws() -> None:
    rows = rows_of([3, 20], padding=1)
    uses = [MaskUse("rows", 8 + 8 * (i % 3)) if i % 4 else MaskUse("pairs", 1 + i % 2) for i in range(67)]
    with cuda_kernels():
        drops = draw(rows, uses, range(67))
    for seed, (drop, use) in enumerate(zip(drops, uses, strict=True)):
        expected = mask_reference(rows, use, P, seed)
        assert drop.mask is not None
        assert torch.equal(drop.mask[: len(expected)], expected)


def test_no_masks_where_they_are_too_large_or_of_unknown_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of([3, 20])
    unknown = PackedRows(rows.count, rows.jet, rows.position, rows.offsets)
    with cuda_kernels():
        assert all(drop.mask is None for drop in draw(unknown, USES, range(5)))
        assert all(drop.mask is None for drop in draw(rows, USES, range(5), p=0.0))
        monkeypatch.setattr(dropout_masks, "_MOST_BYTES", 100)
        assert all(drop.mask is None for drop in draw(rows, USES, range(5)))


def assert_same_bits(op: Callable[..., object], dropout: Dropout, inputs: Sequence[Tensor]) -> None:
    """op(*inputs, dropout=…), with its gradients, with the mask and without."""
    assert dropout.mask is not None
    outputs = op(*inputs, dropout=dropout)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    grads = [normal(*x.shape, dtype=x.dtype, seed=i) for i, x in enumerate(outputs)]
    found, expected = (
        with_gradients(partial(op, dropout=drop), inputs, grads) for drop in (dropout, dropout._replace(mask=None))
    )
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), f"output or gradient {number}"


@pytest.mark.parametrize("capability", [90, 75])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [8, 16, 24, 32, 64])
def test_attention(d: int, dtype: torch.dtype, capability: int) -> None:
    """Every n mod 16 of one tile, and of two that a warp takes at once; of one member, and of two."""
    members = 1 + (d // 8) % 2
    rows = rows_of([*range(35), 48, 50] if capability == 90 else MIXED, padding=7)
    with cuda_kernels(d, capability):
        (dropout,) = draw(rows, [MaskUse("pairs", 2)], [-77])
        plan = attention_plan(torch.empty(0, d, dtype=dtype), rows)
        qkv = normal(members, len(rows.jet), 3, 2, d, dtype=dtype, rows=rows)
        assert_same_bits(partial(packed_attention, rows=rows, plan=plan), dropout, [qkv])


def test_attention_of_long_jets_and_many_heads() -> None:
    rows = rows_of([200, 3, 0, 193])
    with cuda_kernels():
        (dropout,) = draw(rows, [MaskUse("pairs", 5)], [3])
        qkv = normal(2, len(rows.jet), 3, 5, 8, dtype=torch.bfloat16)
        assert_same_bits(partial(packed_attention, rows=rows), dropout, [qkv])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_with_a_bias(dtype: torch.dtype) -> None:
    """No caller has both; the kernels take them."""
    rows = rows_of([5, 0, 30, 17], padding=0)
    q, k, v, grad = normal(4, 2, len(rows.jet), 2, 16, dtype=dtype)
    bias = normal(2, 2, sum(n * n for n in (5, 0, 30, 17)))
    call = AttentionCall(rows.offsets, bias, 0.25, P, torch.tensor(9))
    results = []
    with cuda_kernels():
        (dropout,) = draw(rows, [MaskUse("pairs", 2)], [9])
        plan = constituent_attention_cuda.make_plan(rows.offsets, len(rows.jet), bias, rows.tiles)[0]
        for mask in (dropout.mask, None):
            out, lse = constituent_attention_cuda.forward(q, k, v, call, plan, mask)
            grads = [torch.empty_like(q) for _ in range(3)]
            dbias = constituent_attention_cuda.backward(grad, q, k, v, lse, call, grads, plan, mask)
            results.append([out, lse, *grads, dbias])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_fewer_tiles_than_the_jets_have_are_nan() -> None:
    rows = rows_of([5, 30], padding=0)
    assert rows.tiles == 5
    few = PackedRows(rows.count, rows.jet, rows.position, rows.offsets, 4)
    qkv = normal(1, len(rows.jet), 3, 1, 8)
    with cuda_kernels():
        assert packed_attention(qkv, rows).isfinite().all()
        assert packed_attention(qkv, few).isnan().all()


def batch_norm(y: Tensor, gamma: Tensor, beta: Tensor, rows: PackedRows, dropout: Dropout) -> Tensor:
    running = torch.zeros_like(gamma.detach()), torch.ones_like(gamma.detach())
    return batch_norm_gelu(y, gamma, beta, *running, rows, dropout, training=True)


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("features", [8, 72, 264, 520])
def test_ops_on_rows(features: int, dtype: torch.dtype, members: int) -> None:
    rows = rows_of([5, 0, 1, 11, 17, 8], padding=6)
    shape, vector = (members, len(rows.jet), features), (members, features)
    y = normal(*shape, dtype=dtype, rows=rows)
    x, vectors = normal(*shape, seed=1, rows=rows), [normal(*vector, seed=i) for i in range(2, 5)]
    with cuda_kernels(features):
        (dropout,) = draw(rows, [MaskUse("rows", features)], [4])
        assert_same_bits(partial(residual_norm, rows=rows, dtype=dtype), dropout, [x, y, *vectors])
        assert_same_bits(partial(bias_gelu, rows=rows), dropout, [y, vectors[0]])
        assert_same_bits(partial(batch_norm, rows=rows), dropout, [y, *vectors[:2]])


def test_an_op_on_jets() -> None:
    rows = rows_of([5, 0, 1, 11])
    jets = PackedRows.of_jets(rows.jets)
    with cuda_kernels():
        (dropout,) = draw(rows, [MaskUse("jets", 24)], [4])
        y, vectors = normal(2, rows.jets, 24), [normal(2, 24, seed=i) for i in range(2)]
        assert_same_bits(partial(batch_norm, rows=jets), dropout, [y, *vectors])


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_attention_pooling(heads: int) -> None:
    rows = rows_of(MIXED, padding=0)  # no row behind the last tile
    with cuda_kernels(heads):
        (dropout,) = draw(rows, [MaskUse("rows", heads)], [11])
        x, direction = normal(2, len(rows.jet), 32, rows=rows), normal(2, heads, 32, seed=1)
        assert_same_bits(partial(attention_pooling, rows=rows), dropout, [x, direction])
