"""Advisory locks (fcntl.flock) on a study's folder: one writing process, any number that look."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdfast.store.folders import link_error

__all__ = ["LOCK", "REPORT_CHECKSUMS", "REPORT_LOCK", "exclusively", "is_held", "locked"]

# Held by the sweep that makes a study, and by the process that writes its report.
LOCK = ".lock"
REPORT_LOCK = ".report.lock"

# Of the report, which is derived from the results: the SHA-256 of its files as `sha256sum --check` reads it.
REPORT_CHECKSUMS = "report.sha256"

# Number of tries for a study that another process holds, and the delay between them (s).
_TRIES = 10
_DELAY = 0.05

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)
_NO_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def locked(folder: Path, how: int, name: str = LOCK) -> Iterator[bool | None]:
    """Holds a lock inside the `with` block. how: as flock(2) takes it; LOCK_EX makes a missing file.

    Yields True where it is held, False where another process holds it, None where there are no locks: on a
    file system without them, in a folder that may not be written, and for LOCK_SH where nobody ever held it
    exclusively.
    """
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
            if error.errno not in _NO_LOCKS:
                raise
            held = None
        yield held
    finally:
        os.close(descriptor)  # gives the lock back


@contextmanager
def exclusively(study: Path) -> Iterator[bool]:
    """Holds a study for this process alone; False: another one does, and keeps it."""
    for _ in range(_TRIES):
        with locked(study, fcntl.LOCK_EX | fcntl.LOCK_NB) as held:
            if held is not False:
                yield True
                return
        time.sleep(_DELAY)  # `kdfast status` holds it for a moment
    yield False


def is_held(study: Path, name: str = LOCK) -> bool:
    """Whether another process holds a lock exclusively."""
    with locked(study, fcntl.LOCK_SH | fcntl.LOCK_NB, name) as held:
        return held is False


def _lock_file(path: Path, make: bool) -> int | None:
    """Opens the lock's file: for writing where it may be made, as NFS needs that for an exclusive lock (it
    becomes a lock of the file's bytes), else for reading, which a shared one needs."""
    for flags in (*([os.O_RDWR | os.O_CREAT] if make else []), os.O_RDONLY):
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise link_error(path) from None
            if error.errno not in _NO_FILE:
                raise
    return None
