"""The products of small bfloat16 matrices that kernels are built on, in the instruction set in use."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.accuracy import assert_accurate
from tests.ops.probe import probe, why_no_probe

pytestmark = pytest.mark.skipif(why_no_probe is not None, reason=str(why_no_probe))

UNIT = 2.0**-24  # of rounding to float32
BEYOND = -7.0  # in places that nothing may write to


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_rows(x: Tensor, stride: int) -> Tensor:
    """x [rows, n], rounded to bfloat16, in rows of `stride` elements; what stands between them is NaN."""
    memory = torch.full((x.shape[0], stride), torch.nan, dtype=torch.bfloat16)
    memory[:, : x.shape[1]] = x
    return memory


def matmul(a: Tensor, b: Tensor, lda: int, ldc: int, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """a @ (scale[:, None] · b), as float32 and rounded; a is stored with NaN beyond its columns."""
    (rows, k), n = a.shape, b.shape[1]
    memory = in_rows(a, lda)
    c, rounded = torch.full((rows, ldc), BEYOND), torch.full((rows, ldc), BEYOND, dtype=torch.bfloat16)
    scale_at = 0 if scale is None else scale.data_ptr()
    row_stride, column_stride = b.stride()
    probe().matmul_bf16(
        *(memory.data_ptr(), lda, rows, b.data_ptr(), row_stride, column_stride, scale_at, k, n),
        *(c.data_ptr(), rounded.data_ptr(), ldc, 1),
    )
    for out in (c, rounded):
        assert (out[:, n:] == BEYOND).all()
    return c[:, :n], rounded[:, :n]


def outer(dy: Tensor, x: Tensor, ldy: int, ldx: int) -> Tensor:
    """dyᵀ @ x in float32, of rows stored with NaN beyond their columns."""
    dy_memory, x_memory = in_rows(dy, ldy), in_rows(x, ldx)
    rows, num_out, num_in = dy.shape[0], dy.shape[1], x.shape[1]
    gradient = torch.full((num_out, num_in), torch.nan)
    probe().outer_bf16(dy_memory.data_ptr(), ldy, num_out, x_memory.data_ptr(), ldx, num_in, rows, gradient.data_ptr())
    return gradient


def one_by_one(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, each sum in float32 from the first term to the last. (torch sums parts where there are many terms.)"""
    c = np.zeros((a.shape[0], b.shape[1]), dtype=np.float32)
    for column, row in zip(a.numpy().T, b.numpy(), strict=True):
        c += column[:, None] * row
    return torch.from_numpy(c)


def check_product(actual: Tensor, a: Tensor, b: Tensor, case: str) -> None:
    """actual, of float32, is a @ b, and so is its rounding to bfloat16; a and b having been rounded to bfloat16."""
    a, b = a.bfloat16(), b.bfloat16()
    exact = a.double() @ b.double()
    bound = a.shape[1] * UNIT * (a.double().abs() @ b.double().abs())  # for float32 sums in any order
    excess = (actual.double() - exact).abs() - bound
    assert excess.max() <= 0, (
        f"{case}: {int((excess > 0).sum())} elements beyond the bound, by up to {excess.max():.2e}"
    )
    assert_accurate(actual, one_by_one(a.float(), b.float()), exact, case)
    assert_accurate(actual.bfloat16(), a @ b, exact, case)


def check_matmul(rows: int, k: int, n: int, extra: int, *, transposed: bool, scaled: bool, seed: int) -> None:
    case = f"matmul {rows} × {k} × {n}, {extra=} {transposed=} {scaled=} {seed=}"
    a = random((rows, k), seed)
    b = random((n, k), seed + 1).T if transposed else random((k, n), seed + 1)
    scale = 2.0 ** random((k,), seed + 2) if scaled else None
    lda, ldc = (k + 31) // 32 * 32 + 32 * extra, (n + 31) // 32 * 32 + 32 * extra
    c, rounded = matmul(a, b, lda, ldc, scale)
    weights = b if scale is None else b * scale[:, None]
    check_product(c, a, weights, case)
    assert torch.equal(rounded, c.bfloat16()), case


