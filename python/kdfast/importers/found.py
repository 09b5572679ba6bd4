"""One run as a file of somebody else tells it, and what there is to say about the file."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, KdfastWarning
from kdfast.store.table import STRATEGIES

__all__ = ["Found", "Measured", "Notes", "Numbers", "Place", "configuration", "measured"]

# Notes on one file that are given in full.
_FEW = 20


class Place(NamedTuple):
    """Where something stands: a file and a line, counted from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"


class Notes:
    """What an import has to say about its files: each note is a KdfastWarning, and `texts` keeps them for the study's
    provenance."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._of_file: Counter[Path] = Counter()

    def add(self, place: Place, what: str) -> None:
        """A note on a place. A file that is wrong throughout does not flood the screen."""
        self._of_file[place.path] += 1
        if self._of_file[place.path] <= _FEW:
            self._say(f"{place}: {what}")

    def close(self) -> None:
        """Counts the notes that were not given in full."""
        for path, count in self._of_file.items():
            if count > _FEW:
                self._say(f"{path}: and {count - _FEW} more notes of this kind")

    def _say(self, text: str) -> None:
        self.texts.append(text)
        warnings.warn(text, KdfastWarning, stacklevel=4)


class Numbers(NamedTuple):
    """T and α of a run as a file gives them; a final value that is None: constant."""

    temp_init: float
    temp_final: float | None
    alpha_init: float
    alpha_final: float | None


class Measured(NamedTuple):
    """Test results of one network, and where they stand."""

    metrics: Mapping[str, float]
    place: Place


@dataclass(frozen=True)
class Found:
    """One run of one file.

    source: "log", "table" (CSV) or "summary", in the order in which they are believed. config: its T and α. place:
    where it begins. consistent: its name and its numbers agree. metrics: the student's, by the names of StoredResult.
    status, message: as there. others: teacher and baseline, where the file gives them. curves: of each kind, by name.
    """

    source: str
    config: RunConfig
    place: Place
    consistent: bool = True
    seed: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: str = "done"
    message: str = ""
    others: Mapping[str, Measured] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)

    def same_results(self, other: Found) -> bool:
        """Whether two files tell the same, as far as both tell it."""
        return self.status == other.status and all(
            math.isclose(value, other.metrics[name], abs_tol=1e-9)
            for name, value in self.metrics.items()
            if name in other.metrics
        )

    def shown(self) -> str:
        """Its results in a few words."""
        names = {"auc": "AUC", "bkg_rej_50": "rejection"}
        numbers = ", ".join(f"{name} {self.metrics[key]}" for key, name in names.items() if key in self.metrics)
        return numbers or self.status


def configuration(name: str | None, numbers: Numbers | None, place: Place, notes: Notes) -> tuple[RunConfig, bool]:
    """The configuration that a run's name and numbers stand for, and whether they agree.

    Where they do not, the numbers count, as the training was started with them, and a note gives both. Raises
    ConfigError where neither gives a configuration.
    """
    by_numbers = None if numbers is None else _from_numbers(numbers)
    if name is None:
        if by_numbers is None:
            raise ConfigError("names no run and gives no T and α")
        return by_numbers, True
    by_name, fault = _from_name(name)
    if by_numbers is None:
        if by_name is None:
            raise ConfigError(f"{name!r} is not the name of a run, and no T and α are given")
        if fault:
            notes.add(place, f"{name!r}: {fault}; kept as {by_name.name}")
        return by_name, not fault
    if by_name is None:
        notes.add(place, f"{name!r} is not the name of a run; by its T and α it is {by_numbers.name}")
        return by_numbers, True
    differing = [
        f"{key} is {_shown(getattr(by_name, key))} by its name, {_shown(getattr(by_numbers, key))} by its numbers"
        for key in Numbers._fields
        if getattr(by_name, key) != getattr(by_numbers, key)
    ]
    if fault and not differing:
        differing = [fault]
    if not differing:
        return by_name, True  # it knows the schedule's shape too
    notes.add(place, f"{name!r} contradicts its numbers: {'; '.join(differing)}; kept as {by_numbers.name}")
    return by_numbers, False


def _from_numbers(numbers: Numbers) -> RunConfig:
    """Final values equal to the initial ones are no schedule."""
    t, t_final, a, a_final = numbers
    return RunConfig(t, a, None if t_final == t else t_final, None if a_final == a else a_final)


def _from_name(name: str) -> tuple[RunConfig | None, str]:
    """What a name decodes to (None: nothing), and what is wrong with it: its strategy may not fit its values."""
    try:
        return RunConfig.from_name(name), ""
    except ConfigError as error:
        for strategy in STRATEGIES:
            try:
                return RunConfig.from_name(re.sub("^[a-z]+(?=_)", strategy, name)), error.what
            except ConfigError:
                continue
        return None, error.what


def _shown(value: float | None) -> str:
    return "constant" if value is None else str(value)


def measured(auc: float, rejection: float) -> tuple[dict[str, float], str]:
    """A network's metrics, or, for one that diverged, none and what is NaN. Raises ValueError for numbers that can't
    be."""
    for value, name, low in ((auc, "AUC", 0.0), (rejection, "rejection", 1.0)):
        if math.isnan(value):
            return {}, f"the {name} is NaN"
        if math.isinf(value) and value > 0:
            raise ValueError(f"the {name} is infinite: no background survived, of how many jets is not said")
        if value < low or (name == "AUC" and value > 1.0):
            raise ValueError(f"the {name} is {value}, which it can't be")
    return {"auc": auc, "bkg_rej_50": rejection}, ""
