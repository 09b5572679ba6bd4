"""distill_loss: every backend against plain PyTorch in the same dtype and in float64, and mpmath where KL is tiny."""

import math
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kdfast
from kdfast.errors import BackendError, KdfastWarning
from kdfast.ops import backend
from kdfast.ops.distill_loss import distill_loss
from kdfast.ops.distill_loss_reference import LossInputs, distill_loss_reference
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import BACKENDS, chosen
from tests.ops.plain_distill_loss import exact_with_grad, make, plain_with_grad

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=BACKENDS)
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with chosen(request.param):
        yield request.param


def check_accuracy(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: list[float],
    alpha: list[float],
    weights: Tensor | None,
    case: str,
    grad_loss: Tensor | None = None,
) -> None:
    """Loss [K] and grad [K, B, C] through autograd, held to the accuracy rule."""
    grad_loss = torch.ones(len(student)) if grad_loss is None else grad_loss
    s = student.detach().clone().requires_grad_()
    loss = distill_loss(s, teacher, labels, temperature=temperature, alpha=alpha, weights=weights)
    (grad,) = torch.autograd.grad(loss, s, grad_loss.to(loss.dtype))
    assert loss.dtype == (torch.float64 if s.dtype == torch.float64 else torch.float32)
    assert grad.dtype == s.dtype
    standard = plain_with_grad(s, teacher.to(s.dtype), labels, temperature, alpha, weights, grad_loss)
    exact = exact_with_grad(s, teacher, labels, temperature, alpha, weights, grad_loss)
    if s.dtype == torch.float64:  # the rule needs something more exact than what it judges
        torch.testing.assert_close((loss, grad), exact, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(standard, exact, rtol=1e-10, atol=1e-10)
    else:
        assert_accurate(loss, standard[0], exact[0], f"loss, {case}")
        assert_accurate(grad, standard[1], exact[1], f"grad, {case}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("members", "jets", "classes"),
    [
        *[(1, 1, 1), (1, 512, 1), (4, 37, 1), (2, 5000, 1), (0, 8, 1)],
        *[(1, 1, 2), (1, 512, 2), (4, 37, 2)],
        *[(3, 16, 3), (2, 100, 10), (1, 5000, 10), (2, 33, 128)],
    ],
)
def test_accuracy(each_backend: str, members: int, jets: int, classes: int, weighted: bool, dtype: torch.dtype) -> None:
    if members == 0:
        student, teacher, labels, _ = make(0, jets, classes, dtype=dtype)
        assert distill_loss(student, teacher, labels, temperature=1.0, alpha=0.5).shape == (0,)
        return
    student, teacher, labels, weights = make(members, jets, classes, dtype=dtype)
    temperature, alpha = [3.0, 1.0, 0.7, 10.0][:members], [0.5, 0.9, 1.0, 0.0][:members]
    case = f"K={members} B={jets} C={classes} {dtype} weighted={weighted}"
    check_accuracy(student, teacher, labels, temperature, alpha, weights if weighted else None, case)


@pytest.mark.skipif(backend.why_no_cpu is not None, reason=str(backend.why_no_cpu))
def test_more_classes_than_the_kernel_takes_run_the_reference() -> None:
    student, teacher = torch.randn(2, 9, 129, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9)

    def loss() -> Tensor:
        return distill_loss(student, teacher, labels, temperature=2.0, alpha=0.5)

    backend._warned.clear()
    with pytest.warns(KdfastWarning, match="runs its PyTorch reference.* 129 classes"):
        by_itself = loss()
    with kdfast.backend("reference"):
        assert torch.equal(by_itself, loss())
    with kdfast.backend("cpu"), pytest.raises(BackendError, match="'cpu' can't run it: 129 classes are more than"):
        loss()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 20.0, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 4e3])
