"""Claims: which process works on what, recorded in files that work on local disks, NFS and Lustre.

A process writes a claim under a temporary name and links it to claims/NAME/000001.claim. So one of several
processes gets it, and no reader sees half of it. Its first line names the process (JSON), each heartbeat adds
a byte, and a last line gives it back. The file with the highest number (generation) counts.

A claim is taken over by making the next generation: at once if its holder is known to have ended or the file
is torn (by a power cut), otherwise when the file has not grown for a lease. The process that watches measures
the lease with time.monotonic, so clocks of two machines are never compared.

A claim saves work and protects nothing: results are committed whole and once (store/folders.py), so two
processes that both believe that they hold a claim lose time and no result.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from kdfast._version import __version__
from kdfast.errors import DamagedError
from kdfast.files import writing_errors
from kdfast.process import is_running, machine, started, temporary_name
from kdfast.store.documents import ClaimDocument, parse
from kdfast.store.folders import committed

__all__ = ["BEAT", "LEASE", "Claim", "Claims", "Holder"]

# Seconds. A lease is longer than the 60 s for which an NFS client may believe an old file size.
LEASE = 180.0
BEAT = 15.0

_RELEASED = b"\nreleased\n"

_TORN = ClaimDocument(
    host="unknown", pid=0, machine="", started="", version="unknown", since="unknown", owner="", inode=0
)

# Errors of a file system without hard links.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Holder(ClaimDocument):
    """Who holds the claim `name`, and since when (UTC, by that machine's clock). version: of kdfast.

    alive: False if it is known to be gone: a process of this machine that has ended, or that claimed it in
    another folder, of which this one is a copy; or a torn claim. owner: see Claims. size: of the file, which
    grows with each heartbeat. released: it was given back.
    """

    name: str
    generation: int
    alive: bool
    size: int
    released: bool

    def __str__(self) -> str:
        return f"{self.host}, process {self.pid}, is working on {self.name}"


class Claims:
    """The claims in a folder, as one process makes and watches them.

    lease: seconds without a heartbeat after which a claim is taken over. beat: seconds between heartbeats.
    owner: a name that several processes share, if a scheduler lets only one of them at a time work on a name:
    they take over each other's claims at once, as the scheduler knows which of them is gone.
    """

    def __init__(self, folder: Path, *, lease: float = LEASE, beat: float = BEAT, owner: str = "") -> None:
        self.folder = folder
        self.lease = lease
        self.beat = beat
        self.owner = owner
        self._seen: dict[str, tuple[Holder, float]] = {}  # by name: holder, and when its file was first that size
        self._beating: set[str] = set()

    def take(self, name: str) -> Claim | None:
        """The claim, as a context manager that beats while it is held.

        None: another process holds it, or has not been silent for a lease since this object first looked.
        Raises StudyError where the folder can't be written.
        """
        held = self._latest(name)
        if held is not None and not self._may_be_taken_over(held):
            return None
        generation = 1 if held is None else held.generation + 1
        path = self.folder / name / f"{generation:06}.claim"
        with writing_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not self._write(path):
                return None  # another was first
        others = list(path.parent.glob("*.claim"))
        # A higher one: the claim above has been taken over and removed since (or a network file system showed
        # an old listing).
        overtaken = any(_generation(other) > generation for other in others)
        for other in others:
            if _generation(other) < generation + overtaken:
                with suppress(OSError):
                    other.unlink()
        if overtaken:
            return None
        return Claim(path, self.beat, taken_from=None if held is None or held.released else held)

    def _write(self, path: Path) -> bool:
        """Makes a claim's file appear whole; False: it is there already."""
        temporary = temporary_name(self.folder / f"{path.parent.name}.{path.stem}")
        try:
            self._fill(temporary)
            os.link(temporary, path)
            return True
        except FileExistsError:
            return os.stat(temporary).st_nlink == 2  # made, and NFS had lost the first answer
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with suppress(FileExistsError):
                self._fill(path)  # one that is read before it is filled is taken over: that costs time only
                return True
            return False
        finally:
            temporary.unlink(missing_ok=True)

    def _fill(self, path: Path) -> None:
        """Makes a file that says who claims."""
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with open(path, "xb") as file:
            inode = os.fstat(file.fileno()).st_ino
            more = {"version": __version__, "since": since, "owner": self.owner, "inode": inode}
            file.write(json.dumps(_this_process() | more).encode() + b"\n")

    def holders(self) -> list[Holder]:
        """Who holds what has not been given back, by name."""
        latest = (self._latest(folder.name) for folder in committed(self.folder))
        return [holder for holder in latest if holder is not None and not holder.released]

    def is_beating(self, name: str) -> bool:
        """Whether another holder's claim has beaten, or changed hands, between two calls of `take`."""
        return name in self._beating

    def _latest(self, name: str) -> Holder | None:
        """The one of the highest generation."""
        for _ in range(3):  # one that was listed may be gone when it is read: a higher one is there
            try:
                path = max((self.folder / name).glob("*.claim"), key=_generation, default=None)
                return None if path is None else _read(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):
                    raise
        return None

    def _may_be_taken_over(self, holder: Holder) -> bool:
        if holder.released or not holder.alive or (self.owner and holder.owner == self.owner):
            return True
        now = time.monotonic()
        before, since = self._seen.get(holder.name, (None, now))
        if before is not None and (before.generation, before.size) == (holder.generation, holder.size):
            return now - since >= self.lease
        if before is not None:
            self._beating.add(holder.name)
        self._seen[holder.name] = (holder, now)
        return False


class Claim:
    """A claim that this process holds; inside its `with` block a thread beats, and the end gives it back.

    lost: set when another process has taken it over, as this one was silent for too long. taken_from: who
    held it before and did not give it back.
    """

    def __init__(self, path: Path, seconds: float, taken_from: Holder | None = None) -> None:
        self.name = path.parent.name
        self.taken_from = taken_from
        self.lost = threading.Event()
        self._path = path
        self._seconds = seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"kdfast-claim-{self.name}", daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.release()

    def beat(self) -> None:
        """Shows that this process is alive, or finds that the claim is lost."""
        with suppress(OSError):  # a network file system that is away: the claim may go stale
            mine = _generation(self._path)
            if any(_generation(other) > mine for other in self._path.parent.glob("*.claim")):
                self.lost.set()
            else:
                self._append(b".")

    def release(self) -> None:
        """Gives it back."""
        if not self.lost.is_set():
            self._append(_RELEASED)

    def _keep(self) -> None:
        while not (self._end.wait(self._seconds) or self.lost.is_set()):
            self.beat()

    def _append(self, content: bytes) -> None:
        # Opened each time: that is when other clients of NFS see it. A full disk or a lost folder only lets
        # the claim go stale.
        with suppress(OSError):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)


def _generation(path: Path) -> int:
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else 0


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "machine": machine(), "started": started(pid)}


def _read(path: Path) -> Holder:
    """Who made a claim. A link, a pipe, or a file without a first line is torn: a claim appears whole."""
    content = b""
    inode = 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            content = file.read()
            inode = os.fstat(descriptor).st_ino
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    try:
        who = parse(ClaimDocument, content.partition(b"\n")[0], path.parent.name)
    except DamagedError:
        who = _TORN
    # Inodes are compared on one machine only: some network file systems show different ones to their clients.
    here = bool(who.machine) and who.machine == _this_process()["machine"]
    gone = who is _TORN or (here and (who.inode != inode or is_running(who.pid, who.started) is False))
    return Holder(
        **dict(who),
        name=path.parent.name,
        generation=_generation(path),
        alive=not gone,
        size=len(content),
        released=content.endswith(_RELEASED),
    )
