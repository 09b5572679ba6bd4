"""distill_loss with sums, jet by jet, and with smoothed labels: against plain PyTorch in its dtype and in float64."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdfast.ops.distill_loss import distill_loss
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import BACKENDS, chosen
from tests.ops.plain_distill_loss import make

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SETTINGS = {"temperature": [2.5, 1.0, 0.7], "alpha": [0.6, 0.0, 1.0]}
CASES = [("mean", 0.1), ("mean", 1.0), ("sum", 0.0), ("sum", 0.2), ("none", 0.0), ("none", 0.1)]


@pytest.fixture(params=BACKENDS)
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with chosen(request.param):
        yield request.param


def plain(s: Tensor, teacher: Tensor, y: Tensor, weights: Tensor | None, reduction: str, smoothing: float) -> Tensor:
    """All members' losses as one would write them, in the dtype of the logits."""
    losses = []
    for logits, T, alpha in zip(s, SETTINGS["temperature"], SETTINGS["alpha"], strict=True):
        if s.shape[-1] == 1:
            x, t = logits[:, 0], teacher[:, 0]
            p = torch.sigmoid(t / T)
            entropy = F.binary_cross_entropy_with_logits(t / T, p, reduction="none")
            kd = T * T * (F.binary_cross_entropy_with_logits(x / T, p, reduction="none") - entropy)
            smooth = y.to(x.dtype) * (1 - smoothing) + smoothing / 2
            ce = F.binary_cross_entropy_with_logits(x, smooth, reduction="none")
        else:
            log_p, log_q = F.log_softmax(teacher / T, 1), F.log_softmax(logits / T, 1)
            kd = T * T * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
            ce = F.cross_entropy(logits, y, reduction="none", label_smoothing=smoothing)
        losses.append(alpha * kd + (1 - alpha) * ce)
    loss = torch.stack(losses)
    w = torch.ones(len(y), dtype=s.dtype) if weights is None else weights.to(s.dtype)
    total = {"mean": w.sum(), "sum": 1.0}
    return w * loss if reduction == "none" else (w * loss).sum(1) / total[reduction]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 10])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("reduction", "smoothing"), CASES)
def test_accuracy(
    each_backend: str, reduction: str, smoothing: float, weighted: bool, classes: int, dtype: torch.dtype
) -> None:
    student, teacher, labels, weights = make(3, 200, classes, dtype=dtype)
    w = weights if weighted else None
    s = student.clone().requires_grad_()
    more = {"reduction": reduction, "label_smoothing": smoothing, "weights": w}
    loss, terms = distill_loss(s, teacher, labels, return_terms=True, **SETTINGS, **more)
    incoming = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    (grad,) = torch.autograd.grad(loss, s, incoming)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss.shape == ((3, 200) if reduction == "none" else (3,))
    assert grad.dtype == dtype
    a = torch.tensor(SETTINGS["alpha"], dtype=loss.dtype).reshape(3, *[1] * (loss.dim() - 1))
    torch.testing.assert_close(a * terms[..., 0] + (1 - a) * terms[..., 1], loss.detach(), rtol=1e-6, atol=1e-6)
    assert not terms.requires_grad

    def expected(kind: torch.dtype) -> tuple[Tensor, Tensor]:
        x = student.to(kind).requires_grad_()
        found = plain(x, teacher.to(kind), labels, w, reduction, smoothing)
        return found.detach(), torch.autograd.grad(found, x, incoming.to(kind))[0]

    exact = expected(torch.float64)
    if dtype == torch.float64:
        torch.testing.assert_close((loss.detach(), grad), exact, rtol=1e-11, atol=1e-11)
        return
    standard = expected(dtype)
    case = f"{reduction} smoothing={smoothing} C={classes} {dtype} weighted={weighted}"
    assert_accurate(loss, standard[0], exact[0], f"loss, {case}")
    assert_accurate(grad, standard[1], exact[1], f"grad, {case}")


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize(("reduction", "smoothing"), CASES)
def test_gradcheck(each_backend: str, reduction: str, smoothing: float, members: int | None, classes: int) -> None:
    student, teacher, labels, weights = make(members, 4, classes, dtype=torch.float64)
    settings = SETTINGS if members else {"temperature": 2.5, "alpha": 0.6}
    more = {"reduction": reduction, "label_smoothing": smoothing, "weights": weights}
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: distill_loss(s, teacher, labels, **settings, **more), (student,))


def test_the_parts_are_what_they_are_for_one_jet(each_backend: str) -> None:
    """Of one jet of weight 1 mean, sum and none are the same."""
    student, teacher, labels, _ = make(3, 1, 3)
    mean, total, alone = (
        distill_loss(student, teacher, labels, reduction=reduction, **SETTINGS) for reduction in ("mean", "sum", "none")
    )
    torch.testing.assert_close(total, mean)
    torch.testing.assert_close(alone[:, 0], mean)
    assert distill_loss(student[0], teacher, labels, temperature=1.0, alpha=0.5, reduction="none").shape == (1,)


@pytest.mark.parametrize("teacher", [None, float("nan")])
@pytest.mark.parametrize(("reduction", "smoothing"), CASES)
def test_without_kd_the_teacher_is_not_read(
    each_backend: str, reduction: str, smoothing: float, teacher: float | None
) -> None:
    student, logits, labels, _ = make(2, 20, 3)
    missing = None if teacher is None else torch.full_like(logits, teacher)
    s = student.requires_grad_()
    settings = {"temperature": 3.0, "alpha": 0.0, "reduction": reduction, "label_smoothing": smoothing}
    loss = distill_loss(s, missing, labels, **settings)
    torch.testing.assert_close(loss, distill_loss(s, logits, labels, **settings), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(loss.sum(), s)
    assert grad.isfinite().all()


def test_soft_labels_are_smoothed_too(each_backend: str) -> None:
    student, teacher, _, weights = make(2, 30, 1)
    soft = torch.rand(30, generator=torch.Generator().manual_seed(1))
    settings = {"temperature": 2.0, "alpha": 0.3, "weights": weights}
    smoothed = distill_loss(student, teacher, soft, label_smoothing=0.2, **settings)
    expected = distill_loss(student, teacher, 0.8 * soft + 0.1, **settings)
    torch.testing.assert_close(smoothed, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("reduction", "smoothing"), CASES)
@pytest.mark.parametrize("classes", [1, 3])
def test_torch_compile_traces_it(each_backend: str, classes: int, reduction: str, smoothing: float) -> None:
    torch._dynamo.reset()  # each case is a graph of its own: else their number is limited
    student, teacher, labels, weights = make(2, 50, classes)

    def step(s: Tensor) -> Tensor:
        settings = {"reduction": reduction, "label_smoothing": smoothing, "weights": weights}
        return distill_loss(2 * s, teacher, labels, temperature=3.0, alpha=[0.5, 0.1], **settings).sum()

    s, s2 = student.clone().requires_grad_(), student.clone().requires_grad_()
    torch.compile(step, backend="aot_eager", fullgraph=True)(s).backward()
    step(s2).backward()
    torch.testing.assert_close(s.grad, s2.grad)
