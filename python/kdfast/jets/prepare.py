"""`kdfast prepare`: files of jets become a packed store, in parallel, and resumed where it was interrupted.

Child processes (isolated.py) read parts of the files. This process tells each where its jets go, which is
known once the parts before it have been read, and notes finished parts in a journal.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import DTypeLike

from kdfast._version import __version__
from kdfast.errors import ConfigError, DataError, ResourceError, StudyError
from kdfast.files import fsync_folder
from kdfast.jets.checks import Faults
from kdfast.jets.columns import ColumnMap
from kdfast.jets.isolated import Child
from kdfast.jets.jet_store import FORMAT, Part, StoreCard, array_path, open_store, stored_types
from kdfast.jets.partial import jets_reporter, partial_folder
from kdfast.jets.readers import Reading, check_all, check_numbers
from kdfast.jets.sources import AnyPath, check_same_weights, expand
from kdfast.jets.splits import SETS, raised_by
from kdfast.mapped import HEADER_BYTES, write_header

__all__ = ["prepare"]

PART_JETS = 1 << 16  # read by one process at once: some 50 to 200 MB
JOURNAL = "parts.jsonl"


def prepare(
    paths: AnyPath | Sequence[AnyPath],
    out: str | os.PathLike[str],
    *,
    validation_data: AnyPath | Sequence[AnyPath] | None = None,
    test_data: AnyPath | Sequence[AnyPath] | None = None,
    max_constituents: int | None = None,
    on_bad: Literal["error", "drop"] = "error",
    unit: Literal["MeV", "GeV"] | None = None,
    columns: str | os.PathLike[str] | dict[str, Any] | ColumnMap | None = None,
    sort: bool = False,
    require_labels: bool = True,
    exactly: bool = True,
    split: str | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> Path:
    """Write the jets of files into a packed store, which need not fit into memory.

    A store is a folder of NumPy arrays, checked and in GeV. `sweep`, `predict` and `load_jets` take its path
    in place of files and read it in place, mapped into memory. Parts that are finished are kept in the folder
    ``<out>.partial`` until the whole store appears: after an interrupt or a kill the same call resumes.

    Parameters
    ----------
    paths, max_constituents, on_bad, unit, columns, sort, require_labels
        As in `load_jets`.
    validation_data, test_data
        Files of jets that are for validation and testing alone, as in `sweep`, which finds them in the store.
    exactly
        False: `max_constituents` is no error where files store fewer.
    split
        A column of whole numbers to keep, by which `sweep(…, split=…)` can then split the jets.
    out
        The folder to write, for example ``jets.store``. It must not exist.
    jobs
        Number of processes that read files; by default the cores that this process may use.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    pathlib.Path
        `out`.

    Raises
    ------
    DataError
        For bad data, and for a file on which the reading library crashes or does not end.
    ConfigError
        For an argument outside its range; if `out` exists or is being written by another process, or if
        ``<out>.partial`` has parts of other files or settings.
    StudyError
        If the store can't be written.

    Examples
    --------
    >>> kdfast.prepare("train_*.h5", "jets.store")  # doctest: +SKIP
    >>> kdfast.sweep("jets.store", out="mine")  # doctest: +SKIP
    """
    out = Path(out)
    reading = Reading(None, max_constituents, on_bad, unit, sort, require_labels, columns, exactly)
    jobs = jobs if jobs is not None else len(os.sched_getaffinity(0))
    if jobs < 1:
        raise ConfigError(f"must be at least 1, is {jobs}", where="jobs")
    if out.exists():
        raise ConfigError("exists already", where=str(out), hint="choose another name, or delete it first")
    how = {
        "columns": reading.columns.model_dump(mode="json", exclude_none=True),
        "max_constituents": max_constituents,
        "exactly": exactly,
        "require_labels": require_labels,
        "split": split,
    }
    sets = {"data": paths, "validation_data": validation_data, "test_data": test_data}
    with Child() as child:
        files = [
            _File.of(path, name, how, child)
            for name, given in sets.items()
            if given is not None
            for path in expand(given)
        ]
    _check_files(files)
    in_unit = unit or reading.columns.unit
    settings = {
        "kdfast": __version__,
        "files": [file.described() for file in files],
        **how,
        "on_bad": on_bad,
        "unit": in_unit,
    }
    folder = out.with_name(f"{out.name}.partial")
    with partial_folder(folder, settings):
        store = _Writing(folder, stored_types(split), _plan(files, how, in_unit, on_bad == "drop"))
        rows = sum(file.rows for file in files)
        with jets_reporter("preparing", rows, store.rows_done, folder, progress) as report:
            store.write(min(jobs, len(store.requests)), report)
        with _writing(out):
            _finish(store, settings, files)
            os.replace(folder, out)
            fsync_folder(out.absolute().parent)
            for leftover in (JOURNAL, "settings.json"):  # last: without them a killed process could not be resumed
                (out / leftover).unlink()
    return out


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "finished parts are kept: rerun the same command to resume"
        raise StudyError(f"can't be written ({error.strerror})", where=str(out), hint=hint) from error


@dataclass(frozen=True)
class _File:
    """What the header of a file says. set: one of splits.SETS. word: what messages call a column. weights:
    its column of weights, or None."""

    path: Path
    set: str
    word: str
    columns: ColumnMap
    rows: int
    chunk_rows: int
    weights: str | None

    @classmethod
    def of(cls, path: Path, name: str, how: dict[str, Any], child: Child) -> _File:
        answer = child.ask("inspect", [str(path)], path=str(path), **how)
        columns = ColumnMap.model_validate(how["columns"])
        chunk_rows = max(answer["chunk_rows"], 1)
        return cls(path, name, answer["word"], columns, answer["rows"], chunk_rows, answer["weights"])

    def described(self) -> dict[str, Any]:
        """By which a changed file is noticed when the work is resumed."""
        found = self.path.stat()
        return {
            "path": str(self.path.absolute()),
            "set": self.set,
            "rows": self.rows,
            "bytes": found.st_size,
            "mtime_ns": found.st_mtime_ns,
        }


def _check_files(files: Sequence[_File]) -> None:
    """Raises DataError for a file in two sets, or files of a set with and without weights."""
    seen: dict[Path, str] = {}
    for file in files:
        other = seen.setdefault(file.path.resolve(), file.set)
        if other != file.set:
            raise DataError(f"is given as both {other} and {file.set}", where=str(file.path))
    for name in SETS:
        of_set = [file for file in files if file.set == name]
        if of_set:
            check_same_weights(of_set)


def _plan(files: Sequence[_File], how: dict[str, Any], unit: str, drop: bool) -> list[dict[str, Any]]:
    """The parts, as requests to a worker; they depend on files and settings alone."""
    requests: list[dict[str, Any]] = []
    names = [file.set for file in files]
    first = {name: 0 if file.columns.id else raised_by(name, names) for name, file in zip(names, files, strict=True)}
    for file in files:
        step = max(PART_JETS // file.chunk_rows, 1) * file.chunk_rows
        for start in range(0, file.rows, step):
            rows = {"start": start, "stop": min(start + step, file.rows)}
            request = {
                "path": str(file.path),
                **rows,
                "first_index": first[file.set],
                "unit": unit,
                "drop": drop,
                **how,
            }
            requests.append(request)
        first[file.set] += file.rows
    return requests


@dataclass
class _Writing:
    """A store while it is being written.

    types: of its arrays. parts: finished ones, by number; those before `placed` have their places.
    """

    folder: Path
    types: dict[str, DTypeLike]
    requests: list[dict[str, Any]]
    parts: dict[int, dict[str, Any]] = field(default_factory=dict)
    placed: int = 0
    jets: int = 0
    constituents: int = 0
    fault: BaseException | None = None

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        for name, dtype in self.types.items():
            with open(array_path(self.folder, name), "ab") as file:
                if name == "offsets" and not file.tell():  # parts write where jets end
                    file.write(bytes(HEADER_BYTES + np.dtype(dtype).itemsize))
        self._read_journal()

    def _read_journal(self) -> None:
        """Takes the parts that were finished, up to the first that was not: the place of all others may differ."""
        journal = self.folder / JOURNAL
        lines = journal.read_text().splitlines() if journal.exists() else []
        known: dict[int, dict[str, Any]] = {}
        for line in lines:
            with suppress(ValueError, KeyError, TypeError):  # the last line of a process that was killed
                part = json.loads(line)
                known[int(part["number"])] = part
        while self.placed in known:
            self._place(self.placed, known[self.placed])
            self.parts[self.placed - 1] = known[self.placed - 1]
        with open(journal, "w") as file:
            file.writelines(json.dumps(part) + "\n" for part in self.parts.values())

    @property
    def rows_done(self) -> int:
        return sum(request["stop"] - request["start"] for request in self.requests[: len(self.parts)])

    def _place(self, number: int, answer: dict[str, Any]) -> dict[str, int]:
        """Where a part's jets go, behind those of all earlier parts."""
        assert number == self.placed
        place = {"first_jet": self.jets, "first_constituent": self.constituents}
        self.placed += 1
        self.jets += answer["jets"]
        self.constituents += answer["constituents"]
        return place

    def write(self, jobs: int, report: Callable[[int], None]) -> None:
        """Writes the parts that are missing, by this number of processes. Raises the first fault of any."""
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(self.placed, len(self.requests)):
            waiting.put(number)
        children = [Child() for _ in range(jobs if not waiting.empty() else 0)]
        with open(self.folder / JOURNAL, "a") as journal:
            threads = [
                threading.Thread(target=self._work, args=(child, waiting, journal, report), daemon=True)
                for child in children
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    while thread.is_alive():  # a wait without an end would not see Ctrl-C
                        thread.join(0.1)
            finally:
                self._fail(KeyboardInterrupt())
                for child in children:
                    child.kill()
                for thread in threads:
                    thread.join()
                for child in children:
                    child.__exit__()
        if self.fault is not None and len(self.parts) < len(self.requests):
            raise self.fault

    def _place_in_turn(self, number: int, answer: dict[str, Any]) -> dict[str, int] | None:
        """The part's place, once those of all earlier parts are known; None: there was a fault."""
        with self.changed:
            self.changed.wait_for(lambda: self.placed == number or self.fault is not None)
            if self.fault is not None:
                return None
            place = self._place(number, answer)
            self.changed.notify_all()
            return place

    def _fail(self, fault: BaseException) -> None:
        with self.changed:
            self.fault = self.fault or fault
            self.changed.notify_all()

    def _work(
        self, child: Child, waiting: queue.SimpleQueue[int], journal: IO[str], report: Callable[[int], None]
    ) -> None:
        """One process's work: read a part, wait for its place, write it, note it."""
        try:
            while self.fault is None:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                request = self.requests[number]
                place = f"{request['path']}, rows {request['start']} to {request['stop'] - 1}"
                answer = child.ask("read", [place], **request)
                position = self._place_in_turn(number, answer)
                if position is None:
                    return
                written = child.ask("write", [place], folder=str(self.folder), **position)
                with self.changed:
                    self.parts[number] = {"number": number, **answer, **written}
                    journal.write(json.dumps(self.parts[number]) + "\n")
                    journal.flush()
                    os.fsync(journal.fileno())
                    report(request["stop"] - request["start"])
        except OSError as error:
            hint = "make room and rerun the same command" if error.errno == errno.ENOSPC else None
            self._fail(StudyError(f"can't be written ({error.strerror})", where=str(self.folder), hint=hint))
        except ResourceError as error:
            hint = "use fewer jobs; finished parts are kept, rerun the same command to resume"
            self._fail(ResourceError(error.what, where=error.where, hint=hint))
        except BaseException as error:
            self._fail(error)


def _finish(store: _Writing, settings: dict[str, Any], files: Sequence[_File]) -> None:
    """Checks what concerns all jets; writes the arrays' headers and the card."""
    parts = [store.parts[number] for number in range(len(store.requests))]
    faults = Faults(drop=True)
    for part in parts:
        for reason, number in part["dropped"].items():
            faults.counts[reason] = faults.counts.get(reason, 0) + number
            faults.first.setdefault(reason, part["first"][reason])
    check_numbers(store.jets, store.constituents, faults, files)
    faults.warn(sum(part["rows_read"] for part in parts))
    shapes = {
        "constituents": (store.constituents, 4),
        "offsets": (store.jets + 1,),
        "p4": (store.jets, 4),
    }
    for name, dtype in store.types.items():
        write_header(array_path(store.folder, name), dtype, shapes.get(name, (store.jets,)))
    StoreCard(
        format=FORMAT,
        kdfast=__version__,
        jets=store.jets,
        constituents=store.constituents,
        made_from=settings,
        dropped=faults.counts,
        sets=_sizes(store, files),
        parts=[Part(**{key: part[key] for key in Part.model_fields}) for part in parts],
    ).write(store.folder)
    check_all(open_store(store.folder), files, settings["require_labels"])


def _sizes(store: _Writing, files: Sequence[_File]) -> dict[str, int]:
    """Jets of each set. Raises DataError where a set has none left."""
    of_file = {str(file.path): file.set for file in files}
    sizes = dict.fromkeys((file.set for file in files), 0)
    for number, request in enumerate(store.requests):
        sizes[of_file[request["path"]]] += store.parts[number]["jets"]
    for name, jets in sizes.items():
        if not jets:
            raise DataError("no jet is left", where=name)
    return sizes
