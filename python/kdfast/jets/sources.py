"""Files of jets before they are read: which files are meant, and whether their columns are what is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from glob import glob, has_magic
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol

import h5py

from kdfast.errors import ConfigError, DataError
from kdfast.jets.columns import COLUMN_PRESETS, JET, ColumnMap, has_default_names
from kdfast.jets.hdf5_table import Hdf5Table
from kdfast.jets.memory_table import MemoryTable, is_table
from kdfast.jets.npz_table import NpzTable
from kdfast.jets.parquet_table import ParquetTable
from kdfast.jets.root_table import RootTable
from kdfast.jets.table import RAGGED, Table, check_is_file

__all__ = [
    "AnyPath",
    "Input",
    "Read",
    "Source",
    "as_paths",
    "check_same_weights",
    "expand",
    "inputs_of",
    "inspect",
    "open_table",
    "opened",
]

AnyPath = str | PathLike[str]
Input = Path | MemoryTable

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_SLOTS = 1 << 16  # of padded columns: more is a mistake

# What a column may hold, as kinds of numpy's dtypes, and in words.
FLOATS = ("f", "floats")
NUMBERS = ("fiub", "numbers")
WHOLE = ("iu", "whole numbers")
FLAGS = ("biu", "truth values")


def as_paths(paths: Any, *, where: str = "paths", accepted: str = "paths of files") -> list[str]:
    """A path, or several, as text. Raises DataError for anything else: the columns of a table are not paths."""
    if isinstance(paths, str | PathLike):
        return [fspath(paths)]
    entries: list[Any] = list(paths) if isinstance(paths, Iterable) and not is_table(paths) else [None]
    if not all(isinstance(entry, str | PathLike) for entry in entries):
        hint = "kdfast.PackedJets.from_padded(x, mask, labels=…) packs arrays"
        raise DataError(f"must be {accepted}, is {type(paths).__name__}", where=where, hint=hint)
    return [fspath(entry) for entry in entries]


def expand(paths: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """The files that paths stand for. The same file twice would put one jet into two splits: refused."""
    files: list[Path] = []
    for entry in as_paths(paths):
        if has_magic(entry) and not Path(entry).exists():
            matches = sorted(glob(entry))
            if not matches:
                raise DataError("no file matches this pattern", where=entry, hint="check the folder and the spelling")
            files += map(Path, matches)
        else:
            files.append(Path(entry))
    if not files:
        raise DataError("no file given", where="paths")
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError("is given twice", where=str(file), hint="its jets would count twice; name each file once")
        seen.add(file.resolve())
    return files


def inputs_of(data: Any) -> list[Input]:
    """The files that paths stand for, or a table in memory."""
    return [MemoryTable(data)] if is_table(data) else [*expand(data)]


class Read(Protocol):
    """A file that was read, as messages name it."""

    @property
    def path(self) -> Input: ...
    @property
    def word(self) -> str: ...
    @property
    def columns(self) -> ColumnMap: ...
    @property
    def weights(self) -> str | None: ...


@dataclass(frozen=True)
class Source:
    """What the headers of one file say, or of a table in memory.

    columns: of the file. stored: constituents a jet, with padding. width: those to take of each jet. labels:
    the columns that tell the classes, or none. weights, split: the columns of weights and of the split, or
    None.
    """

    path: Input
    word: str  # what messages call a column
    columns: ColumnMap
    rows: int
    stored: int  # or RAGGED
    width: int
    labels: tuple[str, ...]
    weights: str | None
    split: str | None = None

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        columns, parts = self.columns, self.columns.constituents
        jet = [getattr(columns.jet, key) for key in JET]
        others = (*self.labels, self.weights, columns.id, self.split)
        return [name for name in (*parts.names, parts.valid, *jet, *others) if name]

    def where(self, name: str) -> str:
        """The place of a column in messages."""
        return f"{self.path}, {self.word} {name}"


def open_table(path: Input) -> Table:
    """The file, opened for reading by what its first bytes say that it is; DataError for what is none of these."""
    if isinstance(path, MemoryTable):
        return path
    start = check_is_file(path)
    if start.startswith(HDF5_SIGNATURE) or h5py.is_hdf5(path):  # where it may begin further on
        return Hdf5Table(path)
    if start.startswith(b"root"):
        return RootTable(path)
    if start.startswith(b"PK\x03\x04"):  # a zip archive
        return NpzTable(path)
    if start.startswith(b"PAR1"):
        return ParquetTable(path)
    hint = "load_jets reads HDF5 files (.h5), NumPy's .npz files, ROOT files and Parquet files"
    raise DataError("is not an HDF5 file, nor of another format that is read", where=str(path), hint=hint)


def opened(path: Input, table: Table | None) -> AbstractContextManager[Table]:
    """For a `with` statement: `table` if the file is open already, which it stays; otherwise it is opened for it."""
    return open_table(path) if table is None else nullcontext(table)


def inspect(
    path: Input,
    columns: ColumnMap,
    max_constituents: int | None,
    exactly: bool,
    require_labels: bool,
    split: str | None = None,
    table: Table | None = None,
) -> Source:
    """Checks names, types and shapes of one file's columns without reading them.

    exactly: see Reading. split: a column that is read too. table: the file, if it is open.
    """
    with opened(path, table) as table, table.reading():
        names = columns.constituents.names
        rule = columns.label
        labels: tuple[str, ...] = ()
        if rule is not None and (require_labels or all(map(table.has, rule.names))):
            labels = rule.names
        elif rule is None and require_labels:
            hint = "add a table [label], or score the jets only: kdfast predict, load_jets(…, require_labels=False)"
            raise ConfigError("has no table [label], which training needs", where="columns", hint=hint)
        weights = next(filter(table.has, columns.weights), None)
        if weights is None and len(columns.weights) == 1:
            weights = columns.weights[0]  # named alone, it must be there
        asked = [
            (f"constituents.{key}", name, FLOATS) for key, name in zip(columns.constituents.form, names, strict=True)
        ]
        if columns.constituents.valid:
            asked.append(("constituents.valid", columns.constituents.valid, FLAGS))
        jet = [(f"jet.{key}", getattr(columns.jet, key), FLOATS) for key in JET]
        per_jet = [each for each in jet if each[1]]
        per_jet += [("label", name, NUMBERS) for name in labels]
        per_jet += [("weights", weights, FLOATS)] if weights else []
        per_jet += [("id", columns.id, WHOLE)] if columns.id else []
        per_jet += [("split", split, NUMBERS)] if split else []
        rows, stored = _check_shapes(table, columns, asked, per_jet)
        if stored == RAGGED:
            if columns.constituents.valid:
                what = "belongs to padded columns, and these are lists of each jet's constituents"
                raise DataError(
                    what, where=table.where(columns.constituents.valid), hint="leave `valid` out of the map"
                )
        elif exactly and max_constituents is not None and max_constituents > stored:
            what = f"is {max_constituents}, but only {stored} constituents a jet are stored in {path}"
            raise ConfigError(what, where="max_constituents", hint=f"ask for {stored} at most")
        return Source(
            path,
            table.word,
            columns,
            rows,
            stored,
            min(max_constituents or sys.maxsize, stored if stored != RAGGED else sys.maxsize),
            labels,
            weights,
            split,
        )


_Asked = tuple[str, str, tuple[str, str]]  # key of the map, column, what it may hold


def _check_shapes(
    table: Table, columns: ColumnMap, constituents: Sequence[_Asked], per_jet: Sequence[_Asked]
) -> tuple[int, int]:
    """(jets, slots) that all columns have."""
    first = constituents[0][1]
    found = []
    for key, name, (kinds, words) in (*constituents, *per_jet):
        try:
            column = table.column(name)
        except DataError as error:
            raise _as_asked(error, table, columns, key) from None
        if column.dtype.kind not in kinds:
            raise DataError(f"must hold {words}, holds {column.dtype}", where=table.where(name))
        per_slot = key.startswith("constituents.")
        if per_slot != (column.slots is not None):
            shape = [column.rows] if column.slots is None else [column.rows, max(column.slots, 0) or "lists"]
            needed = "[jets, constituents]" if per_slot else "[jets]"
            raise DataError(f"must have the shape {needed}, has {shape}", where=table.where(name))
        found.append((name, column))
    rows, stored = found[0][1].rows, found[0][1].slots
    assert stored is not None
    if stored > MOST_SLOTS:
        what = f"has {stored:,} constituents a jet, more than {MOST_SLOTS:,}"
        raise DataError(what, where=table.where(first))
    for name, column in found:
        if column.rows != rows:
            what = f"has {column.rows:,} rows, {first} has {rows:,}"
            hint = (
                "all columns must have a row for each jet"
                if table.whole == "table"
                else "the file was not written completely"
            )
            raise DataError(what, where=table.where(name), hint=hint)
        if column.slots not in (None, stored):
            what = f"has {column.slots} columns, {first} has {stored}"
            raise DataError(what, where=table.where(name), hint="the constituent datasets must be alike")
    if rows == 0 or stored == 0:
        raise DataError("holds no jets" if rows == 0 else "holds no constituents", where=str(table.path))
    return rows, stored


def _as_asked(error: DataError, table: Table, columns: ColumnMap, key: str) -> DataError:
    """The error of a column, with what asks for it, and the preset that reads the file if there is one."""
    hint = error.hint
    if key == "split":
        return DataError(error.what, where=error.where, hint=f"the split asks for it; {hint}" if hint else None)
    if error.what == "is missing":
        fits = [name for name, each in COLUMN_PRESETS.items() if all(map(table.has, each.constituents.names))]
        if fits and COLUMN_PRESETS[fits[0]].constituents != columns.constituents:
            hint = f"the file seems to have the layout {fits[0]}: {{columns}} reads it so"
            return DataError(error.what, where=error.where, hint=hint, settings={"columns": fits[0]})
    if isinstance(table, MemoryTable) and error.what == "is missing" and has_default_names(columns):
        hint = f"columns=… names the columns of another layout; {hint}"
    if not has_default_names(columns):
        hint = f"the map asks for it as {key}" + (f"; {hint}" if hint else "")
    if key == "label" and error.what == "is missing":
        hint = f"{hint}\nfor jets that are only to be scored: kdfast predict, or load_jets(…, require_labels=False)"
    return DataError(error.what, where=error.where, hint=hint)


def check_same_weights(sources: Sequence[Read]) -> None:
    """Weighted and unweighted jets can't be mixed: a weight of 1 means something else among real ones. Nor
    can the weights of two versions, whose scales differ."""
    weighted = [source for source in sources if source.weights]
    if weighted and len(weighted) < len(sources):
        without = next(source for source in sources if not source.weights)
        names = " nor ".join(without.columns.weights)
        what = f"has neither {names}, while {weighted[0].path} has {weighted[0].weights}"
        raise DataError(what, where=str(without.path), hint="read the files with and without weights separately")
    other = next((source for source in weighted if source.weights != weighted[0].weights), None)
    if other is not None:
        what = f"has {other.weights}, while {weighted[0].path} has {weighted[0].weights}"
        raise DataError(what, where=str(other.path), hint="read the files of the two versions separately")
