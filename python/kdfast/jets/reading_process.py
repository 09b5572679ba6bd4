"""The child process that reads files for isolated.py: as jets in memory, or part by part into a packed store."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import KdfastError, KdfastWarning, ResourceError
from kdfast.jets.checks import Faults
from kdfast.jets.columns import ColumnMap, column_map
from kdfast.jets.isolated import ALIGNMENT
from kdfast.jets.jet_store import SPLIT, array_digest, array_path
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.jets.packing import Packing, chunk_rows, read_file
from kdfast.jets.readers import Reading, read_jets
from kdfast.jets.sources import Source, inspect
from kdfast.jets.splits import SplitRule
from kdfast.mapped import HEADER_BYTES
from kdfast.process import memory

__all__ = ["main"]

Message = dict[str, Any]

_PR_SET_PDEATHSIG = 1
PIECE = 1 << 25  # bytes


def main() -> None:
    """Answers requests until stdin ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # ends with its parent
    _limit_memory()
    output = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no answer
    warnings.simplefilter("ignore")  # the parent warns

    def send(text: str) -> None:
        os.write(output, f"{text}\n".encode())

    worker = _Worker(lambda place: send(str(place)))
    for line in sys.stdin.buffer:
        send(json.dumps(worker.answer(**json.loads(line))))
    os._exit(0)  # a library that is left in disorder may crash when it is closed


def _limit_memory() -> None:
    """So that a request for more than the machine has fails, and does not make the kernel end some process."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        total = memory()
        if total:
            resource.setrlimit(resource.RLIMIT_DATA, (total, resource.getrlimit(resource.RLIMIT_DATA)[1]))


class _Worker:
    """begin: called with the position of a file, before its header or a block of it is read. jets: of the
    part that was read last, until they are written. values: of its split column, if that is kept."""

    def __init__(self, begin: Callable[[int], None]) -> None:
        self.begin = begin
        self.jets: PackedJets | None = None
        self.values: NDArray[np.int64] | None = None

    def answer(self, do: str, **request: Any) -> Message:
        try:
            found: Message = getattr(self, do)(**request)
            return found
        except KdfastError as error:
            return {"error": error.parts() | {"type": type(error).__name__}}
        except OSError as error:
            if do == "write":
                return {"os_error": [error.errno, error.strerror]}
            return self._unexpected(error)
        except Exception as error:
            return self._unexpected(error)

    @staticmethod
    def _unexpected(error: Exception) -> Message:
        what = f"{type(error).__name__}: {error}"
        return {"error": {"type": "", "what": what, "traceback": traceback.format_exc()}}

    def load(self, files: list[str], reading: Message, shared: int) -> Message:
        """Reads whole files. shared: the number of the open file that takes the arrays."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", KdfastWarning)
            jets, places = read_jets(files, _reading(reading), lambda path: self.begin(files.index(str(path))))
        arrays = {name: getattr(jets, name) for name in DTYPES} | {"places": places}
        return {"warnings": [str(each.message) for each in caught], **_share(arrays, shared)}

    def inspect(self, **how: Any) -> Message:
        """What a file's header says."""
        source = _source(**how)
        return {
            "word": source.word,
            "rows": source.rows,
            "chunk_rows": chunk_rows(source),
            "weights": source.weights,
        }

    def read(self, *, start: int, stop: int, first_index: int, unit: str, drop: bool, **how: Any) -> Message:
        """Reads rows start … stop of a file; keeps their jets."""
        source = _source(**how)
        faults = Faults(drop)
        try:
            packing = Packing(stop - start, stop - start, faults, unit)
            packing.seen = lambda _: self.begin(0)
            read_file(source, range(start, stop), first_index, packing)
            self.jets = packing.packed()
            self.values = packing.values[: packing.size] if source.split else None
        except MemoryError as error:
            if isinstance(error, KdfastError):
                raise
            raise ResourceError("there is not enough memory for a part", where=str(source.path)) from error
        return {
            "jets": len(self.jets),
            "constituents": len(self.jets.constituents),
            "rows_read": packing.rows_read,
            "dropped": faults.counts,
            "first": faults.first,
        }

    def write(self, *, folder: str, first_jet: int, first_constituent: int) -> Message:
        """Writes the jets that are kept behind those of earlier parts; their checksums."""
        jets, self.jets = self.jets, None
        assert jets is not None
        digests = {}
        arrays = {name: getattr(jets, name) for name in DTYPES}
        arrays |= {} if self.values is None else {SPLIT: self.values}
        for name, array in arrays.items():
            first = first_jet
            if name == "constituents":
                first = first_constituent
            elif name == "offsets":  # a jet's is where it ends; the first one of all is 0
                array = array[1:] + first_constituent
                first += 1
            _write(array_path(Path(folder), name), array, first)
            digests[name] = array_digest(array)
        return {"sha256": digests}


def _reading(table: Message) -> Reading:
    split = None if table["split"] is None else SplitRule.model_validate(table["split"])
    return Reading(**table | {"columns": ColumnMap.model_validate(table["columns"]), "split": split})


def _source(
    *, path: str, columns: Message, max_constituents: int | None, exactly: bool, require_labels: bool, split: str | None
) -> Source:
    return inspect(Path(path), column_map(columns), max_constituents, exactly, require_labels, split)


def _write(path: Path, array: NDArray[Any], first: int) -> None:
    """Writes rows of an array into its file, durably."""
    content = np.ascontiguousarray(array)
    row_bytes = content.itemsize * int(np.prod(content.shape[1:]))
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + first * row_bytes)
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())


def _share(arrays: dict[str, NDArray[Any]], number: int) -> Message:
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
