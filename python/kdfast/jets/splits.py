"""Splits by a column of the files: which of its values mark jets for training, validation and testing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictInt, ValidationError, model_validator

from kdfast.errors import ConfigError
from kdfast.validation import in_words

__all__ = ["APART", "PARTS", "SETS", "SplitRule", "places_of", "raised_by", "read_places", "read_values", "split_rule"]

# The parts of a split, as a rule names them. A jet's place is the position of its part.
PARTS = ("training", "validation", "test")

# The sets that jets come in; the second and third are for validation and testing as a whole.
SETS = ("data", "validation_data", "test_data")

# Between the indices of jets of two sets with equal ones: more than the rows of any files.
APART = 10**12

_NOWHERE = -1  # place of a jet whose value no part names

_EXAMPLE = 'e.g. {"column": "fold", "validation": [3], "test": [4]}, or as text: "fold validation=3 test=4"'


def _as_values(value: Any) -> Any:
    values = (value,) if isinstance(value, int) else value
    if isinstance(values, (list, tuple)) and len(set(values)) < len(values):
        raise ConfigError(f"names a value twice: {list(values)}")
    return values


Values = Annotated[tuple[StrictInt, ...], BeforeValidator(_as_values)]


class SplitRule(BaseModel):
    """[data.split]: a column of the files that tells training, validation and test jets apart."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    column: str
    """A column with a number for each jet, named as in a column map."""
    training: Values = ()
    """Its values of the training jets. Empty: all that are neither validation nor test jets."""
    validation: Values = ()
    """Its values of the validation jets. Empty: a share of the training jets."""
    test: Values = ()
    """Its values of the test jets. Empty: a share of the training jets."""
    other: Literal["error", "skip"] = "error"
    """Jets with another value: bad jets (error), or left out (skip)."""

    @model_validator(mode="after")
    def _parts_differ(self) -> SplitRule:
        if not self.validation and not self.test:
            raise ConfigError("names neither validation nor test jets", hint=_EXAMPLE)
        values = [value for part in PARTS for value in getattr(self, part)]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            parts = [part for part in PARTS if twice[0] in getattr(self, part)]
            raise ConfigError(f"{twice[0]} is of both {' and '.join(parts)} jets")
        return self

    @property
    def shared(self) -> tuple[str, ...]:
        """The parts that share the training jets, by fractions."""
        return ("training", *(part for part in PARTS[1:] if not getattr(self, part)))

    @property
    def words(self) -> str:
        """The values and what they mean, for messages."""
        named = [(", ".join(map(str, getattr(self, part))), part) for part in PARTS]
        return "; ".join(f"{values} ({part})" for values, part in named if values)


def raised_by(name: str, sets: Collection[str]) -> int:
    """What is added to the indices of a set's jets, so that no other one's are equal. The set with the test
    jets keeps its indices, so that a model sees the test jets as it will see them in `predict`."""
    names = [each for each in ("test_data", "data", "validation_data") if each in sets]
    return names.index(name) * APART


def split_rule(value: Any) -> SplitRule:
    """A table, or text such as "fold training=0,1,2 validation=3 test=4", as a rule. Raises ConfigError."""
    if isinstance(value, SplitRule):
        return value
    if isinstance(value, str):
        value = _from_text(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a table, is {value!r}", hint=_EXAMPLE)
    try:
        return SplitRule.model_validate(value)
    except ValidationError as error:
        path, fault = in_words(error, SplitRule)
        raise ConfigError(fault.what, where=".".join(path) or None, hint=fault.hint or _EXAMPLE) from None


def _from_text(text: str) -> dict[str, Any]:
    words = text.split()
    if not words:
        raise ConfigError("is empty", hint=_EXAMPLE)
    table: dict[str, Any] = {"column": words[0]}
    for entry in words[1:]:
        key, _, given = entry.partition("=")
        if key == "other":
            table[key] = given
            continue
        try:
            table[key] = [int(number) for number in given.split(",")]
        except ValueError:
            what = f"{entry!r} must name values, as in validation=3 or training=0,1,2"
            raise ConfigError(what, hint=_EXAMPLE) from None
    return table


class _Block(Protocol):
    """Some rows of a file: its columns, and where bad rows go."""

    good: NDArray[np.bool_]

    def read(self, name: str) -> NDArray[Any]: ...

    def reject(self, name: str, bad: NDArray[np.bool_], what: str, *, values: NDArray[Any] | None = None) -> Any: ...


def read_places(block: _Block, rule: SplitRule) -> NDArray[np.int8]:
    """[rows] the place of each jet's part in PARTS; jets of none are bad or, where the rule says so, marked with −1.

    Parts that share the training jets (`SplitRule.shared`) have none here: these are all training jets.
    """
    values = block.read(rule.column)
    places = places_of(values, rule)
    if rule.other == "error":
        block.reject(rule.column, places < 0, f"is none of {rule.words}", values=values)
    return places


def places_of(values: NDArray[Any], rule: SplitRule) -> NDArray[np.int8]:
    """[rows] the place of each value's part in PARTS; −1 for those of none."""
    if values.dtype == np.bool_:
        values = values.view(np.uint8)
    places = np.full(len(values), _NOWHERE if rule.training else 0, np.int8)
    for place, part in enumerate(PARTS):
        places[np.isin(values, getattr(rule, part))] = place
    return places


def read_values(block: _Block, column: str) -> NDArray[np.int64]:
    """[rows] a column by which jets may be split later; a jet with no whole number is bad."""
    values = block.read(column)
    if values.dtype.kind == "f":
        whole = np.isfinite(values) & (values == np.round(values)) & (np.abs(values) < 2**63)
        block.reject(column, ~whole, "is no whole number", values=values)
        values = np.where(whole, values, 0)
    return values.astype(np.int64)
