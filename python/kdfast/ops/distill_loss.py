"""The loss of knowledge distillation for K members in one call, with its gradient in the same pass.

For one jet with student logits s, teacher logits t and label y, at temperature T and mixing weight α:

    l = α · T² · KL(p ‖ q) + (1 − α) · CE(s, y)          p = softmax(t / T), q = softmax(s / T)

One logit (C = 1) means two classes with logits (0, s): KL is between Bern(σ(t / T)) and Bern(σ(s / T)),
CE is the binary cross-entropy, and y may be anything in [0, 1]. A member's loss is the weighted mean Σ w·l /
Σ w over the jets.

Label smoothing ε replaces y by (1 − ε) y + ε / C (ε / 2 for one logit). For C ≥ 2 this adds ε (s_y − Σ_c s_c
/ C) to CE: kernels take the label, and the rest is linear in s.

Its gradient by s is w / Σ w · [α · T · (q − p) + (1 − α) · (softmax(s) − y)].

Two routes lead to the kernels. The raw op, `torch.ops.kdfast.distill_loss`, is registered with PyTorch:
trainers call it, and calls that are traced or watched go through it. Any other call goes through an
autograd.Function, because the autograd of a registered op takes several times as long on a small batch:
`kdfast bench -k "autograd or registered"` shows both.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import frexp
from typing import Any, Literal, TypeAlias, get_args, overload

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops import backend
from kdfast.ops.arrays import DTYPE_CODES, check_device
from kdfast.ops.autograd import is_eager, without_derivative
from kdfast.ops.distill_loss_kernels import run_cpu, run_cuda, why_unsupported
from kdfast.ops.distill_loss_reference import LossInputs, check_values, distill_loss_reference, row_terms
from kdfast.ops.undocumented import direct_apply

__all__ = ["distill_loss"]

PerMember: TypeAlias = float | Sequence[float] | Tensor
Reduction: TypeAlias = Literal["mean", "sum", "none"]


@overload
def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    temperature: PerMember,
    alpha: PerMember,
    weights: Tensor | None = None,
    return_terms: Literal[False] = False,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor: ...
@overload
def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    temperature: PerMember,
    alpha: PerMember,
    weights: Tensor | None = None,
    return_terms: Literal[True],
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]: ...
def distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    temperature: PerMember,
    alpha: PerMember,
    weights: Tensor | None = None,
    return_terms: bool = False,
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | tuple[Tensor, Tensor]:
    """Loss of knowledge distillation: the mean of α · T² · KL(teacher ‖ student) + (1 − α) · CE(student, label).

    One call serves K members, each with its own temperature T and mixing weight α. Loss and gradient are
    computed in one pass and are finite for T in [0.05, 100] and |logit| ≤ 1e4. The same call gives the same
    bits for any number of threads.

    Parameters
    ----------
    student_logits : Tensor [K, B, C], or [B, C] for one member
        C = 1 is a binary tagger. float32; bfloat16 and float16, computed in float32; float64, by the PyTorch
        reference.
    teacher_logits : Tensor [B, C] or [K, B, C], or None
        [B, C] serves all members. No gradient reaches it. It is not read for members whose α is 0 (NaN is
        harmless there), and may be None where every α is 0.
    labels : Tensor [B]
        Classes 0 … C − 1, integers; for C = 1, integers or floats in [0, 1].
    temperature : float, or [K]
        T > 0, constant to autograd.
    alpha : float, or [K]
        0 ≤ α ≤ 1, constant to autograd.
    weights : Tensor [B], optional
        Event weights ≥ 0, not all 0; the mean is Σ w·l / Σ w. All 1 by default.
    return_terms : bool
        Whether to return the two parts of the loss too.
    reduction : {"mean", "sum", "none"}
        Over the jets: Σ w·l / Σ w, Σ w·l, or w·l of each jet. "none" runs in PyTorch in float64, not in a kernel, and
        takes several times as long.
    label_smoothing : float
        ε in [0, 1]: CE is then with the label (1 − ε) y + ε / C; for C = 1 with (1 − ε) y + ε / 2.

    Returns
    -------
    loss : Tensor [K], or [] for [B, C] logits; with "none" [K, B] or [B]
        float32, or float64 for float64 logits.
    terms : Tensor [K, 2] or [2]; with "none" [K, B, 2] or [B, 2]
        Only with return_terms, and without gradient: the weighted means of T² · KL (0 where α is 0) and of
        CE, so that loss = α · terms[:, 0] + (1 − α) · terms[:, 1].

    Raises
    ------
    DataError
        For shapes that do not fit together, and for labels or weights out of range.
    ConfigError
        For T, α or ε out of range, and for an unknown reduction.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531. T²
    keeps the size of the gradient independent of T.

    Examples
    --------
    >>> student = torch.zeros(4, 1, requires_grad=True)
    >>> teacher, labels = torch.tensor([[-2.0], [2.0], [-1.0], [3.0]]), torch.tensor([0, 1, 0, 1])
    >>> loss = distill_loss(student, teacher, labels, temperature=2.0, alpha=0.5)
    >>> loss.backward()
    >>> student.grad.shape
    torch.Size([4, 1])

    Three members that differ in temperature:

    >>> distill_loss(torch.zeros(3, 4, 1), teacher, labels, temperature=[1.0, 2.0, 4.0], alpha=0.5).shape
    torch.Size([3])
    """
    if reduction != "mean" or label_smoothing != 0.0:
        inputs = LossInputs(teacher_logits, labels, *_settings(student_logits, temperature, alpha), weights)
        loss, terms = _reduced(student_logits, inputs, reduction, label_smoothing, return_terms)
        return (loss, terms) if return_terms else loss
    eager = is_eager(student_logits)
    t, a = _settings(student_logits, temperature, alpha, eager)
    if not eager:
        op = torch.ops.kdfast.distill_loss.default
        is_16_bit = student_logits.element_size() == 2
        loss, _, terms = op(student_logits, teacher_logits, labels, t, a, weights, is_16_bit)
        return (loss, terms) if return_terms else loss
    inputs = LossInputs(teacher_logits, labels, t, a, weights)
    if student_logits.requires_grad and torch.is_grad_enabled():
        return _apply(student_logits, inputs, return_terms)
    loss, _, terms = _run(student_logits, inputs, None, return_terms)
    return (loss, terms) if return_terms else loss


def _settings(student: Tensor, temperature: PerMember, alpha: PerMember, eager: bool = False) -> tuple[Tensor, Tensor]:
    """T and α as [K] float64 on the student's device."""
    members = student.shape[0] if student.dim() == 3 else 1
    # A traced tensor must not outlive its trace, nor may one that a GPU's stream has yet to fill be read by
    # another.
    constant = _cached_constant if eager and student.is_cpu else _constant
    t = _per_member(temperature, members, student.device, constant, "temperature")
    return t, _per_member(alpha, members, student.device, constant, "alpha")


