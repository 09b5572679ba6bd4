"""The lines of a text file that may be damaged or huge: streamed, decoded as well as can be, counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdfast.errors import DataError
from kdfast.importers.found import Notes, Place

__all__ = ["NUMBER", "Line", "read_lines"]

# A number as these files have it, as a group of a pattern.
NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

# A longer line (a progress bar, a dump of numbers) is read in pieces, so that memory stays flat.
LONGEST_LINE = 1 << 16
_HEAD = 1 << 13
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class Line(NamedTuple):
    """A line of a file, counted from 1, without its end. whole: false where it has none, as the file was cut there or
    the line is too long to be read at once: its last number may lack digits."""

    number: int
    text: str
    whole: bool = True


def _encoding_of(path: Path) -> str:
    """The encoding that a file's first bytes show. Raises DataError for a file that can't be read, holds nothing, or
    is no text."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), hint="check the path") from None
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path)) from error
    if not head.strip():
        raise DataError("is empty", where=f"{path}, line 1", hint="leave it out, or copy it again")
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        line = head.count(b"\n", 0, head.index(b"\0")) + 1
        hint = "give run logs (.out), hyperparameter_search_results.txt, or a CSV"
        raise DataError("is a binary file, not text", where=f"{path}, line {line}", hint=hint)
    return "utf-8"


def read_lines(path: Path, notes: Notes | None = None) -> Iterator[Line]:
    """Yields the lines of a file. A carriage return ends a text too, not a line: progress bars overwrite themselves.
    Bytes that are no text are replaced, and a note names the first."""
    encoding, number, sound, rest = _encoding_of(path), 1, True, ""
    try:
        with open(path, encoding=encoding, errors="replace", newline="\n") as file:
            while piece := file.readline(LONGEST_LINE):
                if sound and notes is not None and "\ufffd" in piece:
                    sound = False
                    notes.add(Place(path, number), f"not all is {encoding} text: the wrong bytes are replaced by �")
                ended = piece.endswith("\n")
                *texts, rest = (rest + (piece.rstrip("\r\n") if ended else piece)).split("\r")
                yield from (Line(number, text) for text in texts)
                if ended or len(rest) >= LONGEST_LINE:
                    yield Line(number, rest, whole=ended)
                    rest = ""
                number += ended
            if rest:
                yield Line(number, rest, whole=False)
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=f"{path}, line {number}") from error
