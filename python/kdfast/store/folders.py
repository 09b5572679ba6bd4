"""Immutable folders: whole or absent on disk, and checked when read.

A folder is written under a hidden temporary name, its files and itself made durable (fsync), renamed, and the
rename made durable. So a kill or a full disk at any moment leaves it whole, or leaves a hidden folder that
nobody reads. Its manifest.json holds the format version and the SHA-256 of each file; every reader of a file
checks it. A study may come from a stranger: links, devices and names that lead out of a folder are refused.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from kdfast.errors import DamagedError, Fault, StudyError
from kdfast.files import fsync_folder, writing_errors
from kdfast.process import is_writing, temporary_name
from kdfast.store.documents import FORMAT, MANIFEST, Document, ManifestDocument, json_bytes, parse

__all__ = [
    "LEFTOVERS",
    "AlreadyStored",
    "check_complete",
    "check_folder",
    "commit",
    "committed",
    "damage",
    "hash_file",
    "link_error",
    "manifest",
    "manifest_bytes",
    "read",
    "read_checked",
    "read_document",
    "read_each",
    "refuse_link",
    "refuse_links",
    "remove",
    "remove_leftovers",
]

T = TypeVar("T")
D = TypeVar("D", bound=Document)

LEFTOVERS = ".*.tmp"

_REPAIR_HINT = "`kdfast verify --repair` moves it aside; then rerun the same sweep to replace it"

_BLOCK = 1 << 20  # bytes read at once


# ---- writing


class AlreadyStored(StudyError):
    """Another writer was first; what is stored is never changed."""


def commit(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes a folder with these files and their manifest appear at once, durably.

    Raises AlreadyStored where it is there already, StudyError where it can't be written.
    """
    taken = AlreadyStored("is stored already, and what is stored is never changed", where=str(folder))
    if folder.exists():
        raise taken
    temporary = temporary_name(folder)
    with writing_errors(folder):
        folder.parent.mkdir(exist_ok=True)
        try:
            temporary.mkdir()
            for name, content in (*files.items(), (MANIFEST, manifest_bytes(files))):
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


