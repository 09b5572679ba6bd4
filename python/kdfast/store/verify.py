"""Checks that a study is as it was written: hashes every file again, and can move aside what is damaged."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any, Literal

from kdfast.errors import BusyError, DamagedError, Fault, StudyError
from kdfast.files import fsync_folder, write_content, writing_errors
from kdfast.process import is_writing
from kdfast.store.attempts import read_attempt
from kdfast.store.documents import MANIFEST, ManifestDocument, json_bytes, parse
from kdfast.store.folders import LEFTOVERS, damage, hash_file, read, refuse_link
from kdfast.store.locks import LOCK, REPORT_CHECKSUMS, REPORT_LOCK, exclusively, is_held, locked
from kdfast.store.packs import at_work, read_pack
from kdfast.store.result import load_result
from kdfast.store.store import check_description, read_description, read_latency, require_study

__all__ = ["Finding", "Verification", "repair", "verify"]

Remedy = Literal["aside", "remove", ""]

Reader = Callable[[Path], object]

# Folders of committed folders, what `repair` does with a damaged one of them, and the reader of one, if it
# has one.
_COMMITTED: dict[str, tuple[Remedy, Reader | None]] = {
    "results": ("aside", load_result),
    "shared": ("aside", None),
    "attempts": ("aside", read_attempt),
    "packs": ("aside", read_pack),
    "inputs": ("aside", None),
    "checkpoints": ("remove", None),
    "latency": ("remove", read_latency),
}
# Claims and logs change all the time; what is in damaged/ is known to be.
_NOT_CHECKED = ("claims", "damaged", "logs", LOCK, REPORT_LOCK, REPORT_CHECKSUMS)
_DESCRIPTION = (MANIFEST, "study.toml", "provenance.json")

_LISTED = re.compile(r"([0-9a-f]{64})  ((?:[A-Za-z0-9_][\w.+-]*/)?[A-Za-z0-9_][\w.+-]*)")
_TARGETS = re.compile(r"[0-9a-f]{64}\.([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written.

    path: below the study's folder. fault, detail: what is wrong with it. remedy: what `repair` does to
    `unit`, the path that has to go as a whole: "aside" (moves it into damaged/), "remove" (a cache, a
    leftover, or derived), or "" (nothing: a user must). of_report: whether it is a file of the report, or
    report.sha256.
    """

    path: str
    fault: Fault
    remedy: Remedy
    unit: str
    detail: str = ""
    of_report: bool = False

    @property
    def what(self) -> str:
        """The fault in words."""
        return f"{self.fault.value} ({self.detail})" if self.detail else self.fault.value


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    findings: what is not as it was written. notes: what could not be checked, and why. files, bytes: how much
    was hashed.
    """

    study: Path
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    files: int
    bytes: int

    @property
    def intact(self) -> bool:
        """Whether all is as it was written."""
        return not self.findings


def verify(study: str | Path, *, progress: bool = False) -> Verification:
    """Hashes every file of a study again, even if the study can't be opened any more.

    Checks every folder with a manifest, the study's description, targets, report, files that no manifest
    lists, what killed writers left, and results whose content contradicts their name. Holds the study's lock.
    While a sweep holds it, or a worker is at work, what these may be writing is named in the notes and not
    checked.

    Parameters
    ----------
    study
        The study's folder.
    progress
        Shows a bar on stderr.

    Raises
    ------
    StudyError
        Where there is no study, or one of a newer format.
    """
    path = Path(study)
    require_study(path)
    with locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB) as held:
        return _verify(path, progress, sweeping=held is False)


def _verify(path: Path, progress: bool, *, sweeping: bool) -> Verification:
    with _bar(path, progress) as tick:
        check = _Check(path, tick, sweeping)
        check.everything()
    return Verification(path, tuple(check.findings), tuple(check.notes), check.files, check.bytes)


@contextmanager
def _bar(path: Path, shown: bool) -> Iterator[Callable[[int], object]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda size: None
        return
    files = (os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)
    total = sum(os.lstat(file).st_size for file in files if os.path.lexists(file))  # a sweep may be running
    columns = (TextColumn("verifying"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.advance(task, size)


@dataclass
class _Check:
    """One walk through a study. sweeping: another process holds the study."""

    path: Path
    tick: Callable[[int], object]
    sweeping: bool
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def found(self, path: Path, fault: Fault, remedy: Remedy, unit: Path | None = None, **more: Any) -> None:
        """more: detail and of_report of the finding."""
        name, whole = (str(each.relative_to(self.path)) for each in (path, unit or path))
        self.findings.append(Finding(name, fault, remedy, whole, **more))

    @contextmanager
    def judging(self, remedy: Remedy, unit: Path | None = None, of_report: bool = False) -> Iterator[None]:
        """A DamagedError inside the `with` block becomes a finding."""
        try:
            yield
        except DamagedError as error:
            path = Path(error.where or "", error.file or "")
            detail = "" if error.fault is Fault.LINK else error.detail
            self.found(path, error.fault, remedy, unit, detail=detail, of_report=of_report)

    def compare(self, folder: Path, file: str, digest: str, listed_in: str = "") -> None:
        """Hashes a file. Raises DamagedError if it has another digest."""

        def tick(size: int) -> None:
            self.bytes += size
            self.tick(size)

        self.files += 1
        if hash_file(folder, file, tick) != digest:
            raise damage(folder, Fault.CHANGED, file, listed_in)

    def everything(self) -> None:
        self.description()
        reported = self.report()
        for path in self.entries(self.path):
            if path.name in _COMMITTED and path.is_dir():
                self.parent(path, *_COMMITTED[path.name])
            elif path.name == "targets" and path.is_dir():
                self.targets(path)
            elif path.name == "claims" and path.is_dir():
                self.links(path)
            elif path.name not in (*_DESCRIPTION, *_NOT_CHECKED) and reported:
                self.unlisted(path, reported)

    def entries(self, folder: Path) -> Iterator[Path]:
        """What is in a folder, without links and leftovers, which become findings."""
        for path in _inside(folder):
            if path.is_symlink():
                self.found(path, Fault.LINK, "" if path == self.path / "damaged" else "aside")
            elif fnmatch(path.name, LEFTOVERS):
                self.leftover(path)
            else:
                yield path

    def description(self) -> None:
        with self.judging(""):
            read_description(self.path)
        if not os.path.lexists(self.path / MANIFEST):
            what = "a sweep is writing them, or was killed while it did, or the manifest was deleted"
            self.notes.append(f"study.toml and provenance.json have no checksums: {what}")
        elif not self.sweeping:
            self.listed(self.path, "")
        else:
            with self.judging(""):
                check_description(self.path)

    def listed(self, folder: Path, remedy: Remedy) -> set[str]:
        """Checks what a folder's manifest lists; returns the names."""
        unit = folder if remedy else None
        self.files += 1
        names = {MANIFEST}
        with self.judging(remedy, unit):
            content = read(folder / MANIFEST)
            document = parse(ManifestDocument, content, str(folder), MANIFEST)
            if json_bytes(document.model_dump()) != content:
                self.found(folder / MANIFEST, Fault.NOT_CANONICAL, remedy, unit)
            for name, digest in document.files.items():
                names.add(name)
                with self.judging(remedy, unit):
                    self.compare(folder, name, digest)
        return names

    def parent(self, parent: Path, remedy: Remedy, reader: Reader | None) -> None:
        """Checks the committed folders in parent; of checkpoints, those in its folders."""
        for path in self.entries(parent):
            if not path.is_dir():
                self.found(path, Fault.UNLISTED, "aside")
            elif parent == self.path / "checkpoints":
                self.parent(path, remedy, reader)
            else:
                self.committed(path, remedy, reader)

    def committed(self, folder: Path, remedy: Remedy, reader: Reader | None) -> None:
        before = len(self.findings)
        names = self.listed(folder, remedy)
        if not folder.exists():  # removed meanwhile, as a checkpoint may be
            del self.findings[before:]
            return
        if len(self.findings) > before:
            return
        for path in _inside(folder):
            if path.name not in names:
                self.found(path, Fault.UNLISTED, "aside")
        if reader is not None:
            with self.judging(remedy, folder):
                reader(folder)

    def links(self, folder: Path) -> None:
        """Names the links in a folder and its folders."""
        for parent, names, files in os.walk(folder):
            for name in sorted((*names, *files)):
                if Path(parent, name).is_symlink():
                    self.found(Path(parent, name), Fault.LINK, "aside")

    def leftover(self, path: Path) -> None:
        """A writer of this machine is known to have ended or not; of others, none is left if none is at work."""
        writing = is_writing(path.name)
        if writing or not os.path.lexists(path):
            return
        busy = ""
        if writing is None:
            busy = "a sweep is running on the study" if self.sweeping else ", ".join(map(str, at_work(self.path)[:1]))
        if busy:
            self.notes.append(f"{path.relative_to(self.path)} may be what another machine is writing: {busy}")
        else:
            self.found(path, Fault.LEFTOVER, "remove")

    def targets(self, folder: Path) -> None:
        for path in self.entries(folder):
            named = _TARGETS.fullmatch(path.name)
            if named is None:
                self.found(path, Fault.UNLISTED, "aside")
            else:
                with self.judging("remove"):
                    self.compare(folder, path.name, named[1])

    def report(self) -> set[str]:
        """Checks the report's files; returns their names, none if they have no checksums or are being written."""
        if self.sweeping or is_held(self.path, REPORT_LOCK):
            self.notes.append("the report and its models were not checked: a sweep or a report is being written")
            return set()
        path = self.path / REPORT_CHECKSUMS
        if not os.path.lexists(path):
            if any(os.path.lexists(self.path / name) for name in ("report.json", "results_summary.csv")):
                self.notes.append("the report has no checksums: `kdfast report` writes it again, with checksums")
            return set()
        self.files += 1
        try:
            lines = read(path).decode().splitlines()
        except (DamagedError, UnicodeDecodeError):
            lines = [""]
        names: set[str] = set()
        for line in lines:
            listed = _LISTED.fullmatch(line)
            if listed is None:
                self.found(path, Fault.NOT_CANONICAL, "remove", of_report=True)
                continue
            file = self.path / listed[2]
            names.add(listed[2])
            if not file.parent.is_symlink():  # else a finding of its own
                with self.judging("remove", of_report=True):
                    self.compare(file.parent, file.name, listed[1], f"in {REPORT_CHECKSUMS}")
        return names

    def unlisted(self, path: Path, reported: set[str]) -> None:
        """Notes files that neither the store nor the report wrote."""
        files = [path / name for name in sorted(os.listdir(path))] if path.is_dir() else [path]
        names = (str(file.relative_to(self.path)) for file in files)
        self.notes += [f"{name} is not a kdfast file" for name in names if name not in reported]


