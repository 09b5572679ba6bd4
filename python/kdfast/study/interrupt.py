"""Stopping a sweep on a signal without losing what has been trained."""

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

from kdfast.errors import KdfastError

__all__ = ["SIGNALS", "Stop", "SweepInterrupted", "stoppable"]

# Ctrl-C, a batch system's end, and the warning that it can be asked to send before that.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class SweepInterrupted(KeyboardInterrupt):
    """A sweep has stopped on a signal. What had finished is stored, running members have checkpoints; the same call
    goes on.

    signum: the signal. exit_code: a command line's status, 130 for Ctrl-C, else 75 (EX_TEMPFAIL: run it again).
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        return 128 + signal.SIGINT if self.signum == signal.SIGINT else os.EX_TEMPFAIL


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
        """Inside, a signal only sets the event, so that a trainer that looks at it saves its members; at the end, and
        at once where one came before, it raises SweepInterrupted."""
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
        text = f"stopped: what has finished is stored in {self.where}; the same command goes on from there"
        return SweepInterrupted(text, self.signum)


# In the main thread: the Stop of the outermost block that is open, and who shows a line, the innermost block's last.
_open: tuple[Stop, list[Callable[[str], None]]] | None = None


@contextmanager
def stoppable(say: Callable[[str], None], where: Path, *, ends: bool = False) -> Iterator[Stop]:
    """Inside the `with` block the first of SIGNALS sets the Stop and raises SweepInterrupted, at once where nothing is
    lost by that (see Stop.deferred). where: the study's folder. Inside another such block it is that one's Stop.

    After that a SIGINT acts as it would outside, and the others do nothing until the end: batch systems send several
    (a warning and then the end; to a job's shell, which hands it on, and to all its processes), and SIGKILL if they
    lose their patience. ends: the process ends with this block (a command's): the end is then that of the process,
    as an interpreter takes a second to go, and a signal in it would take the exit status' place.

    An unexpected error that comes after the signal is part of the interruption: a module that is being imported may
    swallow the exception, and lacks something then (torch goes on without numpy, which can't be imported twice).

    SIGINT counts even where a shell has set it to be ignored, as it does for background jobs of scripts. Outside the
    main thread, where Python allows no handlers, nothing is installed.
    """
    global _open
    if threading.current_thread() is not threading.main_thread():
        yield Stop(where)
        return
    if _open is not None:
        stop, listeners = _open
        listeners.append(say)
        try:
            yield stop
        finally:
            listeners.pop()
        return
    stop, listeners = Stop(where), [say]
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore(number: signal.Signals) -> None:
        handler = before[number]
        signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: was not Python's

    def handle(signum: int, frame: FrameType | None) -> None:
        if stop.event.is_set():
            return
        restore(signal.SIGINT)
        stop.signum = signum
        stop.event.set()
        if not stop.deferrals:
            raise stop.interrupted()
        listeners[-1]("stopping: running members are saved, to go on with the same command")

    try:
        _open = stop, listeners
        for number in before:
            signal.signal(number, handle)
        yield stop
    except (KdfastError, OSError):
        raise
    except Exception as error:
        if stop.event.is_set():
            raise stop.interrupted() from error
        raise
    finally:
        _open = None
        for number in before:
            if ends and stop.event.is_set() and number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)  # which holds to the end; handlers in Python do not
            else:
                restore(number)
