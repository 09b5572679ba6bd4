"""Attempts at a unit of work (a pack, or the teacher) that failed: one folder attempts/NAME.NNN/ each."""

from __future__ import annotations

import itertools
import os
import platform
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from kdfast._version import __version__
from kdfast.errors import Fault
from kdfast.store.documents import AttemptDocument, json_bytes
from kdfast.store.folders import AlreadyStored, commit, committed, damage, read_checked, read_document
from kdfast.store.key import RunKey

__all__ = ["GIVEN_UP", "Attempt", "failures", "now", "read_attempt", "read_attempts", "write_attempt"]

# Number of failures after which a unit is not tried again until a user asks for it.
GIVEN_UP = 3


def now() -> str:
    """The time for humans to read, UTC, e.g. "2026-03-01T12:00:00.123+00:00"."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a unit of work, or a user's request to try it again.

    name: of the unit, a pack's id or "teacher". ended: "error"; "lost" (its claim was taken over; host and
    pid are those of the process that held it); or "retry" (a user asked for it: earlier failures no longer
    count). members: the results that it was to make. what: more of what was tried. host, pid, kdfast, when:
    the process, its version of kdfast, and the time (UTC, ISO 8601). number: counted from 1 for each unit;
    given when stored.
    """

    name: str
    ended: Literal["error", "lost", "retry"]
    error: str = ""
    traceback: str = ""
    members: tuple[RunKey, ...] = ()
    what: Mapping[str, Any] = field(default_factory=dict)
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    kdfast: str = __version__
    when: str = field(default_factory=now)
    number: int = 0

    @classmethod
    def failed(cls, name: str, error: BaseException, members: Iterable[RunKey] = (), **what: Any) -> Attempt:
        """The attempt that ended with this error, here and now."""
        trace = "".join(traceback.format_exception(error))
        return cls(name, "error", f"{type(error).__name__}: {error}", trace, tuple(members), what)

    @classmethod
    def lost(cls, name: str, host: str, pid: int, members: Iterable[RunKey]) -> Attempt:
        """The attempt whose claim was taken over from this process."""
        return cls(name, "lost", members=tuple(members), host=host, pid=pid)


def failures(attempts: Iterable[Attempt]) -> Counter[str]:
    """How often each unit has failed since a user last asked to try it again. A lost attempt is no failure:
    batch systems and users end processes for reasons of their own."""
    count: Counter[str] = Counter()
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        if attempt.ended == "retry":
            count[attempt.name] = 0
        else:
            count[attempt.name] += attempt.ended == "error"
    return count


def write_attempt(parent: Path, attempt: Attempt) -> Path:
    """Stores an attempt under the unit's next number. Raises StudyError where it can't be written."""
    document = asdict(attempt) | {"members": [key.folder for key in attempt.members]}
    del document["number"], document["traceback"]
    files = {"attempt.json": json_bytes(document), "traceback.txt": attempt.traceback.encode(errors="replace")}
    numbers = (_split(folder)[1] for folder in committed(parent) if _split(folder)[0] == attempt.name)
    for number in itertools.count(max(numbers, default=0) + 1):
        folder = parent / f"{attempt.name}.{number:03}"
        with suppress(AlreadyStored):  # another process was first: the next number
            commit(folder, files)
            return folder
    raise AssertionError


def read_attempts(parent: Path, name: str | None = None) -> list[Attempt]:
    """All of them, or those of a unit, by unit and number. Raises StudyError for a damaged one."""
    found = (read_attempt(folder) for folder in committed(parent) if name in (None, _split(folder)[0]))
    return sorted(found, key=lambda attempt: (attempt.name, attempt.number))


def read_attempt(folder: Path) -> Attempt:
    """The attempt in a folder. Raises DamagedError where it is not as it was written."""
    name, number = _split(folder)
    document = read_document(folder, "attempt.json", AttemptDocument)
    trace = read_checked(folder, "traceback.txt").decode(errors="replace")
    if document.name != name:
        raise damage(folder, Fault.CONTENT, "attempt.json", f"it holds an attempt at {document.name}")
    fields = dict(document) | {"members": document.runs}
    return Attempt(**fields, traceback=trace, number=number)


def _split(folder: Path) -> tuple[str, int]:
    """Unit and number by a folder's name."""
    name, _, number = folder.name.rpartition(".")
    return name, int(number) if number.isascii() and number.isdigit() else 0