def _inside(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it has been removed meanwhile."""
    with suppress(FileNotFoundError):
        return sorted(folder.iterdir())
    return []


# ---- repair


def repair(study: str | Path, *, progress: bool = False) -> tuple[Verification, list[str]]:
    """Verifies a study and repairs what it can; returns what was found, and what was done, a line each.

    Damaged folders move into damaged/ with a note that gives the reason; damaged caches, leftovers and
    derived files are removed. The next sweep replaces what is then missing (results, shared arrays, targets),
    and `kdfast report` the report.

    Raises
    ------
    BusyError
        While a sweep or a worker is at work on the study.
    StudyError
        Where it can't be written. Its `done` lists what had been repaired before.
    """
    path = Path(study)
    require_study(path)
    with exclusively(path) as held:
        if not held:
            hint = "repair it when that has ended"
            raise BusyError("a sweep is working on this study", where=str(path), hint=hint)
        _refuse_at_work(path)
        verification = _verify(path, progress, sweeping=False)
        done: list[str] = []
        try:
            _put_right(path, verification, done)
        except StudyError as error:
            error.done = done
            raise
    return verification, done


def _put_right(path: Path, verification: Verification, done: list[str]) -> None:
    """Adds to `done` what it does."""
    findings = verification.findings
    for unit, remedy in dict.fromkeys((f.unit, f.remedy) for f in findings if f.remedy):
        _refuse_at_work(path)  # workers take no lock, and may have started meanwhile
        why = [f"{f.path}: {f.what}" for f in findings if f.unit == unit]
        with writing_errors(path / unit):
            if remedy == "aside":
                done.append(_move_aside(path, unit, why))
            else:
                done.append(f"{unit}: {_remove(path / unit)}")
    if any(f.of_report for f in findings):  # the report is no longer what the list says
        with writing_errors(path):
            removed = _remove(path / REPORT_CHECKSUMS)
        done.append(f"{REPORT_CHECKSUMS}: {removed}; `kdfast report {path}` writes the report again")
    done += [f"{f.path}: can't be repaired: {_by_hand(path, f)}" for f in findings if not f.remedy]


def _by_hand(path: Path, finding: Finding) -> str:
    """What a user can do where there is no remedy."""
    if finding.fault is Fault.LINK:
        return "put a folder in its place"
    if finding.fault is Fault.CHANGED:
        return f"restore it from a copy; if it is meant to be so, delete {path / MANIFEST}"
    return "restore it from a copy"


def _refuse_at_work(path: Path) -> None:
    for holder in at_work(path):
        hint = f"stop it; if that machine is gone, delete {path / 'claims' / holder.name}"
        raise BusyError(str(holder), where=str(path), hint=hint)


def _move_aside(study: Path, unit: str, why: list[str]) -> str:
    aside = study / "damaged"
    refuse_link(aside)
    aside.mkdir(exist_ok=True)
    places = (aside / f"{unit.replace('/', '.')}.{number}" for number in count(1))
    place = next(place for place in places if not os.path.lexists(place))
    write_content(aside / f"{place.name}.txt", ("\n".join([f"{unit} was moved here:", *why]) + "\n").encode())
    os.rename(study / unit, place)
    fsync_folder((study / unit).parent)
    fsync_folder(aside)
    return f"{unit}: moved to damaged/{place.name}"


def _remove(path: Path) -> str:
    """Removes a file or folder; returns what happened."""
    if not os.path.lexists(path):
        return "was not there"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    fsync_folder(path.parent)
    return "removed"