def check_outer(rows: int, num_out: int, num_in: int, extra: int, seed: int) -> None:
    dy, x = random((rows, num_out), seed), random((rows, num_in), seed + 1)
    ldy, ldx = (num_out + 31) // 32 * 32 + 32 * extra, (num_in + 31) // 32 * 32 + 32 * extra
    case = f"outer {num_out} × {rows} × {num_in}, {extra=} {seed=}"
    check_product(outer(dy, x, ldy, ldx), dy.T, x, case)


SHAPES = [
    (512, 128, 384),
    (288, 128, 512),
    (288, 512, 128),
    (96, 1024, 256),  # deeper than what is widened at once where there is no product of bfloat16
    (288, 32, 96),
    (32, 64, 192),
    (32, 16, 16),
    (64, 48, 80),
]


@pytest.mark.parametrize(("rows", "k", "n"), SHAPES)
def test_shapes_of_models(rows: int, k: int, n: int) -> None:
    check_matmul(rows, k, n, 1, transposed=False, scaled=False, seed=1)
    check_outer(rows, n, k, 1, seed=2)


SIZES = st.integers(1, 13).map(lambda i: 16 * i)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), SIZES, SIZES, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 2**20))
def test_matmul(rows: int, k: int, n: int, extra: int, transposed: bool, scaled: bool, seed: int) -> None:
    check_matmul(32 * rows, k, n, extra, transposed=transposed, scaled=scaled, seed=seed)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 9), SIZES, SIZES, st.integers(0, 2), st.integers(0, 2**20))
def test_outer(rows: int, num_out: int, num_in: int, extra: int, seed: int) -> None:
    check_outer(32 * rows, num_out, num_in, extra, seed)


def test_no_rows() -> None:
    assert torch.equal(outer(torch.zeros(0, 48), torch.zeros(0, 80), 64, 96), torch.zeros(48, 80))
    assert matmul(torch.zeros(0, 48), torch.ones(48, 80), 64, 96)[0].shape == (0, 80)


def test_weights_are_rounded_to_nearest() -> None:
    """Of ties, halfway between two bfloat16, and their neighbours; ones on the diagonal of A pick out B."""
    top = torch.arange(0x3F80, 0x3F80 + 256, dtype=torch.int32) << 16
    b = torch.stack([top + low for low in (0, 0x7FFF, 0x8000, 0x8001)]).view(torch.float32).reshape(32, 32)
    b[0, :3] = torch.tensor([-0.0, 3.39e38, -1.1754944e-38])  # the largest and the smallest normal number
    c, rounded = matmul(torch.eye(32), b, 32, 32)
    assert torch.equal(c, b.bfloat16().float())
    assert torch.equal(rounded, b.bfloat16())


def test_infinity_and_nan_stay_in_their_rows_and_columns() -> None:
    a, b = random((64, 48), 3), random((48, 80), 4)
    a[5, 40], a[33, 2], b[47, 70] = torch.nan, torch.inf, torch.nan
    c, rounded = matmul(a, b, 64, 96)
    expected = a.bfloat16().float() @ b.bfloat16().float()
    for out in (c, rounded):
        assert torch.equal(out.isnan(), expected.isnan())
        assert torch.equal(out.isinf(), expected.isinf())
    gradient = outer(a, random((64, 32), 5), 64, 32)
    bad = torch.zeros(48, dtype=torch.bool)
    bad[[40, 2]] = True
    assert torch.equal(gradient.isfinite().all(1), ~bad)


def test_the_same_rows_give_the_same_bits_among_others() -> None:
    """A row's result depends on nothing but the row: slices may be cut anywhere."""
    a, b = random((160, 96), 6), random((96, 112), 7)
    whole, _ = matmul(a, b, 96, 128)
    part, _ = matmul(a[64:96], b, 160, 128)
    assert torch.equal(part, whole[64:96])