def _constant(value: float, members: int, device: torch.device) -> Tensor:
    return torch.full((members,), value, dtype=torch.float64, device=device)


_cached_constant = lru_cache(maxsize=512)(_constant)


def _per_member(
    value: PerMember, members: int, device: torch.device, constant: Callable[..., Tensor], name: str
) -> Tensor:
    """[K] float64, contiguous."""
    if isinstance(value, (int, float)):
        return constant(value, members, device)
    tensor = torch.as_tensor(value, dtype=torch.float64, device=device).detach().flatten().contiguous()
    if tensor.numel() == 1:
        return tensor.repeat(members)
    if tensor.numel() != members:
        what = f"must be one number, or [{members}], one for each of {members} members; is {list(tensor.shape)}"
        raise ConfigError(what, where=name)
    return tensor


def _reduced(
    student: Tensor, inputs: LossInputs, reduction: str, smoothing: float, want_terms: bool
) -> tuple[Tensor, Tensor]:
    """(loss, terms) with another reduction than the mean, or with smoothed labels. Terms that are not wanted
    may be anything."""
    if reduction not in get_args(Reduction):
        hint = f"known: {', '.join(get_args(Reduction))}"
        raise ConfigError(f"unknown reduction {reduction!r}", where="reduction", hint=hint)
    if not 0.0 <= smoothing <= 1.0:
        raise ConfigError(f"must lie in [0, 1], is {smoothing}", where="label_smoothing")
    _check_shapes(student, inputs)
    if reduction == "none":
        return _unreduced(student, inputs, smoothing)
    teacher, labels, t, a, weights = inputs
    jets, classes = student.shape[-2:]
    if classes == 1 and smoothing:
        y = labels.to(torch.float64 if student.dtype == torch.float64 else torch.float32)
        # Others stay what they are, and are refused.
        labels = torch.where((y >= 0) & (y <= 1), y + smoothing * (0.5 - y), y)
    settings: dict[str, Any] = {"temperature": t, "alpha": a, "weights": weights}
    if want_terms:
        loss, terms = distill_loss(student, teacher, labels, **settings, return_terms=True)
    else:
        loss = terms = distill_loss(student, teacher, labels, **settings)
    if classes > 1 and smoothing:
        shift = smoothing * _label_lead(student.to(loss.dtype), labels, weights)
        loss = loss + (1 - a).to(loss.dtype).reshape(loss.shape) * shift
        if want_terms:
            terms = terms + torch.stack([torch.zeros_like(shift), shift], -1).detach()
    if reduction == "sum":
        total = jets if weights is None else weights.double().sum().to(loss.dtype)
        loss = loss * total
        if want_terms:
            terms = terms * total
    return loss, terms


