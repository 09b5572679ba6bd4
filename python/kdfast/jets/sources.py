"""ATLAS Top Tagging files before they are read: which files are meant, and whether their datasets are what is needed.

Only hard links to datasets whose bytes lie in the file itself are followed, so that a file from elsewhere can't make
the reader open another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob, has_magic
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kdfast.errors import ConfigError, DataError, KdfastError

__all__ = [
    "CONSTITUENTS",
    "JET",
    "AnyPath",
    "Source",
    "as_paths",
    "check_same_weights",
    "damage_in",
    "expand",
    "inspect",
    "open_file",
]

CONSTITUENTS = ("fjet_clus_pt", "fjet_clus_eta", "fjet_clus_phi", "fjet_clus_E")
JET = ("fjet_pt", "fjet_eta", "fjet_phi", "fjet_m")
LABELS = "labels"
WEIGHTS = ("weights", "training_weights")  # v1, v2
# Of each dataset. Constituents are read in whole rows of chunks, each chunk once; only the small datasets need a cache.
CHUNK_CACHE_BYTES = 1 << 20

AnyPath = str | PathLike[str]


def as_paths(paths: Any, *, where: str = "paths", accepted: str = "paths of files") -> list[str]:
    """A path, or several, as text. Raises DataError for anything else: the columns of a table are not paths."""
    if isinstance(paths, str | PathLike):
        return [fspath(paths)]
    is_table = isinstance(paths, Mapping) or hasattr(paths, "columns")  # both iterate over names
    entries: list[Any] = list(paths) if isinstance(paths, Iterable) and not is_table else [None]
    if not all(isinstance(entry, str | PathLike) for entry in entries):
        hint = "kdfast.PackedJets.from_padded(x, mask, labels=…) packs arrays, such as the columns of a table"
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


@dataclass(frozen=True)
class Source:
    """What the headers of one file say."""

    path: Path
    rows: int
    stored: int  # constituents a jet, with padding
    width: int  # constituents to take of each jet
    labels: str | None
    weights: str | None


def open_file(path: Path) -> h5py.File:
    """The file, opened for reading; DataError for what is no readable HDF5 file."""
    where = str(path)
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        raise DataError("there is no such file", where=where, hint="check the path") from error
    except IsADirectoryError as error:
        hint = f"name its files, for example {path / '*.h5'}"
        raise DataError("is a folder, not a file", where=where, hint=hint) from error
    except OSError as error:
        raise DataError(f"can't be opened ({error.strerror})", where=where, hint="check its permissions") from error
    if not h5py.is_hdf5(path):
        raise DataError("is not an HDF5 file", where=where, hint="load_jets reads ATLAS Top Tagging HDF5 files (.h5)")
    try:
        return h5py.File(path, "r", locking="best-effort", rdcc_nbytes=CHUNK_CACHE_BYTES)
    except OSError as error:
        if "truncated" in str(error):
            what = f"is truncated: only {path.stat().st_size:,} bytes are there"
            raise DataError(what, where=where, hint="copy or download it again") from error
        raise DataError(f"can't be read as HDF5 ({error})", where=where, hint="copy or download it again") from error


@contextmanager
def damage_in(path: Path) -> Iterator[None]:
    """Turns what h5py raises for broken structures inside a file into DataError."""
    try:
        yield
    except KdfastError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        what = f"is damaged ({str(error).strip(chr(34))})"
        raise DataError(what, where=str(path), hint="copy or download it again") from error


def inspect(path: Path, max_constituents: int | None, require_labels: bool) -> Source:
    """Checks names, types and shapes of one file's datasets without reading them."""
    with open_file(path) as file, damage_in(path):
        _check_listed_fields(file, path)
        constituents = [_dataset(file, path, name, columns=True) for name in CONSTITUENTS]
        per_jet = [_dataset(file, path, name) for name in JET]
        names = list(file)
        labels = LABELS if require_labels or LABELS in names else None
        weights = next((name for name in WEIGHTS if name in names), None)
        per_jet += [_dataset(file, path, name) for name in (labels, weights) if name is not None]
        rows, stored = constituents[0].shape
        for dataset in constituents + per_jet:
            name = dataset.name.lstrip("/")
            if len(dataset) != rows:
                what = f"has {len(dataset):,} rows, {CONSTITUENTS[0]} has {rows:,}"
                raise DataError(what, where=f"{path}, dataset {name}", hint="the file was not written completely")
            if dataset.ndim == 2 and dataset.shape[1] != stored:
                what = f"has {dataset.shape[1]} columns, {CONSTITUENTS[0]} has {stored}"
                raise DataError(what, where=f"{path}, dataset {name}", hint="the constituent datasets must be alike")
        if rows == 0 or stored == 0:
            raise DataError("holds no jets" if rows == 0 else "holds no constituents", where=str(path))
        if max_constituents is not None and max_constituents > stored:
            what = f"is {max_constituents}, but only {stored} constituents a jet are stored in {path}"
            raise ConfigError(what, where="max_constituents", hint=f"ask for {stored} at most")
        return Source(path, rows, stored, max_constituents or stored, labels, weights)


