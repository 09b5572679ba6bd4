"""distill_loss against eager PyTorch: the raw op (loss and gradient), through autograd, and for 132 members at once."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ratio import compare
from kdfast.ops import distill_loss

T, ALPHA = 3.0, 0.5
SIZES = [(jets, classes) for jets in (512, 4096) for classes in (1, 2, 10)]
IDS = [f"B={jets}, C={classes}" for jets, classes in SIZES]


def make(members: int, jets: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    student = 2 * torch.randn(members, jets, classes, generator=rng)
    teacher = 3 * torch.randn(jets, classes, generator=rng)
    labels = torch.randint(0, max(2, classes), (jets,), generator=rng)
    return student, teacher, labels.float() if classes == 1 else labels


def eager(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """As one writes it. For one logit the teacher's entropy, which has no gradient, is left out: that is cheaper."""
    if student.shape[1] == 1:
        s = student.squeeze(1)
        kd = F.binary_cross_entropy_with_logits(s / T, torch.sigmoid(teacher.squeeze(1) / T))
        return ALPHA * T * T * kd + (1 - ALPHA) * F.binary_cross_entropy_with_logits(s, labels)
    kd = F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1), reduction="batchmean")
    return ALPHA * T * T * kd + (1 - ALPHA) * F.cross_entropy(student, labels)


def eager_at_once(student: Tensor, teacher: Tensor, labels: Tensor, t: Tensor, a: Tensor) -> Tensor:
    """[K]: the members' losses in one expression on [K, B, C] by broadcasting, each with its own T and α [K]. The same
    is left out as by `eager`."""
    wide = t[:, None, None]
    if student.shape[2] == 1:
        soft = torch.sigmoid(teacher / wide)
        kd = F.binary_cross_entropy_with_logits(student / wide, soft, reduction="none").mean((1, 2))
        own = labels.expand(len(student), -1)
        hard = F.binary_cross_entropy_with_logits(student[..., 0], own, reduction="none").mean(1)
    else:
        soft = F.softmax(teacher / wide, 2)
        kd = F.kl_div(F.log_softmax(student / wide, 2), soft, reduction="none").sum(2).mean(1)
        own = labels.expand(len(student), -1)
        hard = F.cross_entropy(student.transpose(1, 2), own, reduction="none").mean(1)
    return a * t * t * kd + (1 - a) * hard


