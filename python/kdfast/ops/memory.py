"""Memory for the results of ops, kept between calls.

glibc hands large blocks back to the system as soon as they are free, and the next call then pays for every
page of them again: a page fault takes as long as reading some four kilobytes ten times. So blocks from which
every tensor is gone wait here for the next call that needs one, as those of CUDA tensors do in PyTorch's own
allocator.
"""

import math
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["empty"]

_SMALLEST = 2**20  # bytes: malloc keeps smaller blocks itself
_MOST_IDLE = 2**28  # bytes of blocks that nobody uses

_lock = threading.Lock()


def _unlock() -> None:
    """A forked child has none of the parent's threads: nobody there gives the lock back that one of them holds."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)
_blocks: list[np.ndarray[Any, Any]] = []  # the one that was handed out last at the end


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """torch.empty(shape, dtype=dtype) on the CPU; where it is large, in a block that is kept for reuse."""
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALLEST:
        return torch.empty(shape, dtype=dtype, device="cpu")
    with _lock:
        block = _take(size)
    # The storage, and so every tensor that shares it, holds a reference to the block.
    flat = torch.frombuffer(block, dtype=dtype, count=size // dtype.itemsize, offset=-block.ctypes.data % 64)
    return torch.empty(0, dtype=dtype, device="cpu").set_(flat.untyped_storage(), 0, shape)  # type: ignore[call-overload]


def _references(blocks: Sequence[object]) -> list[int]:
    return [sys.getrefcount(block) for block in blocks]


_UNUSED = _references([object()])[0]


def _take(size: int) -> np.ndarray[Any, Any]:
    """A block that no tensor uses, the smallest that fits; those idle for longest go where there are too many."""
    idle = [i for i, count in enumerate(_references(_blocks)) if count == _UNUSED]
    fitting = [i for i in idle if size + 64 <= _blocks[i].nbytes <= 2 * size]
    if fitting:
        chosen = min(fitting, key=lambda i: _blocks[i].nbytes)
        idle.remove(chosen)
        block = _blocks[chosen]
    else:
        chosen = -1
        block = np.empty(size + 64, dtype=np.uint8)
    spare = sum(_blocks[i].nbytes for i in idle) - _MOST_IDLE
    gone = {chosen}
    for i in idle:
        if spare > 0:
            gone.add(i)
            spare -= _blocks[i].nbytes
    _blocks[:] = [*(other for i, other in enumerate(_blocks) if i not in gone), block]
    return block