def _check_listed_fields(file: h5py.File, path: Path) -> None:
    """Some files list their constituent datasets in the attribute `constit`: it must name the four that are read."""
    if "constit" not in file.attrs:
        return
    listed = [n.decode() if isinstance(n, bytes) else str(n) for n in np.atleast_1d(file.attrs["constit"])]
    missing = [name for name in CONSTITUENTS if name not in listed]
    if missing:
        what = f"lists {', '.join(listed)} but has no {', '.join(missing)}"
        hint = (
            "pT, η, φ and energy of the constituents are needed; such a file has been preprocessed for something else"
        )
        raise DataError(what, where=f"{path}, attribute constit", hint=hint)


def _dataset(file: h5py.File, path: Path, name: str, *, columns: bool = False) -> h5py.Dataset:
    """The dataset, found by a hard link, with its bytes in this file, of numbers, with one or two dimensions."""
    where = f"{path}, dataset {name}"
    link = file.get(name, getlink=True) if name in list(file) else None  # `name in file` would follow links
    if link is None:
        hint = f"the file holds: {', '.join(sorted(file)) or 'nothing'}"
        if name == LABELS:
            hint += "\nfor jets that are only to be scored: kdfast predict, or load_jets(…, require_labels=False)"
        raise DataError("is missing", where=where, hint=hint)
    if isinstance(link, h5py.ExternalLink):
        raise DataError(f"is an external link to {link.filename}", where=where, hint="give that file itself")
    if not isinstance(link, h5py.HardLink):
        raise DataError("is a soft link, not a dataset", where=where, hint="links are not followed; copy the dataset")
    item = file[name]
    if not isinstance(item, h5py.Dataset):
        raise DataError("is a group, not a dataset", where=where)
    if item.external or item.is_virtual:
        raise DataError("has its bytes in another file", where=where, hint="copy it into one file (h5repack)")
    properties = item.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    for number in filters:
        if not h5py.h5z.filter_avail(number):
            what = f"is packed by a filter that is not installed (number {number} of HDF5's registry)"
            raise DataError(what, where=where, hint="import hdf5plugin first, or repack the file with gzip (h5repack)")
    kinds = "fiub" if name == LABELS else "f"
    if item.dtype.kind not in kinds:
        raise DataError(f"must hold {'numbers' if name == LABELS else 'floats'}, holds {item.dtype}", where=where)
    if item.ndim != (2 if columns else 1):
        shape = "[jets, constituents]" if columns else "[jets]"
        raise DataError(f"must have the shape {shape}, has {list(item.shape)}", where=where)
    # HDF5 reads what a writer that died did not come to as zeros: background, without constituents.
    if item.size and item.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
        raise DataError("was not written completely: parts of it have no bytes", where=where, hint="write it again")
    return item


def check_same_weights(sources: list[Source]) -> None:
    """Weighted and unweighted jets can't be mixed: a weight of 1 means something else among real ones. Nor can the
    weights of two versions, whose scales differ."""
    weighted = [source for source in sources if source.weights]
    if weighted and len(weighted) < len(sources):
        without = next(source for source in sources if not source.weights)
        what = f"has neither {' nor '.join(WEIGHTS)}, while {weighted[0].path} has {weighted[0].weights}"
        raise DataError(what, where=str(without.path), hint="read the files with and without weights separately")
    other = next((source for source in weighted if source.weights != weighted[0].weights), None)
    if other is not None:
        what = f"has {other.weights}, while {weighted[0].path} has {weighted[0].weights}"
        raise DataError(what, where=str(other.path), hint="read the files of the two versions separately")
