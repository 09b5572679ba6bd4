"""The compiled kernel for a block of padded constituents: it checks and packs them in one pass.

It is the quick way for jets without faults. Its result has the same bits as that of the numpy code in
packing.py, which is its specification, and which finds and names the fault where the kernel says that there
may be one. It is no op of torch, so that a process that only reads files need not load torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["has_kernel", "pack_constituents"]


@cache
def _kernel() -> Callable[..., int] | None:
    """The compiled function; None where there is none, and where the environment asks for the references."""
    if os.environ.get("KDFAST_BACKEND") == "reference":
        return None
    try:
        module: Any = importlib.import_module("kdfast._cpu")
    except ImportError:  # ops/backend.py says why; reading does without
        return None
    return getattr(module, "pack_constituents", None)


def has_kernel() -> bool:
    """Whether `pack_constituents` can be called."""
    return _kernel() is not None


def pack_constituents(
    padded: list[NDArray[np.float32]], per_gev: np.float32, counts: NDArray[np.int64], room: NDArray[np.float32]
) -> int | None:
    """The number of constituents in a block of jets; None where a jet has a fault, or may have one.

    padded: pt [rows, stored], and eta, phi, energy [rows, width]. counts [rows] is filled; room [capacity, 4]
    takes the constituents, pt and energy divided by per_gev. Where the number is larger than the capacity,
    call again with more room.
    """
    kernel = _kernel()
    assert kernel is not None
    pt, *others = padded
    rows, stored = pt.shape
    width = others[0].shape[1]
    for array in others:
        _check(array, np.float32, (rows, width))
    _check(pt, np.float32, (rows, stored))
    _check(counts, np.int64, (rows,))
    _check(room, np.float32, (len(room), 4))
    assert len(others) == 3
    assert 1 <= width <= stored
    addresses = [array.ctypes.data for array in padded]
    total = kernel(*addresses, rows, stored, width, float(per_gev), counts.ctypes.data, room.ctypes.data, len(room))
    return None if total < 0 else total


def _check(array: NDArray[Any], dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """The kernel takes addresses: it would write past what is smaller."""
    assert array.dtype == dtype
    assert array.shape == shape
    assert array.flags.c_contiguous
