"""Parquet files, by pyarrow: columns with one number a jet, or with a list of numbers.

`part/px` is the field px of a column `part` that holds records, or lists of records. Columns are unpacked in
batches of rows, from a row group on, and never whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError
from kdfast.jets.table import COPY_AGAIN, RAGGED, Column, Table, pad_lists

__all__ = ["ParquetTable"]

ROWS = 4_000  # of a block and of a batch
BUFFER_BYTES = 1 << 20
# Bytes a row on average: more is a mistake, or a small file that would fill the memory. That a page announces
# more than the file's footer (at most 2 GiB) is not known before pyarrow unpacks it.
LARGEST_ROWS = 1 << 22


class ParquetTable(Table):
    """An open Parquet file."""

    format = "Parquet"
    word = "column"
    damage = (Exception,)  # pyarrow raises whatever a broken structure leads to

    def __init__(self, path: Path) -> None:
        try:
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError as error:
            what = f"is a Parquet file, and {error.name} is not installed"
            raise ConfigError(what, where=str(path), hint="pip install 'kdfast[parquet]'") from None
        super().__init__(path)
        self._arrow: Any = pyarrow
        self._columns: dict[str, tuple[Column, str]] = {}
        self._streams: dict[str, _Stream] = {}
        self._blocks: dict[str, tuple[int, int, Any]] = {}
        try:
            self._file = pyarrow.parquet.ParquetFile(
                path, buffer_size=BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            self._schema = self._file.schema_arrow
            self._check_sizes()
        except (DataError, MemoryError):
            raise
        except Exception as error:
            what = f"can't be read as Parquet ({str(error).strip()})"
            raise DataError(what, where=str(path), hint=COPY_AGAIN) from error

    def _check_sizes(self) -> None:
        """Whether the rows that the file announces are there, and of a size that a block of them may have."""
        metadata = self._file.metadata
        groups = [metadata.row_group(k) for k in range(metadata.num_row_groups)]
        self._first_rows = np.cumsum([0, *(group.num_rows for group in groups)])
        if self._first_rows[-1] != metadata.num_rows or any(group.num_rows < 0 for group in groups):
            what = f"announces {metadata.num_rows:,} rows and holds {self._first_rows[-1]:,}"
            raise DataError(what, where=str(self.path), hint=COPY_AGAIN)
        # What a group says of a column is not asked for: pyarrow ends the process where that is damaged.
        for group in groups:
            if group.total_byte_size > LARGEST_ROWS * max(group.num_rows, 1):
                what = f"announces {group.total_byte_size:,} bytes in {group.num_rows:,} rows, which is too much"
                raise DataError(what, where=str(self.path))

    def close(self) -> None:
        self._streams.clear()
        self._blocks.clear()
        self._file.close()

    def names(self) -> list[str]:
        found: list[str] = []
        for field in self._schema:
            inner = self._item_of(field.type)[0]
            is_record = self._arrow.types.is_struct(inner)
            found += [f"{field.name}/{each.name}" for each in inner] if is_record else [field.name]
        return found

    def _item_of(self, kind: Any) -> tuple[Any, int | None]:
        """What a list holds, and how many (None: it is no list)."""
        types = self._arrow.types
        if types.is_list(kind) or types.is_large_list(kind):
            return kind.value_type, RAGGED
        if types.is_fixed_size_list(kind):
            return kind.value_type, kind.list_size
        return kind, None

    def _find(self, name: str) -> tuple[Any, int | None] | None:
        """(type of the numbers, slots) of a column; None where there is none."""
        first, *rest = [name] if name in self._schema.names else name.split("/")
        if self._schema.names.count(first) != 1:
            return None
        kind, slots = self._item_of(self._schema.field(first).type)
        for part in rest:
            if not self._arrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
                return None
            kind = kind.field(part).type
            if slots is None:  # a list of records, or a record of lists, but no lists of lists
                kind, slots = self._item_of(kind)
        return kind, slots

    def column(self, name: str) -> Column:
        kind, slots = self._existing(name)
        types = self._arrow.types
        if types.is_struct(kind):
            hint = f"name a field: {', '.join(f'{name}/{field.name}' for field in kind)}"
            raise DataError("holds several fields", where=self.where(name), hint=hint)
        if not (types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind)):
            raise DataError(f"must hold numbers or lists of numbers, holds {kind}", where=self.where(name))
        return Column(int(self._file.metadata.num_rows), slots, np.dtype(kind.to_pandas_dtype()))

    def chunk_rows(self, name: str) -> int:
        return ROWS

    def fill(self, name: str, start: int, stop: int, values: NDArray[Any]) -> None:
        flat, counts = self._read(name, start, stop)
        if values.ndim == 1:
            values[...] = flat
        else:
            pad_lists(flat, counts, values)

    def counts(self, name: str, start: int, stop: int) -> NDArray[np.int64]:
        return self._read(name, start, stop)[1]

    def _read(self, name: str, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(numbers, counts [stop − start]) of rows of a column; a number a row has the count 1."""
        if self._blocks.get(name, (0, 0))[:2] != (start, stop):
            stream = self._streams.get(name)
            if stream is None or stream.next_row > start:
                group = int(np.searchsorted(self._first_rows, start, side="right")) - 1
                stream = self._streams[name] = _Stream(self._batches(name, group), int(self._first_rows[group]))
            parts = [self._numbers(name, array) for array in stream.rows(start, stop)]
            flat = np.concatenate([part[0] for part in parts])
            self._blocks[name] = (start, stop, (flat, np.concatenate([part[1] for part in parts])))
        found: tuple[NDArray[Any], NDArray[np.int64]] = self._blocks[name][2]
        return found

    def _batches(self, name: str, group: int) -> Iterator[Any]:
        """A column's rows from a row group on, in pieces; of a record only the field that is meant."""
        first, *rest = [name] if name in self._schema.names else name.split("/")
        groups = list(range(group, self._file.metadata.num_row_groups))
        path = f"{first}.{rest[0]}" if rest and self._arrow.types.is_struct(self._schema.field(first).type) else first
        for batch in self._file.iter_batches(ROWS, row_groups=groups, columns=[path], use_threads=False):
            yield batch.column(0)

    def _numbers(self, name: str, array: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(numbers, counts) of an array of numbers, of lists, of records or of lists of records."""
        rest = [] if name in self._schema.names else name.split("/")[1:]
        counts = np.ones(len(array), np.int64)
        while True:
            kind = array.type
            if self._arrow.types.is_struct(kind):
                array = self._arrow.compute.struct_field(array, rest.pop(0))
            elif self._item_of(kind)[1] is not None:
                if array.null_count:
                    raise DataError(f"has {array.null_count:,} missing lists (null)", where=self.where(name))
                counts = np.asarray(self._arrow.compute.list_value_length(array), np.int64)
                array = array.flatten()
            else:
                break
        if array.null_count and not self._arrow.types.is_floating(array.type):
            raise DataError(f"has {array.null_count:,} missing values (null)", where=self.where(name))
        return array.to_numpy(zero_copy_only=False), counts  # missing floats are NaN


class _Stream:
    """One column of the file, unpacked as far as it has been read."""

    def __init__(self, batches: Iterator[Any], first_row: int) -> None:
        self.batches = batches
        self.next_row = first_row
        self.left: Any = None  # of the last batch

    def rows(self, start: int, stop: int) -> list[Any]:
        """Rows start … stop, in pieces; those before `start` can't be read afterwards."""
        found = []
        while self.next_row < stop:
            if self.left is None or not len(self.left):
                self.left = next(self.batches, None)
                if self.left is None:
                    raise EOFError("it ends early")
            wanted = min(len(self.left), (start if self.next_row < start else stop) - self.next_row)
            if self.next_row >= start:
                found.append(self.left[:wanted])
            self.left = self.left[wanted:]
            self.next_row += wanted
        return found
