"""Stopping a sweep on a signal without losing what has finished."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

__all__ = ["Stop", "SweepInterrupted", "stoppable"]


class SweepInterrupted(KeyboardInterrupt):
    """A sweep has stopped on SIGINT or SIGTERM. What had finished is stored; the same call goes on.

    signum: the signal; a command line exits with 128 + signum (130 for Ctrl-C).
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class Stop:
    """Whether to stop (the event is set) and which signal asked for it."""

    event: threading.Event = field(default_factory=threading.Event)
    signum: int = signal.SIGINT

    def wait(self, seconds: float) -> None:
        """Sleeps; raises SweepInterrupted at once where the user stops it."""
        if self.event.wait(seconds):
            raise SweepInterrupted("stopped while waiting", self.signum)


@contextmanager
def stoppable(say: Callable[[str], None]) -> Iterator[Stop]:
    """Inside the `with` block the first SIGINT or SIGTERM sets the Stop; a second one acts as it would outside.

    SIGINT counts even where a shell has set it to be ignored, as it does for background jobs of scripts. Outside the
    main thread, where Python allows no handlers, nothing is installed.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: was not Python's

    def handle(signum: int, frame: FrameType | None) -> None:
        restore()
        stop.signum = signum
        stop.event.set()
        say("stopping: unfinished members are given up, finished ones are stored")

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
