"""Spaces: ranges and choices of T, α and further settings, from which configurations are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from kdfast.distill.axes import Settings, in_order, model_of
from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, suggest
from kdfast.models.config import model_config

__all__ = ["Choice", "Range", "Space", "space"]

Choice = float | int | str | None
"""A value of an axis. None as a final value: the schedule is constant."""

# Axes that RunConfig has fields for.
_FIELDS = {
    "temperature": "temp_init",
    "alpha": "alpha_init",
    "temperature_final": "temp_final",
    "alpha_final": "alpha_final",
    "shape": "shape",
}
_METHODS = ("sobol", "random")
_REPEATS = 1000  # draws in a row that bring nothing new, after which a space is taken to hold no more


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included. log: evenly spread on a logarithmic scale. whole: integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def number(self, value: float) -> float | int:
        """The value as a run's name holds it: with three significant digits, and whole if need be."""
        rounded = float(f"{value:.3g}")
        kept = min(max(rounded, self.low), self.high)
        return round(kept) if self.whole else kept

    def at(self, share: float) -> float | int:
        """The number at a share of the range, from 0 to 1."""
        half = 0.5 if self.whole else 0.0  # so that both ends are as frequent as the others
        low, high = self.low - half, self.high + half
        if self.log:
            return self.number(math.exp(math.log(low) + share * math.log(high / low)))
        return self.number(low + share * (high - low))


