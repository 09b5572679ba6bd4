"""NumPy's .npz files: arrays [jets], [jets, slots], and [jets, slots, entries] of which a map names an entry, `X/0`.

Arrays are unpacked in blocks of rows, from the first to the last, and never whole.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError
from kdfast.jets.table import COPY_AGAIN, Column, Table

__all__ = ["NpzTable"]

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
LONGEST_ROW = 1 << 26  # bytes of a jet: more is a mistake, or a small file that would fill the memory


class NpzTable(Table):
    """An open .npz file."""

    format = "NumPy .npz"
    word = "array"
    damage = (*Table.damage, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"can't be read as .npz ({error})", where=str(path), hint=COPY_AGAIN) from error
        self._arrays: dict[str, _Stored] = {}
        self._members: list[IO[bytes]] = []

    def close(self) -> None:
        for member in self._members:
            member.close()
        self._zip.close()

    def names(self) -> list[str]:
        found = []
        for name in sorted(each.removesuffix(".npy") for each in self._zip.namelist()):
            shape = self._array(name).shape
            found += [f"{name}/{k}" for k in range(shape[2])] if len(shape) == 3 and shape[2] <= 16 else [name]
        return found

    def has(self, name: str) -> bool:
        array, _, entry = name.partition("/")
        if f"{array}.npy" not in self._zip.namelist():
            return False
        shape = self._array(array).shape
        return not entry or (entry.isascii() and entry.isdecimal() and len(shape) > 1 and int(entry) < shape[-1])

    def column(self, name: str) -> Column:
        if not self.has(name):
            raise self.missing(name)
        array, _, entry = name.partition("/")
        stored = self._array(array)
        shape = stored.shape[:-1] if entry else stored.shape
        if len(shape) not in (1, 2):
            what = f"must have the shape [jets] or [jets, constituents], has {list(shape)}"
            raise DataError(what, where=self.where(name))
        return Column(shape[0], shape[1] if len(shape) == 2 else None, stored.dtype)

    def fill(self, name: str, start: int, stop: int, values: NDArray[Any]) -> None:
        array, _, entry = name.partition("/")
        read = self._array(array).rows(start, stop)
        read = read[..., int(entry)] if entry else read
        values[...] = read if values.ndim == 1 else read[:, : values.shape[1]]

    def _array(self, name: str) -> _Stored:
        if name not in self._arrays:
            member = self._zip.open(f"{name}.npy")
            self._members.append(member)
            size = self._zip.getinfo(f"{name}.npy").file_size
            self._arrays[name] = _Stored(member, size, self.where(name))
        return self._arrays[name]


class _Stored:
    """One array of the file, unpacked as far as it has been read."""

    def __init__(self, file: IO[bytes], size: int, where: str) -> None:
        self.file = file
        version = np.lib.format.read_magic(self.file)
        if version not in HEADERS:
            raise DataError(f"is stored in version {version[0]}.{version[1]} of NumPy's format", where=where)
        try:
            self.shape, by_columns, self.dtype = HEADERS[version](self.file)
        except Exception as error:  # NumPy parses it as Python's text, and raises whatever that raises
            raise DataError("has no header that NumPy can read", where=where, hint=COPY_AGAIN) from error
        if self.dtype.hasobject:
            raise DataError("holds Python objects, which are not read", where=where, hint="store numbers")
        if by_columns and len(self.shape) > 1:
            hint = "store numpy.ascontiguousarray(…) of it"
            raise DataError("is stored column by column (Fortran order)", where=where, hint=hint)
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))
        if self.row_bytes > LONGEST_ROW:
            raise DataError(f"has rows of {self.row_bytes:,} bytes, which is too long", where=where)
        announced = self.file.tell() + self.row_bytes * (self.shape[0] if self.shape else 1)
        if announced != size:
            what = f"announces the shape {list(self.shape)}, which is not what the file holds"
            raise DataError(what, where=where, hint=COPY_AGAIN)
        self.next_row = 0
        self.block: tuple[int, int, NDArray[Any]] = (0, 0, np.empty(0))

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start … stop; those before `start` can't be read afterwards."""
        if self.block[:2] != (start, stop):
            assert start >= self.next_row, "blocks come in order"
            self._read((start - self.next_row) * self.row_bytes)
            content = self._read((stop - start) * self.row_bytes)
            shape = (stop - start, *self.shape[1:])
            self.block = (start, stop, np.frombuffer(content, self.dtype).reshape(shape))
            self.next_row = stop
        return self.block[2]

    def _read(self, size: int) -> bytes:
        content = self.file.read(size)
        if len(content) != size:
            raise EOFError("it ends early")
        return content
