"""The child process that reads files for isolated.py."""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import sys
import traceback
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import KdfastError, KdfastWarning
from kdfast.jets.columns import ColumnMap
from kdfast.jets.isolated import ALIGNMENT
from kdfast.jets.packed import DTYPES
from kdfast.jets.readers import Reading, read_jets
from kdfast.jets.splits import SplitRule
from kdfast.process import memory

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1
PIECE = 1 << 25  # bytes


def main() -> None:
    """Reads what stdin asks for. The last argument is the number of the open file that takes the arrays."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with its parent
    _limit_memory()
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    request = json.loads(sys.stdin.buffer.read())
    files: list[str] = request["files"]

    def seen(path: Any) -> None:
        os.write(output, f"{files.index(str(path))}\n".encode())

    answer: dict[str, Any]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", KdfastWarning)
            jets, places = read_jets(files, _reading(request["reading"]), seen)
        arrays = {name: getattr(jets, name) for name in DTYPES} | {"places": places}
        answer = {"warnings": [str(each.message) for each in caught], **_share(arrays, int(sys.argv[-1]))}
    except KdfastError as error:
        answer = {"error": error.parts() | {"type": type(error).__name__}}
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        answer = {"error": {"type": "", "what": what, "traceback": traceback.format_exc()}}
    os.write(output, json.dumps(answer).encode() + b"\n")
    os._exit(0)  # a library that is left in disorder may crash when it is closed


def _limit_memory() -> None:
    """So that a request for more than the machine has fails, and does not make the kernel end some process."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        total = memory()
        if total:
            resource.setrlimit(resource.RLIMIT_DATA, (total, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _reading(table: dict[str, Any]) -> Reading:
    split = None if table["split"] is None else SplitRule.model_validate(table["split"])
    return Reading(**table | {"columns": ColumnMap.model_validate(table["columns"]), "split": split})


def _share(arrays: dict[str, NDArray[Any]], number: int) -> dict[str, Any]:
    """Writes arrays end to end into an open file; where each of them is."""
    found = {}
    size = ALIGNMENT
    for name, values in arrays.items():
        found[name] = (values.dtype.str, list(values.shape), size)
        size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
    os.ftruncate(number, size)
    with mmap.mmap(number, size) as content:
        for name, (_, _, start) in found.items():
            _move(arrays[name], content, start)
    return {"arrays": found, "size": size}


def _move(values: NDArray[Any], content: mmap.mmap, start: int) -> None:
    """Copies an array piece by piece, and gives back the memory of each piece: the jets never take it twice."""
    source = values.reshape(-1).view(np.uint8)
    target = np.frombuffer(content, np.uint8, count=source.size, offset=start)
    for begin in range(0, source.size, PIECE):
        end = min(begin + PIECE, source.size)
        np.copyto(target[begin:end], source[begin:end])
        if end - begin == PIECE:
            first = -(-(source.ctypes.data + begin) // mmap.PAGESIZE) * mmap.PAGESIZE
            with contextlib.suppress(OSError, AttributeError):
                length = ctypes.c_size_t(PIECE - mmap.PAGESIZE)
                ctypes.CDLL(None).madvise(ctypes.c_void_p(first), length, mmap.MADV_DONTNEED)
    del target
