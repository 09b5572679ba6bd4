"""Whether a study is as it was written: every file of it is hashed again, and what is damaged can be put aside."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from kdfast.errors import StudyError
from kdfast.files import fsync_folder, write_content, writing_errors
from kdfast.process import is_writing
from kdfast.store.attempts import read_attempt
from kdfast.store.folders import (
    LEFTOVERS,
    LOCK,
    MANIFEST,
    REPORT_CHECKSUMS,
    REPORT_LOCK,
    check_format,
    exclusively,
    hash_file,
    json_bytes,
    locked,
    manifest,
    parse_json,
    read,
    refuse_link,
)
from kdfast.store.index import Index
from kdfast.store.packs import at_work, read_pack
from kdfast.store.store import description_version, load_result

__all__ = ["Finding", "Verification", "repair", "verify"]

# Folders of committed folders, and what may be done with a damaged one of them.
_COMMITTED = {
    "results": "aside",
    "shared": "aside",
    "attempts": "aside",
    "packs": "aside",
    "inputs": "aside",
    "checkpoints": "remove",
}
_DESCRIPTION = (MANIFEST, "study.toml", "provenance.json")
# Claims and logs are written to all the time; what is damaged is known to be.
_PASSED_OVER = ("claims", "damaged", "logs", LOCK, REPORT_LOCK)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written.

    path: below the study's folder. what: is wrong with it. remedy: what `repair` does to `unit`, the path that has to
    go as a whole: "aside" (moved into damaged/), "remove" (a cache, a leftover, or derived), "" (nothing: a user must).
    """

    path: str
    what: str
    remedy: str
    unit: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found. files, bytes: hashed. notes: what could not be checked, and why; no fault."""

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
    """Hashes every file of a study again, also while a sweep is running and where the study can't be opened any more.

    Looks at every folder with a manifest, the study's description, targets, report, index, files that no manifest
    lists, what killed writers left, and results whose content contradicts their name. progress: a bar on stderr.
    Raises StudyError where there is no study, or one of a newer format.
    """
    return _verify(Path(study), progress)


def _verify(path: Path, progress: bool, *, before: Mapping[Path, object] | None = None) -> Verification:
    """before: `_leftovers` as they were earlier, where the caller holds the study."""
    described = path / "provenance.json"
    if not os.path.lexists(described):
        what = "holds no study" if path.exists() else "does not exist"
        raise StudyError(what, where=str(path), hint="give the folder that `kdfast sweep --out` wrote")
    with _bar(path, progress) as tick:
        check = _Check(path, tick, before)
        check.everything()
    return Verification(path, tuple(check.findings), tuple(check.notes), check.files, check.bytes)


@contextmanager
def _bar(path: Path, shown: bool) -> Iterator[Callable[[int], object]]:
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda size: None
        return
    total = sum(
        os.lstat(os.path.join(folder, name)).st_size
        for folder, _, names in os.walk(path)
        for name in names
        if os.path.lexists(os.path.join(folder, name))  # a sweep may be running
    )
    columns = (TextColumn("verifying"), BarColumn(bar_width=24), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda size: bar.advance(task, size)


@dataclass
class _Check:
    """One walk through a study."""

    path: Path
    tick: Callable[[int], object]
    before: Mapping[Path, object] | None = None
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0

    def found(self, path: Path, what: str, remedy: str, unit: Path | None = None) -> None:
        names = (str(p.relative_to(self.path)) for p in (path, unit or path))
        self.findings.append(Finding(next(names), what, remedy, next(names)))

    def digest(self, folder: Path, file: str) -> str:
        def tick(size: int) -> None:
            self.bytes += size
            self.tick(size)

        self.files += 1
        return hash_file(folder, file, tick)[0]

    def everything(self) -> None:
        self.description()
        reported = self.report()
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            path, name = self.path / entry.name, entry.name
            if entry.is_symlink():
                self.found(path, "is a symbolic link", "" if name == "damaged" else "aside")
            elif fnmatch(name, LEFTOVERS):
                self.leftover(path)
            elif name in _COMMITTED and entry.is_dir():
                self.parent(path, _COMMITTED[name])
            elif name == "targets" and entry.is_dir():
                self.targets(path)
            elif name == ".index":
                self.index()
            elif name == "claims" and entry.is_dir():
                self.links(path)
            elif name not in (*_DESCRIPTION, *_PASSED_OVER, REPORT_CHECKSUMS) and reported:
                self.unlisted(path, reported)

    def description(self) -> None:
        for name in _DESCRIPTION[1:]:
            try:
                content = read(self.path / name)
                if name == "provenance.json":
                    version = parse_json(content).get("format")
                    if isinstance(version, int):
                        check_format(version, self.path / name)
            except ValueError:
                self.found(self.path / name, "can't be read as JSON", "")
            except StudyError as error:
                if "newer" in error.what:
                    raise
                self.found(self.path / name, error.what, "")
        while (there := description_version(self.path)) is not None:
            before = len(self.findings)
            self.listed(self.path, "")
            if description_version(self.path) == there:
                return
            del self.findings[before:]  # a sweep has written it anew meanwhile
        what = "the study is of an older version, or a sweep is writing them, or was killed then"
        self.notes.append(f"study.toml and provenance.json have no checksums: {what}")

    def listed(self, folder: Path, remedy: str) -> set[str]:
        """Checks what a folder's manifest lists; returns the names."""
        unit = folder if remedy else None
        try:
            digests, _ = manifest(folder)
            self.files += 1
            content = read(folder / MANIFEST)
            if not _is_as_written(content):
                self.found(folder / MANIFEST, "is not as kdfast writes it", remedy, unit)
        except StudyError as error:
            if "newer" in error.what:
                raise
            self.found(folder / MANIFEST, error.what, remedy, unit)
            return set()
        for name, expected in digests.items():
            try:
                what = "" if self.digest(folder, name) == expected else "does not match its checksum"
            except StudyError as error:
                what = error.what.removeprefix(f"is damaged: {name} ")
            if what:
                self.found(folder / name, what, remedy, unit)
        return {*digests, MANIFEST}

    def parent(self, parent: Path, remedy: str) -> None:
        """Checks the committed folders in parent; of checkpoints, which come and go, those in its folders."""
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
            with suppress(FileNotFoundError):  # gone meanwhile: a checkpoint, or what another writer has renamed
                self.child(parent / entry.name, entry, remedy)

    def child(self, path: Path, entry: os.DirEntry[str], remedy: str) -> None:
        if entry.is_symlink():
            self.found(path, "is a symbolic link", "aside")
        elif fnmatch(entry.name, LEFTOVERS):
            self.leftover(path)
        elif entry.is_dir() and path.parent == self.path / "checkpoints":
            self.parent(path, remedy)
        elif entry.is_dir():
            self.committed(path, remedy)
        else:
            self.found(path, "no manifest lists it", "aside")

    def links(self, folder: Path) -> None:
        """Names the links in a folder and its folders."""
        for parent, names, files in os.walk(folder):
            for path in (Path(parent, name) for name in sorted((*names, *files))):
                if path.is_symlink():
                    self.found(path, "is a symbolic link", "aside")

    def leftover(self, path: Path) -> None:
        """Of a writer of another machine none can tell whether it is there, but that nobody is at the study, and that
        it does not grow."""
        if (writing := is_writing(path.name)) or not (there := _state(path)):
            return
        if writing is None and (why := self.busy() or (self.before is not None and self.before.get(path) != there)):
            reason = why if isinstance(why, str) else "it has changed meanwhile"
            self.notes.append(f"{path.relative_to(self.path)} may be what another machine is writing: {reason}")
        else:
            self.found(path, "was left by a writer that was killed", "remove")

    def busy(self) -> str:
        """Who may be writing now; "": nobody. Asked each time: a worker may have started since."""
        if self.before is None and _is_held(self.path):
            return "a sweep is at the study"
        return ", ".join(f"{h.host}, process {h.pid}, is at {h.name}" for h in at_work(self.path)[:1])

    def committed(self, folder: Path, remedy: str) -> None:
        before = len(self.findings)
        names = self.listed(folder, remedy)
        if not folder.exists():  # gone while we looked, as a checkpoint may be
            del self.findings[before:]
        if len(self.findings) > before or not folder.exists():
            return
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name not in names:
                self.found(folder / entry.name, "no manifest lists it", "aside")
        try:
            if folder.parent.name == "results":
                load_result(folder, read(folder / "result.json"))
            elif folder.parent.name == "attempts":
                read_attempt(folder)
            elif folder.parent.name == "packs":
                read_pack(folder)
        except StudyError as error:
            self.found(folder, error.what, remedy)

    def targets(self, folder: Path) -> None:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path, named = folder / entry.name, re.fullmatch(r"[0-9a-f]{64}\.([0-9a-f]{64})\.safetensors", entry.name)
            if re.fullmatch(r"[0-9a-f]{64}\.safetensors", entry.name):
                self.notes.append(f"targets/{entry.name} is of an older version: it is not used any more")
            elif fnmatch(entry.name, LEFTOVERS):
                self.leftover(path)
            elif not named:
                self.found(path, "is no file of this cache", "aside")
            else:
                try:
                    if self.digest(folder, entry.name) != named[1]:
                        self.found(path, "does not match its checksum", "remove")
                except StudyError as error:
                    self.found(path, error.what, "remove")

    def index(self) -> None:
        index = Index(self.path)
        if (fault := index.fault()) is not None and index.path.parent.parent == self.path.absolute():
            self.found(self.path / ".index" / index.path.name, fault, "remove")

    def report(self) -> set[str]:
        """Checks the report's files; returns their names, none where they have no checksums, or are being written."""
        if (self.before is None and _is_held(self.path)) or _is_held(self.path, REPORT_LOCK):
            self.notes.append("the report and its models were not checked: a sweep or a report is at work")
            return set()
        path, names = self.path / REPORT_CHECKSUMS, set()
        if not os.path.lexists(path):
            if os.path.lexists(self.path / "report.json") or os.path.lexists(self.path / "results_summary.csv"):
                self.notes.append("the report has no checksums: `kdfast report` writes it anew with them")
            return set()
        self.files += 1
        try:
            lines = read(path).decode().splitlines()
        except (StudyError, UnicodeDecodeError):
            lines = [""]
        for line in lines:
            listed = re.fullmatch(r"([0-9a-f]{64})  ((?:[A-Za-z0-9_][\w.+-]*/)?[A-Za-z0-9_][\w.+-]*)", line)
            if not listed:
                self.found(path, "is not as kdfast writes it", "remove")
                continue
            file = self.path / listed[2]
            names.add(listed[2])
            if file.parent.is_symlink():
                continue  # a finding of its own
            try:
                what = "" if self.digest(file.parent, file.name) == listed[1] else "does not match its checksum"
            except StudyError as error:
                what = error.what.removeprefix(f"is damaged: {file.name} ")
            if what:
                self.found(file, f"{what} in {REPORT_CHECKSUMS}", "remove")
        return names

    def unlisted(self, path: Path, reported: set[str]) -> None:
        """Notes files that neither the store nor the report wrote."""
        files = [path / name for name in sorted(os.listdir(path))] if path.is_dir() else [path]
        for file in files:
            name = str(file.relative_to(self.path))
            if name not in reported:
                self.notes.append(f"{name} is no file of kdfast's")


