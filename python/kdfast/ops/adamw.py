"""Gradient clipping and AdamW over flat parameters [K, P], in place.

Per member k, with its step count n (Loshchilov & Hutter, ICLR'19; clipping as torch.nn.utils.clip_grad_norm_
does it):
    g = gradient · min(1, clip_norm / (‖gradient‖ + 1e-6))
    m = β₁ m + (1 − β₁) g;   v = β₂ v + (1 − β₂) g²
    θ = (1 − η λ) θ − η / (1 − β₁ⁿ) · m / (√v / √(1 − β₂ⁿ) + ε)
A member whose gradient is not finite is left as it is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdfast.errors import DataError
from kdfast.ops import backend, gpu
from kdfast.ops.arrays import check_device

__all__ = ["adamw", "adamw_reference"]

BETA1 = 0.9
BETA2 = 0.999
EPS = 1e-8


def adamw(
    parameters: Tensor,
    gradient: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    *,
    step: Tensor,
    learning_rate: Tensor,
    weight_decay: Tensor,
    clip_norm: float,
    rounded: Tensor | None = None,
    num_threads: int | None = None,
) -> Tensor:
    """One update of K members in place; returns the gradients' norms [K] before clipping.

    A member whose norm is not finite does not change.

    Parameters
    ----------
    parameters, moment1, moment2 : Tensor [K, P]
        Contiguous, changed in place. float32; float64 runs the PyTorch reference.
    gradient : Tensor [K, P]
        Of the same dtype.
    step : Tensor [K], int64
        Number of updates, this one included.
    learning_rate, weight_decay : Tensor [K]
        Of the same dtype.
    clip_norm : float
        Largest norm of a member's gradient.
    rounded : Tensor [K, P], optional
        A copy of the parameters in another dtype, which stays one. Where it is contiguous bfloat16, the CUDA kernel
        writes it as it goes.
    num_threads : int, optional
        Of the compiled kernel; torch's by default. The result does not depend on it.

    Raises
    ------
    DataError
        For shapes, dtypes or devices that do not fit together.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", arXiv:1711.05101.
    """
    shape = parameters.shape
    buffers = (gradient, moment1, moment2) if rounded is None else (gradient, moment1, moment2, rounded)
    if len(shape) != 2 or any(x.shape != shape for x in buffers):
        raise DataError("parameters, their copy, gradient and moments must share one shape [K, P]", where="adamw")
    if any(x.shape != shape[:1] for x in (step, learning_rate, weight_decay)) or step.dtype != torch.int64:
        raise DataError(f"step (int64), learning_rate and weight_decay must be [{shape[0]}]", where="adamw")
    check_device(parameters, gradient=gradient, moment1=moment1, moment2=moment2, step=step)
    check_device(parameters, learning_rate=learning_rate, weight_decay=weight_decay, rounded=rounded)
    return torch.ops.kdfast.adamw.default(
        parameters, gradient, moment1, moment2, step, learning_rate, weight_decay, clip_norm, rounded, num_threads or 0
    )


def adamw_reference(
    parameters: Tensor,
    gradient: Tensor,
    moment1: Tensor,
    moment2: Tensor,
    step: Tensor,
    learning_rate: Tensor,
    weight_decay: Tensor,
    clip_norm: float,
) -> Tensor:
    """The specification; any floating dtype."""
    norm = torch.linalg.vector_norm(gradient, dim=1)
    g = gradient * (clip_norm / (norm + 1e-6)).clamp(max=1)[:, None]
    rate = learning_rate[:, None]
    count = step[:, None].double()
    m = moment1 + (1 - BETA1) * (g - moment1)
    v = BETA2 * moment2 + (1 - BETA2) * g * g
    correction1 = 1 - BETA1**count
    root_correction2 = (1 - BETA2**count).sqrt()
    denominator = v.sqrt() / root_correction2.to(v.dtype) + EPS
    new = (1 - rate * weight_decay[:, None]) * parameters - (rate / correction1).to(v.dtype) * (m / denominator)
    finite = norm.isfinite()[:, None]
    for old, updated in ((parameters, new), (moment1, m), (moment2, v)):
        old.copy_(torch.where(finite, updated, old))
    return norm


def _run(*arguments: Any) -> Tensor:
    state = arguments[:4]
    step, learning_rate, weight_decay, clip_norm, rounded, num_threads = arguments[4:]
    parameters = state[0]
    arrays = (*state, learning_rate, weight_decay)
    unsupported = None
    if any(x.dtype != torch.float32 or not x.is_contiguous() for x in arrays) or not step.is_contiguous():
        unsupported = "parameters, gradient, moments and rates must be contiguous float32"
    device = parameters.device
    is_double = parameters.dtype == torch.float64
    kernel = "reference" if is_double else backend.choose("adamw", device.type, unsupported, device.index)
    rates = (learning_rate, weight_decay, step)
    written = None  # the copy, where a kernel writes it
    if kernel == "reference":
        norm = adamw_reference(*arguments[:-2])
    elif kernel == "cpu":
        norm = _on_cpu(state, rates, clip_norm, num_threads)
    else:
        written = rounded if rounded is not None and _is_written(rounded) else None
        norm = _on_gpu(state, rates, clip_norm, written)
    if rounded is not None and written is None:
        rounded.copy_(parameters)
    return norm


def _is_written(rounded: Tensor) -> bool:
    return rounded.dtype == torch.bfloat16 and rounded.is_contiguous()


def _on_gpu(state: Sequence[Tensor], rates: Sequence[Tensor], clip_norm: float, rounded: Tensor | None) -> Tensor:
    parameters, gradient, moment1, moment2 = state
    norm = parameters.new_empty(len(parameters))
    if parameters.numel() == 0:
        return norm.zero_()
    size = backend.cuda_module().adamw_workspace(*parameters.shape)
    workspace = torch.empty(size, dtype=torch.uint8, device=parameters.device)
    outputs = (parameters, moment1, moment2, norm, rounded, workspace)
    gpu.call("adamw", (gradient, *rates), outputs, *parameters.shape, BETA1, BETA2, EPS, clip_norm)
    return norm


def _on_cpu(state: Sequence[Tensor], rates: Sequence[Tensor], clip_norm: float, num_threads: int) -> Tensor:
    parameters = state[0]
    norm = parameters.new_empty(len(parameters))
    backend.cpu_module().adamw(
        *(x.data_ptr() for x in (*state, norm, *rates)),
        *parameters.shape,
        BETA1,
        BETA2,
        EPS,
        clip_norm,
        num_threads or torch.get_num_threads(),
    )
    return norm


def _fake(parameters: Tensor, *_: object) -> Tensor:
    return parameters.new_empty(parameters.shape[0])


_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define(
    "adamw(Tensor(a!) parameters, Tensor gradient, Tensor(b!) moment1, Tensor(c!) moment2, Tensor step, "
    "Tensor learning_rate, Tensor weight_decay, float clip_norm, Tensor(d!)? rounded, int num_threads) -> Tensor"
)
_library.impl("adamw", _run, "CompositeExplicitAutograd")
torch.library.register_fake("kdfast::adamw", _fake, lib=_library)
