"""The lines of a text file, streamed: a log may be huge or damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from kdfast.errors import DataError
from kdfast.importers.found import Notes, Place

__all__ = ["KNOWN_FILES", "NUMBER", "Line", "read_lines"]

# A number as these files have it, as a group of a pattern.
NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

KNOWN_FILES = "give run logs (.out), hyperparameter_search_results.txt, or a CSV"

# Longer lines are read in pieces, so that memory stays flat.
LONGEST_LINE = 1 << 16
_HEAD = 1 << 13
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class Line(NamedTuple):
    """A line's number, counted from 1, and its text. whole: whether its end was written, too."""

    number: int
    text: str
    whole: bool = True


def read_lines(path: Path, notes: Notes | None = None) -> Iterator[Line]:
    """Yields the lines of a file. A progress bar's carriage returns end a text, but count as one line.

    Bytes that are not text are replaced, with a warning. Raises DataError for a file that can't be read, is empty,
    or is binary.
    """
    number = 1
    sound = True
    try:
        encoding = _encoding_of(path)
        with open(path, encoding=encoding, errors="replace", newline="") as file:
            while text := file.readline(LONGEST_LINE):
                if sound and notes is not None and "\ufffd" in text:
                    sound = False
                    notes.add(Place(path, number), f"bytes that are not {encoding} text are replaced by �")
                yield Line(number, text.rstrip("\r\n"), whole=text[-1] in "\r\n")
                number += text[-1] == "\n"
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), hint="check the path") from None
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror})", where=str(path)) from error


def _encoding_of(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if not head.strip():
        raise DataError("is empty", where=f"{path}, line 1", hint="remove it, or copy it again")
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        line = head.count(b"\n", 0, head.index(b"\0")) + 1
        raise DataError("is a binary file, not text", where=f"{path}, line {line}", hint=KNOWN_FILES)
    return "utf-8"