def _label_lead(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """[K]: the mean over the jets of s_y − Σ_c s_c / C."""
    label = labels.long().clamp(0, logits.shape[-1] - 1)  # others have been refused by now
    own = logits.gather(-1, label[:, None].expand(*logits.shape[:-1], 1))[..., 0]
    lead = own - logits.mean(-1)
    if weights is None:
        return lead.mean(-1)
    w = weights.double() / weights.max()
    return (lead * (w / w.sum()).to(lead.dtype)).sum(-1)


def _unreduced(student: Tensor, inputs: LossInputs, smoothing: float) -> tuple[Tensor, Tensor]:
    """(loss [K, B], terms [K, B, 2])."""
    if is_eager(student):
        inputs.check_device(student)
        check_values(inputs, student.shape[-1])
    terms = row_terms(student, inputs, smoothing)
    if inputs.weights is not None:
        terms = terms * inputs.weights.double()[:, None]
    a = inputs.alpha[:, None]
    loss = a * terms[..., 0] + (1 - a) * terms[..., 1]
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    shape = student.shape[:-1]
    return loss.to(dtype).reshape(shape), terms.detach().to(dtype).reshape(*shape, 2)


class _EagerLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, inputs: LossInputs, want_terms: bool) -> Any:
        # The gradient of 16-bit logits stays in float32 until it is scaled: a mean over many jets divides it
        # by their number, which float16 may not hold before a loss scaler's factor is on it.
        grad_dtype = torch.float32 if student.element_size() == 2 else student.dtype
        loss, grad, terms = _run(student, inputs, grad_dtype, want_terms)
        ctx.dtype = student.dtype
        ctx.save_for_backward(grad)
        if not want_terms:
            return loss
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return _scaled(ctx.saved_tensors[0], grad_loss, ctx.dtype), None, None


_apply = direct_apply(_EagerLoss)


