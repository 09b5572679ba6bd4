"""The attention-transfer term of many members: its reference against one jet at a time, its kernel against both."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast.distill.attention_transfer import attention_transfer_loss
from kdfast.ops.attention_transfer import attention_transfer, attention_transfer_reference
from kdfast.ops.packed_rows import PackedRows
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import BACKENDS, chosen, cuda_kernels
from tests.ops.packed import rows_of, spoiled

Case = tuple[PackedRows, Tensor, Tensor, Tensor, Tensor]


def make(counts: Sequence[int], members: int = 2, seed: int = 0, padding: int = 5) -> Case:
    """(rows, attention, entropy, maximum, weights): a softmax over each jet, some of its weights exactly 0."""
    rows, generator = rows_of(counts, padding), torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(members, len(rows.jet), generator=generator)
    scores[torch.rand(scores.shape, generator=generator) < 0.1] = -1e4
    parts = [part.softmax(1) for part in scores[:, : int(rows.count)].split(list(counts), 1)]
    attention = torch.cat([*parts, torch.zeros(members, padding)], 1)
    entropy, maximum = 2 * torch.rand(len(counts), generator=generator), torch.rand(len(counts), generator=generator)
    return rows, attention, entropy, maximum, torch.rand(len(counts), generator=generator) + 0.1


def both(function, case: Case) -> tuple[Tensor, Tensor]:
    """(loss, gradient by attention), each member's weighed differently."""
    rows, attention, *targets = case
    attention = attention.clone().requires_grad_()
    loss = function(attention, rows, *targets)
    loss.backward(torch.linspace(1, 2, len(attention), dtype=loss.dtype))
    assert attention.grad is not None
    return loss.detach(), attention.grad


def exact(case: Case) -> Case:
    rows, *tensors = case
    return (rows, *(x.double() for x in tensors))


def check(case: Case, name: str) -> None:
    rows, attention, *targets = case
    plain, double = both(attention_transfer_reference, case), both(attention_transfer_reference, exact(case))
    ours = both(attention_transfer, (rows, spoiled(attention, rows), *targets))
    for what, *results in zip(("loss", "gradient"), ours, plain, double, strict=True):
        assert_accurate(*results, f"{what}: {name}")
    assert not ours[1][:, int(rows.count) :].any()


def test_the_reference_is_the_term_of_each_member() -> None:
    rows, attention, *targets = exact(make([3, 0, 1, 40, 2], 3))
    loss, gradient = both(attention_transfer_reference, (rows, attention, *targets))
    for k, own in enumerate(attention[:, : int(rows.count)]):
        alone = own.clone().requires_grad_()
        expected = attention_transfer_loss(alone, rows.offsets, *targets)
        expected.backward(torch.linspace(1, 2, 3, dtype=torch.float64)[k])
        torch.testing.assert_close(loss[k], expected.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient[k, : int(rows.count)], alone.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 70), min_size=1, max_size=40),
    members=st.integers(4, 8),  # of a single loss PyTorch's error is chance
    padding=st.integers(0, 40),
    seed=st.integers(0, 1000),
)
def test_is_as_accurate_as_pytorch(name: str, counts: list[int], members: int, padding: int, seed: int) -> None:
    if sum(counts) + padding == 0:
        padding = 1
    with chosen(name):
        check(make(counts, members, seed, padding), f"K={members} {counts=} {padding=} {seed=}")


@pytest.mark.cuda_kernels
def test_every_number_of_constituents_jets_and_rows_of_padding() -> None:
    with cuda_kernels(1):
        for n in range(1, 67):
            check(make([n, 200, n], seed=n), f"{n} constituents")
        for jets in range(1, 36):
            check(make([2] * jets, seed=jets), f"{jets} jets")
        for padding in (0, 1, 127, 128, 129, 300):
            check(make([3, 4], seed=padding, padding=padding), f"{padding} rows of padding")


@pytest.mark.parametrize("name", BACKENDS)
def test_equal_weights_share_the_gradient_of_the_maximum(name: str) -> None:
    rows = rows_of([4, 1, 2], 0)
    attention = torch.tensor([[0.4, 0.4, 0.1, 0.1, 1.0, 0.5, 0.5]])
    with chosen(name):
        check((rows, attention, torch.zeros(3), torch.zeros(3), torch.ones(3)), "ties")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_member_that_is_not_finite_leaves_the_others_alone(name: str) -> None:
    rows, attention, *targets = make([5, 9, 0, 30], 3)
    attention[1, 7] = torch.nan
    with chosen(name):
        loss, gradient = both(attention_transfer, (rows, attention, *targets))
    expected = both(attention_transfer_reference, (rows, attention[[0, 2]], *targets))[0]
    assert loss.isfinite().tolist() == [True, False, True]
    torch.testing.assert_close(loss[[0, 2]], expected)
    assert gradient[[0, 2]].isfinite().all()


@pytest.mark.cuda_kernels
def test_the_same_bits_on_every_schedule_and_for_any_members() -> None:
    rows, attention, *targets = make([17, 0, 33, 200] * 9, 3)
    results = []
    for seed in range(5):
        with cuda_kernels(seed):
            results.append(both(attention_transfer, (rows, attention, *targets)))
    with cuda_kernels():
        alone = attention_transfer(attention[1:2], rows, *targets)
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))
    assert torch.equal(results[0][0][1:2], alone)
