"""How distill_loss calls its CPU and CUDA kernels."""

import torch
from torch import Tensor

from kdfast.ops import backend, gpu
from kdfast.ops.arrays import DTYPE_CODES
from kdfast.ops.distill_loss_reference import LossInputs

__all__ = ["run_cpu", "run_cuda", "why_unsupported"]

_LABELS = (torch.float32, torch.int64)  # that kernels read
# Of the kernels: kMaxClasses in csrc/distill_loss/distill_loss*.h
_MAX_CLASSES = 128
_MAX_CLASSES_CUDA = 1024


def why_unsupported(classes: int, device: str) -> str | None:
    """Why the kernel of this device does not support this number of classes; None: it does."""
    most = _MAX_CLASSES_CUDA if device == backend.cuda_device_type else _MAX_CLASSES
    return f"{classes} classes are more than the kernel's {most}" if classes > most else None


def run_cpu(
    student: Tensor, inputs: LossInputs, grad_dtype: torch.dtype | None, want_terms: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """(loss, grad, terms); None where the kernel has refused values. What is not wanted may be anything."""
    student = student.contiguous()
    teacher, labels, temperature, alpha, weights = _readable(inputs)
    if not (labels.is_cpu and (teacher is None or teacher.is_cpu) and (weights is None or weights.is_cpu)):
        inputs.check_device(student)
    members, jets, classes = _sizes(student)
    outer = (members,) if student.dim() == 3 else ()
    loss = _empty(student, outer)
    if grad_dtype is None:
        grad = loss
    elif grad_dtype == student.dtype:
        grad = torch.empty_like(student)
    else:
        grad = torch.empty_like(student, dtype=grad_dtype)
    terms = _empty(student, (*outer, 2)) if want_terms else loss
    valid = backend.cpu_module().distill_loss(
        student.data_ptr(),
        0 if teacher is None else teacher.data_ptr(),
        labels.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        temperature.data_ptr(),
        alpha.data_ptr(),
        loss.data_ptr(),
        terms.data_ptr() if want_terms else 0,
        0 if grad_dtype is None else grad.data_ptr(),
        members,
        jets,
        classes,
        jets * classes if teacher is not None and teacher.dim() == 3 else 0,
        DTYPE_CODES[student.dtype],
        0 if teacher is None else DTYPE_CODES[teacher.dtype],
        0 if grad_dtype is None else DTYPE_CODES[grad_dtype],
        labels.dtype == torch.float32,
        torch.get_num_threads(),
    )
    return (loss, grad, terms) if valid else None


def run_cuda(
    student: Tensor, inputs: LossInputs, grad_dtype: torch.dtype | None, want_terms: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As run_cpu. Whether values were refused is asked afterwards, which waits for the kernels.

    While a CUDA graph is captured nobody asks: the results that such values reach are NaN then.
    """
    logits = student.contiguous()
    teacher, labels, temperature, alpha, weights = _readable(inputs)
    wanted = grad_dtype
    if teacher is not None and teacher.dtype != logits.dtype:  # the kernels read one type; float32 holds them all
        logits = logits.float()
        teacher = teacher.float()
        wanted = None if grad_dtype is None else torch.float32
    members, jets, classes = _sizes(student)
    outer = (members,) if student.dim() == 3 else ()
    loss = _empty(student, outer)
    grad = loss if wanted is None else torch.empty_like(logits, dtype=wanted)
    terms = _empty(student, (*outer, 2)) if want_terms else loss
    if members > 0:
        code = DTYPE_CODES[logits.dtype]
        invalid = student.new_empty(1, dtype=torch.int32)
        size = backend.cuda_module().distill_loss_workspace(members, jets, classes, code)
        workspace = student.new_empty(size, dtype=torch.uint8)
        gpu.call(
            "distill_loss",
            (logits, teacher, labels, weights, temperature, alpha),
            (loss, terms if want_terms else None, None if wanted is None else grad, invalid, workspace),
            members,
            jets,
            classes,
            jets * classes if teacher is not None and teacher.dim() == 3 else 0,
            code,
            0 if wanted is None else DTYPE_CODES[wanted],
            labels.dtype == torch.float32,
        )
        if gpu.may_wait(student.device) and invalid.item():
            return None
    return loss, grad if grad_dtype is None else grad.to(grad_dtype), terms


def _sizes(student: Tensor) -> tuple[int, int, int]:
    """(K, B, C)."""
    jets, classes = student.shape[-2:]
    return student.shape[0] if student.dim() == 3 else 1, jets, classes


def _empty(student: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uninitialised float32 numbers on the student's device. Without a dtype new_empty is quicker."""
    return student.new_empty(shape) if student.dtype == torch.float32 else student.new_empty(shape, dtype=torch.float32)


def _readable(inputs: LossInputs) -> tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor | None]:
    """The inputs contiguous, and of types that the kernels read."""
    teacher, labels, temperature, alpha, weights = inputs
    if teacher is not None:
        if teacher.dtype not in DTYPE_CODES:
            teacher = teacher.float()
        if teacher.dim() == 3 and teacher.stride(0) == 0:  # one teacher, expanded
            teacher = teacher[0]
        teacher = teacher.contiguous()
    if labels.dtype not in _LABELS:
        labels = labels.float() if labels.is_floating_point() else labels.long()
    if weights is not None:
        weights = weights.float().contiguous()
    return teacher, labels.contiguous(), temperature, alpha, weights
