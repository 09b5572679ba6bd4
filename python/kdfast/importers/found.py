"""What the readers share: the lines of a file, the warnings that it causes, and one result as it gives it."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from kdfast.distill.recipe import Settings
from kdfast.distill.schedules import Run, RunConfig
from kdfast.errors import ConfigError, DataError, KdfastWarning

__all__ = [
    "KNOWN_FILES",
    "NUMBER",
    "Found",
    "Line",
    "Notes",
    "Numbers",
    "Place",
    "configuration",
    "measured",
    "read_lines",
]

# Warnings about one file that are shown in full.
_FEW = 20

# A number as these files have it, as a group of a pattern.
NUMBER = r"([-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|nan|inf))"

KNOWN_FILES = "give run logs (.out), hyperparameter_search_results.txt, or a CSV"

# Longer lines are read in pieces, so that memory stays flat.
LONGEST_LINE = 1 << 16
_HEAD = 1 << 13
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class Place(NamedTuple):
    """A file and a line, counted from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


class Notes:
    """Issues a KdfastWarning for each fault in the files, and keeps the texts for the study's provenance."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._of_file: Counter[Path] = Counter()

    def add(self, place: Place, what: str) -> None:
        """Warns of a fault. Of a file that is wrong throughout, only the first faults are shown."""
        self._of_file[place.path] += 1
        if self._of_file[place.path] <= _FEW:
            self._warn(f"{place}: {what}")

    def close(self) -> None:
        """Counts the faults that were not shown."""
        for path, count in self._of_file.items():
            if count > _FEW:
                self._warn(f"{path}: and {count - _FEW} more warnings")

    def _warn(self, text: str) -> None:
        self.texts.append(text)
        warnings.warn(text, KdfastWarning, stacklevel=4)


class Line(NamedTuple):
    """A line's number, counted from 1, and its text. whole: whether its end was written, too."""

    number: int
    text: str
    whole: bool = True


def read_lines(path: Path, notes: Notes | None = None) -> Iterator[Line]:
    """Yields the lines of a text file, which may be huge. A carriage return ends a text, but not a line.

    Bytes that are not text are replaced, with a warning. Raises DataError for a file that can't be read, is
    empty, or is binary.
    """
    number = 1
    sound = True
    try:
        encoding = _encoding_of(path)
        with open(path, encoding=encoding, errors="replace", newline="") as file:
            for text in iter(lambda: file.readline(LONGEST_LINE), ""):
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


class Numbers(NamedTuple):
    """T and α of a run as a file gives them. A final value of None means constant."""

    temp_init: float
    temp_final: float | None
    alpha_init: float
    alpha_final: float | None


@dataclass(frozen=True)
class Found:
    """One network's result in one file.

    kind: "student", "baseline" or "teacher". config: a student's; of others None, but for a baseline with
    further settings. seed: None where the file has none. diverged: why it is no result, "" for one that is.
    metrics, curves: by the names of StoredResult.
    """

    kind: str
    place: Place
    metrics: Mapping[str, float]
    config: Run = None
    seed: int | None = None
    diverged: str = ""
    curves: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.kind if self.config is None else self.config.name

    def agrees(self, other: Found) -> bool:
        """Whether two files give the same result, to the four decimals of a log."""
        shared = self.metrics.keys() & other.metrics.keys()
        close = (math.isclose(self.metrics[name], other.metrics[name], abs_tol=6e-5) for name in shared)
        return bool(self.diverged) == bool(other.diverged) and all(close)

    def __str__(self) -> str:
        labels = {"auc": "AUC", "bkg_rej_50": "rejection"}
        numbers = [f"{label} {self.metrics[name]}" for name, label in labels.items() if name in self.metrics]
        return ", ".join(numbers) or "diverged"


def configuration(name: str | None, numbers: Numbers | None, place: Place, notes: Notes) -> RunConfig:
    """The configuration of a run with this name and these T and α, one of which may be None.

    Where they disagree, T and α count, because the training was started with them, and a warning says so.
    Raises DataError where neither gives a configuration.
    """
    try:
        if numbers is not None:
            t, t_final, a, a_final = numbers
            config = RunConfig(t, a, None if t_final == t else t_final, None if a_final == a else a_final)
        elif name is not None:
            return RunConfig.from_name(name)
        else:
            raise ConfigError("has neither a run's name nor T and α")
    except ConfigError as error:
        where = f"{place}, {error.where}" if error.where else str(place)
        raise DataError(error.what, where=where, hint=error.hint) from None
    if name is None:
        return config
    try:
        named = RunConfig.from_name(name)
    except ConfigError:
        named = None
    if named is not None and replace(named, shape="linear", settings=Settings()) == config:
        return named  # only the name has the schedule's shape and further settings
    notes.add(place, f"the run's name {name!r} does not match its T and α: imported as {config.name}")
    return config


def measured(auc: float, rejection: float, place: Place) -> tuple[dict[str, float], str]:
    """A network's metrics, or none and the reason if it diverged (NaN). Raises DataError for impossible values."""
    if math.isnan(auc) or math.isnan(rejection):
        return {}, "the AUC is NaN" if math.isnan(auc) else "the rejection is NaN"
    if not 0.0 <= auc <= 1.0:
        raise DataError(f"the AUC must lie in [0, 1], is {auc}", where=str(place))
    if rejection == math.inf:
        raise DataError("the rejection is infinite: no background jet passed", where=str(place))
    if rejection < 1.0:
        raise DataError(f"the rejection must be at least 1, is {rejection}", where=str(place))
    return {"auc": auc, "bkg_rej_50": rejection}, ""