def test_accuracy_from_cold_to_hot(
    each_backend: str, temperature: float, scale: float, classes: int, dtype: torch.dtype
) -> None:
    student, teacher, labels, weights = make(2, 64, classes, dtype=dtype, scale=scale, seed=3)
    case = f"T={temperature} scale={scale} C={classes} {dtype}"
    check_accuracy(student, teacher, labels, [temperature] * 2, [0.5, 1.0], weights, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
def test_finite_at_the_extremes(each_backend: str, temperature: float, classes: int, dtype: torch.dtype) -> None:
    levels = torch.tensor([-1e4, -100.0, -88.0, -1.0, 0.0, 1.0, 88.0, 100.0, 1e4])
    rows = torch.cartesian_prod(*[levels] * min(classes, 2))
    rows = rows.reshape(-1, min(classes, 2))
    rows = F.pad(rows, (0, classes - rows.shape[1]))
    n = len(rows)
    student = rows.repeat_interleave(n, 0).to(dtype).requires_grad_()
    teacher = rows.repeat(n, 1).to(dtype)
    labels = torch.arange(n * n) % max(classes, 2)
    loss = distill_loss(student, teacher, labels, temperature=temperature, alpha=0.5)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    t, a = torch.tensor([[temperature], [0.5]], dtype=torch.float64)
    exact = distill_loss_reference(student.detach().double(), LossInputs(teacher.double(), labels, t, a, None))[0]
    assert_accurate(loss, exact.to(loss.dtype), exact)  # to a unit in the last place


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("label", [0, 1])
def test_accuracy_of_zeros_and_ties(each_backend: str, label: int, classes: int) -> None:
    levels = torch.tensor([-2.5, -1.0, -0.0, 0.0, 1.0, 2.5])
    rows = torch.cartesian_prod(*[levels] * classes).reshape(-1, classes)
    student = torch.stack([rows, rows.flip(0)])
    labels = torch.full((len(rows),), label)
    check_accuracy(student, rows.roll(7, 0), labels, [1.0, 2.0], [0.0, 0.5], None, f"C={classes} label={label}")


@pytest.mark.parametrize("classes", [1, 2, 3, 10])
@pytest.mark.parametrize("temperature", [1.0, 100.0])
@pytest.mark.parametrize("gap", [1e-6, 1e-4, 1e-2, 0.3])
def test_a_student_close_to_its_teacher_keeps_its_digits(
    each_backend: str, gap: float, temperature: float, classes: int
) -> None:
    """KL is of second order in the gap: the difference of cross-entropies has no digit left where it is 1e-4."""
    _, teacher, labels, _ = make(None, 40, classes, seed=5)
    student = (teacher + gap * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(6))).requires_grad_()
    loss, terms = distill_loss(student, teacher, labels, temperature=temperature, alpha=1.0, return_terms=True)
    loss.backward()
    with mpmath.workdps(60):
        total, grads = mpmath.mpf(0), []
        for rows in zip(student.tolist(), teacher.tolist(), strict=True):
            s, t = ([mpmath.mpf(x) / temperature for x in ([0.0, *row] if classes == 1 else row)] for row in rows)
            q_sum, p_sum = sum(map(mpmath.exp, s)), sum(map(mpmath.exp, t))
            q, p = [mpmath.exp(x) / q_sum for x in s], [mpmath.exp(x) / p_sum for x in t]
            total += temperature**2 * sum(b * mpmath.log(b / a) for a, b in zip(q, p, strict=True))
            grads.append([float(temperature * (a - b) / 40) for a, b in zip(q, p, strict=True)][-classes:])
        expected = float(total / 40)
    # The reference computes in float64 by differences; the kernel may not do worse than float32 can.
    tolerance = 1e-6 if each_backend != "reference" else 1e-6 + 1e-15 * temperature**2 / expected
    assert loss.item() == pytest.approx(expected, rel=tolerance)
    assert terms[0].item() == loss.item()
    assert student.grad is not None
    exact_grad = torch.tensor(grads)  # one element crosses 0; its absolute error is that of its neighbours
    torch.testing.assert_close(student.grad, exact_grad, rtol=1e-6, atol=1e-6 * exact_grad.abs().max().item())


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_equal_logits_have_exactly_no_kd_loss(each_backend: str, classes: int) -> None:
    student, _, labels, _ = make(2, 50, classes, scale=20.0)
    s = student.clone().requires_grad_()
    loss = distill_loss(s, student, labels, temperature=[1.0, 7.0], alpha=1.0)
    loss.sum().backward()
    assert loss.abs().max() < 1e-12
    assert s.grad is not None
    assert s.grad.abs().max() < 1e-12


