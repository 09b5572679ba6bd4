"""Arrays in files that are mapped into memory: read where they are used, so that they need not fit into memory."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["HEADER_BYTES", "is_mapped", "map_file", "release", "write_header"]

HEADER_BYTES = 128  # of a .npy file, so that rows can be written before their number is known


def map_file(path: Path) -> NDArray[Any]:
    """The array of a .npy file, mapped. Writing to it changes this process's memory, never the file."""
    is_empty = path.stat().st_size == HEADER_BYTES  # of which there is nothing to map
    array: NDArray[Any] = np.load(path, mmap_mode=None if is_empty else "c", allow_pickle=False)
    return array


def is_mapped(array: NDArray[Any]) -> bool:
    """Whether an array is mapped from a file, or is a slice of one that is."""
    return isinstance(array, np.memmap) and isinstance(array._mmap, mmap.mmap)  # type: ignore[attr-defined]


def release(arrays: Iterable[NDArray[Any]]) -> None:
    """Drops the pages of mapped arrays from this process's memory. They are read again where they are used.

    Otherwise all that was ever read would count as this process's, and a limit of its memory be reached.
    """
    for array in arrays:
        if is_mapped(array):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def write_header(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    """Makes a file whose rows begin at HEADER_BYTES a .npy file of this shape, durably; cuts off what is behind."""
    kind = np.dtype(dtype)
    with open(path, "r+b") as file:
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        assert file.tell() == HEADER_BYTES, "so long is the header of every array of few dimensions"
        file.truncate(HEADER_BYTES + math.prod(shape) * kind.itemsize)
        file.flush()
        os.fsync(file.fileno())