@dataclass(frozen=True)
class Space:
    """Ranges and choices of a configuration's settings. `kdfast.space` makes one.

    Attributes
    ----------
    axes : mapping of str to Range or tuple
        By the names of `kdfast.grid`: a range, or the choices; a fixed value is a single choice.
    """

    axes: Mapping[str, Range | tuple[Choice, ...]]

    @cached_property
    def free(self) -> dict[str, Range | tuple[Choice, ...]]:
        """The axes that have more than one value."""
        return {name: axis for name, axis in self.axes.items() if isinstance(axis, Range) or len(axis) > 1}

    def run(self, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration at these values of the free axes.

        Numbers are rounded to three significant digits, which keeps names short. A final value that equals the initial
        one makes a constant schedule.
        """
        chosen: dict[str, Any] = {}
        for name, axis in self.axes.items():
            if isinstance(axis, Range):
                chosen[name] = axis.number(values[name])
            else:
                chosen[name] = axis[0] if len(axis) == 1 else values[name]
        fields = {field: chosen.pop(name) for name, field in _FIELDS.items() if name in chosen}
        for initial, final in (("temp_init", "temp_final"), ("alpha_init", "alpha_final")):
            if fields.get(final) == fields[initial]:
                fields[final] = None
        return RunConfig(**fields, settings=Settings(chosen))

    def sample(self, n: int, method: Literal["sobol", "random"] = "sobol", seed: int = 0) -> list[RunConfig]:
        """Return configurations of the space, each once. A larger n, or none of the others changed, adds to the list.

        Parameters
        ----------
        n
            Number of configurations.
        method
            ``"sobol"``: Sobol points, scrambled, which cover the space more evenly; or ``"random"``.
        seed
            Of the scrambling, or of the random numbers.

        Returns
        -------
        list of RunConfig
            A grid for `kdfast.sweep`.

        Raises
        ------
        ConfigError
            For an unknown method, n < 1, or more configurations than the space has.
        """
        if method not in _METHODS:
            raise ConfigError(f"unknown method {method!r}", where="method", hint=suggest(str(method), list(_METHODS)))
        if n < 1:
            raise ConfigError(f"must be at least 1, is {n}", where="n")
        found: dict[str, RunConfig] = {}
        repeats = 0
        for point in _points(method, len(self.free), seed):
            run = self.run({name: _at(self.free[name], share) for name, share in zip(self.free, point, strict=True)})
            repeats = repeats + 1 if run.name in found else 0
            found.setdefault(run.name, run)
            if len(found) == n:
                break
            if repeats > max(_REPEATS, 10 * len(found)):
                what = f"the space has {len(found)} configurations, {n} are asked for"
                raise ConfigError(what, where="n", hint="ask for fewer, or widen its ranges")
        return list(found.values())


def space(
    *,
    temperature: Any,
    alpha: Any,
    temperature_final: Any = None,
    alpha_final: Any = None,
    shape: Any = "linear",
    **axes: Any,
) -> Space:
    """Return a space of configurations, from which `Space.sample` draws a grid.

    Each axis is a range ``(low, high)`` or ``(low, high, "log")``, a list of choices, or a single value.

    Parameters
    ----------
    temperature
        Initial temperature T > 0.
    alpha
        Initial weight α of the distillation term, from 0 to 1.
    temperature_final, alpha_final
        Values in the last epoch. None, which may be one of the choices, keeps T or α constant.
    shape
        Shapes of the schedules: ``"linear"``, ``"cosine"`` or ``"step"``.
    **axes
        Further settings, as in `kdfast.grid`: of the recipe, and ``model``. Those that are whole numbers, such as
        ``batch_size``, are drawn as whole numbers.

    Returns
    -------
    Space

    Raises
    ------
    ConfigError
        For an unknown axis, a range that is empty or has an end that can't be used, or a choice that can't be used.

    Examples
    --------
    >>> space = kdfast.space(temperature=(1, 50, "log"), alpha=(0, 1), model=["tiny", "small"])
    >>> len(space.sample(64))
    64
    >>> kdfast.space(temperature=3, alpha=[0.5, 0.9]).sample(2, "random")[0].temp_init
    3.0
    """
    given = {"temperature": temperature, "alpha": alpha, "temperature_final": temperature_final}
    given |= {"alpha_final": alpha_final, "shape": shape}
    found = {name: _axis(name, value) for name, value in given.items()}
    return Space(found | {name: _axis(name, axes[name]) for name in in_order(axes)})


def _axis(name: str, given: Any) -> Range | tuple[Choice, ...]:
    if isinstance(given, tuple):
        return _range(name, given)
    single = given is None or isinstance(given, (str, Real, Mapping, BaseModel)) or not isinstance(given, Iterable)
    choices = tuple(dict.fromkeys(_checked(name, value) for value in ([given] if single else given)))
    if not choices:
        raise ConfigError("has no choice", where=f"space, {name}", hint="leave it out, or give at least one")
    return choices


def _range(name: str, given: tuple[Any, ...]) -> Range:
    where = f"space, {name}"
    numbers = all(isinstance(end, Real) and not isinstance(end, bool) for end in given[:2])
    if len(given) not in (2, 3) or not numbers or given[2:] not in ((), ("log",)):
        hint = "choices are a list, not a tuple"
        raise ConfigError(f'a range is (low, high) or (low, high, "log"), not {given!r}', where=where, hint=hint)
    low, high = (_checked(name, end) for end in given[:2])
    if not (isinstance(low, (int, float)) and isinstance(high, (int, float))):
        raise ConfigError(f"has choices, not a range {given!r}", where=where, hint="give a list")
    log = len(given) == 3
    if not low < high:
        raise ConfigError(f"the range {given!r} is empty", where=where, hint="give the lower end first")
    if log and low <= 0:
        raise ConfigError(f"a logarithmic range begins above 0, not at {low:g}", where=where)
    return Range(low, high, log, whole=isinstance(low, int))


def _checked(name: str, value: Any) -> Choice:
    """The value as a configuration has it. Raises ConfigError for one that no configuration can have."""
    try:
        if name not in _FIELDS:
            checked = Settings({name: value})[name]
            if name == "model":
                model_config(model_of(str(checked)), where="model")
            return checked
        if value is None and name.endswith("_final"):
            return None
        if name == "shape":
            value = str(value)
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise ConfigError(f"must be a number, is {value!r}")
        else:
            value = float(value) + 0.0  # no negative zero in a name
        RunConfig(**({"temp_init": 1.0, "alpha_init": 0.5, "temp_final": 2.0} | {_FIELDS[name]: value}))
        return value
    except ConfigError as error:
        raise ConfigError(error.what, where=f"space, {name}", hint=error.hint) from None


def _at(axis: Range | tuple[Choice, ...], share: float) -> Choice:
    if isinstance(axis, Range):
        return axis.at(share)
    return axis[min(int(share * len(axis)), len(axis) - 1)]


def _points(method: str, dimensions: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Points in [0, 1)^dimensions without end."""
    if method == "random" or not dimensions:
        random = np.random.default_rng(seed)
        while True:
            yield random.random(dimensions)
    from scipy.stats import qmc

    sobol = qmc.Sobol(dimensions, scramble=True, seed=np.random.default_rng(seed))
    while True:
        yield sobol.random(1)[0]
