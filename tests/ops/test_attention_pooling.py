"""Pooling of many members: its reference against one jet at a time, its kernels against both."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast.errors import BackendError, KdfastWarning
from kdfast.ops.attention_pooling import attention_pooling, attention_pooling_reference
from kdfast.ops.packed_rows import Dropout, PackedRows
from kdfast.ops.philox import dropout_keep, dropout_scale
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import BACKENDS, chosen, cuda_kernels, unforced
from tests.ops.packed import rows_of, spoiled

RESULTS = ("pooled", "kept", "attention", "gradient of x", "gradient of the direction")


def make(
    counts: Sequence[int], members: int = 2, heads: int = 4, width: int = 16, *, seed: int = 0, padding: int = 5
) -> tuple[PackedRows, Tensor, Tensor]:
    """(rows, x, direction), with scores of the size of two."""
    rows, generator = rows_of(counts, padding), torch.Generator().manual_seed(seed)
    x = torch.randn(members, len(rows.jet), width, generator=generator)
    return rows, x, 2 * torch.randn(members, heads, width, generator=generator) / width**0.5


def drops(p: float = 0.3, seed: int = 1234567890123) -> Dropout:
    return Dropout(p, torch.tensor(seed))


def derived(
    function,
    rows: PackedRows,
    x: Tensor,
    direction: Tensor,
    dropout: Dropout | None,
    outputs: Sequence[int] = (0, 1, 2),
) -> list[Tensor]:
    """The three results, and the gradients of x and direction through those of `outputs`, each element weighed."""
    x, direction = x.clone().requires_grad_(), direction.clone().requires_grad_()
    results = function(x, direction, rows, dropout)
    loss, generator = x.new_zeros(()), torch.Generator().manual_seed(7)
    for number, result in enumerate(results):
        factor = torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)
        if number in outputs:
            valid = rows.valid if number == 2 else torch.ones((), dtype=torch.bool)
            loss = loss + torch.where(valid, result * factor, 0).sum()
    return [r.detach() for r in results] + list(torch.autograd.grad(loss, (x, direction)))


def check(
    rows: PackedRows,
    x: Tensor,
    direction: Tensor,
    dropout: Dropout | None,
    name: str,
    outputs: Sequence[int] = (0, 1, 2),
) -> None:
    plain = derived(attention_pooling_reference, rows, x, direction, dropout, outputs)
    exact = derived(attention_pooling_reference, rows, x.double(), direction.double(), dropout, outputs)
    ours = derived(attention_pooling, rows, spoiled(x, rows), direction, dropout, outputs)
    for what, *results in zip(RESULTS, ours, plain, exact, strict=True):
        assert_accurate(*results, f"{what}: {name}")
    for padded in (ours[2], ours[3]):
        assert not padded[:, int(rows.count) :].any()


def test_the_reference_pools_each_jet() -> None:
    rows, x, direction = make([3, 0, 1, 7], 2, 3)
    x, direction = x.double(), direction.double()
    pooled, kept, attention = attention_pooling_reference(x, direction, rows, drops())
    for b, (begin, end) in enumerate(zip(rows.offsets[:-1], rows.offsets[1:], strict=True)):
        own = x[:, begin:end]
        weights = torch.softmax(own @ direction.transpose(1, 2), 1)
        keep = dropout_keep(1234567890123, 0.3, torch.tensor(b), torch.tensor(0), torch.arange(end - begin), 3)
        dropped = weights * keep * dropout_scale(0.3)
        torch.testing.assert_close(pooled[:, b], dropped.transpose(1, 2) @ own)
        torch.testing.assert_close(kept[:, b], dropped.sum(1))
        torch.testing.assert_close(attention[:, begin:end], weights.mean(2))
    assert not attention[:, rows.count :].any()


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=15, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=20),
    members=st.integers(1, 3),
    heads=st.integers(1, 8),
    width=st.sampled_from([2, 8, 16, 30, 32, 48, 64, 100, 128]),
    p=st.sampled_from([0.0, 0.1, 0.9]),
    padding=st.integers(0, 20),
    seed=st.integers(0, 1000),
)
def test_is_as_accurate_as_pytorch(
    name: str, counts: list[int], members: int, heads: int, width: int, p: float, padding: int, seed: int
) -> None:
    if sum(counts) + padding == 0:
        padding = 1
    case = f"K={members} H={heads} D={width} {p=} {counts=} {padding=} {seed=}"
    with chosen(name):
        arrays = make(counts, members, heads, width, seed=seed, padding=padding)
        check(*arrays, drops(p, seed), case)


@pytest.mark.cuda_kernels
@pytest.mark.parametrize(
    ("heads", "width"), [(1, 6), (4, 32), (2, 64), (4, 128), (3, 256), (8, 32), (5, 64), (8, 128), (4, 196)]
)
def test_every_kernel(heads: int, width: int) -> None:
    for seed, dropout in enumerate((None, drops())):
        with cuda_kernels(seed):
            check(*make([9, 0, 40, 1, 4], heads=heads, width=width), dropout, f"H={heads} D={width} {dropout}")


@pytest.mark.cuda_kernels
def test_every_number_of_constituents_and_jets() -> None:
    with cuda_kernels(1):
        for n in range(1, 35):
            check(*make([n, 1, n + 1], seed=n), drops(seed=n), f"{n} constituents")
        for jets in range(1, 36):
            check(*make([2] * jets, 16 // jets or 1, seed=jets), drops(), f"{jets} jets")
        check(*make([200, 199], 1), drops(), "200 constituents")
        for padding in (0, 1, 127, 128, 129, 300):
            check(*make([3, 4], padding=padding), drops(), f"{padding} rows of padding")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("outputs", [(0,), (1,), (2,), (0, 2)])
def test_gradients_through_each_result(name: str, outputs: tuple[int, ...]) -> None:
    with chosen(name):
        check(*make([5, 0, 12, 3]), drops(), f"through {outputs}", outputs)


@pytest.mark.parametrize("name", BACKENDS)
def test_scores_of_any_size(name: str) -> None:
    """Softmax subtracts the maximum, which comes first, last and in the middle of a jet."""
    rows, x, direction = make([20, 20, 20], 1, 1, 2)
    x[..., 0], direction[..., 1] = torch.linspace(-80, 80, 65), 0.0
    direction[..., 0] = 1.0
    x[:, 25] = 300.0
    for sign in (1, -1):
        with chosen(name):
            check(rows, x, sign * direction, None, f"large scores × {sign}")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_member_that_is_not_finite_leaves_the_others_alone(name: str) -> None:
    rows, x, direction = make([5, 9, 0, 30], 3)
    x[1, 7, 0] = torch.nan
    with chosen(name):
        together = derived(attention_pooling, rows, x, direction, drops())
        alone = [attention_pooling(x[k : k + 1], direction[k : k + 1], rows, drops()) for k in (0, 2)]
    for number, result in enumerate(together[:3]):
        assert [bool(member.isfinite().all()) for member in result] == [True, False, True]
        torch.testing.assert_close(result[[0, 2]], torch.cat([one[number] for one in alone]), rtol=1e-6, atol=1e-6)
    assert together[3][[0, 2]].isfinite().all()
    assert together[4][[0, 2]].isfinite().all()


@pytest.mark.cuda_kernels
def test_the_same_bits_on_every_schedule_and_for_any_members() -> None:
    rows, x, direction = make([17, 0, 33, 5] * 9, 2)
    results = []
    for seed in range(4):
        with cuda_kernels(seed):
            results.append(derived(attention_pooling, rows, x, direction, drops()))
    with cuda_kernels():
        alone = attention_pooling(x[1:], direction[1:], rows, drops())
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))
    assert all(torch.equal(a[1:], b) for a, b in zip(results[0][:3], alone, strict=True))


@pytest.mark.cuda_kernels
def test_sizes_without_a_kernel_take_the_reference() -> None:
    for heads, width, named in ((9, 32, "9 heads of width 32"), (4, 512, "4 heads"), (8, 256, "8 heads")):
        rows, x, direction = make([3], heads=heads, width=width)
        with cuda_kernels(), pytest.raises(BackendError, match=f"no kernel is made for {named}"):
            attention_pooling(x, direction, rows)
        with cuda_kernels(), unforced(), pytest.warns(KdfastWarning, match=f"no kernel is made for {named}"):
            pooled, _, _ = attention_pooling(x, direction, rows)
        assert torch.equal(pooled, attention_pooling_reference(x, direction, rows)[0])
