"""Arrays as tensors, what ops check about them, and the element types as the compiled modules name them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdfast.errors import DataError

# DType in csrc/core/types.h
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that shares the array's memory; a copy where torch can't (read-only or not contiguous)."""
    flags = array.flags
    shared = flags.c_contiguous and flags.writeable
    return torch.from_numpy(array if shared else np.require(array, requirements=["C", "W"]))


def check_device(like: Tensor, **others: Tensor | None) -> None:
    """Raises DataError unless all lie on one device: kernels take addresses."""
    for name, x in others.items():
        if x is not None and x.device != like.device:
            hint = "move it with .to(device): all tensors of a call lie on one device"
            raise DataError(f"lies on {x.device}, other arguments on {like.device}", where=name, hint=hint)


def check_padded_bias(bias: Tensor | None, mask: Tensor, heads: int, name: str) -> None:
    """Raises DataError unless a bias of padded jets is [B, heads, N, N], for a mask [B, N]."""
    jets, slots = mask.shape
    if bias is not None and bias.shape != (jets, heads, slots, slots):
        what = f"must be [B, heads, N, N] = {[jets, heads, slots, slots]}, is {list(bias.shape)}"
        raise DataError(what, where=name)


def through_rows(packed: Callable[..., Tensor], padded: Sequence[Tensor], mask: Tensor, bias: Tensor | None) -> Tensor:
    """The result [B, N, …] for padded jets of packed(*arrays [M, …], offsets, bias), zeros in padding.

    padded: [B, N, …] each. mask: [B, N]. bias: [B, heads, N, N], packed to [heads, Σ n²], or None.
    """
    rows = mask.flatten().nonzero()[:, 0]
    offsets = torch.cat([rows.new_zeros(1), mask.sum(1).cumsum(0)])
    if bias is not None:
        pairs = (mask[:, :, None] & mask[:, None, :]).flatten().nonzero()[:, 0]
        bias = bias.transpose(0, 1).flatten(1).index_select(1, pairs)
    first = padded[0]
    out = packed(*(x.flatten(0, 1).index_select(0, rows) for x in padded), offsets, bias)
    return out.new_zeros(first.flatten(0, 1).shape).index_copy(0, rows, out).view(first.shape)


def check_constituents(constituents: Tensor, offsets: Tensor) -> None:
    """Raises DataError unless constituents are floating-point [M, 4], and offsets int64 [B + 1], 0 … M, not falling."""
    if constituents.dim() != 2 or constituents.shape[1] != 4 or not constituents.is_floating_point():
        shape = f"{constituents.dtype} {list(constituents.shape)}"
        raise DataError(f"must be floating-point [M, 4] (pt, eta, phi, energy), is {shape}", where="constituents")
    check_device(constituents, offsets=offsets)
    check_offsets(offsets, len(constituents))


def check_offsets(offsets: Tensor, rows: int) -> None:
    """Raises DataError unless offsets are int64 [B + 1] that rise from 0 to rows (a jet may be empty)."""
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.numel() == 0:
        raise DataError(f"must be int64 [B + 1], is {offsets.dtype} {list(offsets.shape)}", where="offsets")
    if offsets[0] != 0 or offsets[-1] != rows or bool((offsets.diff() < 0).any()):
        raise DataError(f"must rise from 0 to {rows}, the number of constituents", where="offsets")
