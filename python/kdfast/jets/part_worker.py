"""A process that reads parts of files and writes them into a packed store, for jets/prepare.py.

It takes requests as lines of JSON on standard input and answers each with a line on standard output. What a broken file
does to the library that reads it (a crash, no end) ends this process alone.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kdfast.errors import KdfastError
from kdfast.jets.checks import Faults
from kdfast.jets.columns import column_map
from kdfast.jets.jet_store import array_digest, array_path
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.jets.packing import Packing, chunk_rows, read_file
from kdfast.jets.sources import Source, inspect
from kdfast.mapped import HEADER_BYTES

__all__ = ["main"]

Message = dict[str, Any]


class _Worker:
    """The jets that were read last, until they are written."""

    def __init__(self) -> None:
        self.jets: PackedJets | None = None

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
        packing = Packing(stop - start, stop - start, faults, unit)
        read_file(source, range(start, stop), first_index, packing)
        self.jets = packing.packed()
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
        for name in DTYPES:
            array = getattr(jets, name)
            first = first_jet
            if name == "constituents":
                first = first_constituent
            elif name == "offsets":  # a jet's is where it ends; the first one of all is 0
                array = array[1:] + first_constituent
                first += 1
            _write(array_path(Path(folder), name), array, first)
            digests[name] = array_digest(array)
        return {"sha256": digests}


def _source(
    *, path: str, columns: Message, max_constituents: int | None, exactly: bool, require_labels: bool
) -> Source:
    return inspect(Path(path), column_map(columns), max_constituents, exactly, require_labels)


def _write(path: Path, array: np.ndarray[Any, Any], first: int) -> None:
    """Writes rows of an array into its file, durably."""
    content = np.ascontiguousarray(array)
    row_bytes = content.itemsize * int(np.prod(content.shape[1:]))
    with open(path, "r+b") as file:
        file.seek(HEADER_BYTES + first * row_bytes)
        file.write(content.data)
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    """Answers requests until standard input ends."""
    worker = _Worker()
    warnings.simplefilter("ignore")  # the process that asks warns of what is dropped
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except KdfastError as error:
            answer = {"error": {"type": type(error).__name__, **error.parts()}}
        except OSError as error:
            answer = {"os_error": [error.errno, error.strerror]}
        except MemoryError:
            answer = {"os_error": [errno.ENOMEM, "not enough memory"]}
        except Exception as error:
            fault = {"type": type(error).__name__, "what": str(error), "traceback": traceback.format_exc(), "place": 0}
            answer = {"error": fault}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
