"""Immutable folders: whole or absent on disk, and checked when read.

A folder is written under a hidden temporary name, its files and itself made durable (fsync), renamed, and the rename
made durable. So a kill or a full disk at any moment leaves it whole, or leaves a hidden folder that nobody reads.
Its manifest.json holds the format version and the SHA-256 of each file; whoever reads a file checks it. A study may
come from a stranger: links, devices and names that lead out of a folder are refused.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from kdfast.errors import StudyError
from kdfast.files import fsync_folder, writing_errors
from kdfast.process import is_writing, temporary_name

__all__ = [
    "FORMAT",
    "LEFTOVERS",
    "LOCK",
    "MANIFEST",
    "REPORT_CHECKSUMS",
    "REPORT_LOCK",
    "AlreadyStored",
    "Seen",
    "check_complete",
    "check_folder",
    "check_format",
    "commit",
    "damage",
    "exclusively",
    "folders",
    "hash_file",
    "identity",
    "json_bytes",
    "json_number",
    "locked",
    "manifest",
    "manifest_bytes",
    "parse_json",
    "read",
    "read_and_see",
    "read_checked",
    "refuse_link",
    "remove",
    "remove_leftovers",
    "seen_on_disk",
]

# Version of the layout of a study. A reader refuses a higher one.
FORMAT = 1

MANIFEST = "manifest.json"
LEFTOVERS = ".*.tmp"
LOCK = ".lock"

# Of the report, which is derived from the results: the SHA-256 of its files as `sha256sum --check` reads it, and a
# lock that is held while it is written.
REPORT_CHECKSUMS = "report.sha256"
REPORT_LOCK = ".report.lock"

# What was found of files when they were hashed, by name: SHA-256, and `identity`, None where it may not be relied on.
Seen = dict[str, tuple[str, tuple[int, ...] | None]]


# ---- writing


class AlreadyStored(StudyError):
    """Another writer was first; what is stored is never changed."""


def commit(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    """Makes a folder with these files and their manifest appear at once, durably; returns the SHA-256 of each.

    Raises AlreadyStored where it is there already, StudyError where it can't be written.
    """
    listing = manifest_bytes(files)
    taken = AlreadyStored("is stored already, and what is stored is never changed", where=str(folder))
    if folder.exists():
        raise taken
    temporary = temporary_name(folder)
    with writing_errors(folder):
        folder.parent.mkdir(exist_ok=True)
        try:
            temporary.mkdir()
            for name, content in (*files.items(), (MANIFEST, listing)):
                with open(temporary / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            fsync_folder(temporary)
            os.rename(temporary, folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise taken from None  # another writer was first
            raise
        fsync_folder(folder.parent)
    return {name: hashlib.sha256(content).hexdigest() for name, content in (*files.items(), (MANIFEST, listing))}


def manifest_bytes(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json_bytes({"format": FORMAT, "files": digests})


def remove(folder: Path) -> None:
    """Removes a folder: for whoever looks at once, and where that is cut short a leftover remains. Raises OSError where
    it can't be removed; a link is left as it is."""
    if folder.is_symlink():
        return
    temporary = temporary_name(folder)
    os.rename(folder, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(parent: Path) -> None:
    """Removes what processes of this machine that are gone had begun to write in parent. (Of another machine's nothing
    can be told, as locks do not carry over every network file system: it is left to `kdfast verify --repair`.)"""
    for leftover in parent.glob(LEFTOVERS):
        if is_writing(leftover.name) is False:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):
                    leftover.unlink()


@contextmanager
def locked(folder: Path, how: int, name: str = LOCK) -> Iterator[bool | None]:
    """An advisory lock (fcntl.flock) on a file of a folder, which an exclusive one makes where it is not there: yields
    True where it is held, False where another process holds it, None where there are no locks: on a file system
    without them, in a folder that may not be written, and, for who only looks (LOCK_SH), where nobody ever held it."""
    descriptor = _lock_file(folder / name, make=bool(how & fcntl.LOCK_EX))
    if descriptor is None:
        yield None
        return
    try:
        held: bool | None = True
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            held = False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
                raise
            held = None
        yield held
    finally:
        os.close(descriptor)  # gives the lock back


# So many looks, so many seconds apart, whether another process lets go of a study.
_LOOKS, _LOOK = 10, 0.05