def forward_backward(loss: Callable[[Tensor], Tensor], student: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    leaf = student.clone().requires_grad_()

    def call() -> tuple[Tensor, Tensor]:
        leaf.grad = None
        value = loss(leaf)
        value.backward()
        assert leaf.grad is not None
        return value.detach(), leaf.grad

    return call


def eager_members(student: Tensor, teacher: Tensor, labels: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Member after member, as one does without an op that takes them all: (loss [K], grad [K, B, C])."""
    calls = [forward_backward(lambda s: eager(s, teacher, labels), s) for s in student]

    def call() -> tuple[Tensor, Tensor]:
        results = [c() for c in calls]
        return torch.stack([loss for loss, _ in results]), torch.stack([grad for _, grad in results])

    return calls[0] if len(calls) == 1 else call


def same_as_eager(teacher: Tensor) -> Callable[[tuple[Tensor, ...], tuple[Tensor, Tensor]], None]:
    left_out = 0.0  # the teacher's entropy, see eager
    if teacher.shape[1] == 1:
        p = torch.sigmoid(teacher / T)
        left_out = ALPHA * T * T * F.binary_cross_entropy(p, p).item()

    def check(ours: tuple[Tensor, ...], plain: tuple[Tensor, Tensor]) -> None:
        (loss, grad, *_), (plain_loss, plain_grad) = ours, plain
        torch.testing.assert_close(loss.reshape(plain_loss.shape), plain_loss - left_out, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(grad.reshape(plain_grad.shape), plain_grad, rtol=1e-4, atol=1e-7)

    return check


@pytest.mark.parametrize(("jets", "classes"), SIZES, ids=IDS)
def test_distill_loss_raw(benchmark: object, jets: int, classes: int) -> None:
    student, teacher, labels = make(1, jets, classes)
    t, a = torch.tensor([T], dtype=torch.float64), torch.tensor([ALPHA], dtype=torch.float64)
    if classes == 1:
        labels = labels.float()
    op = torch.ops.kdfast.distill_loss.default
    goals = {"floor": 5.0, "aim": 10.0} if jets == 512 and classes <= 2 else {}
    compare(
        benchmark,
        lambda: op(student, teacher, labels, t, a),
        eager_members(student, teacher, labels),
        check=same_as_eager(teacher),
        baseline="eager forward + backward",
        **goals,
    )


@pytest.mark.parametrize(("jets", "classes"), SIZES, ids=IDS)
def test_distill_loss_autograd(benchmark: object, jets: int, classes: int) -> None:
    student, teacher, labels = make(1, jets, classes)
    goals = {"floor": 3.0, "aim": 4.0} if jets == 512 and classes <= 2 else {}
    compare(
        benchmark,
        forward_backward(lambda s: distill_loss(s, teacher, labels, temperature=T, alpha=ALPHA), student[0]),
        eager_members(student, teacher, labels),
        check=same_as_eager(teacher),
        baseline="eager forward + backward",
        **goals,
    )


@pytest.mark.parametrize("classes", [1, 2], ids=lambda classes: f"B=512, C={classes}")
def test_distill_loss_registered(benchmark: object, classes: int) -> None:
    """By the registered op's own autograd, which traced calls go through."""
    student, teacher, labels = make(1, 512, classes)
    t, a = torch.tensor([T], dtype=torch.float64), torch.tensor([ALPHA], dtype=torch.float64)
    op = torch.ops.kdfast.distill_loss.default
    compare(
        benchmark,
        forward_backward(lambda s: op(s, teacher, labels, t, a)[0], student[0]),
        eager_members(student, teacher, labels),
        check=same_as_eager(teacher),
        baseline="eager forward + backward",
    )


@pytest.mark.parametrize(("jets", "classes"), SIZES, ids=IDS)
def test_distill_loss_132_members(benchmark: object, jets: int, classes: int) -> None:
    student, teacher, labels = make(132, jets, classes)
    t, a = torch.full((132,), T, dtype=torch.float64), torch.full((132,), ALPHA, dtype=torch.float64)
    op = torch.ops.kdfast.distill_loss.default
    goals = {"floor": 50.0, "aim": 100.0} if jets == 512 and classes <= 2 else {}
    compare(
        benchmark,
        lambda: op(student, teacher, labels, t, a),
        eager_members(student, teacher, labels),
        check=same_as_eager(teacher),
        baseline="132 × eager forward + backward",
        **goals,
    )


@pytest.mark.parametrize("baseline", ["eager", "torch.compile"])
@pytest.mark.parametrize(("jets", "classes"), SIZES, ids=IDS)
def test_distill_loss_132_at_once(benchmark: object, jets: int, classes: int, baseline: str) -> None:
    """Against the other way to write 132 members without an op of their own."""
    student, teacher, labels = make(132, jets, classes)
    t, a = torch.full((132,), T), torch.full((132,), ALPHA)
    op = torch.ops.kdfast.distill_loss.default
    settings = t.double(), a.double()
    loss: Any = eager_at_once
    if baseline == "torch.compile":
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            pytest.skip("torch.compile needs a C++ compiler")
        loss = torch.compile(eager_at_once)
    leaf = student.clone().requires_grad_()

    def plain() -> tuple[Tensor, Tensor]:
        values = loss(leaf, teacher, labels, t, a)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    compare(
        benchmark,
        lambda: op(student, teacher, labels, *settings),
        plain,
        check=same_as_eager(teacher),
        baseline=f"all 132 in one expression, {baseline}, forward + backward",
    )
