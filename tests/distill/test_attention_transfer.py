import math

import pytest
import torch
from torch import Tensor

from kdfast.distill.attention_transfer import attention_summary, attention_transfer_loss

OFFSETS = torch.tensor([0, 3, 3, 4, 8])  # a jet of 3, an empty one, one of a single constituent, one of 4


def pooling_weights(dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    counts = OFFSETS.diff().tolist()
    return torch.cat([torch.softmax(torch.randn(n, dtype=torch.float64), 0) for n in counts]).to(dtype)


def test_summary_is_entropy_and_maximum_of_each_jet() -> None:
    weights = pooling_weights()
    entropy, maximum = attention_summary(weights, OFFSETS)
    for b, (start, stop) in enumerate(zip(OFFSETS[:-1].tolist(), OFFSETS[1:].tolist(), strict=True)):
        jet = weights[start:stop].tolist()
        assert entropy[b].item() == pytest.approx(-sum(w * math.log(w) for w in jet), abs=1e-14)
        assert maximum[b].item() == max(jet, default=0.0)


def test_extremes() -> None:
    uniform, hot = torch.full((5,), 0.2, dtype=torch.float64), torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    entropy, maximum = attention_summary(torch.cat([uniform, hot]), torch.tensor([0, 5, 8]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(5), 0.0], dtype=torch.float64))
    assert maximum.tolist() == [0.2, 1.0]


def test_no_jet_has_a_constituent() -> None:
    weights = torch.zeros(0, requires_grad=True)
    entropy, maximum = attention_summary(weights, torch.zeros(4, dtype=torch.int64))
    assert entropy.tolist() == maximum.tolist() == [0.0, 0.0, 0.0]
    (entropy.sum() + maximum.sum()).backward()
    assert weights.grad is not None


def test_zero_weights_have_a_finite_gradient() -> None:
    weights = torch.tensor([0.0, 1.0, 0.0, 0.5, 0.5], requires_grad=True)
    loss = attention_transfer_loss(weights, torch.tensor([0, 3, 5]), torch.ones(2), torch.ones(2))
    loss.backward()
    assert loss.isfinite()
    assert weights.grad is not None
    assert weights.grad.isfinite().all()


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_is_the_weighted_mean_of_squared_errors(weighted: bool) -> None:
    entropy, maximum = attention_summary(pooling_weights(), OFFSETS)
    teacher_entropy, teacher_maximum = torch.rand(2, 4, dtype=torch.float64)
    w = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64) if weighted else None
    loss = attention_transfer_loss(pooling_weights(), OFFSETS, teacher_entropy, teacher_maximum, w)
    expected = sum(
        (1.0 if w is None else w[b].item())
        * ((entropy[b] - teacher_entropy[b]).item() ** 2 + (maximum[b] - teacher_maximum[b]).item() ** 2)
        for b in range(4)
    ) / (4.0 if w is None else w.sum().item())
    assert loss.item() == pytest.approx(expected, rel=1e-13)


def test_a_student_that_attends_like_the_teacher_has_no_loss() -> None:
    weights = pooling_weights(torch.float32).requires_grad_()
    loss = attention_transfer_loss(weights, OFFSETS, *attention_summary(weights, OFFSETS))
    loss.backward()
    assert loss.item() == 0.0
    assert weights.grad is not None
    assert not weights.grad.any()


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted: bool) -> None:
    teacher_entropy, teacher_maximum = torch.rand(2, 4, dtype=torch.float64)
    w = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64) if weighted else None
    assert torch.autograd.gradcheck(
        lambda p: attention_transfer_loss(p, OFFSETS, teacher_entropy, teacher_maximum, w),
        (pooling_weights().requires_grad_(),),
    )


def test_no_gradient_reaches_the_teacher() -> None:
    teacher = torch.rand(2, 4, requires_grad=True)
    weights = pooling_weights(torch.float32).requires_grad_()
    attention_transfer_loss(weights, OFFSETS, teacher[0], teacher[1]).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_summed_in_float32(dtype: torch.dtype) -> None:
    weights = pooling_weights(dtype)
    entropy, maximum = attention_summary(weights, OFFSETS)
    expected_entropy, expected_maximum = attention_summary(weights.double(), OFFSETS)
    assert entropy.dtype == maximum.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(maximum.double(), expected_maximum, rtol=0, atol=0)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_equal_largest_weights_share_the_gradient(target):
    """Whichever way it points: as the compiled kernels do."""
    weights = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    _, maximum = attention_summary(weights, torch.tensor([0, 2, 3]))
    (maximum - target).square().sum().backward()
    slope = 2 * (0.5 - target)
    assert weights.grad is not None
    assert weights.grad.tolist() == [slope / 2, slope / 2, 2 * (1 - target)]
