"""Results of other people's jobs as a study: run logs, their summary file, or a CSV.

Such a study has the store's own format and opens like any other; its runs have test results and no scores per jet, so
what needs scores (StudyResults.impossible) is left out of its report. Its settings are its runs and seeds: how they
were trained the files do not say.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from pathlib import Path

from kdfast.errors import ConfigError, DataError, StudyError
from kdfast.files import fsync_folder, writing_errors
from kdfast.importers.csv_table import columns_of, read_csv
from kdfast.importers.found import Found, Measured, Notes
from kdfast.importers.lines import read_lines
from kdfast.importers.run_log import read_run_log
from kdfast.importers.search_results import read_search_results
from kdfast.store.identity import environment
from kdfast.store.store import StoredResult, StudyStore

__all__ = ["import_results"]

SUMMARY_FILE = "hyperparameter_search_results.txt"
# Lines after which a file that is neither a CSV nor a summary is taken for a run log.
_SNIFFED_LINES = 200

# Of several results of one run, the file that is believed: a job's own record, then a table, then what jobs appended.
_BELIEVED = ("log", "table", "summary")


def import_results(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]], out: str | PathLike[str], *, seed: int = 42
) -> StudyStore:
    """Makes a study of files of other jobs' results; see `kdfast.import_study`."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"must lie in [0, 2**63), is {seed}", where="seed")
    out = Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StudyError("holds something already", where=str(out), hint="give a new or an empty folder")
    files = _files([paths] if isinstance(paths, str | PathLike) else list(paths))
    notes = Notes()
    found = [run for path in files for run in _read(path, notes)]
    runs = _one_each(found, seed, notes)
    if not any(run.status == "done" for run in runs.values()):
        what = "no run with results is there" + _diverged(list(runs.values()))
        raise DataError(what, where=", ".join(map(str, files[:3])), hint="see the warnings" if notes.texts else None)
    results = [*_students(runs), *_others(found, seed, notes)]
    notes.close()
    _write(out, results, files, notes)
    return StudyStore.open(out)


# ---- reading


def _files(paths: Iterable[str | PathLike[str]]) -> list[Path]:
    """The files meant, each once, folders' in the order of the numbers in their names (of the jobs)."""
    files: list[Path] = []
    for given in [Path(fspath(path)) for path in paths]:
        if given.is_dir():
            inside = {*given.rglob("*.out"), *given.rglob(SUMMARY_FILE), *given.rglob("*.csv")}
            if not inside:
                raise DataError(
                    "holds no log to import", where=str(given), hint=f"looked for *.out, {SUMMARY_FILE}, *.csv"
                )
            files += sorted(inside, key=lambda path: (path.parent, _natural(path.name)))
        else:
            files.append(given)
    if not files:
        raise DataError("no file given", where="paths")
    return list({path.resolve(): path for path in files}.values())