def _scaled(grad: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The incoming gradient (per member) times the member's own."""
    product = grad * (grad_loss if grad_loss.dim() == 0 else grad_loss[:, None, None])
    if product.dtype != dtype:
        product = product.to(dtype)
    return without_derivative("distill_loss", product)[0]


def _run(
    student: Tensor, inputs: LossInputs, grad_dtype: torch.dtype | None, want_terms: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, grad, terms) by kernel or reference; grad and terms may be anything where they are not wanted."""
    _check_shapes(student, inputs)
    kernel = _kernel_of(student)
    if kernel == "reference":
        inputs.check_device(student)
        return distill_loss_reference(student, inputs, grad_dtype)
    run = run_cuda if kernel == "cuda" else run_cpu
    found = run(student, inputs, grad_dtype, want_terms)
    return _run_refused(student, inputs, grad_dtype, want_terms) if found is None else found


def _kernel_of(student: Tensor) -> str:
    """What runs: "cpu", "cuda" or "reference": float64 without a warning, too many classes with one."""
    if student.dtype not in DTYPE_CODES:
        return "reference"
    device = student.device
    return backend.choose("distill_loss", device.type, why_unsupported(student.shape[-1], device.type), device.index)


def _run_refused(
    student: Tensor, inputs: LossInputs, grad_dtype: torch.dtype | None, want_terms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """_run where a kernel has refused values: raises for those out of range.

    Else the sum of the weights is beyond what it takes (2^−100 … 2^100); they are scaled by a power of 2,
    which changes nothing but rounding.
    """
    weights = inputs.weights
    check_values(inputs, student.shape[-1])
    largest = 1.0 if weights is None else float(weights.max())
    if weights is None or 0.5 <= largest < 1.0:
        raise AssertionError("the kernel refused values that the check accepts")
    weights = weights.double() * 2.0 ** min(-frexp(largest)[1], 1000)
    return _run(student, inputs._replace(weights=weights), grad_dtype, want_terms)


def _check_shapes(student: Tensor, inputs: LossInputs) -> None:
    """Raises DataError where shapes or types don't fit."""
    teacher, labels, _, _, weights = inputs
    shape = student.shape
    dims = len(shape)
    jets, classes = shape[-2:] if dims in (2, 3) else (0, 0)
    if classes == 0 or not student.is_floating_point():
        what = f"must be floats [B, C] or [K, B, C], is {student.dtype} {list(shape)}"
        hint = "one logit for each jet is [B, 1]: logits[:, None]" if dims == 1 else None
        raise DataError(what, where="student_logits", hint=hint)
    if jets == 0:
        raise DataError("no jets: the mean over them is undefined", where="student_logits")
    if teacher is not None and teacher.shape != shape and teacher.shape != (jets, classes):
        accepted = " or ".join(dict.fromkeys([str(list(shape[-2:])), str(list(shape))]))
        raise DataError(f"must be {accepted}, is {list(teacher.shape)}", where="teacher_logits")
    if labels.shape != (jets,):
        hint = "labels[:, 0] is of this shape" if labels.shape == (jets, 1) else None
        raise DataError(f"must be [{jets}], one for each jet; is {list(labels.shape)}", where="labels", hint=hint)
    if classes > 1 and labels.is_floating_point():
        raise DataError(f"must be integers for {classes} classes, are {labels.dtype}", where="labels")
    if weights is not None and weights.shape != (jets,):
        raise DataError(f"must be [{jets}], one for each jet; is {list(weights.shape)}", where="weights")


def _check_members(student: Tensor, temperature: Tensor, alpha: Tensor) -> None:
    check_device(student, temperature=temperature, alpha=alpha)
    members = student.shape[0] if student.dim() == 3 else 1
    for name, value in (("temperature", temperature), ("alpha", alpha)):
        if value.shape != (members,) or value.dtype != torch.float64:
            expected = f"float64 [{members}]"
            found = f"{value.dtype} {list(value.shape)}"
            raise ConfigError(f"must be {expected} for the raw op, is {found}", where=name)


def _raw(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    temperature: Tensor,
    alpha: Tensor,
    weights: Tensor | None = None,
    float32_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_members(student, temperature, alpha)
    grad_dtype = torch.float32 if float32_grad else student.dtype
    inputs = LossInputs(teacher, labels, temperature.contiguous(), alpha.contiguous(), weights)
    return _run(student, inputs, grad_dtype)


def _fake(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    temperature: Tensor,
    alpha: Tensor,
    weights: Tensor | None = None,
    float32_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    outer = student.shape[:-2]
    grad = student.new_empty(student.shape, dtype=torch.float32 if float32_grad else student.dtype)
    return student.new_empty(outer, dtype=dtype), grad, student.new_empty((*outer, 2), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return _scaled(ctx.saved_tensors[0], grad_loss, ctx.dtype), None, None, None, None, None, None


_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define(
    "distill_loss(Tensor student_logits, Tensor? teacher_logits, Tensor labels, Tensor temperature, Tensor alpha, "
    "Tensor? weights=None, bool float32_grad=False) -> (Tensor loss, Tensor grad, Tensor terms)"
)
_library.impl("distill_loss", _raw, "CompositeExplicitAutograd")
torch.library.register_fake("kdfast::distill_loss", _fake, lib=_library)
torch.library.register_autograd("kdfast::distill_loss", _backward, setup_context=_setup_context, lib=_library)
