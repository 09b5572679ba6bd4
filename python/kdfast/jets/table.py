"""What every file of jets looks like to the reader: columns by name, read as blocks of rows.

A format has one subclass, which parses; readers.py checks and packs what it gives, the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError, KdfastError

__all__ = ["COPY_AGAIN", "RAGGED", "Column", "Table", "check_is_file", "pad_lists"]

SHOWN_NAMES = 60
COPY_AGAIN = "copy or download it again"


RAGGED = -1  # in place of a number of slots: each jet has its own, without padding


@dataclass(frozen=True)
class Column:
    """What a file's header says of a column."""

    rows: int
    slots: int | None  # constituents a jet, with padding, or RAGGED; None: one value a jet
    dtype: np.dtype[Any]


class Table(ABC):
    """An open file. Its columns are named as the map names them."""

    format: ClassVar[str]
    word: ClassVar[str]
    """What messages call a column."""
    whole: ClassVar[str] = "file"
    """What messages call all of it."""
    damage: ClassVar[tuple[type[Exception], ...]] = (OSError, RuntimeError, KeyError, ValueError, TypeError)
    """What the format's library raises for broken structures."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def names(self) -> list[str]:
        """Its columns, for messages."""

    def has(self, name: str) -> bool:
        """Whether there is something of this name."""
        try:
            return self._find(name) is not None
        except DataError:
            return True  # `column` says what is wrong with it

    def _find(self, name: str) -> Any:
        """What there is of this name; None where there is nothing. Raises DataError for what is not read."""
        raise NotImplementedError

    def _existing(self, name: str) -> Any:
        """The same; raises DataError where there is nothing."""
        found = self._find(name)
        if found is None:
            raise self.missing(name)
        return found

    @abstractmethod
    def column(self, name: str) -> Column:
        """The header of a column; DataError where it can't be read as numbers."""

    @abstractmethod
    def fill(self, name: str, start: int, stop: int, values: NDArray[Any]) -> None:
        """Fills values [stop − start] or [stop − start, slots] with rows of a column, of its first slots."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file."""

    def counts(self, name: str, start: int, stop: int) -> NDArray[np.int64]:
        """[stop − start] constituents of rows of a column that is RAGGED."""
        raise NotImplementedError

    def chunk_rows(self, name: str) -> int:
        """Rows that are unpacked together."""
        return 1

    def __enter__(self) -> Table:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def where(self, name: str) -> str:
        """The place of a column in messages."""
        return f"{self.path}, {self.word} {name}"

    def missing(self, name: str) -> DataError:
        """The error for a column that is not there, with the nearest name that is."""
        names = self.names()
        some = ", ".join(names[:SHOWN_NAMES]) + (" …" if len(names) > SHOWN_NAMES else "")
        hint = f"the {self.whole} holds: {some or 'nothing'}"
        near = get_close_matches(name, names, n=1)
        hint += f"; the nearest name is {near[0]}" if near else ""
        return DataError("is missing", where=self.where(name), hint=hint)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Turns what the format's library raises for broken structures into DataError."""
        try:
            yield
        except (KdfastError, MemoryError):
            raise
        except self.damage as error:
            what = f"is damaged ({str(error).strip(chr(34))})"
            raise DataError(what, where=str(self.path), hint=COPY_AGAIN) from error


def pad_lists(flat: NDArray[Any], counts: NDArray[np.int64], values: NDArray[Any]) -> None:
    """Fills values [rows, slots] with the lists that lie end to end in `flat`: their first entries, then zeros."""
    slots = values.shape[1]
    values[...] = 0
    taken = np.minimum(counts, slots)  # and nothing else is looked at: a damaged file may announce lists of any length
    place = np.arange(taken.sum()) - np.repeat(np.cumsum(taken) - taken, taken)
    values[np.arange(slots) < taken[:, None]] = flat[np.repeat(np.cumsum(counts) - counts, taken) + place]


def check_is_file(path: Path) -> bytes:
    """The first bytes of a file; DataError for what can't be opened."""
    where = str(path)
    try:
        with open(path, "rb") as file:
            return file.read(16)
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=where, hint="check the path") from error
    except IsADirectoryError as error:
        hint = f"name its files, for example {path / '*.h5'}"
        raise DataError("is a folder, not a file", where=where, hint=hint) from error
    except OSError as error:
        raise DataError(f"can't be opened ({error.strerror})", where=where, hint="check its permissions") from error
