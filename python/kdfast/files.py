"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from kdfast.errors import ConfigError, KdfastError, StudyError
from kdfast.process import temporary_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["as_text", "fsync_folder", "read_toml", "write_atomically", "write_content", "writing_errors"]


def as_text(path: str | Path) -> str:
    """A path as any file of text can hold it: what of it is no UTF-8 is shown as an escape."""
    return str(path).encode(errors="backslashreplace").decode()


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError that names it."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"can't be read ({error.strerror})", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not valid TOML ({error})", where=str(path)) from None


def fsync_folder(folder: Path) -> None:
    """Makes the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Calls write(file) on a temporary file next to path, makes it durable and moves it into place."""
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_content(path: Path, content: bytes) -> None:
    """Makes path a file with this content, whole or not at all, durably."""
    write_atomically(path, lambda file: file.write(content))


@contextmanager
def writing_errors(path: Path, kind: type[KdfastError] = StudyError) -> Iterator[None]:
    """Inside the `with` block a failure to write (no permission, full disk, quota) becomes an error about path."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        hint = "make room and run the same command again" if full else "give a place that may be written"
        raise kind(f"can't be written: {error.strerror}", where=str(path), hint=hint) from error
