"""Messages on stderr: what is worth telling, and not worth a failure."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, TextIO

__all__ = ["Messages", "drop"]


class Messages:
    """A stream like `stream` (None: none is open) that loses what can't be written, as on a full disk or to a
    reader that is gone, where the stream itself raises OSError: hours of training must not end for a line of
    a log.

    Where the disk has room again, later lines are written.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # isatty, encoding, …
        if self._stream is None and name == "isatty":
            return lambda: False
        return getattr(self._stream, name)

    def end(self) -> None:
        """Flushes; what still can't be written is dropped, so that the interpreter, which tries once more and
        would turn the exit status into 120, has nothing left."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except OSError:
            drop(self._stream)


def drop(stream: TextIO | None) -> None:
    """Sends what a standard stream holds, and all that comes, nowhere."""
    if stream is not None:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