@contextmanager
def exclusively(study: Path) -> Iterator[bool]:
    """Holds a study for this process alone; False: another one does, and keeps it."""
    for _ in range(_LOOKS):
        with locked(study, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if held is not False:
                yield True
                return
        time.sleep(_LOOK)  # `kdfast status` and `verify` hold it for a moment
    yield False


def _lock_file(path: Path, make: bool) -> int | None:
    """Open for writing, which NFS wants of an exclusive lock (the kernel makes a lock of bytes of it; a folder can't be
    opened so); what only looks opens it for reading, which suffices for a shared one."""
    for flags in (*([os.O_RDWR | os.O_CREAT] if make else []), os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _link(path) from None
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
                raise
    return None


# ---- reading


def folders(parent: Path) -> list[Path]:
    """The committed folders in parent, sorted. Links are among them: whoever reads one is told what it is."""
    if not parent.exists():
        return []
    refuse_link(parent)
    with os.scandir(parent) as entries:
        names = [e.name for e in entries if not e.name.startswith(".") and (e.is_symlink() or e.is_dir())]
    return [parent / name for name in sorted(names)]


def refuse_link(path: Path) -> None:
    """Raises StudyError for a symbolic link: it may lead anywhere."""
    if path.is_symlink():
        raise _link(path)


def _link(path: Path) -> StudyError:
    what = "is a symbolic link, and a study holds none: it might lead anywhere"
    return StudyError(what, where=str(path), hint="put a copy of what it points to in its place, if you trust it")


def read_checked(folder: Path, file: str) -> bytes:
    """The content of one file of a committed folder. Raises StudyError unless it is what was written."""
    return read_and_see(folder, file)[0]


def read_and_see(folder: Path, file: str) -> tuple[bytes, Seen]:
    """`read_checked`, with what was seen of this file and of the manifest; of other files their SHA-256 alone."""
    digests, seen = manifest(folder)
    if file not in digests:
        raise damage(folder, f"{MANIFEST} does not list {file}")
    with _regular(folder, file) as (opened, where):
        content = opened.read()
    seen = {name: (digest, None) for name, digest in digests.items()} | seen
    seen[file] = (digests[file], where)
    if hashlib.sha256(content).hexdigest() != digests[file]:
        raise damage(folder, f"{file} does not match its checksum")
    return content, seen


def check_folder(folder: Path) -> Seen:
    """Checks every file of a committed folder. Raises StudyError that names the first damaged one."""
    digests, seen = manifest(folder)
    for file, digest in digests.items():
        seen[file] = hash_file(folder, file)
        if seen[file][0] != digest:
            raise damage(folder, f"{file} does not match its checksum")
    return seen


def check_complete(folder: Path, files: Iterable[str]) -> None:
    """Checks that these files are there, without reading them. Raises StudyError for one that is not."""
    for file in files:
        try:
            regular = stat.S_ISREG(os.lstat(f"{folder}/{file}").st_mode)
        except OSError:
            raise damage(folder, f"{file} is missing") from None
        if not regular:
            raise damage(folder, f"{file} is no file")


def hash_file(
    folder: Path, file: str, tick: Callable[[int], Any] = lambda size: None
) -> tuple[str, tuple[int, ...] | None]:
    """SHA-256 and `identity` of a folder's file. tick: told the number of bytes of each part that is done."""
    digest = hashlib.sha256()
    with _regular(folder, file) as (opened, where):
        while block := opened.read(1 << 20):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest(), where


def manifest(folder: Path) -> tuple[dict[str, str], Seen]:
    """SHA-256 by file as a folder's manifest lists them, and what was seen of the manifest itself."""
    refuse_link(folder)
    with _regular(folder, MANIFEST) as (opened, where):
        content = opened.read()
    try:
        document = parse_json(content)
    except ValueError as error:
        raise damage(folder, f"{MANIFEST} can't be read as JSON ({error})") from None
    check_format(document.get("format"), folder / MANIFEST)
    files = document.get("files")
    if not (isinstance(files, dict) and files and all(isinstance(digest, str) for digest in files.values())):
        raise damage(folder, f"{MANIFEST} has unexpected content")
    for name in files:
        if "/" in name or "\0" in name or name in ("", ".", "..", MANIFEST):
            raise damage(folder, f"{MANIFEST} lists {name!r}, which is no file of this folder")
    return files, {MANIFEST: (hashlib.sha256(content).hexdigest(), where)}


@contextmanager
def _regular(folder: Path, file: str) -> Iterator[tuple[IO[bytes], tuple[int, ...] | None]]:
    """A file of a committed folder, open for reading, and its `identity`. No link, and no pipe to hang at."""
    path = folder / file
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise damage(folder, f"{file} is missing") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _link(path) from None
        raise StudyError(f"can't be read: {error.strerror}", where=str(path)) from error
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise damage(folder, f"{file} is no file")
        try:
            yield opened, identity(status)
        except OSError as error:
            raise StudyError(f"can't be read: {error.strerror}", where=str(path)) from error


def identity(status: os.stat_result) -> tuple[int, ...] | None:
    """What changes when a file is written to: inode, size, mtime and ctime (ns). None where it was written to in the
    present tick of the kernel's clock, in which a further change would not show."""
    if status.st_ctime_ns == time.clock_gettime_ns(_COARSE_CLOCK):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


_COARSE_CLOCK = 5  # CLOCK_REALTIME_COARSE, which stamps files


def seen_on_disk(folder: Path, digests: Mapping[str, str]) -> Seen:
    """What is seen of files that this process has just committed."""
    return {file: (digest, identity(os.lstat(folder / file))) for file, digest in digests.items()}


def damage(folder: Path, what: str) -> StudyError:
    """The error for a committed folder that is not as it was written."""
    hint = "`kdfast verify --repair` moves it aside; the same sweep again makes anew what is missing"
    return StudyError(f"is damaged: {what}", where=str(folder), hint=hint)


def check_format(version: Any, path: Path) -> None:
    """Raises StudyError for a layout that this version of kdfast does not know."""
    if not isinstance(version, int) or version < 1:
        raise StudyError("has no format version", where=str(path), hint="is this folder a kdfast study?")
    if version > FORMAT:
        what = f"was written by a newer kdfast (format {version}; this one reads up to {FORMAT})"
        raise StudyError(what, where=str(path), hint="upgrade kdfast to read it")


def read(path: Path) -> bytes:
    """A file's content; StudyError where it can't be read or is none."""
    if not os.path.lexists(path):
        raise StudyError("is missing", where=str(path), hint="restore it from a copy")
    with _regular(path.parent, path.name) as (opened, _):
        return opened.read()


# ---- JSON


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON text. Floats are written so that they come back bit for bit; NaN and infinity are refused (ValueError)."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be stored as JSON")


def json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity (the loss of a diverged run): they become "nan", "inf", which float() reads."""
    value = float(value)
    return value if math.isfinite(value) else repr(value)


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document
