"""distill_loss in plain PyTorch: its specification, and what runs where there is no kernel; checks of its values."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops.arrays import check_device

__all__ = ["LossInputs", "check_jets", "check_values", "distill_loss_reference", "row_terms"]


class LossInputs(NamedTuple):
    """The arguments of the loss other than the student's logits, all constants to autograd."""

    teacher: Tensor | None
    labels: Tensor
    temperature: Tensor  # [K] float64, contiguous, and so is alpha
    alpha: Tensor
    weights: Tensor | None

    def check_device(self, student_logits: Tensor) -> None:
        """Raises DataError unless all lie where the student's logits do."""
        check_device(student_logits, teacher_logits=self.teacher, labels=self.labels, weights=self.weights)


def distill_loss_reference(
    student_logits: Tensor, inputs: LossInputs, grad_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, in float64: (loss [K], grad like student_logits, terms [K, 2]), as the raw op gives them.

    terms: the weighted means of T² · KL (0 where α = 0, whatever the teacher) and of CE, so that loss = α ·
    terms[:, 0] + (1 − α) · terms[:, 1]. grad: of each member's own loss, empty where grad_dtype is None.
    """
    classes = student_logits.shape[-1]
    check_values(inputs, classes)
    _, labels, temperature, alpha, weights = inputs
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    rows = _rows(student_logits, inputs)
    w = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
    w = w / w.max()  # their sum may be more than the largest float64
    w = w / w.sum()
    T = temperature[:, None, None]
    a = alpha[:, None, None]

    kd, ce = rows.terms(temperature)
    terms = torch.stack([(w * kd).sum(-1), (w * ce).sum(-1)], -1)
    loss = alpha * terms[:, 0] + (1 - alpha) * terms[:, 1]
    if grad_dtype is None:
        grad = student_logits.new_empty(0)
    else:
        distillation = a * T * (rows.log_q.exp() - rows.log_p.exp())
        grad = w[:, None] * (distillation + (1 - a) * (rows.log_s.exp() - rows.y))
        grad = grad[..., -classes:].to(grad_dtype).reshape(student_logits.shape).contiguous()
    outer = student_logits.shape[:-2]
    return loss.to(dtype).reshape(outer), grad, terms.to(dtype).reshape(*outer, 2)


def row_terms(student_logits: Tensor, inputs: LossInputs, label_smoothing: float) -> Tensor:
    """[K, B, 2] float64: T² · KL and CE of each jet, differentiable by the student's logits through autograd."""
    rows = _rows(student_logits, inputs, label_smoothing)
    return torch.stack(rows.terms(inputs.temperature), -1)


class _Rows(NamedTuple):
    """ln p, ln q, ln softmax(s) [K, B, C] and label distributions y [B, C]; one logit makes two classes. float64."""

    log_p: Tensor
    log_q: Tensor
    log_s: Tensor
    y: Tensor

    def terms(self, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """T² · KL and CE, [K, B] each."""
        kd = (temperature[:, None, None] ** 2 * self.log_p.exp() * (self.log_p - self.log_q)).sum(-1)
        ce = -(self.y * self.log_s).sum(-1)
        return kd, ce


def _rows(student_logits: Tensor, inputs: LossInputs, label_smoothing: float = 0.0) -> _Rows:
    teacher, labels, temperature, alpha, _ = inputs
    classes = student_logits.shape[-1]
    distils = (alpha > 0)[:, None, None]
    s = student_logits.double().reshape(-1, *student_logits.shape[-2:])
    t = s.detach()  # for members without a teacher: KL = 0
    if teacher is not None:
        t = torch.where(distils, teacher.detach().double(), t)
    if classes == 1:
        s, t = (torch.cat([torch.zeros_like(x), x], -1) for x in (s, t))
        y = torch.stack([1 - labels.double(), labels.double()], -1)
    else:
        y = torch.nn.functional.one_hot(labels.long(), classes).double()
    y = y + label_smoothing * (1 / y.shape[-1] - y)
    T = temperature[:, None, None]
    return _Rows(torch.log_softmax(t / T, -1), torch.log_softmax(s / T, -1), torch.log_softmax(s, -1), y)


def check_values(inputs: LossInputs, classes: int) -> None:
    """Raises for the first value that is out of range. (The kernel checks in passing; this then names the fault.)"""
    teacher, labels, temperature, alpha, weights = inputs
    k = _first(~((temperature > 0) & temperature.isfinite()))
    if k is not None:
        raise ConfigError(f"must be finite and above 0, is {float(temperature[k])}", where=f"temperature, member {k}")
    k = _first(~((alpha >= 0) & (alpha <= 1)))
    if k is not None:
        raise ConfigError(f"must lie in [0, 1], is {float(alpha[k])}", where=f"alpha, member {k}")
    k = _first(alpha > 0)
    if teacher is None and k is not None:
        raise ConfigError(f"is None, but α of member {k} is {float(alpha[k])}", where="teacher_logits")
    check_jets(labels, classes, weights)


def check_jets(labels: Tensor, classes: int, weights: Tensor | None) -> None:
    """Raises DataError for the first label or weight that is out of range, or where all weights are 0."""
    top = 1 if classes == 1 else classes - 1
    row = _first(~((labels >= 0) & (labels <= top)))
    if row is not None:
        allowed = "in [0, 1]" if classes == 1 else f"a class from 0 to {top}"
        raise DataError(f"must be {allowed}, is {labels[row].item()}", where=f"labels, row {row}")
    if weights is None:
        return
    row = _first(~((weights >= 0) & weights.isfinite()))
    if row is not None:
        raise DataError(f"must be finite and not negative, is {weights[row].item()}", where=f"weights, row {row}")
    if not weights.any():
        raise DataError("are all zero: the weighted mean is undefined", where="weights")


def _first(bad: Tensor) -> int | None:
    rows = bad.nonzero()
    return int(rows[0]) if len(rows) else None
