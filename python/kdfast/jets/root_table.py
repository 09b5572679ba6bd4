"""ROOT files, by uproot: branches with one number a jet, or with a list of numbers. `tree/part_px` is one of a tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError
from kdfast.jets.table import COPY_AGAIN, RAGGED, Column, Table, pad_lists

__all__ = ["RootTable"]

ROWS = 4_000  # of a block


class RootTable(Table):
    """An open ROOT file."""

    format = "ROOT"
    word = "branch"
    damage = (Exception,)  # uproot and awkward raise whatever a broken structure leads to

    def __init__(self, path: Path) -> None:
        try:
            import awkward
            import uproot
        except ImportError as error:
            what = f"is a ROOT file, and {error.name} is not installed"
            raise ConfigError(what, where=str(path), hint="pip install 'kdfast[root]'") from None
        super().__init__(path)
        self._awkward = awkward
        self._jagged, self._numbers = uproot.AsJagged, uproot.AsDtype
        self._blocks: dict[str, tuple[int, int, Any]] = {}
        self._branches: dict[str, Any] = {}
        try:
            # read by this thread: handing the work to another takes a quarter of the time for a small file
            self._file = uproot.open(path, handler=uproot.MultithreadedFileSource, use_threads=False)
        except MemoryError:
            raise
        except Exception as error:
            what = f"can't be read as ROOT ({_first_line(error)})"
            raise DataError(what, where=str(path), hint=COPY_AGAIN) from error

    def close(self) -> None:
        self._file.close()

    def names(self) -> list[str]:
        trees = self._file.keys(cycle=False, filter_classname="TTree")
        return [f"{tree}/{branch}" for tree in dict.fromkeys(trees) for branch in list(self._file[tree].keys())]

    def has(self, name: str) -> bool:
        tree, _, branch = name.rpartition("/")
        known = tree in self._file.keys(cycle=False, filter_classname="TTree")
        if not known and tree in self._file.keys(cycle=False):
            kind = self._file.classname_of(tree)
            hint = "write a TTree (in uproot by file.mktree)" if "RNTuple" in kind else None
            raise DataError(f"is of a {kind}, and not of a TTree", where=self.where(name), hint=hint)
        return known and branch in set(self._file[tree].keys())

    def _branch(self, name: str) -> Any:
        if name not in self._branches:
            if not self.has(name):
                raise self.missing(name)
            tree, _, branch = name.rpartition("/")
            self._branches[name] = self._file[tree][branch]
        return self._branches[name]

    def column(self, name: str) -> Column:
        branch = self._branch(name)
        kind = branch.interpretation
        jagged = isinstance(kind, self._jagged)
        numbers = kind.content if jagged else kind
        if not isinstance(numbers, self._numbers):
            raise DataError(f"must hold numbers, holds {branch.typename}", where=self.where(name))
        dtype = numbers.to_dtype
        if dtype.shape or dtype.names:
            raise DataError(f"must hold a number or a list of them, holds {branch.typename}", where=self.where(name))
        return Column(int(branch.num_entries), RAGGED if jagged else None, dtype.newbyteorder("="))

    def chunk_rows(self, name: str) -> int:
        return ROWS

    def fill(self, name: str, start: int, stop: int, values: NDArray[Any]) -> None:
        if values.ndim == 1:
            values[...] = self._branch(name).array(entry_start=start, entry_stop=stop, library="np")
            return
        pad_lists(*self._lists(name, start, stop), values)

    def counts(self, name: str, start: int, stop: int) -> NDArray[np.int64]:
        return self._lists(name, start, stop)[1]

    def _lists(self, name: str, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(numbers, counts [stop − start]) of a branch with lists."""
        if self._blocks.get(name, (0, 0))[:2] != (start, stop):
            lists = self._branch(name).array(entry_start=start, entry_stop=stop, library="ak")
            counts = np.asarray(self._awkward.num(lists, axis=1), np.int64)
            flat = np.asarray(self._awkward.flatten(lists, axis=1))
            self._blocks[name] = (start, stop, (flat, counts))
        found: tuple[NDArray[Any], NDArray[np.int64]] = self._blocks[name][2]
        return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
