"""Classes of stored jets, by the rule of a column map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdfast.jets.columns import LabelRule

__all__ = ["read_labels"]


class _Block(Protocol):
    """Some rows of a file: its columns, and where bad rows go."""

    good: NDArray[np.bool_]

    def read(self, name: str) -> NDArray[Any]: ...

    def reject(self, name: str, bad: NDArray[np.bool_], what: str, *, values: NDArray[Any] | None = None) -> Any: ...


def read_labels(block: _Block, rule: LabelRule) -> NDArray[np.int64]:
    """[rows] 1 for signal, 0 for background; −1 for other jets, which are bad or, where the rule says so, skipped."""
    if rule.column is not None:
        values = block.read(rule.column)
        signal = _is_one_of(values, rule.signal)
        background = _is_one_of(values, rule.background)
        if not rule.background or rule.other == "skip":  # otherwise it is none of the classes
            block.reject(rule.column, values != np.rint(values), "is not a whole number", values=values)
        if not rule.background:
            background = ~signal
        named = (" or ".join(map(str, classes)) for classes in (rule.background, rule.signal))
        what = "is neither {} (background) nor {} (signal)".format(*named)
        if rule.other == "error":
            block.reject(rule.column, ~signal & ~background, what, values=values)
    else:
        signal, background = (_read_flags(block, names) for names in (rule.signal, rule.background))
        block.reject(str(rule.signal[0]), signal & background, "is of a jet that is both signal and background")
        if not rule.background:
            background = ~signal
        elif rule.other == "error":
            neither = ~signal & ~background
            block.reject(str(rule.signal[0]), neither, "is of a jet that is neither signal nor background")
    return np.where(signal, 1, np.where(background, 0, -1))


def _is_one_of(values: NDArray[Any], classes: Sequence[int | str]) -> NDArray[np.bool_]:
    """[rows] whether a value is one of a few. (np.isin takes longer to choose its method than to read a block.)"""
    found = np.zeros(len(values), np.bool_)
    for each in classes:
        found |= values == each
    return found


def _read_flags(block: _Block, names: Sequence[int | str]) -> NDArray[np.bool_]:
    """[rows] whether one of these columns of 0 and 1 is 1."""
    found = np.zeros(len(block.good), np.bool_)
    for name in map(str, names):
        values = block.read(name)
        block.reject(name, (values != 0) & (values != 1), "is neither 0 nor 1", values=values)
        found |= values == 1
    return found
