"""A packed store: the jets of many files in one folder, as they are computed on, mapped into memory.

JETS.store/ holds one .npy file for each array of PackedJets, and store.json, which describes them: numbers of
jets and constituents, where they come from, and the SHA-256 of each part of each array. `kdfast prepare`
writes it (prepare.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from kdfast.errors import ConfigError, DataError
from kdfast.files import write_content
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.mapped import HEADER_BYTES, is_mapped, map_file, release

__all__ = [
    "SPLIT",
    "Part",
    "StoreCard",
    "array_digest",
    "array_path",
    "check_stored_constituents",
    "content_of",
    "is_store",
    "only_store",
    "open_store",
    "split_values",
    "store_of",
    "stored_types",
    "table_digest",
    "verify_store",
]

FORMAT = 1
SPLIT = "split"  # name of the array of a column that jets may be split by
CARD = "store.json"
_AGAIN = "make the store again with kdfast prepare, or restore it from a copy"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Part(_Document):
    """Some neighbouring jets of a store, written by one process. sha256: by array, of their bytes."""

    jets: int
    constituents: int
    sha256: dict[str, str]


class StoreCard(_Document):
    """store.json. made_from: the files, and how they were read. dropped: by reason, the jets that were
    left out. sets: jets of each of splits.SETS, one after the other."""

    format: int
    kdfast: str
    jets: int
    constituents: int
    made_from: dict[str, Any]
    dropped: dict[str, int]
    sets: dict[str, int]
    parts: list[Part]

    def write(self, folder: Path) -> None:
        """Writes store.json with a checksum of its own, whole or not at all."""
        table = self.model_dump()
        write_content(folder / CARD, json.dumps({**table, "sha256": table_digest(table)}, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> StoreCard:
        """The card of a store. Raises DataError where there is none, or it is damaged."""
        where = str(folder / CARD)
        try:
            table = json.loads((folder / CARD).read_bytes())
            checksum = table.pop("sha256")
            if int(table["format"]) > FORMAT:
                what = f"has format {table['format']}, newer than this kdfast reads"
                raise DataError(what, where=where, hint="update kdfast")
            if table_digest(table) != checksum:
                raise DataError("is damaged: its content does not match its checksum", where=where, hint=_AGAIN)
            return cls.model_validate(table)
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"can't be read ({error.strerror})", where=where, hint=_AGAIN) from None
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise DataError(f"is damaged ({str(error).splitlines()[0]})", where=where, hint=_AGAIN) from None


def table_digest(table: Mapping[str, Any]) -> str:
    """SHA-256 of a table of numbers and texts."""
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def is_store(path: str | PathLike[str]) -> bool:
    """Whether a path is a packed store."""
    return os.path.isfile(os.path.join(path, CARD))  # which takes any text, also what no path can be


def only_store(paths: Sequence[str | PathLike[str]]) -> str | PathLike[str]:
    """The store among paths. Raises DataError where there is more than that."""
    if len(paths) == 1:
        return paths[0]
    store = next(path for path in paths if is_store(path))
    hint = "give one store alone; kdfast prepare makes one of several files"
    raise DataError("is a packed store, and not the only path", where=str(store), hint=hint)


def check_stored_constituents(path: str | PathLike[str], max_constituents: int) -> None:
    """Raises ConfigError where a store holds fewer constituents of each jet than are asked for."""
    kept = StoreCard.read(Path(path)).made_from.get("max_constituents")
    if kept is not None and max_constituents > kept:
        what = f"is {max_constituents}, but {path} was made with the {kept} hardest constituents of each jet"
        raise ConfigError(what, where="max_constituents", hint=f"ask for {kept} at most, or make the store again")


def store_of(jets: PackedJets) -> Path | None:
    """The store that the constituents of jets are mapped from; None: they are in memory."""
    array = jets.constituents
    return Path(array.filename).parent if is_mapped(array) else None  # type: ignore[attr-defined]


def content_of(jets: PackedJets) -> str:
    """A name for the content of a store's jets (see `store_of`), SHA-256 (hexadecimal), from the store's checksums.

    Jets may be a slice, and have arrays that are not the store's: where an array begins counts, or its own
    bytes.
    """
    store = store_of(jets)
    assert store is not None
    parts = [part.model_dump() for part in StoreCard.read(store).parts]
    origin = {name: _first_row(getattr(jets, name), array_path(store, name)) for name in DTYPES}
    arrays = {name: array_digest(getattr(jets, name)) if row is None else row for name, row in origin.items()}
    return table_digest({"parts": parts, "jets": len(jets), "arrays": arrays})


def _first_row(array: NDArray[Any], path: Path) -> int | None:
    """The row of a file's array with which a mapped one begins; None: it is not from this file, or only in part."""
    if not is_mapped(array) or not array.flags.c_contiguous or array.flags.writeable:
        return None
    if Path(array.filename) != path:  # type: ignore[attr-defined]
        return None
    start: int = np.frombuffer(array._mmap, np.uint8).ctypes.data  # type: ignore[attr-defined]
    return (array.ctypes.data - start - HEADER_BYTES) // (array.itemsize * math.prod(array.shape[1:]))


