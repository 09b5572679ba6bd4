"""Immutable folders: whole or absent on disk, and checked when read.

A folder is written under a hidden temporary name, its files and itself made durable (fsync), renamed, and the rename
made durable. So a kill or a full disk at any moment leaves it whole, or leaves a hidden folder that nobody reads.
Its manifest.json holds the format version and the SHA-256 of each file; whoever reads a file checks it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from kdfast._files import fsync_folder, writing_errors
from kdfast.errors import StudyError

__all__ = [
    "FORMAT",
    "AlreadyStored",
    "check_folder",
    "check_format",
    "commit",
    "damage",
    "folders",
    "json_bytes",
    "locked",
    "parse_json",
    "read",
    "read_checked",
    "remove_leftovers",
]

# Version of the layout of a study. A reader refuses a higher one.
FORMAT = 1

_LEFTOVERS = ".*.tmp"


# ---- writing


class AlreadyStored(StudyError):
    """Another writer was first; what is stored is never changed."""


def commit(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes a folder with these files and their manifest appear at once, durably.

    Raises AlreadyStored where it is there already, StudyError where it can't be written.
    """
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = json_bytes({"format": FORMAT, "files": digests})
    taken = AlreadyStored("is stored already, and what is stored is never changed", where=str(folder))
    if folder.exists():
        raise taken
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with writing_errors(folder):
        folder.parent.mkdir(exist_ok=True)
        with locked(folder.parent, fcntl.LOCK_SH):  # keeps `remove_leftovers` away
            try:
                temporary.mkdir()
                for name, content in (*files.items(), ("manifest.json", manifest)):
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


def remove_leftovers(parent: Path) -> None:
    """Removes what killed writers left in parent, unless someone writes there at this moment."""
    if parent.exists():
        with locked(parent, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            for leftover in parent.glob(_LEFTOVERS) if held else ():
                shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def locked(folder: Path, how: int) -> Iterator[bool | None]:
    """An advisory lock (fcntl.flock) on a folder: yields True where it is held, False where another process holds it,
    None on a file system without locks."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
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


# ---- reading


def folders(parent: Path) -> list[Path]:
    """The committed folders in parent, sorted."""
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".")) if parent.exists() else []


def read_checked(folder: Path, file: str) -> bytes:
    """The content of one file of a committed folder. Raises StudyError unless it is what was written."""
    expected = _digests(folder).get(file)
    if expected is None:
        raise damage(folder, f"manifest.json does not list {file}")
    if not (folder / file).exists():
        raise damage(folder, f"{file} is missing")
    content = read(folder / file)
    if hashlib.sha256(content).hexdigest() != expected:
        raise damage(folder, f"{file} does not match its checksum")
    return content


def check_folder(folder: Path) -> None:
    """Checks every file of a committed folder. Raises StudyError that names the first damaged one."""
    for file in _digests(folder):
        read_checked(folder, file)


def _digests(folder: Path) -> dict[str, str]:
    path = folder / "manifest.json"
    if not path.exists():
        raise damage(folder, "manifest.json is missing")
    try:
        manifest = parse_json(read(path))
    except ValueError as error:
        raise damage(folder, f"manifest.json can't be read as JSON ({error})") from None
    check_format(manifest.get("format"), path)
    files = manifest.get("files")
    if not (isinstance(files, dict) and files and all(isinstance(digest, str) for digest in files.values())):
        raise damage(folder, "manifest.json has unexpected content")
    return files


def damage(folder: Path, what: str) -> StudyError:
    """The error for a committed folder that is not as it was written."""
    hint = "delete this folder and run the same sweep again: only what is missing is made anew"
    return StudyError(f"is damaged: {what}", where=str(folder), hint=hint)


def check_format(version: Any, path: Path) -> None:
    """Raises StudyError for a layout that this version of kdfast does not know."""
    if not isinstance(version, int):
        raise StudyError("has no format version", where=str(path), hint="is this folder a kdfast study?")
    if version > FORMAT:
        what = f"was written by a newer kdfast (format {version}; this one reads up to {FORMAT})"
        raise StudyError(what, where=str(path), hint="upgrade kdfast to read it")


def read(path: Path) -> bytes:
    """A file's content; StudyError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudyError(f"can't be read: {error.strerror}", where=str(path)) from error


# ---- JSON


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON text. Floats are written so that they come back bit for bit; NaN and infinity are refused (ValueError)."""
    return json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be stored as JSON")


def parse_json(content: bytes) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    return document
