"""Dropout with a mask that is a function of seed and position, so that every backend draws the same one.

y = x · keep / (1 − p), with keep from Philox at the counter (jet's position in the batch, 0, constituent
within the jet, feature // 8). The backward pass is the same operation on the gradient: nothing but the seed
is kept for it.
"""

from typing import Any

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops import backend
from kdfast.ops.arrays import DTYPE_CODES, check_device, check_offsets
from kdfast.ops.autograd import is_eager
from kdfast.ops.philox import dropout_keep, dropout_scale, dropout_threshold, seed_tensor

__all__ = ["dropout", "dropout_reference"]

_MAX_FEATURES = 2**18  # of the compiled kernel


def dropout(x: Tensor, offsets: Tensor | None, p: float, seed: int | Tensor) -> Tensor:
    """Sets each element of x to zero with probability p (rounded to 1/65536) and scales the others by 1 / (1 − p).

    The mask depends on the seed and an element's place alone, so every backend drops the same elements.

    Parameters
    ----------
    x : Tensor [M, D], or [B, D] without offsets
        Features of packed constituents, or of jets; floating point.
    offsets : Tensor [B + 1], int64, or None
        Where each jet begins; None: each row is a jet.
    p : float
        Probability in [0, 1).
    seed : int or Tensor [], int64
        Key of the mask, 64 bits: use one for each call (`kdfast.ops.philox.derive_seed`).

    Returns
    -------
    Tensor
        Of the shape and dtype of x.

    Raises
    ------
    ConfigError
        For p outside [0, 1).
    DataError
        For shapes that do not fit together.

    References
    ----------
    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11: the generator Philox4x32-10.

    Examples
    --------
    >>> x = torch.ones(5, 8)
    >>> y = dropout(x, torch.tensor([0, 3, 5]), 0.5, seed=1)
    >>> y.unique()
    tensor([0., 2.])
    """
    if p == 0:
        return x
    if not 0 < p < 1:  # NaN fails too
        raise ConfigError(f"a dropout probability must lie in [0, 1), is {p}", where="p")
    if x.dim() != 2 or not x.is_floating_point():
        raise DataError(f"must be a floating-point [M, D], is {x.dtype} {list(x.shape)}", where="x")
    if offsets is not None and (offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.numel() == 0):
        raise DataError(f"must be int64 [B + 1], is {offsets.dtype} {list(offsets.shape)}", where="offsets")
    check_device(x, offsets=offsets)
    if not is_eager(x):
        return torch.ops.kdfast.dropout.default(x, offsets, p, seed_tensor(seed))
    try:
        return _EagerDropout.apply(x, offsets, p, int(seed))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(str(error), where="offsets") from None


def dropout_reference(x: Tensor, offsets: Tensor | None, p: float, seed: int) -> Tensor:
    """The specification of `dropout`, on any device and in any dtype."""
    rows = torch.arange(len(x), device=x.device)
    if offsets is None:
        jet = rows
        row = torch.zeros_like(rows)
    else:
        check_offsets(offsets, len(x))
        jet = torch.repeat_interleave(offsets.diff())
        row = rows - offsets[jet]
    keep = dropout_keep(seed, p, jet, torch.zeros_like(jet), row, x.shape[1])
    return torch.where(keep, x * dropout_scale(p), 0.0)


def _dropout(x: Tensor, offsets: Tensor | None, p: float, seed: int) -> Tensor:
    x = x.contiguous()
    code = DTYPE_CODES.get(x.dtype)
    if code is None:  # float64
        return dropout_reference(x, offsets, p, seed)
    unsupported = None if x.shape[1] < _MAX_FEATURES else f"{x.shape[1]} features are more than the kernel takes"
    if backend.choose("dropout", x.device.type, unsupported) == "reference":
        return dropout_reference(x, offsets, p, seed)
    y = torch.empty_like(x)
    if y.numel() == 0:
        if offsets is not None:
            check_offsets(offsets, len(x))
        return y
    if offsets is not None:
        offsets = offsets.contiguous()
    backend.cpu_module().dropout(
        x.data_ptr(),
        y.data_ptr(),
        code,
        0 if offsets is None else offsets.data_ptr(),
        len(x) if offsets is None else len(offsets) - 1,
        *x.shape,
        seed & 0xFFFFFFFFFFFFFFFF,
        dropout_threshold(p),
        torch.get_num_threads(),
    )
    return y


class _EagerDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, offsets: Tensor | None, p: float, seed: int) -> Tensor:
        ctx.forced = backend.forced_here()
        ctx.p = p
        ctx.seed = seed
        ctx.save_for_backward(offsets)
        return _dropout(x, offsets, p, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (offsets,) = ctx.saved_tensors
        return backend.as_forced(ctx.forced, dropout, grad, offsets, ctx.p, ctx.seed), None, None, None


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, offsets, ctx.p, seed = inputs
    ctx.forced = backend.forced_here()
    ctx.save_for_backward(offsets, seed)


def _registered_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    offsets, seed = ctx.saved_tensors
    return backend.as_forced(ctx.forced, dropout, grad, offsets, ctx.p, seed), None, None, None


# The seed of the registered op is a tensor, so that compiled code takes another one at every step.
_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define("dropout(Tensor x, Tensor? offsets, float p, Tensor seed) -> Tensor")
_library.impl("dropout", lambda x, offsets, p, seed: _dropout(x, offsets, p, int(seed)), "CompositeExplicitAutograd")
torch.library.register_fake("kdfast::dropout", lambda x, offsets, p, seed: x.new_empty(x.shape), lib=_library)
torch.library.register_autograd("kdfast::dropout", _registered_backward, setup_context=_keep_arguments, lib=_library)
