"""HDF5 files: datasets [jets] and [jets, slots], fields of structured ones, entries on an array's last axis.

Only hard links to datasets whose bytes lie in the file itself are followed, so that a file from elsewhere
can't make the reader open another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError
from kdfast.jets.pandas_frame import frame_columns, frame_of, is_fixed, numbered
from kdfast.jets.table import COPY_AGAIN, Column, Table

__all__ = ["Hdf5Table"]

# Of each dataset. Constituents are read in whole rows of chunks, each chunk once; only the small datasets
# need a cache.
CHUNK_CACHE_BYTES = 1 << 20
AHEAD = 1 << 14  # rows of a column with one value a jet that are read at once: a call costs as much as 10,000 values
LARGEST_CHUNK = 1 << 30  # bytes: more is a mistake, or a small file that would fill the memory


@dataclass(frozen=True)
class _Place:
    """Where a column is: a dataset, a field of it, entries on the last axis."""

    dataset: h5py.Dataset
    field: str | None = None
    entries: int | NDArray[np.int64] | None = None


@dataclass(frozen=True)
class _Group:
    """What all columns in a group ask about it."""

    members: frozenset[str]
    frame: h5py.Dataset | None
    is_fixed: bool

    @classmethod
    def of(cls, item: h5py.Group) -> _Group:
        return cls(frozenset(item), frame_of(item), is_fixed(item))


def _part_of(dataset: h5py.Dataset, parts: Sequence[str]) -> _Place | None:
    """The field, or the position on the last axis, that the rest of a name means."""
    part = parts[0]
    if len(parts) > 1:
        return None
    if dataset.dtype.names:
        return _Place(dataset, part) if part in dataset.dtype.names else None
    known = part.isascii() and part.isdecimal() and dataset.ndim > 1 and int(part) < dataset.shape[-1]
    return _Place(dataset, None, int(part)) if known else None


class Hdf5Table(Table):
    """An open HDF5 file. `consts/pt` is a dataset of a group, a field of a structured dataset, or a column of
    pandas' DataFrame; `x/0` the first entry on the last axis of a dataset with one dimension more."""

    format = "HDF5"
    word = "dataset"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.file = h5py.File(path, "r", locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
        except OSError as error:
            if "truncated" in str(error):
                what = f"is truncated: only {path.stat().st_size:,} bytes are there"
                raise DataError(what, where=str(path), hint=COPY_AGAIN) from error
            raise DataError(f"can't be read as HDF5 ({error})", where=str(path), hint=COPY_AGAIN) from error
        # Kept open: each dataset has a cache of unpacked chunks.
        self._found: dict[str, _Place] = {}
        self._groups: dict[str, _Group] = {}
        self._columns: dict[str, Column] = {}
        self._ahead: dict[str, tuple[int, NDArray[Any]]] = {}  # by column: a first row, and values from there on
        self._block: dict[str, tuple[int, int, NDArray[Any]]] = {}  # by dataset: the rows that were read last

    def close(self) -> None:
        for kept in (self._found, self._groups, self._block):
            kept.clear()
        self.file.close()

    def names(self) -> list[str]:
        found: list[str] = []
        for name in sorted(self.file):
            item = self.file[name] if isinstance(self.file.get(name, getlink=True), h5py.HardLink) else None
            if isinstance(item, h5py.Group):
                frame = frame_of(item)
                found += [f"{name}/{inner}" for inner in (sorted(item) if frame is None else frame_columns(frame))]
            elif isinstance(item, h5py.Dataset) and item.dtype.names:
                found += [f"{name}/{field}" for field in item.dtype.names]
            else:
                found.append(name)
        return found

    def _find(self, name: str) -> _Place | None:
        """Where a column is; None where there is none. Raises DataError for what is not read."""
        if name not in self._found:
            place = self._walk(name)
            if place is None:
                return None
            self._found[name] = place
        return self._found[name]

    def _walk(self, name: str) -> _Place | None:
        where = self.where(name)
        item: Any = self.file
        parts = name.split("/")
        for depth, part in enumerate(parts):
            if isinstance(item, h5py.Dataset):
                return _part_of(item, parts[depth:])
            group = self._group("/".join(parts[:depth]), item)
            if group.frame is not None and depth == len(parts) - 1:
                return self._in_frame(group.frame, part, where)
            if group.is_fixed:
                hint = 'write it with frame.to_hdf(…, format="table")'
                raise DataError('is of a DataFrame in pandas\' format "fixed"', where=where, hint=hint)
            link = item.get(part, getlink=True) if part in group.members else None  # `part in item` would follow links
            if link is None:
                return None
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"is an external link to {link.filename}", where=where, hint="give that file itself")
            if not isinstance(link, h5py.HardLink):
                hint = "links are not followed; copy the dataset"
                raise DataError("is a soft link, not a dataset", where=where, hint=hint)
            item = item[part]
        if not isinstance(item, h5py.Dataset):
            raise DataError("is a group, not a dataset", where=where)
        return _Place(item)

    def _group(self, path: str, item: h5py.Group) -> _Group:
        if path not in self._groups:
            self._groups[path] = _Group.of(item)
        return self._groups[path]

    @staticmethod
    def _in_frame(frame: h5py.Dataset, column: str, where: str) -> _Place | None:
        """A column of a DataFrame, or one for each slot: `E_*`."""
        try:
            columns = frame_columns(frame)
            found = numbered(columns, column) if "*" in column else columns.get(column)
        except ValueError as error:
            raise DataError(
                str(error), where=where, hint="write the DataFrame again with text as column names"
            ) from None
        return None if found is None else _Place(frame, *found)

    def column(self, name: str) -> Column:
        if name not in self._columns:
            self._columns[name] = self._checked(name)
        return self._columns[name]

    def _checked(self, name: str) -> Column:
        where = self.where(name)
        place: _Place = self._existing(name)
        item = place.dataset
        properties = item.id.get_create_plist()
        if properties.get_external_count() or properties.get_layout() == h5py.h5d.VIRTUAL:
            raise DataError("has its bytes in another file", where=where, hint="copy it into one file (h5repack)")
        filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
        for number in filters:
            if not h5py.h5z.filter_avail(number):
                with suppress(ImportError):
                    import hdf5plugin  # noqa: F401  (registers Blosc, Zstandard, LZ4 and others)
            if not h5py.h5z.filter_avail(number):
                what = f"is packed by a filter that is not installed (number {number} of HDF5's registry)"
                hint = "pip install 'kdfast[filters]' adds the usual ones; or repack the file with gzip (h5repack)"
                raise DataError(what, where=where, hint=hint)
        dtype = item.dtype
        chunk_bytes = math.prod(item.chunks or (0,)) * dtype.itemsize
        if chunk_bytes > LARGEST_CHUNK:
            what = f"is stored in chunks of {chunk_bytes:,} bytes, which is too much"
            raise DataError(what, where=where, hint="store it in smaller chunks (h5repack)")
        # HDF5 reads what a writer that died did not come to as zeros: background, without constituents.
        holds_values = item.id.get_space().get_simple_extent_npoints() > 0
        if holds_values and item.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
            what = "was not written completely: parts of it have no bytes"
            raise DataError(what, where=where, hint="write it again")
        dtype = dtype[place.field] if place.field else dtype
        shape = (*item.shape, *dtype.shape)
        dtype = dtype.base
        if place.entries is not None:
            shape = (*shape[:-1], *np.shape(place.entries))
        if dtype.names:
            hint = f"name a field: {', '.join(f'{name}/{field}' for field in dtype.names)}"
            raise DataError("holds several fields", where=where, hint=hint)
        if len(shape) not in (1, 2):
            what = f"must have the shape [jets] or [jets, constituents], has {list(shape)}"
            raise DataError(what, where=where)
        return Column(shape[0], shape[1] if len(shape) == 2 else None, dtype)

    def chunk_rows(self, name: str) -> int:
        chunks = self._existing(name).dataset.chunks
        return int(chunks[0]) if chunks else 0

    def fill(self, name: str, start: int, stop: int, values: NDArray[Any]) -> None:
        place: _Place = self._existing(name)
        item = place.dataset
        if place.field is None and place.entries is None:
            if values.ndim > 1 or not self._fill_from_ahead(name, item, start, values):
                _read_rows(item, start, values)
            return
        # All fields that are asked for at once: the chunks would be unpacked again for each of them.
        if self._block.get(item.name, (0, 0))[:2] != (start, stop):
            fields = {each.field: None for each in self._found.values() if each.dataset == item and each.field}
            self._block[item.name] = (start, stop, (item.fields([*fields]) if fields else item)[start:stop])
        block = self._block[item.name][2]
        read = block[place.field] if place.field else block
        read = read if place.entries is None else read[..., place.entries]
        values[...] = read if values.ndim == 1 else read[:, : values.shape[1]]

    def _fill_from_ahead(self, name: str, item: h5py.Dataset, start: int, values: NDArray[Any]) -> bool:
        """Fills values [rows] from what was read ahead; False where rows further on can't be read."""
        first, ahead = self._ahead.get(name, (0, values[:0]))
        if ahead.dtype != values.dtype or not first <= start <= start + len(values) <= first + len(ahead):
            rows = min(max(AHEAD, len(values)), item.shape[0] - start)
            first, ahead = start, np.empty(rows, values.dtype)
            try:
                _read_rows(item, start, ahead)
            except self.damage:
                return False
            self._ahead[name] = (first, ahead)
        values[...] = ahead[start - first : start - first + len(values)]
        return True


def _read_rows(item: h5py.Dataset, start: int, values: NDArray[Any]) -> None:
    """Fills values [rows] or [rows, slots] with rows of a dataset from `start` on.

    By h5py's low-level calls: its slicing syntax costs as much time as a small block.
    """
    stored = item.id.get_space()
    stored.select_hyperslab((start, *(0 for _ in values.shape[1:])), values.shape)
    item.id.read(h5py.h5s.create_simple(values.shape), stored, values)
