"""The loss of knowledge distillation for K members in one call, with its gradient in the same pass.

For one jet with student logits s, teacher logits t and label y, at temperature T and mixing weight α:

    l = α · T² · KL(p ‖ q) + (1 − α) · CE(s, y)          p = softmax(t / T), q = softmax(s / T)

One logit (C = 1) stands for two classes with logits (0, s): KL is between Bern(σ(t / T)) and Bern(σ(s / T)), CE is the
binary cross-entropy, and y may be anything in [0, 1]. A member's loss is the weighted mean Σ w·l / Σ w over the jets.
(Hinton et al., arXiv:1503.02531; T² keeps the gradient's size independent of T.)

Its gradient by s is w / Σ w · [α · T · (q − p) + (1 − α) · (softmax(s) − y)].

The raw op, `torch.ops.kdfast.distill_loss`, is what a trainer calls; `distill_loss` is for everybody else.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops import backend, gpu
from kdfast.ops.arrays import DTYPE_CODES, check_device
from kdfast.ops.eager import is_eager
from kdfast.ops.once import without_derivative

__all__ = ["check_jets", "distill_loss", "distill_loss_reference"]

_CPU = torch.device("cpu")
_LABELS = (torch.float32, torch.int64)  # that kernels read
_MAX_CLASSES, _MAX_CLASSES_CUDA = 128, 1024  # of the kernels (kMaxClasses in csrc/distill_loss/distill_loss*.h)

_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define(
    "distill_loss(Tensor student_logits, Tensor? teacher_logits, Tensor labels, Tensor temperature, Tensor alpha, "
    "Tensor? weights=None, bool float32_grad=False) -> (Tensor loss, Tensor grad, Tensor terms)"
)


PerMember: TypeAlias = float | Sequence[float] | Tensor
# teacher logits, labels, temperature [K], α [K], weights
_Constants: TypeAlias = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor | None]


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
) -> Tensor | tuple[Tensor, Tensor]:
    """The mean over B jets of α · T² · KL(teacher ‖ student) + (1 − α) · CE(student, label), for K members at once.

    student_logits: [K, B, C], or [B, C] for one member; C = 1 is a binary tagger. float32, bfloat16, float16 (computed
        in float32) or float64.
    teacher_logits: [B, C], the same for all members, or [K, B, C]. No gradient reaches it. It is not read for members
        whose α is 0 (NaN there does no harm), and may be None where every α is 0.
    labels: [B] classes 0 … C − 1 (integers); for C = 1 integers or floats in [0, 1].
    temperature, alpha: a number, or one for each member ([K]); T > 0, 0 ≤ α ≤ 1. Constants to autograd.
    weights: [B] event weights ≥ 0, not all 0; None: all 1.
    return_terms: also return the loss's two parts, [K, 2] without gradient: the weighted means of T² · KL (0 where α is
        0) and of CE, so that loss = α · terms[:, 0] + (1 − α) · terms[:, 1].

    Returns the loss, [K] (a scalar for [B, C] logits), float32 (float64 for float64 logits). Loss and gradient are
    finite for T in [0.05, 100] and |logit| ≤ 1e4. The same call gives the same bits for any number of threads.

    Raises DataError for shapes that don't fit, labels or weights that can't be; ConfigError for T or α outside their
    range.
    """
    members = student_logits.shape[0] if student_logits.dim() == 3 else 1
    eager = is_eager(student_logits)
    # A traced tensor must not outlive its trace, nor may one that a GPU's stream has yet to fill be read by another.
    constant, device = _cached_constant if eager and student_logits.is_cpu else _constant, student_logits.device
    t = _per_member(temperature, members, device, constant, "temperature")
    a = _per_member(alpha, members, device, constant, "alpha")
    if not eager:
        op, is_16_bit = torch.ops.kdfast.distill_loss.default, student_logits.element_size() == 2
        loss, _, terms = op(student_logits, teacher_logits, labels, t, a, weights, is_16_bit)
        return (loss, terms) if return_terms else loss
    constants = (teacher_logits, labels, t, a, weights)
    if student_logits.requires_grad and torch.is_grad_enabled():
        return _apply(student_logits, constants, return_terms)
    loss, _, terms = _run(student_logits, constants, None, return_terms)
    return (loss, terms) if return_terms else loss


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
        raise ConfigError(f"must be one number, or one for each of {members} members; has {tensor.numel()}", where=name)
    return tensor


class _DistillLoss(torch.autograd.Function):
    """What eager calls go through. Few arguments and a plain attribute: each of them costs a microsecond."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, constants: _Constants, want_terms: bool) -> Any:
        # The gradient of 16-bit logits stays in float32 until it is scaled: a mean over many jets divides it by their
        # number, which float16 may not hold before a loss scaler's factor is on it.
        ctx.dtype = student.dtype
        dtype = torch.float32 if student.element_size() == 2 else student.dtype
        loss, ctx.grad, terms = _run(student, constants, dtype, want_terms)
        if not want_terms:
            return loss
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling() or torch._C._autograd._get_current_graph_task_keep_graph():
            return _scaled(ctx.grad, grad_loss, ctx.dtype), None, None
        # The last pass over this graph, mostly the only one, takes the buffer itself: no copy where nothing scales it.
        grad: Tensor | None = ctx.__dict__.pop("grad", None)
        if grad is None:
            raise RuntimeError(
                "the graph of this distill_loss was freed by an earlier backward: give that one retain_graph=True"
            )
        if grad.dtype != ctx.dtype or not _is_plain_one(grad_loss):
            grad = _scaled(grad, grad_loss, ctx.dtype)
        return grad, None, None


