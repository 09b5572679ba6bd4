"""Faults of stored jets: how they are found, and what becomes of them (an error, or a counted drop)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError, KdfastWarning

__all__ = [
    "HOLE",
    "NEGATIVE_WEIGHTS",
    "SORT",
    "UNSORTED",
    "Faults",
    "Remedy",
    "below_momentum",
    "jets_with",
    "pt_faults",
    "pt_is_fine",
]

ENERGY_TOLERANCE = 1e-3  # rounded massless constituents lie just below |p|


@dataclass(frozen=True)
class Remedy:
    """What a user can do about a fault: a hint, and the settings that it names (see KdfastError)."""

    hint: str
    settings: Mapping[str, Any] = field(default_factory=dict)


SORT = Remedy("{sort} takes constituents in any order", {"sort": True})
NEGATIVE_WEIGHTS = Remedy(
    "take absolute values, leave weights out of the map (weights = []), or leave such jets out: {on_bad}",
    {"on_bad": "drop"},
)
DROP = Remedy("{on_bad} leaves such jets out and counts them", {"on_bad": "drop"})


@dataclass
class Faults:
    """Bad jets met so far: the first one is an error, or all are dropped and counted by reason."""

    drop: bool
    remedy: Remedy | None = None  # of the first fault that has one of its own
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, column: str, rows: NDArray[np.int64], what: str, remedy: Remedy | None) -> None:
        """Notes that these rows have the fault `what` in a column, which is at this place."""
        where = f"{place}, row {rows[0]}"
        if not self.drop:
            remedy = remedy or DROP
            raise DataError(what, where=where, hint=remedy.hint, settings=remedy.settings)
        self.remedy = self.remedy or remedy
        reason = f"{column} {what.partition(' (')[0]}"
        self.first.setdefault(reason, where)
        self.counts[reason] = self.counts.get(reason, 0) + len(rows)

    def _reasons(self) -> str:
        return "; ".join(f"{n:,} because {reason} (first: {self.first[reason]})" for reason, n in self.counts.items())

    def warn(self, jets: int) -> None:
        """Warns of the jets that were dropped, of all that were read."""
        if self.counts:
            total = sum(self.counts.values())
            warnings.warn(f"{total:,} of {jets:,} jets dropped: {self._reasons()}", KdfastWarning, stacklevel=6)

    def all_bad(self, where: str) -> DataError:
        """The error where no jet is left."""
        remedy = self.remedy or Remedy("check that the column map describes this file")
        what = f"no good jet is left: {self._reasons()}"
        return DataError(what, where=where, hint=remedy.hint, settings=remedy.settings)


UNSORTED = "does not fall: the constituents are not sorted"
HOLE = "has a hole: a zero before a filled slot"


def pt_is_fine(pt: NDArray[np.float32]) -> bool:
    """Whether each row of pt [rows, N] is finite, not negative and never rises (so that zeros come last).

    Where all rows fall, the first column has the largest values and the last one the smallest: one pass over
    pt.
    """
    flat = pt.reshape(-1)
    falls = flat[1:] <= flat[:-1]  # false for NaN
    falls[pt.shape[1] - 1 :: pt.shape[1]] = True  # from one row's end to the next row's beginning
    return bool(falls.all() and np.isfinite(pt[:, 0]).all() and (pt[:, -1] >= 0).all())


def pt_faults(pt: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """Which rows of pt [rows, N] have which fault, the gravest first."""
    some = pt != 0
    later = np.logical_or.accumulate(some[:, ::-1], axis=1)[:, ::-1]  # this slot or a later one is filled
    with np.errstate(invalid="ignore"):
        rises = (pt[:, 1:] > pt[:, :-1]).any(axis=1)
    return {
        "is not finite": ~np.isfinite(pt).all(axis=1),
        "is negative": (pt < 0).any(axis=1),
        HOLE: (later & ~some).any(axis=1),
        UNSORTED: rises,
    }


def below_momentum(pt: NDArray[np.float32], eta: NDArray[np.float32], energy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether a constituent's energy lies below its |p| = pt·cosh η by more than rounding explains."""
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        momentum = np.exp(eta)  # 2·cosh η = exp η + 1 / exp η; an η too large for float32 gives infinity
        momentum += np.reciprocal(momentum)
        momentum *= pt
        momentum *= np.float32((1 - ENERGY_TOLERANCE) / 2)
        return ~(energy >= momentum)


def jets_with(constituents: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[B] whether any constituent of a jet is marked in [M]."""
    before = np.concatenate([[0], np.cumsum(constituents)])
    return before[offsets[1:]] > before[offsets[:-1]]
