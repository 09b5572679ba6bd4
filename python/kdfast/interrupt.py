"""Signals: stopping a sweep without losing what has been trained, and any command by Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from kdfast.errors import KdfastError

__all__ = ["SIGNALS", "Interrupted", "Stop", "SweepInterrupted", "interruptible", "stoppable"]

# Ctrl-C, a batch system's end, and the warning that it can be asked to send before that.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """A command has stopped on a signal. exit_code: its exit status.

    A class of its own: where just a KeyboardInterrupt has left an exec, as in imports, Python ends itself by
    SIGINT at its end, whatever exit status it is given.
    """

    exit_code = 128 + signal.SIGINT


class SweepInterrupted(Interrupted):
    """A sweep has stopped on a signal. Finished members are stored, running ones have checkpoints; the same
    call resumes it.

    signum: the signal. exit_code: a command line's status, 130 for Ctrl-C, else 75 (EX_TEMPFAIL: run it
    again).
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
        if signum != signal.SIGINT:
            self.exit_code = os.EX_TEMPFAIL


@dataclass
class Stop:
    """Whether a signal has asked to stop: `event` is then set, and `signum` says which one it was.

    where: the study's folder, for the message.
    """

    where: Path
    event: threading.Event = field(default_factory=threading.Event)
    signum: int = signal.SIGINT
    deferrals: int = 0  # that are open: they may be nested

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets the event, so that a trainer that looks at it saves its members; at the
        end, and at once where one came before, it raises SweepInterrupted."""
        self.check()
        self.deferrals += 1
        try:
            yield
        finally:
            self.deferrals -= 1
        self.check()

    def check(self) -> None:
        """Raises SweepInterrupted where the event is set."""
        if self.event.is_set():
            raise self.interrupted()

    def wait(self, seconds: float) -> None:
        """Sleeps; raises SweepInterrupted at once where the user stops it."""
        time.sleep(seconds)  # not in event.wait, which holds a lock that the signal's handler needs
        self.check()

    def interrupted(self) -> SweepInterrupted:
        text = f"stopped: finished runs are stored in {self.where}; rerun the same command to resume"
        return SweepInterrupted(text, self.signum)


# In the main thread: the Stop of the outermost block that is open, and who shows a line, the innermost
# block's last.
_open: tuple[Stop, list[Callable[[str], None]]] | None = None


@contextmanager
def stoppable(say: Callable[[str], None], where: Path, *, ends: bool = False) -> Iterator[Stop]:
    """Inside the `with` block the first of SIGNALS sets the Stop and raises SweepInterrupted, at once where
    nothing is lost by that (see Stop.deferred). where: the study's folder. Inside another such block it is
    that one's Stop.

    After that a SIGINT acts as it would outside, and the others do nothing until the end: batch systems send
    several (a warning and then the end; to a job's shell, which hands it on, and to all its processes), and
    SIGKILL if they lose their patience. ends: the process ends with this block (a command's): the end is then
    that of the process, as an interpreter takes a second to go, and a signal in it would take the exit
    status' place.

    SIGINT counts even where a shell has set it to be ignored, as it does for background jobs of scripts.
    Outside the main thread, where Python allows no handlers, nothing is installed.
    """
    global _open
    if threading.current_thread() is not threading.main_thread():
        yield Stop(where)
        return
    if _open is not None:
        stop, listeners = _open
        stop.check()  # an import may have swallowed it
        listeners.append(say)
        try:
            yield stop
        finally:
            listeners.pop()
        return
    stop, listeners = Stop(where), [say]

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.event.is_set():
            return
        _set(signal.SIGINT, before[signal.SIGINT])
        stop.signum = signum
        stop.event.set()
        if not stop.deferrals:
            raise stop.interrupted()
        listeners[-1]("stopping: saving the running members; rerun the same command to resume")

    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        _open = stop, listeners
        for number in SIGNALS:
            signal.signal(number, handle)
        with _errors_after(stop.event.is_set, stop.interrupted):
            yield stop
    finally:
        _open = None
        for number, handler in before.items():
            ended = ends and stop.event.is_set() and number != signal.SIGINT
            _set(number, signal.SIG_IGN if ended else handler)  # ignored to the end, unlike by a handler in Python


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the `with` block Ctrl-C raises Interrupted, in the main thread and where it is Python's default."""
    caught: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        raise Interrupted("interrupted")

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        with _errors_after(lambda: bool(caught), lambda: Interrupted("interrupted")):
            yield
    finally:
        _set(signal.SIGINT, before)


@contextmanager
def _errors_after(stopped: Callable[[], bool], interrupted: Callable[[], Interrupted]) -> Iterator[None]:
    """An unexpected error that comes after the signal is part of the interruption: a module that is being
    imported may swallow the exception and miss something then (torch continues without numpy, which can't be
    imported twice)."""
    try:
        yield
    except (KdfastError, OSError):
        raise
    except Exception as error:
        if stopped():
            raise interrupted() from error
        raise


def _set(number: signal.Signals, handler: Any) -> None:
    signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: was not Python's


def dask_setup(worker: Any) -> None:
    """As a preload of Dask workers that Ctrl-C in a terminal, or a batch system, reaches as well: the client
    stops them."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
