"""Tables of settings, and the faults that pydantic finds in them, in kdfast's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from kdfast.errors import ConfigError, suggest

__all__ = ["SettingError", "SettingsTable", "UnknownSetting", "fault_in_words", "in_words"]


class SettingError(ConfigError):
    """A setting that was given as an argument and can't be used.

    path: of the setting in study.toml, e.g. ("recipe", "epochs").
    """

    def __init__(self, what: str, *, path: Sequence[str], where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=".".join(path) if where is None else where, hint=hint)
        self.path = tuple(path)

    def named(self, where: str) -> SettingError:
        """The same error under another name of the setting: a keyword or an option."""
        return SettingError(self.what, path=self.path, where=where, hint=self.hint)


class UnknownSetting(ConfigError, TypeError):
    """A keyword that `sweep` does not have."""


class SettingsTable(BaseModel):
    """A table of settings. A number must not be a truth value, which pydantic would read as 1 or 0."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        if cls.model_fields[str(info.field_name)].annotation is bool:
            return value
        items = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, bool) for item in items):
            raise ConfigError(f"must not be true or false, is {value!r}")
        return value


# Type of a fault that pydantic finds → what it says, with the names of the fault's context.
_WHAT = {
    "greater_than": "must be > {gt:g}",
    "greater_than_equal": "must be ≥ {ge:g}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be ≤ {le:g}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "model_type": "must be a table",
}


def in_words(error: ValidationError, model: type[BaseModel]) -> tuple[tuple[str, ...], ConfigError]:
    """The first fault of a validation of `model`: the path of the setting, and what is wrong with it."""
    fault = error.errors()[0]
    path = tuple(part for part in fault["loc"] if isinstance(part, str))  # without positions in lists
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        inside = f"{cause.where}: " if cause.where and cause.where not in path else ""
        return path, ConfigError(f"{inside}{cause.what}", hint=cause.hint)
    if fault["type"] == "extra_forbidden":
        *tables, key = path
        for table in tables:
            model = _model_of(model, table)
        return path, ConfigError(f"unknown key {key!r}", hint=suggest(key, list(model.model_fields)))
    if fault["type"] == "missing":
        own_grid = "a grid of your own needs both temperature and alpha"
        return path, ConfigError("is missing", hint=own_grid if path[0] == "grid" else None)
    what = _WHAT[fault["type"]].format(**fault.get("ctx", {})) if fault["type"] in _WHAT else fault["msg"]
    value = fault["input"]
    shown = f", is {value!r}" if isinstance(value, (str, int, float)) else ""
    return path, ConfigError(f"{what}{shown}")


def fault_in_words(fault: ErrorDetails) -> str:
    """A fault with the key that it is about, in the words of the check that found it."""
    key = ".".join(map(str, fault["loc"]))
    cause = fault.get("ctx", {}).get("error")  # of a check of ours, without pydantic's prefix
    message = fault["msg"] if cause is None else str(cause)
    return f"{key}: {message}" if key else message


def _model_of(model: type[BaseModel], key: str) -> type[BaseModel]:
    """The model of a table inside another one, e.g. GridLists for `grid`, which may also be text."""
    annotation: Any = model.model_fields[key].annotation
    kinds = (annotation, *get_args(annotation))
    return next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
