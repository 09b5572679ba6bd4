"""The CUDA kernels of bias_gelu: every size, tail and order of threads, all of GELU's range."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kdfast.errors import KdfastWarning
from kdfast.ops.bias_gelu import bias_gelu, bias_gelu_reference
from kdfast.ops.packed_rows import Dropout, PackedRows
from tests.ops.backends import cuda_kernels, unforced
from tests.ops.packed import (
    DTYPES,
    FEATURES,
    check_bits,
    check_features,
    check_op,
    in_flat_rows,
    jets_of,
    normal,
    sweep_rows,
    with_gradients,
)

pytestmark = pytest.mark.cuda_kernels

DROPOUT = Dropout(0.2, torch.tensor(-5))


def check(
    members: int,
    rows: PackedRows,
    features: int,
    dtype: torch.dtype = torch.float32,
    dropout: Dropout | None = DROPOUT,
    schedule: int = 0,
    scale: float = 1.0,
) -> list[Tensor]:
    shape = (members, len(rows.jet), features)
    u = (scale * normal(*shape, rows=rows)).to(dtype)
    bias = in_flat_rows(scale * normal(members, features, seed=1))
    grad = normal(*shape, dtype=dtype, seed=2, rows=rows)
    op, reference = (partial(f, rows=rows, dropout=dropout) for f in (bias_gelu, bias_gelu_reference))
    with cuda_kernels(schedule):
        case = f"K={members} M={shape[1]} rows={int(rows.count)} D={features} {dtype} {dropout} scale={scale}"
        return check_op(op, reference, [u, bias], [grad], rows, case)


@pytest.mark.parametrize("features", [*FEATURES, 1032])
def test_every_number_of_features(features: int) -> None:
    check_features(check, features)


@pytest.mark.parametrize(("features", "block"), [(8, 1024), (64, 128), (256, 32)])
def test_every_number_of_rows(features: int, block: int) -> None:
    """Around what a group, a warp and a block hold, forward and backward (which takes four times as many rows)."""
    sweep_rows(check, features, (block, 4 * block), 35_000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 5.0, 100.0])
def test_every_range_and_dropout(dtype: torch.dtype, scale: float) -> None:
    for dropout in (DROPOUT, Dropout(0.0, DROPOUT.seed), None):
        check(3, jets_of(19, padding=5), 40, dtype, dropout, scale=scale)


def test_the_far_ends_of_gelu() -> None:
    """Exact zeros and ones, no NaN, as far as numbers go."""
    u = torch.tensor([-3e38, -1e20, -20.0, -15.0, 15.0, 20.0, 1e20, 3e38]).expand(1, 1, 8).clone()
    rows = jets_of(1)
    with cuda_kernels():
        out, slope, _ = with_gradients(
            lambda u, b: bias_gelu(u, b, rows), (u, torch.zeros(1, 8)), (torch.ones_like(u),)
        )
    assert torch.equal(out, u.clamp(min=0))
    assert torch.equal(slope, (u > 0).float())


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_every_number_of_a_16_bit_type(dtype: torch.dtype) -> None:
    """The value misses by what csrc/core/gelu.h says, and rounding; the slope by rounding alone."""
    u = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1, -1, 8)
    rows = PackedRows.of_jets(u.shape[1])
    with cuda_kernels():
        value, slope, _ = with_gradients(
            lambda u, b: bias_gelu(u, b, rows), (u, torch.zeros(1, 8)), (torch.ones_like(u),)
        )
    z = u.double().requires_grad_()
    exact = torch.nn.functional.gelu(z)
    (exact_slope,) = torch.autograd.grad(exact.sum(), z)
    for actual, wanted, error in ((value, exact.detach(), 3.3e-6), (slope, exact_slope, 3e-7)):
        bound = error + torch.finfo(dtype).eps / 2 * wanted.abs() + torch.finfo(dtype).tiny
        missed = ((actual.double() - wanted).abs() - bound)[u.isfinite()]
        worst = u[u.isfinite()][missed.argmax()].item()
        assert (missed <= 0).all(), f"z = {worst}: over the bound by {missed.max().item()}"
    assert value[u == torch.inf].tolist() == [torch.inf]
    assert value[u.isnan()].isnan().all()
    assert slope[u.isnan()].isnan().all()


def test_rows_that_are_jets_and_padding_alone() -> None:
    check(2, PackedRows.of_jets(9), 32)
    check(2, jets_of(0, padding=70), 32)
    check(2, jets_of(3, padding=700), 64)


@pytest.mark.parametrize("features", [24, 264])
def test_the_same_bits_on_every_schedule_and_for_any_members(features: int) -> None:
    rows = jets_of(150, padding=9)
    shape = (3, len(rows.jet), features)
    inputs, grad = (normal(*shape, rows=rows), normal(3, features)), normal(*shape, seed=2, rows=rows)
    op = partial(bias_gelu, rows=rows, dropout=DROPOUT)
    check_bits(lambda members: with_gradients(op, [x[members] for x in inputs], [grad[members]]))


def test_what_the_kernel_lacks_goes_to_the_reference_with_a_warning() -> None:
    rows = jets_of(5)
    u, bias = normal(1, 5, 12), normal(1, 12)
    with cuda_kernels(), unforced(), pytest.warns(KdfastWarning, match="12 features"):
        out = bias_gelu(u, bias, rows)
    assert torch.equal(out, bias_gelu_reference(u, bias, rows))