def _is_as_written(document: bytes) -> bool:
    try:
        return json_bytes(parse_json(document)) == document
    except (ValueError, RecursionError):  # numbers, text or nesting that kdfast does not write
        return False


def _is_held(path: Path, name: str = LOCK) -> bool:
    with locked(path, fcntl.LOCK_SH | fcntl.LOCK_NB, name) as held:
        return held is False


def _leftovers(path: Path) -> dict[Path, object]:
    """What writers have left or are writing, each with its `_state`."""
    found = (Path(parent, name) for parent, names, files in os.walk(path) for name in (*names, *files))
    return {entry: _state(entry) for entry in found if fnmatch(entry.name, LEFTOVERS)}


def _state(path: Path) -> object:
    """What changes while it is written: names, sizes and times of all that is in it. Empty: it is gone."""
    walked = () if path.is_symlink() else os.walk(path)  # of what is renamed meanwhile it gives nothing
    inside = sorted(Path(parent, name) for parent, names, files in walked for name in (*names, *files))
    found = []
    for entry in (path, *inside):
        with suppress(OSError):
            status = os.lstat(entry)
            found.append((str(entry), status.st_ino, status.st_size, status.st_mtime_ns))
    return found


# ---- repair


def repair(study: str | Path, *, progress: bool = False) -> tuple[Verification, list[str]]:
    """Verifies a study and puts right what can be; returns what was found, and what was done, a line each.

    What is damaged moves into damaged/ with a note why; caches, leftovers and derived files that are damaged are
    removed. What is gone is made anew by the next sweep (results, shared arrays, targets) or `kdfast report`. Findings
    that it had to leave alone come back without a remedy. Raises StudyError while a sweep or a worker is at the study,
    or where it can't be written; its `done` says what had been put right before.
    """
    path = Path(study)
    if not os.path.lexists(path / "provenance.json"):
        return _verify(path, progress), []  # which says that it is none
    with exclusively(path) as held:
        if not held:
            raise StudyError("a sweep is working on this study", where=str(path), hint="repair it when that has ended")
        before = _leftovers(path)
        _refuse_at_work(path)
        verification = _verify(path, progress, before=before)
        done: list[str] = []
        try:
            left = _put_right(path, verification, before, done)
        except StudyError as error:
            error.done = done
            raise
    findings = (replace(f, remedy="") if f.unit in left else f for f in verification.findings)
    return replace(verification, findings=tuple(findings)), done