@settings(max_examples=60, deadline=None)
@given(
    members=st.integers(1, 4),
    jets=st.integers(1, 80),
    classes=st.sampled_from([1, 2, 3, 7]),
    dtype=st.sampled_from(DTYPES[:3]),
    temperature=st.floats(0.05, 100),
    alpha=st.floats(0, 1),
    scale=st.sampled_from([0.01, 1.0, 10.0, 300.0]),
    seed=st.integers(0, 10**6),
    weighted=st.booleans(),
    own_teacher=st.booleans(),
)
def test_accuracy_anywhere(
    members: int,
    jets: int,
    classes: int,
    dtype: torch.dtype,
    temperature: float,
    alpha: float,
    scale: float,
    seed: int,
    weighted: bool,
    own_teacher: bool,
) -> None:
    student, teacher, labels, weights = make(members, jets, classes, dtype=dtype, scale=scale, seed=seed)
    if own_teacher:
        teacher = student.flip(1).contiguous()
    case = f"{members=} {jets=} {classes=} {temperature=} {alpha=} {scale=} {seed=} {weighted=} {own_teacher=}"
    check_accuracy(
        student, teacher, labels, [temperature] * members, [alpha] * members, weights if weighted else None, case
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_incoming_gradients_scale_each_member(each_backend: str, classes: int, dtype: torch.dtype) -> None:
    student, teacher, labels, weights = make(3, 40, classes, dtype=dtype)
    grad_loss = torch.tensor([2.0, -0.25, 0.0])
    check_accuracy(student, teacher, labels, [2.0] * 3, [0.4] * 3, weights, f"C={classes}", grad_loss)


def test_a_loss_scaler_keeps_float16_gradients_from_vanishing(each_backend: str) -> None:
    student, teacher, labels, _ = make(1, 20_000, 1, dtype=torch.float16, scale=1.0)
    check_accuracy(student, teacher, labels, [1.0], [0.5], None, "scaled by 2^16", torch.tensor([65536.0]))


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_soft_and_integer_labels(each_backend: str, classes: int) -> None:
    student, teacher, labels, _ = make(2, 30, classes)
    expected = distill_loss(student, teacher, labels, temperature=2.0, alpha=0.3)
    for dtype in (torch.int32, torch.uint8, *([torch.float32, torch.float64, torch.bfloat16] if classes == 1 else [])):
        torch.testing.assert_close(
            distill_loss(student, teacher, labels.to(dtype), temperature=2.0, alpha=0.3), expected, rtol=0, atol=0
        )
    if classes == 1:
        check_accuracy(student, teacher, torch.rand(30), [2.0] * 2, [0.3] * 2, None, "soft labels")


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_arguments_in_any_layout_and_form(each_backend: str, classes: int) -> None:
    student, teacher, labels, weights = make(3, 41, classes)
    settings = {"temperature": torch.tensor([2.0, 2.0, 2.0]), "alpha": [0.25, 0.25, 0.25]}
    expected = distill_loss(student, teacher, labels, weights=weights, **settings)

    def strided(x: Tensor) -> Tensor:
        wide = torch.full((*x.shape, 2), torch.nan if x.is_floating_point() else 99, dtype=x.dtype)
        wide[..., 1] = x
        return wide[..., 1]

    def same(*args: Tensor, **kwargs: object) -> None:
        torch.testing.assert_close(distill_loss(*args, **kwargs), expected, rtol=0, atol=0)  # type: ignore[call-overload]

    same(strided(student), strided(teacher), strided(labels), weights=strided(weights), **settings)
    same(student.mT.contiguous().mT, teacher, labels, weights=weights, **settings)
    same(student, teacher.expand(3, -1, -1), labels, weights=weights, **settings)
    same(student, teacher.repeat(3, 1, 1), labels, weights=weights, **settings)
    same(student, teacher, labels, weights=weights.double(), temperature=2, alpha=0.25)
    same(student, teacher, labels, weights=weights, temperature=torch.tensor(2.0), alpha=torch.tensor([0.25]))
    same(student, teacher.double(), labels, weights=weights, **settings)
    one = distill_loss(student[1], teacher, labels, temperature=2.0, alpha=0.25, weights=weights)
    torch.testing.assert_close(one, expected[1], rtol=0, atol=0)
    assert one.shape == ()


@pytest.mark.parametrize("student_dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("teacher_dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_teacher_of_another_dtype_keeps_its_digits(
    each_backend: str, classes: int, student_dtype: torch.dtype, teacher_dtype: torch.dtype
) -> None:
    student, teacher, labels, _ = make(1, 37, classes)
    student, teacher = student.to(student_dtype), teacher.to(teacher_dtype)
    loss = distill_loss(student, teacher, labels, temperature=2.0, alpha=1.0)
    expected = distill_loss(student.float(), teacher.float(), labels, temperature=2.0, alpha=1.0)
    # A thread of the CUDA kernel takes more rows of a shorter type: the same terms in another order.
    torch.testing.assert_close(loss, expected, rtol=2**-22 if "cuda" in each_backend else 0, atol=0)


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("needs_grad", [True, False])
def test_without_kd_the_teacher_is_not_read(each_backend: str, classes: int, needs_grad: bool) -> None:
    student, teacher, labels, weights = make(2, 20, classes)
    student.requires_grad_(needs_grad)
    for missing in (torch.full_like(teacher, torch.nan), torch.full_like(teacher, torch.inf), None):
        loss, terms = distill_loss(
            student, missing, labels, temperature=3.0, alpha=0.0, weights=weights, return_terms=True
        )
        expected = distill_loss(student, teacher, labels, temperature=3.0, alpha=0.0, weights=weights)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        assert not terms[:, 0].any()
        if needs_grad:
            (grad,) = torch.autograd.grad(loss.sum(), student)
            assert grad.isfinite().all()
    poisoned = distill_loss(student, torch.full_like(teacher, torch.nan), labels, temperature=3.0, alpha=[0.0, 0.5])
    assert poisoned.isfinite().tolist() == [True, False]  # a member with KD shows it; its neighbour does not change


def test_a_member_that_diverged_shows_it_and_leaves_the_others_alone(each_backend: str) -> None:
    for classes in (1, 2, 3):
        student, teacher, labels, _ = make(3, 20, classes)
        expected = distill_loss(student, teacher, labels, temperature=3.0, alpha=0.5)
        student[1, 7] = torch.nan
        student.requires_grad_()
        loss = distill_loss(student, teacher, labels, temperature=3.0, alpha=0.5)
        loss.sum().backward()
        assert loss.isnan().tolist() == [False, True, False]
        torch.testing.assert_close(loss[::2], expected[::2], rtol=0, atol=0)
        assert student.grad is not None
        assert student.grad[1].isnan().any()
        assert student.grad[::2].isfinite().all()


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0xFFC00155])
def test_nan_reaches_loss_and_gradient_whatever_its_bits(
    each_backend: str, classes: int, alpha: float, payload: int
) -> None:
    for where in range(classes):
        s, t = torch.zeros(2, 40, classes)
        s.numpy().view(np.uint32)[3, where] = payload
        s.requires_grad_()
        loss = distill_loss(s, t, torch.full((40,), classes // 2), temperature=2.0, alpha=alpha)
        loss.backward()
        assert loss.isnan()
        assert s.grad is not None
        assert s.grad[3].isnan().all()
        assert s.grad[[0, 1, 2, *range(4, 40)]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("size", [1e-300, 1e-40, 1e-35, 1e36, 1e300, 5e307])
def test_weights_of_any_size(each_backend: str, size: float, classes: int, dtype: torch.dtype) -> None:
    """A mean does not depend on the size of the weights; their sum, or its inverse, may be no float32, or float64."""
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64) * size
    if abs(math.log10(size)) < 40:
        weights = weights.float()
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, classes, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.tensor([0, 1, 1, 0])

    def loss_and_gradient(weights: Tensor) -> tuple[Tensor, Tensor]:
        s = student.clone().requires_grad_()
        loss = distill_loss(s, teacher, labels, temperature=2.0, alpha=0.5, weights=weights)
        return loss.detach(), torch.autograd.grad(loss, s)[0]

    expected = loss_and_gradient(weights.double() / weights.double().max())
    torch.testing.assert_close(loss_and_gradient(weights), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_settings_of_any_strides(each_backend: str, classes: int) -> None:
    """A column of a table, and one number for all members."""
    student, teacher, labels, _ = make(3, 60, classes)
    grid = torch.tensor([[1.0, 0.1], [4.0, 0.5], [9.0, 0.9]], dtype=torch.float64)
    settings = {"temperature": grid[:, 0], "alpha": grid[:, 1]}
    expected = {name: value.clone(memory_format=torch.contiguous_format) for name, value in settings.items()}
    assert torch.equal(
        distill_loss(student, teacher, labels, **settings), distill_loss(student, teacher, labels, **expected)
    )
    one = grid[1, 0]
    assert torch.equal(
        distill_loss(student, teacher, labels, temperature=one.expand(3), alpha=0.5),
        distill_loss(student, teacher, labels, temperature=float(one), alpha=0.5),
    )


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_terms_sum_to_the_loss(each_backend: str, classes: int) -> None:
    student, teacher, labels, weights = make(3, 60, classes)
    alpha = torch.tensor([0.2, 1.0, 0.7])
    arguments = {"temperature": 4.0, "alpha": alpha, "weights": weights, "return_terms": True}
    loss, terms = distill_loss(student.requires_grad_(), teacher, labels, **arguments)  # type: ignore[call-overload]
    torch.testing.assert_close(alpha * terms[:, 0] + (1 - alpha) * terms[:, 1], loss.detach(), rtol=1e-6, atol=0)
    assert not terms.requires_grad
    without_grad = distill_loss(student.detach(), teacher, labels, **arguments)  # type: ignore[call-overload]
    torch.testing.assert_close(without_grad, (loss.detach(), terms), rtol=0, atol=0)


@pytest.mark.parametrize(("members", "jets", "classes"), [(1, 512, 1), (7, 3000, 2), (3, 2000, 10), (132, 512, 1)])
def test_the_same_bits_for_any_number_of_threads_and_members(members: int, jets: int, classes: int) -> None:
    student, teacher, labels, weights = make(members, jets, classes)
    temperature, alpha = torch.linspace(1, 10, members).double(), torch.linspace(0.1, 0.9, members).double()
    op, before = torch.ops.kdfast.distill_loss, torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(op(student, teacher, labels, temperature, alpha, weights))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)
    alone = op(student[-1:], teacher, labels, temperature[-1:], alpha[-1:], weights)
    for a, b in zip(results[0], alone, strict=True):
        assert torch.equal(a[-1:], b)


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(classes: int, members: int | None, weighted: bool) -> None:
    student, teacher, labels, weights = make(members, 5, classes, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: distill_loss(s, teacher, labels, temperature=2.5, alpha=0.6, weights=weights if weighted else None),
        (student.requires_grad_(),),
    )


@pytest.mark.parametrize(
    ("classes", "dtype", "float32_grad"),
    [(1, torch.float32, False), (1, torch.float64, False), (2, torch.bfloat16, True), (3, torch.float16, False)],
)
def test_opcheck(each_backend: str, classes: int, dtype: torch.dtype, float32_grad: bool) -> None:
    student, teacher, labels, weights = make(2, 9, classes, dtype=dtype)
    t, a = torch.tensor([[1.0, 3.0], [0.5, 0.0]], dtype=torch.float64)
    op = torch.ops.kdfast.distill_loss.default
    transposed = student.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    for s in (student, student.clone().requires_grad_(), student[0].clone().requires_grad_(), transposed):
        k = 1 if s.dim() == 2 else 2
        torch.library.opcheck(op, (s, teacher, labels, t[:k], a[:k], weights, float32_grad))
        torch.library.opcheck(op, (s, None, labels, t[:k], torch.zeros_like(t[:k]), None, float32_grad))


def test_raw_op_agrees_with_autograd(each_backend: str) -> None:
    student, teacher, labels, weights = make(3, 50, 1)
    t, a = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    loss, grad, _ = torch.ops.kdfast.distill_loss(student, teacher, labels, t, a, weights)
    s = student.clone().requires_grad_()
    through = distill_loss(s, teacher, labels, temperature=t, alpha=a, weights=weights)
    through.sum().backward()
    s2 = student.clone().requires_grad_()
    torch.ops.kdfast.distill_loss(s2, teacher, labels, t, a, weights)[0].sum().backward()
    assert torch.equal(through.detach(), loss)
    assert s.grad is not None
    assert torch.equal(s.grad, grad)
    assert s2.grad is not None
    assert torch.equal(s2.grad, grad)


def test_torch_compile_sees_one_op(each_backend: str) -> None:
    student, teacher, labels, _ = make(2, 50, 1)

    def step(s: Tensor) -> Tensor:
        return distill_loss(2 * s, teacher, labels, temperature=3.0, alpha=[0.5, 0.1]).sum()

    s, s2 = student.clone().requires_grad_(), student.clone().requires_grad_()
    torch.compile(step, backend="aot_eager", fullgraph=True)(s).backward()
    step(s2).backward()
    torch.testing.assert_close(s.grad, s2.grad, rtol=0, atol=0)


def test_the_loss_differentiates_once(each_backend: str) -> None:
    student, teacher, labels, _ = make(None, 5, 1)
    s = student.requires_grad_()
    loss = distill_loss(s, teacher.requires_grad_(), labels, temperature=3.0, alpha=0.5)
    (grad,) = torch.autograd.grad(loss, s, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        grad.sum().backward()
    assert teacher.grad is None


def test_a_kept_graph_can_be_walked_again(each_backend: str) -> None:
    student, teacher, labels, _ = make(None, 40, 1)
    s = student.requires_grad_()
    loss = distill_loss(s, teacher, labels, temperature=3.0, alpha=0.5)
    (first,) = torch.autograd.grad(loss, s, retain_graph=True)
    expected = first.clone()
    first.zero_()  # the caller's own
    (doubled,) = torch.autograd.grad(2 * loss, s, retain_graph=True)
    torch.testing.assert_close(doubled, 2 * expected, rtol=0, atol=0)
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)
    torch.testing.assert_close(s.grad, 2 * expected, rtol=0, atol=0)
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_a_batch_of_incoming_gradients(each_backend: str) -> None:
    student, teacher, labels, _ = make(None, 40, 1)
    s = student.requires_grad_()
    loss = distill_loss(s, teacher, labels, temperature=3.0, alpha=0.5)
    factors = torch.tensor([1.0, -2.0, 0.0])
    (batch,) = torch.autograd.grad(loss, s, factors, is_grads_batched=True, retain_graph=True)
    (one,) = torch.autograd.grad(loss, s)
    torch.testing.assert_close(batch, factors[:, None, None] * one, rtol=0, atol=0)