def _natural(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _read(path: Path, notes: Notes) -> Iterator[Found]:
    """The runs of one file, whose kind its content shows."""
    reader = read_run_log
    for number, text, _ in read_lines(path):
        columns = columns_of(text)[1]
        if path.suffix.lower() == ".csv" or (number == 1 and {"auc", "bkg_rej_50"} <= columns.keys()):
            reader = read_csv
            break
        if text.startswith("Run: "):
            reader = read_search_results
            break
        if number > _SNIFFED_LINES:
            break
    yield from reader(path, read_lines(path, notes), notes)


# ---- one result a run


def _one_each(found: Sequence[Found], seed: int, notes: Notes) -> dict[tuple[str, int], Found]:
    """By configuration and seed. Of several the first in this order: name and numbers agree; done; the kind of file
    that is believed; the last one read, as a repeated job replaces its earlier result."""

    def rank(item: tuple[int, Found]) -> tuple[bool, bool, int, int]:
        place, run = item
        return not run.consistent, run.status != "done", _BELIEVED.index(run.source), -place

    groups: dict[tuple[str, int], list[tuple[int, Found]]] = {}
    for place, run in enumerate(found):
        key = (run.config.name, seed if run.seed is None else run.seed)
        groups.setdefault(key, []).append((place, run))
    kept = {}
    for key, group in groups.items():
        (_, best), *rest = sorted(group, key=rank)
        kept[key] = best
        for _, other in rest:
            if other.source != best.source and other.same_results(best):
                continue  # a log and the summary's block of the same job
            notes.add(other.place, f"{key[0]} is given again: {other.shown()}; kept: {best.shown()} of {best.place}, "
                      f"{_reason(best, other)}")  # fmt: skip
    return kept


def _diverged(runs: Sequence[Found]) -> str:
    """Why runs are no results, to be added to a sentence."""
    if not runs:
        return ""
    first, several = runs[0], f"{len(runs)} runs diverged, the first is " if runs[1:] else ""
    how = "" if several else " diverged"
    return f": {several}{first.config.name}{how}, {first.message} (from {first.place})"


def _reason(best: Found, other: Found) -> str:
    if best.consistent != other.consistent:
        return "whose name and numbers agree"
    if best.status != other.status:
        return "which has results"
    return "the job's own record" if best.source == "log" != other.source else "the last one"


def _students(runs: dict[tuple[str, int], Found]) -> Iterator[StoredResult]:
    for (name, seed), run in runs.items():
        where = f"from {run.place}"
        yield StoredResult(
            kind="student",
            name=name,
            seed=seed,
            config=run.config,
            status=run.status,
            message=f"{run.message} ({where})" if run.message else where,
            metrics=run.metrics,
            curves=run.curves.get("student", {}),
        )


def _others(found: Sequence[Found], seed: int, notes: Notes) -> Iterator[StoredResult]:
    """The teacher, and each seed's baseline: the values that most files give, as all jobs should share them."""
    groups: dict[tuple[str, int], list[tuple[Measured, Found]]] = {}
    for run in found:
        for kind, measured in run.others.items():
            own = seed if kind == "teacher" or run.seed is None else run.seed
            groups.setdefault((kind, own), []).append((measured, run))
    for (kind, own), given in groups.items():
        counts = Counter(round(measured.metrics["auc"], 4) for measured, _ in given)  # logs round, tables need not
        usual, number = counts.most_common(1)[0]
        same = [pair for pair in given if round(pair[0].metrics["auc"], 4) == usual]
        best, run = max(same, key=lambda pair: len(pair[0].metrics))
        if len(counts) > 1:
            other = next(measured for measured, _ in given if round(measured.metrics["auc"], 4) != usual)
            notes.add(
                other.place,
                f"the AUC of the {kind} is {other.metrics['auc']}, in {number} of {len(given)} places {usual} "
                f"(e.g. {best.place}); kept: the latter, as most give it",
            )
        yield StoredResult(
            kind=kind,
            name=kind,
            seed=own,
            message=f"from {best.place}",
            metrics=best.metrics,
            curves=run.curves.get(kind, {}),
        )


# ---- writing


def _write(out: Path, results: Sequence[StoredResult], files: Sequence[Path], notes: Notes) -> None:
    """Makes the study beside its place under a hidden name, then moves it there."""
    students = [result for result in results if result.kind == "student"]
    settings = {
        "seeds": sorted({result.seed for result in students}),
        "grid": list(dict.fromkeys(result.name for result in students)),
    }
    imported = {"files": [_described(path) for path in files], "notes": notes.texts}
    out = out.absolute()
    temporary = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        store = StudyStore.create_or_open(temporary, settings, {"imported": imported, "environment": environment()})
        for result in results:
            store.write(result)
        with writing_errors(out):
            os.replace(temporary, out)
            fsync_folder(out.parent)
    except StudyError as error:  # of the place that was asked for
        raise StudyError(error.what, where=str(out), hint=error.hint) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _described(path: Path) -> dict[str, str | int]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