def _put_right(path: Path, verification: Verification, before: Mapping[Path, object], done: list[str]) -> set[str]:
    """Adds to `done` what it does; returns the units that it leaves alone."""
    left = set()
    for unit, remedy in dict.fromkeys((f.unit, f.remedy) for f in verification.findings if f.remedy):
        _refuse_at_work(path)  # workers take no lock, and may have started meanwhile
        if path / unit in before and before[path / unit] != _state(path / unit):
            left.add(unit)
            done.append(f"{unit}: left as it is, another machine is writing it")
            continue
        why = [f"{f.path}: {f.what}" for f in verification.findings if f.unit == unit]
        with writing_errors(path / unit):
            if remedy == "aside":
                done.append(_move_aside(path, unit, why))
            else:
                done.append(f"{unit}: {_remove(path / unit)}")
    if any(
        f.what.endswith(REPORT_CHECKSUMS) for f in verification.findings
    ):  # the report is not what it lists any more
        with writing_errors(path):
            done.append(
                f"{REPORT_CHECKSUMS}: {_remove(path / REPORT_CHECKSUMS)}; `kdfast report {path}` writes the report anew"
            )
    done += [f"{f.path}: can't be repaired: {_by_hand(path, f)}" for f in verification.findings if not f.remedy]
    return left


