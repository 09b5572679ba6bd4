"""The CUDA kernels of batch_norm_gelu: every size and tail, numbers far off zero, running moments."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kdfast.errors import KdfastWarning
from kdfast.ops.batch_norm_gelu import batch_norm_gelu, batch_norm_gelu_reference
from kdfast.ops.packed_rows import Dropout, PackedRows
from tests.ops.accuracy import assert_accurate
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

DROPOUT = Dropout(0.2, torch.tensor(2**62))


def arguments(
    members: int, rows: PackedRows, features: int, dtype: torch.dtype, mean: float = 0.0
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """y, γ, β; the gradient; running mean and variance."""
    shape = (members, len(rows.jet), features)
    y = (normal(*shape, rows=rows) + mean).to(dtype)
    gamma = in_flat_rows(1 + 0.2 * normal(members, features, seed=1))
    beta = in_flat_rows(normal(members, features, seed=2))
    running = [in_flat_rows(mean + 0.1 * normal(members, features, seed=4))]
    running.append(in_flat_rows((0.1 * normal(members, features, seed=5)).exp()))
    return [y, gamma, beta], normal(*shape, dtype=dtype, seed=3, rows=rows), running


def check(
    members: int,
    rows: PackedRows,
    features: int,
    dtype: torch.dtype = torch.float32,
    dropout: Dropout | None = DROPOUT,
    schedule: int = 0,
    training: bool = True,
    mean: float = 0.0,
) -> list[Tensor]:
    inputs, grad, running = arguments(members, rows, features, dtype, mean)
    case = f"K={members} M={len(rows.jet)} rows={int(rows.count)} D={features} {dtype} {dropout} {training} mean={mean}"
    moved: list[list[Tensor]] = []  # by the kernels, by the reference, by it in float64

    def run(function: object, y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        assert callable(function)
        moved.append([x.to(gamma.dtype).clone(memory_format=torch.preserve_format) for x in running])
        return function(y, gamma, beta, *moved[-1], rows, dropout, training=training)

    with cuda_kernels(schedule):
        op, reference = (partial(run, f) for f in (batch_norm_gelu, batch_norm_gelu_reference))
        found = check_op(op, reference, inputs, [grad], rows, case)
    for name, *moments in zip(("mean", "variance"), *moved, strict=True):
        assert_accurate(*moments, f"{case}: running {name}")
    if not training or rows.count < 2:
        assert all(torch.equal(a, b) for a, b in zip(moved[0], running, strict=True))
    return found


@pytest.mark.parametrize("features", [*FEATURES, 1032])
def test_every_number_of_features(features: int) -> None:
    check_features(check, features)


@pytest.mark.parametrize(("features", "block"), [(8, 2048), (64, 256), (256, 64)])
def test_every_number_of_rows(features: int, block: int) -> None:
    """Around what a thread, a group, a warp and a block of the statistics hold, and many blocks."""
    sweep_rows(check, features, (block, 9 * block), 40_000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_training_evaluation_and_dropout(dtype: torch.dtype, training: bool) -> None:
    for dropout in (DROPOUT, Dropout(0.0, DROPOUT.seed), None):
        for rows in (1, 2, 19):
            check(3, jets_of(rows, padding=5), 40, dtype, dropout, training=training)


@pytest.mark.parametrize("mean", [-3.0, 100.0, 3e4])
def test_numbers_far_off_zero(mean: float) -> None:
    """A variance of 1 about them: Σ y² − (Σ y)² / n would have lost it."""
    check(2, jets_of(700, padding=9), 16, mean=mean)
    check(2, jets_of(90, padding=1), 64, mean=mean)


def test_one_row_far_from_the_others() -> None:
    rows = jets_of(300)
    inputs, grad, running = arguments(1, rows, 8, torch.float32)
    inputs[0][0, 0] = 1e6  # what a shift by the first row would be taken from
    op, reference = (
        lambda *tensors, f=f: f(*tensors, *(x.to(tensors[1].dtype).clone() for x in running), rows, training=True)
        for f in (batch_norm_gelu, batch_norm_gelu_reference)
    )
    with cuda_kernels():
        check_op(op, reference, inputs, [grad], rows, "an outlier")


def test_rows_that_are_jets_and_padding_alone() -> None:
    check(2, PackedRows.of_jets(9), 32)
    check(2, jets_of(3, padding=700), 64)
    rows = jets_of(0, padding=70)
    inputs, grad, running = arguments(2, rows, 32, torch.float32)
    before = [x.clone() for x in running]
    op = partial(batch_norm_gelu, running_mean=running[0], running_variance=running[1], rows=rows, training=True)
    with cuda_kernels():
        assert not any(found.any() for found in with_gradients(op, inputs, [grad]))
    assert all(torch.equal(a, b) for a, b in zip(running, before, strict=True))


@pytest.mark.parametrize("features", [24, 264])
def test_the_same_bits_on_every_schedule_and_for_any_members(features: int) -> None:
    rows = jets_of(150, padding=9)
    inputs, grad, running = arguments(3, rows, features, torch.bfloat16)

    def run(members: slice) -> list[Tensor]:
        moved = [x[members].clone() for x in running]
        op = partial(batch_norm_gelu, running_mean=moved[0], running_variance=moved[1], rows=rows, training=True)
        return with_gradients(op, [x[members] for x in inputs], [grad[members]]) + moved

    check_bits(run)


def test_what_the_kernel_lacks_goes_to_the_reference_with_a_warning() -> None:
    rows = jets_of(5)
    y, vector = normal(1, 5, 12), normal(1, 12)
    with cuda_kernels(), unforced(), pytest.warns(KdfastWarning, match="12 features"):
        batch_norm_gelu(y, vector, vector, vector.clone(), vector.exp(), rows, training=True)
