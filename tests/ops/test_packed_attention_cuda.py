"""The lock-step engine's attention with the bias of the layer before it, which the kernels add as they load."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kdfast.ops.dropout_masks import MaskUse, dropout_masks
from kdfast.ops.packed_attention import adds_bias, attention_plan, packed_attention, packed_attention_reference
from kdfast.ops.packed_rows import Dropout, PackedRows
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import cuda_kernels
from tests.ops.packed import check_bits, in_flat_rows, normal, rows_of, with_gradients

pytestmark = pytest.mark.cuda_kernels

HEADS = 2
ROWS = rows_of([*range(35), 48, 50], padding=7)


def inputs(members: int, d: int, dtype: torch.dtype, rows: PackedRows = ROWS) -> list[Tensor]:
    """qkv, and a bias that its type holds exactly."""
    qkv = normal(members, len(rows.jet), 3, HEADS, d, dtype=dtype, rows=rows)
    return [qkv, normal(members, 3 * HEADS * d, dtype=dtype, seed=1).float()]


def draw(rows: PackedRows = ROWS) -> Dropout:
    """Of the kernels, with a mask."""
    plan = attention_plan(torch.empty(0, 16, dtype=torch.bfloat16), rows)
    (dropout,) = dropout_masks(rows, [MaskUse("pairs", HEADS)], 0.2, torch.tensor([-77]), plan)
    assert dropout.mask is not None
    return dropout


def attend(qkv: Tensor, bias: Tensor, rows: PackedRows = ROWS) -> Tensor:
    return packed_attention(qkv, rows, draw(rows), bias=(bias, in_flat_rows(bias.detach()).to(qkv.dtype)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [8, 16, 24, 32, 64])
def test_it_is_attention_of_the_sum(d: int, dtype: torch.dtype) -> None:
    """Every n mod 16 of one tile, and of two that a warp takes at once."""
    members = 1 + (d // 8) % 2
    given = inputs(members, d, dtype)
    grad = normal(members, len(ROWS.jet), HEADS, d, dtype=dtype, seed=2)
    with cuda_kernels(d):
        dropout = draw()
        actual = with_gradients(attend, given, [grad])

    def reference(qkv: Tensor, bias: Tensor) -> Tensor:
        return packed_attention_reference(qkv, ROWS, dropout, bias)

    plain = with_gradients(reference, given, [grad])
    exact = with_gradients(reference, [x.double() for x in given], [grad.double()])
    for name, *results in zip(("out", "gradient of qkv"), actual, plain, exact, strict=False):
        assert_accurate(*results, f"{name}: d={d} {dtype}")
    of_q, of_k, of_v = zip(*(x[2].view(members, 3, -1).unbind(1) for x in (actual, plain, exact)), strict=True)
    assert_accurate(*of_q, f"gradient of q's bias: d={d} {dtype}")
    assert_accurate(*of_v, f"gradient of v's bias: d={d} {dtype}")
    assert not of_k[0].any()  # it adds the same to all scores of a query


def test_its_gradient_goes_to_its_place() -> None:
    qkv, bias = inputs(2, 16, torch.bfloat16)
    with cuda_kernels():
        expected = with_gradients(attend, [qkv, bias], [torch.ones(2, len(ROWS.jet), HEADS, 16).bfloat16()])[2]
    bias.requires_grad_()
    bias.grad = in_flat_rows(torch.full_like(bias, torch.nan))
    with cuda_kernels():
        (found,) = torch.autograd.grad(attend(qkv, bias).sum(), bias)
    assert found.data_ptr() == bias.grad.data_ptr()
    assert torch.equal(bias.grad, expected)


def test_bits_depend_neither_on_the_schedule_nor_on_neighbours() -> None:
    qkv, bias = inputs(2, 16, torch.bfloat16)
    grad = normal(2, len(ROWS.jet), HEADS, 16, dtype=torch.bfloat16, seed=2)
    check_bits(lambda which: with_gradients(attend, [qkv[which], bias[which]], [grad[which]]))


def test_offsets_that_can_not_be_make_nan() -> None:
    rows = rows_of([5, 30], padding=0)
    few = PackedRows(rows.count, rows.jet, rows.position, rows.offsets, 4)  # tiles; the jets have 5
    given = inputs(1, 16, torch.bfloat16, rows)
    with cuda_kernels():
        found = with_gradients(partial(attend, rows=few), given, [torch.ones(1, 35, HEADS, 16).bfloat16()])
    assert all(x.isnan().all() for x in found)


def test_of_16_bit_types_with_masks_on_tensor_cores_alone() -> None:
    half = torch.empty(0, 16, dtype=torch.bfloat16)
    with cuda_kernels():
        dropout = draw()
        assert adds_bias(half, ROWS, dropout)
        assert not adds_bias(half.float(), ROWS, dropout)
        assert not adds_bias(half, ROWS, dropout._replace(mask=None))
        assert not adds_bias(half, ROWS, None)
        with pytest.raises(ValueError, match="masks"):
            packed_attention(torch.zeros(1, 700, 3, 1, 16).bfloat16(), ROWS, bias=(half.new_zeros(1, 48),) * 2)
    with cuda_kernels(compute_capability=75):
        assert not adds_bias(half, ROWS, dropout)
    assert not adds_bias(half, ROWS, dropout)
