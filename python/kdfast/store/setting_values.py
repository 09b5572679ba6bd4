"""Values of settings in the forms in which users give them: paths, seeds, shares, "all"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import index
from os import PathLike, fspath
from typing import Any

from kdfast.errors import ConfigError

__all__ = ["as_paths", "as_seeds", "as_shares", "or_all"]


def as_paths(paths: Any) -> list[str]:
    entries = [paths] if isinstance(paths, (str, PathLike)) else paths
    if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, PathLike)) for entry in entries):
        raise ConfigError(f"must be a path or a list of paths, is {paths!r}", hint='e.g. paths = ["train_*.h5"]')
    return [str(fspath(entry)) for entry in entries]


def as_seeds(seeds: Any) -> tuple[int, ...]:
    one_or_many = ConfigError(f"must be a whole number or a list of them, is {seeds!r}", hint="e.g. seeds = [42, 43]")
    if isinstance(seeds, (str, bytes, Mapping)):
        raise one_or_many
    entries = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not entries:
        raise ConfigError("is empty", hint="e.g. seeds = [42]")
    try:
        if any(isinstance(entry, bool) for entry in entries):
            raise TypeError("a truth value")
        return tuple(dict.fromkeys(index(entry) for entry in entries))
    except TypeError:
        raise one_or_many from None


def or_all(value: Any) -> Any:
    """TOML has no None; the text "all" means the same."""
    if isinstance(value, str) and value != "all" and not value.isdecimal():
        raise ConfigError(f'must be a whole number ≥ 1 or "all", is {value!r}')
    return None if value == "all" else value


def as_shares(value: Any) -> Any:
    three = isinstance(value, (list, tuple)) and len(value) == 3
    numbers = three and all(isinstance(item, (int, float)) and item > 0 for item in value)
    if not numbers or abs(sum(value) - 1) > 1e-6:
        raise ConfigError(f"must be three numbers > 0 that add up to 1, is {value!r}")
    return value