def _by_hand(path: Path, finding: Finding) -> str:
    """What a user can do where there is no remedy."""
    if finding.path == "damaged":
        return "put a folder in its place"
    meant = finding.what == "does not match its checksum"
    return "restore it from a copy" + (f"; if it is meant to be so, delete {path / MANIFEST}" if meant else "")


def _refuse_at_work(path: Path) -> None:
    for holder in at_work(path):
        what = f"{holder.host}, process {holder.pid}, is working on {holder.name}"
        hint = f"stop it; if that machine is gone, delete {path / 'claims' / holder.name}"
        raise StudyError(what, where=str(path), hint=hint)


def _move_aside(study: Path, unit: str, why: list[str]) -> str:
    aside = study / "damaged"
    refuse_link(aside)
    aside.mkdir(exist_ok=True)
    name, number = unit.replace("/", "."), 1
    while os.path.lexists(aside / f"{name}.{number}"):
        number += 1
    place = aside / f"{name}.{number}"
    write_content(aside / f"{place.name}.txt", ("\n".join([f"{unit} was moved here:", *why]) + "\n").encode())
    os.rename(study / unit, place)
    fsync_folder((study / unit).parent)
    fsync_folder(aside)
    return f"{unit}: moved to damaged/{place.name}"


def _remove(path: Path) -> str:
    """What became of it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    else:
        return "was not there"
    fsync_folder(path.parent)
    return "removed"
