"""Tables in memory: a pandas DataFrame, an awkward array of records, a structured array, or a mapping of arrays.

A column is an array [jets], [jets, slots] or [jets, slots, entries], or lists of numbers (of an awkward
array, or as objects). `part/px` is the field px of the entry `part`. A first part that the table does not
have, such as the tree's name of `tree/part_px`, is left out, so that a preset for files reads the same table
in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError
from kdfast.jets.pandas_frame import numbered
from kdfast.jets.table import RAGGED, Column, Table, pad_lists

__all__ = ["MemoryTable", "is_table"]

ROWS = 4_000  # of a block of lists


def is_table(data: Any) -> bool:
    """Whether this is a table in memory, and no path."""
    return _keys(data) is not None


def _keys(item: Any) -> list[Any] | None:
    """The names of a table's columns; None for what is no table."""
    if isinstance(item, Mapping):
        return [*item]
    if _is_awkward(item):
        return [*item.fields] or None
    if isinstance(item, np.ndarray):
        return [*item.dtype.names] if item.dtype.names else None
    columns = getattr(item, "column_names", getattr(item, "columns", None))  # of an Arrow table, of a DataFrame
    return None if columns is None else [*columns]


def _is_awkward(item: Any) -> bool:
    return type(item).__module__.partition(".")[0] == "awkward"


@dataclass(frozen=True)
class _Lists:
    """Lists end to end: flat [M], offsets [rows + 1]."""

    flat: NDArray[Any]
    offsets: NDArray[np.int64]


class MemoryTable(Table):
    """A table in memory. Its columns are not copied, but for lists that are objects."""

    format = "memory"
    word = "column"
    whole = "table"
    damage = ()

    def __init__(self, data: Any) -> None:
        super().__init__(Path(type(data).__name__))
        self.data = data
        self._found: dict[str, NDArray[Any] | list[NDArray[Any]] | _Lists] = {}

    def __str__(self) -> str:
        return str(self.path)

    def close(self) -> None:
        pass

    def names(self) -> list[str]:
        found = []
        for key in _keys(self.data) or []:
            inner = _keys(self.data[key])
            found += [str(key)] if inner is None else [f"{key}/{each}" for each in inner]
        return found

    def _find(self, name: str) -> NDArray[Any] | list[NDArray[Any]] | _Lists | None:
        """The values of a column: an array, one for each slot, or lists; None where there is none."""
        if name not in self._found:
            parts = name.split("/")
            ways = [[name], parts, parts[1:]] if len(parts) > 1 else [parts]
            found = next((each for way in ways if (each := self._walk(name, way)) is not None), None)
            if found is None:
                return None
            self._found[name] = found
        return self._found[name]

    def _walk(self, name: str, parts: list[str]) -> NDArray[Any] | list[NDArray[Any]] | _Lists | None:
        item = self.data
        for depth, part in enumerate(parts):
            keys = _keys(item)
            is_last = depth == len(parts) - 1
            if keys is None:
                return _entry(self._values(name, item), part) if is_last else None
            if is_last and "*" in part and part not in keys:
                return self._slots(name, item, part)
            if keys.count(part) != 1:
                return None
            item = item[part]
        if _keys(item) is not None:
            hint = f"name a field: {', '.join(f'{name}/{key}' for key in _keys(item) or [])}"
            raise DataError("holds several fields", where=self.where(name), hint=hint)
        return self._values(name, item)

    def _slots(self, name: str, item: Any, pattern: str) -> list[NDArray[Any]] | None:
        """The columns that a pattern with * means, one for each slot."""
        keys = [key for key in _keys(item) or [] if isinstance(key, str)]
        try:
            found = numbered({key: ("", k) for k, key in enumerate(keys)}, pattern)
        except ValueError as error:
            raise DataError(str(error), where=self.where(name)) from None
        if found is None:
            return None
        columns = [self._values(name, item[keys[k]]) for k in found[1]]
        arrays = [each for each in columns if isinstance(each, np.ndarray) and each.ndim == 1]
        if len({len(each) for each in columns if isinstance(each, np.ndarray)}) > 1 or len(arrays) < len(columns):
            raise DataError("must be columns of one number a jet, of equal length", where=self.where(name))
        return arrays

    def _values(self, name: str, item: Any) -> NDArray[Any] | _Lists:
        try:
            values = _of_awkward(item) if _is_awkward(item) else np.asarray(item)
            if isinstance(values, np.ndarray) and values.dtype == object:
                values = _of_objects(values)
        except Exception as error:
            what = f"must hold numbers or lists of numbers ({str(error).strip().splitlines()[0]})"
            raise DataError(what, where=self.where(name)) from None
        return values

    def column(self, name: str) -> Column:
        found = self._existing(name)
        if isinstance(found, _Lists):
            return Column(len(found.offsets) - 1, RAGGED, found.flat.dtype)
        if isinstance(found, list):
            return Column(len(found[0]), len(found), np.result_type(*found))
        if found.ndim not in (1, 2):
            what = f"must have the shape [jets] or [jets, constituents], has {list(found.shape)}"
            raise DataError(what, where=self.where(name))
        return Column(len(found), found.shape[1] if found.ndim == 2 else None, found.dtype)

    def chunk_rows(self, name: str) -> int:
        return ROWS if isinstance(self._find(name), _Lists) else 0

    def fill(self, name: str, start: int, stop: int, values: NDArray[Any]) -> None:
        found = self._find(name)
        if isinstance(found, _Lists):
            offsets = found.offsets[start : stop + 1]
            pad_lists(found.flat[offsets[0] : offsets[-1]], np.diff(offsets), values)
        elif isinstance(found, list):
            for slot in range(values.shape[1]):
                values[:, slot] = found[slot][start:stop]
        elif found is not None:
            values[...] = found[start:stop] if values.ndim == 1 else found[start:stop, : values.shape[1]]

    def counts(self, name: str, start: int, stop: int) -> NDArray[np.int64]:
        found = self._find(name)
        assert isinstance(found, _Lists)
        return np.diff(found.offsets[start : stop + 1])


def _entry(values: NDArray[Any] | _Lists, part: str) -> NDArray[Any] | None:
    """The entry on the last axis of an array."""
    if not isinstance(values, np.ndarray) or values.ndim < 2 or not (part.isascii() and part.isdecimal()):
        return None
    return values[..., int(part)] if int(part) < values.shape[-1] else None


def _lists(flat: NDArray[Any], counts: NDArray[np.int64]) -> _Lists:
    return _Lists(flat, np.concatenate([[0], np.cumsum(counts)]))


def _of_awkward(array: Any) -> NDArray[Any] | _Lists:
    awkward = sys.modules["awkward"]
    try:
        return np.asarray(awkward.to_numpy(array, allow_missing=False))  # all lists are as long
    except ValueError:
        counts = np.asarray(awkward.num(array, axis=1), np.int64)
        return _lists(np.asarray(awkward.to_numpy(awkward.flatten(array, axis=1), allow_missing=False)), counts)


def _of_objects(rows: NDArray[Any]) -> _Lists:
    """Lists that are objects, one for each jet."""
    arrays = [np.asarray(row) for row in rows]
    if any(array.ndim != 1 or array.dtype.kind not in "fiub" for array in arrays):
        raise ValueError("some rows are something else")
    counts = np.array([len(array) for array in arrays], np.int64)
    return _lists(np.concatenate(arrays) if arrays else np.empty(0), counts)