def stored_types(split: str | None) -> dict[str, DTypeLike]:
    """The arrays of a store, with their types. split: the column that it keeps."""
    return DTYPES | ({SPLIT: np.int64} if split else {})


def split_values(path: str | PathLike[str], column: str) -> NDArray[np.int64]:
    """[jets] the values of a column that a store keeps, mapped into memory. Raises ConfigError for another column."""
    folder = Path(path)
    card = StoreCard.read(folder)
    kept = card.made_from.get("split")
    if kept != column:
        what = f"needs the column {column}, and {path} keeps " + (f"the column {kept}" if kept else "none")
        raise ConfigError(what, where="split", hint=f"make the store again with split={column!r} (--split {column})")
    return _map(folder, card, SPLIT, np.int64)


def array_path(folder: Path, name: str) -> Path:
    """The file of an array of PackedJets."""
    return folder / f"{name}.npy"


def open_store(path: str | PathLike[str]) -> PackedJets:
    """The jets of a packed store, mapped into memory, read-only.

    Raises DataError for a store that is damaged; `verify_store` also computes its checksums.
    """
    folder = Path(path)
    card = StoreCard.read(folder)
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in DTYPES.items():
        arrays[name] = _map(folder, card, name, dtype)
    try:
        jets = PackedJets(**arrays)
    except DataError as error:
        raise DataError(f"is damaged: {error.what}", where=f"{folder}, {error.where}", hint=_AGAIN) from None
    release(arrays.values())
    return jets


def _map(folder: Path, card: StoreCard, name: str, dtype: DTypeLike) -> NDArray[Any]:
    path = array_path(folder, name)
    try:
        array = map_file(path)
    except Exception as error:  # NumPy parses the header as Python's text, and raises whatever that raises
        raise DataError(f"is damaged ({error})", where=str(path), hint=_AGAIN) from None
    shape = _shape(card, name)
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        what = f"is damaged: it must be {np.dtype(dtype)} {list(shape)}, is {array.dtype} {list(array.shape)}"
        raise DataError(what, where=str(path), hint=_AGAIN)
    array.flags.writeable = False  # `release` would drop what is written to it
    return array


def _shape(card: StoreCard, name: str) -> tuple[int, ...]:
    rows = {"constituents": card.constituents, "offsets": card.jets + 1}.get(name, card.jets)
    return (rows, 4) if name in ("constituents", "p4") else (rows,)


def verify_store(path: str | PathLike[str]) -> Iterator[int]:
    """Compares each part of a store with its checksums; yields its number of jets. Raises DataError for the
    first that differs."""
    folder = Path(path)
    jets = open_store(folder)
    card = StoreCard.read(folder)
    column = card.made_from.get("split")
    arrays = vars(jets) | ({SPLIT: split_values(folder, column)} if column else {})
    first = 0
    for part in card.parts:
        for name in stored_types(column):
            if array_digest(_part_of(arrays, name, first, part.jets)) != part.sha256.get(name):
                where = f"{array_path(folder, name)}, jets {first} to {first + part.jets - 1}"
                raise DataError("is damaged: it does not match its checksum", where=where, hint=_AGAIN)
        release(arrays.values())
        first += part.jets
        yield part.jets


def _part_of(arrays: dict[str, NDArray[Any]], name: str, first: int, number: int) -> NDArray[Any]:
    """The rows of an array that belong to these jets. A jet's offset is where it ends."""
    if name == "constituents":
        return arrays[name][arrays["offsets"][first] : arrays["offsets"][first + number]]
    shift = 1 if name == "offsets" else 0
    return arrays[name][first + shift : first + shift + number]


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 (hexadecimal) of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
