"""The lines of a text file that may be damaged or huge: streamed, decoded as well as can be, counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdfast.errors import DataError
from kdfast.report.importers.found import Notes, Place

__all__ = ["NUMBER", "read_lines"]

# A number as these files have it, as a group of a pattern.
NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

# A longer line (a progress bar, a dump of numbers) is read in pieces, so that memory stays flat.
LONGEST_LINE = 1 << 16
_HEAD = 1 << 13
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


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


def read_lines(path: Path, notes: Notes | None = None) -> Iterator[tuple[int, str]]:
    """Yields (number of the line, text without its end). A carriage return ends a text too, not a line: progress bars
    overwrite themselves. Bytes that are no text are replaced, and a note names the first."""
    encoding, number, sound = _encoding_of(path), 1, True
    try:
        with open(path, encoding=encoding, errors="replace", newline="\n") as file:
            while text := file.readline(LONGEST_LINE):
                if sound and notes is not None and "\ufffd" in text:
                    sound = False
                    notes.add(Place(path, number), f"not all is {encoding} text: the wrong bytes are replaced by �")
                for part in text.rstrip("\r\n").split("\r"):
                    yield number, part
                number += text.endswith("\n")
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=f"{path}, line {number}") from error
