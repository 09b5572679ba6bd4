"""Results of other people's jobs as a study: run logs, their summary file, or a CSV.

Such a study has the store's own format and opens like any other. Its runs have test results and no scores per
jet, so its report leaves out what needs scores (StudyResults.impossible). Its settings are its runs and seeds
alone: the files do not say how the networks were trained.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike, fspath
from pathlib import Path

from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, DataError, StudyError
from kdfast.files import fsync_folder, writing_errors
from kdfast.importers.csv_table import columns_of, read_csv
from kdfast.importers.found import Found, Notes, read_lines
from kdfast.importers.run_log import read_run_log
from kdfast.importers.search_results import read_search_results
from kdfast.process import temporary_name
from kdfast.store.identity import environment
from kdfast.store.store import StoredResult, StudyStore

__all__ = ["import_results"]

SUMMARY_FILE = "hyperparameter_search_results.txt"
# Lines after which a file that is neither a CSV nor a summary is taken for a run log.
_SNIFFED_LINES = 200

# The number under which runs of unknown seed are stored; provenance says that it is none.
_UNKNOWN = 0

# Shorter tables may be sorted by chance.
_FEWEST_SORTED = 8

# In this order they are read: of two results of one run the last counts, and a job's own log says most.
_READERS = {"summary": read_search_results, "table": read_csv, "log": read_run_log}


def import_results(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]], out: str | PathLike[str], *, seed: int | None = None
) -> StudyStore:
    """Makes a study of files of other jobs' results; see `kdfast.import_study`."""
    if seed is not None and not 0 <= seed < 2**63:
        raise ConfigError(f"must lie in [0, 2**63), is {seed}", where="seed")
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StudyError("is not empty", where=str(out), hint="give a new or an empty folder")
    files = _files([paths] if isinstance(paths, str | PathLike) else list(paths))
    notes = Notes()
    results = _read(files, seed, notes)
    students = [found for found in results if found.kind == "student"]
    diverged = [found for found in students if found.diverged]
    if len(diverged) == len(students):
        what = "no run with results found"
        if diverged:
            first = diverged[0]
            what += f" ({len(diverged)} diverged, e.g. {first.name}: {first.diverged}, from {first.place})"
        raise DataError(what, where=", ".join(map(str, files[:3])), hint="see the warnings" if notes.texts else None)
    _note_choice(students, notes)
    notes.close()
    _write(out, results, files, notes)
    return StudyStore.open(out)


def _note_choice(students: Sequence[Found], notes: Notes) -> None:
    """Names a table that was cut by its results: sorted by AUC, and a part of the grid that its settings span."""
    auc = [found.metrics["auc"] for found in students if "auc" in found.metrics]
    if len(auc) < _FEWEST_SORTED or auc != sorted(auc, reverse=True):
        return
    settings = [
        (c.temp_init, c.temp_final, c.alpha_init, c.alpha_final)
        for found in students
        if isinstance(c := found.config, RunConfig)
    ]
    if len(set(settings)) < math.prod(len(set(values)) for values in zip(*settings, strict=True)):
        what = f"its {len(auc)} runs are sorted by AUC and do not fill the grid of their settings: this looks like the "
        what += "top of a longer table. Runs that were chosen by their results show no effect of settings"
        notes.add(students[0].place, what)


def _files(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """All files to read, each once, those of a folder in the order of their jobs' numbers."""
    files: list[Path] = []
    for given in [Path(fspath(path)) for path in paths]:
        if given.is_dir():
            inside = {*given.rglob("*.out"), *given.rglob(SUMMARY_FILE), *given.rglob("*.csv")}
            if not inside:
                hint = f"looked for *.out, {SUMMARY_FILE} and *.csv"
                raise DataError("has no file to import", where=str(given), hint=hint)
            files += sorted(inside, key=lambda path: (path.parent, len(path.name), path.name))
        else:
            files.append(given)
    if not files:
        raise DataError("no file given", where="paths")
    return list({path.resolve(): path for path in files}.values())


def _read(files: Sequence[Path], seed: int | None, notes: Notes) -> list[Found]:
    """The last result read of each kind, name and seed, with a warning if an earlier one differs.

    seed: of runs whose file has none; None leaves it unknown."""
    kept: dict[tuple[str, str, int | None], Found] = {}
    kinds = {path: _kind_of(path) for path in files}
    for path in sorted(files, key=lambda path: list(_READERS).index(kinds[path])):
        for found in _READERS[kinds[path]](path, read_lines(path, notes), notes):
            own_seed = seed if found.seed is None or found.kind == "teacher" else found.seed  # one teacher a study
            key = (found.kind, found.name, own_seed)
            before = kept.get(key)
            if before is not None and not found.agrees(before):
                again = f"{found}; before: {before} ({before.place}); the last one counts"
                notes.add(found.place, f"{found.name} is given again: {again}")
            kept[key] = replace(found, seed=own_seed)
    return list(kept.values())


def _kind_of(path: Path) -> str:
    """The kind of a file, a key of _READERS, by its content."""
    for number, text, _ in islice(read_lines(path), _SNIFFED_LINES):
        if path.suffix.lower() == ".csv" or (number == 1 and {"auc", "bkg_rej_50"} <= columns_of(text)[1].keys()):
            return "table"
        if text.startswith("Run: "):
            return "summary"
    return "log"


def _write(out: Path, results: Sequence[Found], files: Sequence[Path], notes: Notes) -> None:
    """Writes the study under a hidden name and then moves it to its place."""
    students = [found for found in results if found.kind == "student"]
    settings = {
        "seeds": sorted({_UNKNOWN if found.seed is None else found.seed for found in students}),
        "grid": list(dict.fromkeys(found.name for found in students)),
    }
    imported = {
        "files": [_described(path) for path in files],
        "notes": notes.texts,
        "seeds": "given" if all(found.seed is not None for found in students) else "unknown",
    }
    out = out.absolute()
    temporary = temporary_name(out)
    try:
        store = StudyStore.create_or_open(temporary, settings, {"imported": imported, "environment": environment()})
        for found in results:
            store.write(_stored(found))
        with writing_errors(out):
            os.replace(temporary, out)
            fsync_folder(out.parent)
    except StudyError as error:  # name the place that was asked for
        raise StudyError(error.what, where=str(out), hint=error.hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stored(found: Found) -> StoredResult:
    source = f"from {found.place}"
    return StoredResult(
        kind=found.kind,
        name=found.name,
        seed=_UNKNOWN if found.seed is None else found.seed,
        config=found.config,
        status="diverged" if found.diverged else "done",
        message=f"{found.diverged} ({source})" if found.diverged else source,
        metrics=found.metrics,
        curves=found.curves,
    )


def _described(path: Path) -> dict[str, str | int]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