# Function.apply without its search for functorch's transforms, which is_eager has done: a microsecond.
_apply = super(torch.autograd.Function, _DistillLoss).apply


def _is_plain_one(grad_loss: Tensor) -> bool:
    """True where there is nothing to scale by and no second derivative to refuse."""
    return (
        grad_loss.dim() == 0
        and grad_loss.is_cpu  # reading it waits for nothing
        and not torch._C._are_functorch_transforms_active()
        and not torch.is_grad_enabled()
        and not torch._C._functorch.is_legacy_batchedtensor(grad_loss)  # is_grads_batched=True
        and grad_loss.item() == 1.0
    )


def _scaled(grad: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    """The incoming gradient (per member) times the member's own; `grad` itself is never changed."""
    product = grad * (grad_loss if grad_loss.dim() == 0 else grad_loss[:, None, None])
    if product.dtype != dtype:
        product = product.to(dtype)
    return without_derivative("distill_loss", product)[0]


def _run(
    student: Tensor, constants: _Constants, grad_dtype: torch.dtype | None, want_terms: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, grad, terms) by kernel or reference; grad and terms may be anything where they are not wanted."""
    teacher, labels, temperature, alpha, weights = constants
    members, jets, classes = _sizes(student, teacher, labels, weights)
    code, device = DTYPE_CODES.get(student.dtype), "cpu" if student.is_cpu else student.device.type
    unsupported = None if classes <= _MAX_CLASSES else _too_many(classes, device)
    gpu = None if student.is_cpu else student.device.index
    kernel = "reference" if code is None else backend.choose("distill_loss", device, unsupported, gpu)
    if kernel == "reference":
        check_device(student, teacher_logits=teacher, labels=labels, weights=weights)
        return distill_loss_reference(student, teacher, labels, temperature, alpha, weights, grad_dtype)
    student = student.contiguous()
    teacher_stride = teacher_code = 0
    if teacher is not None:
        if teacher.dtype not in DTYPE_CODES:
            teacher = teacher.float()
        if teacher.dim() == 3 and teacher.stride(0) == 0:  # one teacher, expanded
            teacher = teacher[0]
        teacher = teacher.contiguous()
        teacher_stride = jets * classes if teacher.dim() == 3 else 0
        teacher_code = DTYPE_CODES[teacher.dtype]
    if labels.dtype not in _LABELS:
        labels = labels.float() if labels.is_floating_point() else labels.long()
    labels = labels.contiguous()
    if weights is not None:
        weights = weights.float().contiguous()
    if kernel == "cuda":
        read = (teacher, labels, temperature, alpha, weights)
        found = _run_cuda(student, read, grad_dtype, want_terms)
        return _run_refused(student, constants, grad_dtype, want_terms) if found is None else found
    if not (labels.is_cpu and (teacher is None or teacher.is_cpu) and (weights is None or weights.is_cpu)):
        check_device(student, teacher_logits=teacher, labels=labels, weights=weights)
    packed = student.dim() == 3
    size, strides = ((members,), (1,)) if packed else ((), ())
    loss = torch.empty_strided(size, strides)  # the quickest way: small batches show it
    if loss.dtype is not torch.float32 or not loss.is_cpu:  # torch's defaults are others
        loss = torch.empty_strided(size, strides, dtype=torch.float32, device=_CPU)
    if grad_dtype is None:
        grad = loss
    elif grad_dtype == student.dtype:
        grad = torch.empty_like(student)
    else:
        grad = torch.empty_like(student, dtype=grad_dtype)
    terms = torch.empty_strided((members, 2), (2, 1), dtype=torch.float32, device=_CPU) if want_terms else loss
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
        teacher_stride,
        code,
        teacher_code,
        0 if grad_dtype is None else DTYPE_CODES[grad_dtype],
        labels.dtype == torch.float32,
        torch.get_num_threads(),
    )
    if not valid:
        return _run_refused(student, constants, grad_dtype, want_terms)
    return loss, grad, terms if packed or not want_terms else terms[0]


def _too_many(classes: int, device: str) -> str | None:
    most = _MAX_CLASSES_CUDA if device == backend.cuda_device_type else _MAX_CLASSES
    return f"{classes} classes are more than the kernel's {most}" if classes > most else None


def _run_refused(
    student: Tensor, constants: _Constants, grad_dtype: torch.dtype | None, want_terms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """_run where a kernel has refused values: raises for what can't be.

    Else the sum of the weights is beyond what it takes (2^−100 … 2^100); they are scaled by a power of 2, which changes
    nothing but rounding.
    """
    teacher, labels, temperature, alpha, weights = constants
    _check_values(teacher, labels, student.shape[-1], temperature, alpha, weights)
    largest = 1.0 if weights is None else float(weights.max())
    if weights is None or 0.5 <= largest < 1.0:
        raise AssertionError("the kernel refused values that the check accepts")
    weights = weights.double() * 2.0 ** min(-math.frexp(largest)[1], 1000)
    return _run(student, (teacher, labels, temperature, alpha, weights), grad_dtype, want_terms)


def _run_cuda(
    student: Tensor, constants: _Constants, grad_dtype: torch.dtype | None, want_terms: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """_run by the CUDA kernels, for contiguous arguments of their types; None where they have refused values.

    That is asked for afterwards, which waits for them. While a CUDA graph is captured nobody asks: what such values
    concern is NaN then.
    """
    teacher, labels, temperature, alpha, weights = constants
    packed, device = student.dim() == 3, student.device
    members, jets, classes = student.shape if packed else (1, *student.shape)
    logits, wanted = student, grad_dtype
    if teacher is not None and teacher.dtype != student.dtype:  # the kernels read one type; float32 holds them all
        logits, teacher = student.float(), teacher.float()
        wanted = None if grad_dtype is None else torch.float32
    loss = torch.empty(student.shape[:-2], dtype=torch.float32, device=device)
    grad = torch.empty(0 if wanted is None else student.shape, dtype=wanted, device=device)
    terms = torch.empty((*student.shape[:-2], 2), dtype=torch.float32, device=device) if want_terms else None
    if members > 0:
        invalid, code = torch.empty(1, dtype=torch.int32, device=device), DTYPE_CODES[logits.dtype]
        size = backend.cuda_module().distill_loss_workspace(members, jets, classes, code)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        gpu.call(
            "distill_loss",
            (logits, teacher, labels, weights, temperature, alpha),
            (loss, terms, grad if wanted else None, invalid, workspace),
            members,
            jets,
            classes,
            jets * classes if teacher is not None and teacher.dim() == 3 else 0,
            code,
            DTYPE_CODES[wanted] if wanted else 0,
            labels.dtype == torch.float32,
        )
        if gpu.may_wait(device) and invalid.item():
            return None
    if wanted != grad_dtype:
        grad = grad.to(grad_dtype)
    return loss, grad, loss if terms is None else terms


def _sizes(student: Tensor, teacher: Tensor | None, labels: Tensor, weights: Tensor | None) -> tuple[int, int, int]:
    """(K, B, C). Raises DataError where shapes or types don't fit."""
    shape = student.shape
    dims = len(shape)
    members, jets, classes = shape if dims == 3 else (1, *shape) if dims == 2 else (1, 0, 0)
    if (  # everything at once, since this is a large part of what a small batch costs; what is wrong comes after
        classes > 0
        and jets > 0
        and student.is_floating_point()
        and (teacher is None or teacher.shape == shape or (teacher.dim() == 2 and teacher.shape == (jets, classes)))
        and labels.shape == (jets,)
        and (classes == 1 or not labels.is_floating_point())
        and (weights is None or weights.shape == (jets,))
    ):
        return members, jets, classes
    if dims not in (2, 3) or shape[-1] == 0 or not student.is_floating_point():
        raise DataError(f"must be floats [B, C] or [K, B, C], is {student.dtype} {list(shape)}", where="student_logits")
    if jets == 0:
        raise DataError("no jets: the mean over them is undefined", where="student_logits")
    if teacher is not None and teacher.shape != shape and teacher.shape != shape[-2:]:
        raise DataError(
            f"must be {list(shape[-2:])} or {list(shape)}, is {list(teacher.shape)}", where="teacher_logits"
        )
    if labels.shape != (jets,):
        raise DataError(f"must be [{jets}], one for each jet; is {list(labels.shape)}", where="labels")
    if classes > 1 and labels.is_floating_point():
        raise DataError(f"must be integers for {classes} classes, are {labels.dtype}", where="labels")
    found = None if weights is None else list(weights.shape)
    raise DataError(f"must be [{jets}], one for each jet; is {found}", where="weights")


def _check_members(student: Tensor, temperature: Tensor, alpha: Tensor) -> None:
    check_device(student, temperature=temperature, alpha=alpha)
    members = student.shape[0] if student.dim() == 3 else 1
    for name, value in (("temperature", temperature), ("alpha", alpha)):
        if value.shape != (members,) or value.dtype != torch.float64:
            expected, found = f"float64 [{members}]", f"{value.dtype} {list(value.shape)}"
            raise ConfigError(f"must be {expected} for the raw op, is {found}", where=name)


def _first(bad: Tensor) -> int | None:
    rows = bad.nonzero()
    return int(rows[0]) if len(rows) else None


def _check_values(
    teacher: Tensor | None, labels: Tensor, classes: int, temperature: Tensor, alpha: Tensor, weights: Tensor | None
) -> None:
    """Raises for the first value that can't be. (The kernel checks in passing; this then names the fault.)"""

    if (k := _first(~((temperature > 0) & temperature.isfinite()))) is not None:
        raise ConfigError(f"must be finite and above 0, is {float(temperature[k])}", where=f"temperature, member {k}")
    if (k := _first(~((alpha >= 0) & (alpha <= 1)))) is not None:
        raise ConfigError(f"must lie in [0, 1], is {float(alpha[k])}", where=f"alpha, member {k}")
    if teacher is None and (k := _first(alpha > 0)) is not None:
        raise ConfigError(f"is None, but α of member {k} is {float(alpha[k])}", where="teacher_logits")
    check_jets(labels, classes, weights)


def check_jets(labels: Tensor, classes: int, weights: Tensor | None) -> None:
    """Raises DataError for the first label or weight that can't be, or where all weights are 0."""
    top = 1 if classes == 1 else classes - 1
    if (row := _first(~((labels >= 0) & (labels <= top)))) is not None:
        allowed = "in [0, 1]" if classes == 1 else f"a class from 0 to {top}"
        raise DataError(f"must be {allowed}, is {labels[row].item()}", where=f"labels, row {row}")
    if weights is not None:
        if (row := _first(~((weights >= 0) & weights.isfinite()))) is not None:
            raise DataError(f"must be finite and not negative, is {weights[row].item()}", where=f"weights, row {row}")
        if not weights.any():
            raise DataError("are all zero: the weighted mean is undefined", where="weights")


def distill_loss_reference(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    temperature: Tensor,
    alpha: Tensor,
    weights: Tensor | None = None,
    grad_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The specification, in float64: (loss [K], grad like student_logits, terms [K, 2]), as the raw op gives them.

    terms: the weighted means of T² · KL (0 where α = 0, whatever the teacher) and of CE; loss = α · terms[:, 0] +
    (1 − α) · terms[:, 1]. grad: of each member's own loss, empty where grad_dtype is None.
    """
    classes = student_logits.shape[-1]
    _check_values(teacher_logits, labels, classes, temperature, alpha, weights)
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    distils = (alpha > 0)[:, None, None]
    s = student_logits.double().reshape(-1, *student_logits.shape[-2:])
    t = s if teacher_logits is None else torch.where(distils, teacher_logits.double(), s)  # s: KL = 0
    if classes == 1:
        s, t = (torch.cat([torch.zeros_like(x), x], -1) for x in (s, t))
        y = torch.stack([1 - labels.double(), labels.double()], -1)
    else:
        y = torch.nn.functional.one_hot(labels.long(), classes).double()
    w = torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()
    w = w / w.max()  # their sum may be more than the largest float64
    w = w / w.sum()
    T, a = temperature[:, None, None], alpha[:, None, None]

    log_p, log_q, log_s = torch.log_softmax(t / T, -1), torch.log_softmax(s / T, -1), torch.log_softmax(s, -1)
    p, q = log_p.exp(), log_q.exp()
    kd = (T**2 * p * (log_p - log_q)).sum(-1)
    ce = -(y * log_s).sum(-1)
    terms = torch.stack([(w * kd).sum(-1), (w * ce).sum(-1)], -1)
    loss = alpha * terms[:, 0] + (1 - alpha) * terms[:, 1]
    if grad_dtype is None:
        grad = student_logits.new_empty(0)
    else:
        grad = w[:, None] * (a * T * (q - p) + (1 - a) * (log_s.exp() - y))
        grad = grad[..., -classes:].to(grad_dtype).reshape(student_logits.shape).contiguous()
    outer = student_logits.shape[:-2]
    return loss.to(dtype).reshape(outer), grad, terms.to(dtype).reshape(*outer, 2)


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
    return _run(student, (teacher, labels, temperature.contiguous(), alpha.contiguous(), weights), grad_dtype)


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


_library.impl("distill_loss", _raw, "CompositeExplicitAutograd")
torch.library.register_fake("kdfast::distill_loss", _fake, lib=_library)
torch.library.register_autograd("kdfast::distill_loss", _backward, setup_context=_setup_context, lib=_library)
