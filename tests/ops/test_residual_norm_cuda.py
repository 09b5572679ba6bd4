"""The CUDA kernels of residual_norm: every size, variant, tail and order of threads."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kdfast.errors import KdfastWarning
from kdfast.ops.packed_rows import Dropout, PackedRows
from kdfast.ops.residual_norm import residual_norm, residual_norm_reference
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

DROPOUT = Dropout(0.3, torch.tensor(987654321))


def arguments(
    members: int, rows: PackedRows, features: int, dtype: torch.dtype, y: bool = True, norm: bool = True, seed: int = 0
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """x, y, bias, γ, β, and the gradients of x' and n. The rows of x lie off zero, where variance asks for care."""
    shape = (members, len(rows.jet), features)
    inputs: list[Tensor | None] = [
        normal(*shape, seed=seed, rows=rows) + 20,
        normal(*shape, dtype=dtype, seed=seed + 1, rows=rows) if y else None,
        in_flat_rows(normal(members, features, seed=seed + 2)) if y else None,
        in_flat_rows(1 + 0.2 * normal(members, features, seed=seed + 3)) if norm else None,
        in_flat_rows(normal(members, features, seed=seed + 4)) if norm else None,
    ]
    # Without a norm the second result is the first one, of its type.
    grad_norm = normal(*shape, dtype=dtype if norm else torch.float32, seed=seed + 6, rows=rows)
    return inputs, [normal(*shape, seed=seed + 5, rows=rows), grad_norm]


def check(
    members: int,
    rows: PackedRows,
    features: int,
    dtype: torch.dtype = torch.float32,
    dropout: Dropout | None = DROPOUT,
    schedule: int = 0,
    **which: bool,
) -> list[Tensor]:
    inputs, grads = arguments(members, rows, features, dtype, seed=features, **which)

    def reference(x: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
        return residual_norm_reference(x, *others, rows, dropout, None if x.dtype == torch.float64 else dtype)

    op = partial(residual_norm, rows=rows, dropout=dropout, dtype=dtype)
    with cuda_kernels(schedule):
        case = f"K={members} M={len(rows.jet)} rows={int(rows.count)} D={features} {dtype} {dropout} {which}"
        return check_op(op, reference, inputs, grads, rows, case)


@pytest.mark.parametrize("features", [*FEATURES, 768, 1016, 1024])
def test_every_number_of_features(features: int) -> None:
    check_features(check, features)


@pytest.mark.parametrize(("features", "block"), [(8, 1024), (64, 128), (256, 32), (1024, 32)])
def test_every_number_of_rows(features: int, block: int) -> None:
    """Around what a group, a warp and a block hold, forward and backward (which takes twice as many rows)."""
    sweep_rows(check, features, (block, 2 * block), 20_000)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("y", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_every_variant(dtype: torch.dtype, y: bool, norm: bool) -> None:
    for features in (40, 264):
        for dropout in (DROPOUT, Dropout(0.0, DROPOUT.seed), None):
            check(3, jets_of(19, padding=5), features, dtype, dropout, y=y, norm=norm)


def test_rows_that_are_jets_and_padding_alone() -> None:
    check(2, PackedRows.of_jets(9), 32)
    check(2, jets_of(0, padding=70), 32)
    check(2, jets_of(3, padding=700), 64)


@pytest.mark.parametrize("used", [0, 1])
def test_a_result_that_nobody_uses(used: int) -> None:
    rows = jets_of(9, padding=2)
    inputs, grads = arguments(2, rows, 48, torch.float32)
    grads[1 - used] = None
    op, reference = (partial(f, rows=rows, dropout=DROPOUT) for f in (residual_norm, residual_norm_reference))
    with cuda_kernels():
        check_op(op, reference, inputs, grads, rows, f"gradient of result {used} alone")


@pytest.mark.parametrize("features", [24, 264, 600])
def test_the_same_bits_on_every_schedule_and_for_any_members(features: int) -> None:
    rows = jets_of(150, padding=9)
    inputs, grads = arguments(3, rows, features, torch.bfloat16)
    op = partial(residual_norm, rows=rows, dropout=DROPOUT, dtype=torch.bfloat16)
    check_bits(
        lambda members: with_gradients(op, *([x[members] for x in xs if x is not None] for xs in (inputs, grads)))
    )


def test_what_the_kernel_lacks_goes_to_the_reference_with_a_warning() -> None:
    rows = jets_of(5)
    x = normal(1, 5, 12)
    with cuda_kernels(), unforced(), pytest.warns(KdfastWarning, match="12 features"):
        total, _ = residual_norm(x, None, None, None, None, rows)
    assert torch.equal(total, x)
