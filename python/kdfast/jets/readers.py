"""Reading jets from experiments' files into packed jets.

A column map (columns.py) says what the files' columns are. Each format's table (table.py) parses; everything
is checked and packed in blocks of rows (packing.py). Constituents that are stored as they are packed (pt,
eta, phi, energy by falling pT, padded with zeros), as in the ATLAS Top Tagging Open Data, are copied; those
in another form are brought to it first.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from importlib.resources import as_file, files
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError, KdfastError, KdfastWarning, ResourceError
from kdfast.jets.checks import Faults
from kdfast.jets.columns import ColumnMap, column_map, is_default
from kdfast.jets.isolated import read_in_child
from kdfast.jets.jet_store import check_stored_constituents, is_store, only_store, open_store
from kdfast.jets.memory_table import is_table
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.jets.packing import Packing, read_file
from kdfast.jets.sources import (
    AnyPath,
    Input,
    Read,
    Source,
    as_paths,
    check_same_weights,
    expand,
    inputs_of,
    inspect,
    open_table,
)
from kdfast.jets.splits import SplitRule
from kdfast.jets.units import PER_GEV

__all__ = ["Reading", "check_all", "check_numbers", "load_jets", "read_jets", "sample", "warn_of_left_out"]

Paths = AnyPath | Sequence[AnyPath]


def load_jets(
    paths: AnyPath | Sequence[AnyPath] | Mapping[str, Any] | Any,
    *,
    max_jets: int | None = None,
    max_constituents: int | None = None,
    on_bad: Literal["error", "drop"] = "error",
    unit: Literal["MeV", "GeV"] | None = None,
    sort: bool = False,
    require_labels: bool = True,
    columns: str | PathLike[str] | Mapping[str, Any] | ColumnMap | None = None,
    isolate: bool = False,
) -> PackedJets:
    """Read jets from one or several files, by default in the ATLAS Top Tagging layout (v1 or v2).

    Momenta are in GeV in the result. Files are streamed: in addition to the packed
    jets, only a few blocks of rows are in memory.

    Parameters
    ----------
    paths
        A file, a pattern with ``*``, ``?`` or ``[]`` (its files in alphabetical order), or a sequence of
        these, in its order. Or a table in memory: a DataFrame, an awkward array of records, a structured array, or
        a mapping of arrays.
    max_jets
        Number of jets to read, the first in file order (with ``on_bad="drop"``: the first good ones).
        Default: all. The published files contain their classes mixed, so the first jets are a fair sample.
        For files that do not, read all jets and choose afterwards.
    max_constituents
        Number of constituents to keep per jet, the hardest. Default: all. η, φ and energy are checked for
        these only.
    on_bad
        ``"error"`` raises at the first bad jet. ``"drop"`` leaves bad jets out and warns how many and why.
        Faults of a whole file (missing datasets, unequal lengths, a truncated file) are errors either way.
    unit
        Of momenta, energies and masses in the files: ``"MeV"`` or ``"GeV"``. Default: what the column map says,
        MeV for the ATLAS layout. A file whose median jet pT would be below 5 GeV or above 20 TeV is refused,
        with the unit that it seems to have.
    sort
        True: constituents are stored in any order, and are sorted by falling pT. False: as the column map says; an
        unsorted jet of the ATLAS layout is a bad jet.
    require_labels
        False for jets that are only to be scored: files without labels are read with label −1, and weights
        may all be zero.
    columns
        Which columns of the files hold the jets: a preset's name, a TOML file (``"map.toml"``), or such a table.
        Default: ``"atlas"``, the layout of the ATLAS Top Tagging Open Data. The how-to "Read your own files"
        describes presets and maps.
    isolate
        True: files are read in a child process, so that a crash or a hang inside a format's library, as damaged
        files can cause, is a DataError with the file's name. Half a second and a copy of the jets.

    Returns
    -------
    PackedJets
        A jet's ``index`` is its row, counted across the files, or what the map's ``id`` names. A row depends on
        the list of files, but not on ``max_jets``, dropped jets or the block size. Files without weights (the
        systematic variations of v2) get weight 1.

    Raises
    ------
    DataError
        For bad data; names file, dataset and the first bad row.
    ConfigError
        For an argument outside its range.
    ResourceError
        For more jets than the memory holds.
    """
    reading = Reading(max_jets, max_constituents, on_bad, unit, sort, require_labels, columns, isolate=isolate)
    return read_jets(paths, reading)[0]


def sample() -> PackedJets:
    """Return the bundled sample: 16,000 jets at generator level, in random order.

    Half are hadronic top jets (label 1), half are QCD jets (label 0). Pythia 8, pp at 13 TeV, anti-kT with
    R = 1.0, 450–1200 GeV, abs(η) < 2, equal pT spectra, weight 1. Written by ``kdfast generate --jets 16000
    --seed 42``; the page "The bundled sample" of the documentation describes it.

    Returns
    -------
    PackedJets

    Examples
    --------
    >>> import kdfast
    >>> len(kdfast.sample())
    16000
    """
    with as_file(files("kdfast.jets") / "data" / "sample.h5") as path:
        return load_jets(path)


@dataclass(frozen=True)
class Reading:
    """How files are read: the arguments of `load_jets`, checked.

    columns: becomes a ColumnMap. exactly: max_constituents is an error where fewer are stored; False: then
    all that are stored are kept. split: which jets are of which part. isolate: files are read in a child
    process.
    """

    max_jets: int | None = None
    max_constituents: int | None = None
    on_bad: str = "error"
    unit: str | None = None
    sort: bool = False
    require_labels: bool = True
    columns: Any = None
    exactly: bool = True
    split: SplitRule | None = None
    isolate: bool = False

    def __post_init__(self) -> None:
        if self.on_bad not in ("error", "drop"):
            raise ConfigError(f"must be 'error' or 'drop', is {self.on_bad!r}", where="on_bad")
        if self.unit is not None and self.unit not in PER_GEV:
            raise ConfigError(f"must be 'MeV' or 'GeV', is {self.unit!r}", where="unit")
        for name in ("sort", "isolate"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"must be true or false, is {getattr(self, name)!r}", where=name)
        for name in ("max_jets", "max_constituents"):
            value: Any = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
                raise ConfigError(f"must be a whole number from 1 on, is {value!r}", where=name)
        layout = _as_map(self.columns)
        if self.sort:
            layout = layout.model_copy(update={"order": "sort"})
        object.__setattr__(self, "columns", layout)


def read_jets(
    paths: Paths | Any, reading: Reading, seen: Callable[[Input], None] = lambda _: None
) -> tuple[PackedJets, NDArray[np.int8]]:
    """The jets, and [jets] the place of each jet's part in splits.PARTS, 0 without a split.

    seen: called with each file before its header or a block of it is read.
    """
    given = [] if is_table(paths) else as_paths(paths)
    if any(map(is_store, given)):
        stored = _stored(only_store(given), reading)
        return stored, np.zeros(len(stored), np.int8)
    if reading.isolate and not is_table(paths):
        return _read_isolated([*map(str, expand(paths))], reading)
    try:
        return _read(inputs_of(paths), reading, seen)
    except MemoryError as error:
        if isinstance(error, KdfastError):
            raise
        hint = "read fewer jets (max_jets); or a file announces more than it holds"
        where = given[0] if len(given) == 1 else "paths"
        raise ResourceError("reading needs more memory than there is", where=where, hint=hint) from error


def _read_isolated(files: list[str], reading: Reading) -> tuple[PackedJets, NDArray[np.int8]]:
    how = {each.name: getattr(reading, each.name) for each in fields(reading)} | {"isolate": False}
    for name in ("columns", "split"):
        if how[name] is not None:
            how[name] = how[name].model_dump(mode="json", exclude_none=True)
    for name in ("max_jets", "max_constituents"):
        if how[name] is not None:
            how[name] = int(how[name])  # NumPy's
    arrays = read_in_child(files, how, stacklevel=5)
    return PackedJets(**{name: arrays[name] for name in DTYPES}), arrays["places"]


def _read(
    inputs: Sequence[Input], reading: Reading, seen: Callable[[Input], None]
) -> tuple[PackedJets, NDArray[np.int8]]:
    layout: ColumnMap = reading.columns
    column = reading.split.column if reading.split else None
    limits = (reading.max_constituents, reading.exactly)
    sources = []
    with ExitStack() as stack:
        table = None  # a single file stays open: opening it takes as long as reading thousands of jets
        for path in inputs:
            seen(path)
            table = stack.enter_context(open_table(path)) if len(inputs) == 1 else None
            sources.append(inspect(path, layout, *limits, reading.require_labels, column, table))
        check_same_weights(sources)
        rows = sum(source.rows for source in sources)
        wanted = rows if reading.max_jets is None else min(reading.max_jets, rows)
        faults = Faults(drop=reading.on_bad == "drop")
        jets = Packing(wanted, rows, faults, reading.unit or layout.unit, reading.split)
        jets.seen = seen
        first_index = 0
        for source in sources:
            if jets.size < wanted:
                read_file(source, range(source.rows), first_index, jets, table)
            first_index += source.rows
    packed = _finish(jets, sources, reading.require_labels, cut=wanted < rows)
    return packed, jets.places[: jets.size]


def _stored(path: AnyPath, reading: Reading) -> PackedJets:
    """The jets of a packed store, in place. Raises ConfigError for what says how files are read."""
    for_files = {
        "columns": not is_default(reading.columns.model_copy(update={"order": "sorted"})),
        "unit": reading.unit is not None,
        "sort": reading.sort,
        "split": reading.split is not None,
    }
    for name, given in for_files.items():
        if given:
            raise ConfigError(f"is for files, but {path} is a packed store, whose files were read before", where=name)
    if reading.exactly and reading.max_constituents is not None:
        check_stored_constituents(path, reading.max_constituents)
    jets = open_store(path)
    if reading.require_labels and np.min(jets.labels) < 0:
        hint = "make it with labels, or score its jets only: load_jets(…, require_labels=False), kdfast predict"
        raise DataError("was made without labels", where=str(path), hint=hint)
    return jets[: reading.max_jets].hardest(reading.max_constituents)


def _as_map(columns: Any) -> ColumnMap:
    try:
        return column_map(columns)
    except ConfigError as error:
        what = f"{error.where}: {error.what}" if error.where else error.what
        raise ConfigError(what, where="columns", hint=error.hint) from None


def _finish(jets: Packing, sources: list[Source], require_labels: bool, cut: bool) -> PackedJets:
    """The packed jets, after the checks that concern all of them."""
    if jets.split is not None:
        warn_of_left_out(jets.split, jets.in_no_part, jets.rows_read, jets.size, sources)
    check_numbers(jets.size, jets.filled, jets.faults, sources)
    jets.faults.warn(jets.rows_read)
    packed = jets.packed()
    check_all(packed, sources, require_labels)
    if cut and require_labels and np.min(packed.labels) == np.max(packed.labels):
        what = f"the first {len(packed):,} jets of {_where(sources)} are all of class {packed.labels[0]}"
        warnings.warn(
            f"{what}: max_jets takes jets in file order, and these are not mixed", KdfastWarning, stacklevel=5
        )
    return packed


def _where(sources: Sequence[Read]) -> str:
    """The files in messages."""
    return str(sources[0].path) if len(sources) == 1 else f"{sources[0].path} … {sources[-1].path}"


def warn_of_left_out(split: SplitRule, left_out: int, others: int, taken: int, sources: Sequence[Read]) -> None:
    """Warns of jets that are in no part of a split, of these and others. Raises DataError where none was taken."""
    if left_out:
        why = f"their {split.column} is none of {split.words}"
        what = f"{left_out:,} of {others + left_out:,} jets left out by the split"
        warnings.warn(f"{what}: {why}", KdfastWarning, stacklevel=5)
        if taken == 0:
            raise DataError(f"no jet belongs to a part of the split: {why}", where=_where(sources))


def check_numbers(jets: int, constituents: int, faults: Faults, sources: Sequence[Read]) -> None:
    """Raises DataError where no jet was read, or none with a constituent."""
    where = _where(sources)
    if jets == 0 and not faults.counts:
        raise DataError("no jet belongs to a class in the column map", where=where)
    if jets == 0:
        raise faults.all_bad(where)
    if constituents == 0:
        place = f"{where}, {sources[0].word} {sources[0].columns.constituents.names[0]}"
        raise DataError("every jet is empty: no constituent has pT > 0", where=place)


def check_all(jets: PackedJets, sources: Sequence[Read], require_labels: bool) -> None:
    """Raises DataError where two jets have one id, or all weights are zero."""
    where = _where(sources)
    first = sources[0]
    if first.columns.id:
        _check_different(jets.index, f"{where}, {first.word} {first.columns.id}")
    if require_labels and not jets.weights.any():
        raise DataError("all weights are zero", where=f"{where}, {first.word} {first.weights}")


def _check_different(index: NDArray[np.int64], where: str) -> None:
    ordered = np.sort(index)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        what = f"{again[0]} is the id of several jets"
        raise DataError(what, where=where, hint="leave `id` out of the map: jets are then counted by their rows")