def manifest_bytes(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json_bytes({"format": FORMAT, "files": digests})


def remove(folder: Path) -> None:
    """Removes a folder atomically; if interrupted, leaves a hidden temporary. A link is left as it is.

    Raises OSError where it can't be removed.
    """
    if folder.is_symlink():
        return
    temporary = temporary_name(folder)
    os.rename(folder, temporary)
    shutil.rmtree(temporary)


def remove_leftovers(parent: Path) -> None:
    """Removes what processes of this machine that have ended left half-written in parent.

    Whether another machine's process has ended can't be known here, as locks do not work over every network
    file system: `kdfast verify --repair` removes what it left.
    """
    for leftover in parent.glob(LEFTOVERS):
        if is_writing(leftover.name) is False:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                with suppress(OSError):
                    leftover.unlink()


# ---- reading


def committed(parent: Path) -> list[Path]:
    """The committed folders in parent, sorted. (Links are refused when a study is opened.)"""
    try:
        with os.scandir(parent) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    return [parent / name for name in sorted(names) if not name.startswith(".")]


def read_each(paths: Iterable[Path], read: Callable[[Path], T]) -> tuple[list[T], dict[Path, StudyError]]:
    """What can be read of some folders, and for each of the others why it can't."""
    found: list[T] = []
    damaged: dict[Path, StudyError] = {}
    for folder in paths:
        try:
            found.append(read(folder))
        except StudyError as error:
            damaged[folder] = error
    return found, damaged


def read_checked(folder: Path, file: str) -> bytes:
    """The content of one file of a committed folder. Raises DamagedError unless it is what was written."""
    digests = manifest(folder)
    if file not in digests:
        raise damage(folder, Fault.CONTENT, MANIFEST, f"it does not list {file}")
    content = _content(folder, file)
    if hashlib.sha256(content).hexdigest() != digests[file]:
        raise damage(folder, Fault.CHANGED, file)
    return content


def read_document(folder: Path, file: str, kind: type[D]) -> D:
    """A document of a committed folder. Raises DamagedError, NewerFormatError."""
    return parse(kind, read_checked(folder, file), str(folder), file, _REPAIR_HINT)


def check_folder(folder: Path) -> None:
    """Checks every file of a committed folder. Raises DamagedError that names the first damaged one."""
    for file, digest in manifest(folder).items():
        if hash_file(folder, file) != digest:
            raise damage(folder, Fault.CHANGED, file)


def check_complete(folder: Path, files: Iterable[str]) -> None:
    """Checks that these files are there, without reading them. Raises DamagedError for one that is not."""
    for file in files:
        try:
            status = os.lstat(f"{folder}/{file}")
        except OSError:
            raise damage(folder, Fault.MISSING, file) from None
        if not stat.S_ISREG(status.st_mode):
            raise damage(folder, Fault.NO_FILE, file)


def manifest(folder: Path) -> dict[str, str]:
    """SHA-256 by file, as a committed folder's manifest lists them."""
    return parse(ManifestDocument, _content(folder, MANIFEST), str(folder), MANIFEST, _REPAIR_HINT).files


def hash_file(folder: Path, file: str, tick: Callable[[int], Any] = lambda size: None) -> str:
    """SHA-256 of a folder's file. tick: called with the number of bytes of each part that is done."""
    digest = hashlib.sha256()
    with _opened(folder, file) as descriptor:
        for block in _blocks(descriptor):
            digest.update(block)
            tick(len(block))
    return digest.hexdigest()


def read(path: Path) -> bytes:
    """The content of a file that no manifest lists. Raises DamagedError where it is missing or is no file."""
    try:
        return _content(path.parent, path.name)
    except DamagedError as error:
        raise DamagedError(error.fault, where=str(path), detail=error.detail) from error


def _content(folder: Path, file: str) -> bytes:
    with _opened(folder, file) as descriptor:
        return b"".join(_blocks(descriptor))


def _blocks(descriptor: int) -> Iterator[bytes]:
    return iter(lambda: os.read(descriptor, _BLOCK), b"")


@contextmanager
def _opened(folder: Path, file: str) -> Iterator[int]:
    """A regular file of a folder, open for reading. No link is followed, and no pipe waited for."""
    path = f"{folder}/{file}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ValueError):  # ValueError: a name with a null byte
        raise damage(folder, Fault.MISSING, file) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise link_error(Path(path)) from None
        raise _unreadable(folder, file, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise damage(folder, Fault.NO_FILE, file)
        yield descriptor
    except OSError as error:
        raise _unreadable(folder, file, error) from error
    finally:
        os.close(descriptor)


def _unreadable(folder: Path, file: str, error: OSError) -> DamagedError:
    return DamagedError(Fault.UNREADABLE, where=f"{folder}/{file}", detail=error.strerror or "", hint=None)


def damage(folder: Path, fault: Fault, file: str | None = None, detail: str = "") -> DamagedError:
    """The error for a committed folder that is not as it was written."""
    return DamagedError(fault, where=str(folder), file=file, detail=detail, hint=_REPAIR_HINT)


# ---- links


def refuse_link(path: Path) -> None:
    """Raises DamagedError for a symbolic link: it may lead anywhere."""
    if path.is_symlink():
        raise link_error(path)


def refuse_links(parent: Path, levels: int) -> None:
    """Raises DamagedError for the first link in a folder. levels: of folders to look into, from this one."""
    with os.scandir(parent) as entries:
        for entry in entries:
            if entry.is_symlink():
                raise link_error(parent / entry.name)
            if levels > 1 and entry.is_dir(follow_symlinks=False):
                refuse_links(parent / entry.name, levels - 1)


def link_error(path: Path) -> DamagedError:
    """The error for a symbolic link."""
    detail = "a study holds none: it might lead anywhere"
    hint = "put a copy of what it points to in its place, if you trust it"
    return DamagedError(Fault.LINK, where=str(path), detail=detail, hint=hint)
