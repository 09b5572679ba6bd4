"""Grids, which configurations of T, α and further settings a study compares, and spaces, from which they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from kdfast.distill.recipe import Settings, in_order, model_of
from kdfast.distill.schedules import Run, RunConfig
from kdfast.errors import ConfigError, suggest
from kdfast.models.config import model_config

__all__ = ["GRIDS", "Choice", "Range", "Space", "grid", "space", "with_baselines"]


# A preset keeps only final values strictly below their initial one.
GRIDS: dict[str, dict[str, Sequence[float]]] = {
    # The 132 configurations of the study.
    "study": {
        "temperature": (3.0, 5.0, 7.0, 10.0),
        "alpha": (0.3, 0.5, 0.7, 0.9),
        "temperature_final": (1.0, 2.0),
        "alpha_final": (0.1, 0.3),
    },
    # Higher temperatures, α up to 1, finer steps: 378 configurations, the 132 among them.
    "wide": {
        "temperature": (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0),
        "alpha": (0.3, 0.5, 0.7, 0.9, 1.0),
        "temperature_final": (1.0, 2.0),
        "alpha_final": (0.1, 0.3),
    },
}


def grid(
    preset: str | None = None,
    *,
    temperature: float | Iterable[float] | None = None,
    alpha: float | Iterable[float] | None = None,
    temperature_final: float | Iterable[float] = (),
    alpha_final: float | Iterable[float] = (),
    shape: str = "linear",
    **axes: Any,
) -> list[RunConfig]:
    """Return the configurations of a grid, in the order: constant, T annealed, α scheduled, both.

    Give either a preset or lists of your own. Each T is combined with each α: once constant, and once for
    each final value that differs from the initial one, also above it. Repetitions are left out. With further
    axes all of this is repeated for each combination of their values.

    Parameters
    ----------
    preset
        ``"study"``, the 132 configurations of the study, or ``"wide"``, 378 with T from 1 to 50.
    temperature
        Initial temperatures T > 0, one or several.
    alpha
        Initial weights α of the distillation term, from 0 to 1.
    temperature_final, alpha_final
        Values in the last epoch.
    shape
        Shape of the schedules: ``"linear"``, ``"cosine"`` or ``"step"``; also of a preset.
    **axes
        Values of further settings: of the recipe, e.g. ``learning_rate=[5e-4, 1e-3]``, and ``model``, presets or
        mappings of sizes. Each combination of those that matter without a teacher has its own baseline.

    Returns
    -------
    list of RunConfig

    Raises
    ------
    ConfigError
        For an unknown preset, shape or axis, T ≤ 0, α outside [0, 1], another value that can't be used, or a grid
        without a configuration.

    Examples
    --------
    >>> len(kdfast.grid("study"))
    132
    >>> for run in kdfast.grid(temperature=[3, 5], alpha=0.5, temperature_final=1):
    ...     print(run.name)
    baseline_T3.0_A0.5
    baseline_T5.0_A0.5
    tempanneal_T3.0to1.0_A0.5
    tempanneal_T5.0to1.0_A0.5
    >>> [run.name for run in kdfast.grid(temperature=3, alpha=0.5, model=["small", "medium"], learning_rate=1e-3)]
    ['baseline_T3.0_A0.5_lr0.001_m-small', 'baseline_T3.0_A0.5_lr0.001_m-medium']
    """
    settings = _combinations(axes)
    lists: dict[str, Sequence[float]]
    temps_final = _numbers("temperature_final", temperature_final)
    alphas_final = _numbers("alpha_final", alpha_final)
    if preset is not None:
        if temperature is not None or alpha is not None or temps_final or alphas_final:
            raise ConfigError("takes a preset or lists, not both", where="grid")
        if preset not in GRIDS:
            raise ConfigError(f"unknown preset {preset!r}", where="grid", hint=suggest(str(preset), list(GRIDS)))
        lists = GRIDS[preset]
    elif temperature is None or alpha is None:
        raise ConfigError("needs a preset, or both temperature and alpha", where="grid", hint='e.g. grid("study")')
    else:
        lists = {"temperature": _numbers("temperature", temperature), "alpha": _numbers("alpha", alpha)}
        lists |= {"temperature_final": temps_final, "alpha_final": alphas_final}
    configs = _configurations(lists, shape, only_falling=preset is not None)
    return [replace(config, settings=each) for each in settings for config in configs]


def with_baselines(runs: Iterable[RunConfig]) -> list[Run]:
    """The runs, after those without a teacher that they are compared with."""
    runs = list(runs)
    return [*dict.fromkeys(run.baseline for run in runs), *runs]


def _combinations(axes: Mapping[str, Any]) -> list[Settings]:
    """Of values of further axes, the last axis running fastest; one without settings where there are no axes."""
    values: dict[str, list[Any]] = {}
    for name in in_order(axes):
        given = axes[name]
        single = given is None or isinstance(given, (str, int, float, Mapping, BaseModel))
        values[name] = [Settings({name: value})[name] for value in ([given] if single else given)]
        if not values[name]:
            raise ConfigError("has no value", where=name, hint="leave it out, or give at least one")
    for text in values.get("model", ()):
        model_config(model_of(text), where="model")
    combinations = (Settings(dict(zip(values, each, strict=True))) for each in product(*values.values()))
    return list(dict.fromkeys(combinations))


def _configurations(lists: Mapping[str, Sequence[float]], shape: str, only_falling: bool) -> list[RunConfig]:
    def allowed(initial: float, final: float | None) -> bool:
        return final is None or (final < initial if only_falling else final != initial)

    configs: dict[str, RunConfig] = {}  # by name, so that repetitions count once
    constant = (None,)
    annealed, scheduled = lists["temperature_final"], lists["alpha_final"]
    for alpha_finals, temp_finals in product((constant, scheduled), (constant, annealed)):
        for temp, temp_final, a, a_final in product(lists["temperature"], temp_finals, lists["alpha"], alpha_finals):
            if allowed(temp, temp_final) and allowed(a, a_final):
                config = RunConfig(temp, a, temp_final, a_final, shape)
                configs.setdefault(config.name, config)
    if not configs:
        raise ConfigError("has no configuration", where="grid", hint="give at least one temperature and one alpha")
    return list(configs.values())


def _numbers(name: str, values: float | Iterable[float]) -> list[float]:
    try:
        items = [values] if isinstance(values, (int, float)) else list(values)
        if any(isinstance(item, (str, bytes)) for item in items):
            raise TypeError("text")
        return [float(item) + 0.0 for item in items]  # + 0.0: no negative zero in a name
    except (TypeError, ValueError):
        raise ConfigError(f"must be a number or a list of numbers, is {values!r}", where=f"grid, {name}") from None


# ---- spaces

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

        Numbers are rounded to three significant digits, which keeps names short. A final value that equals
        the initial one makes a constant schedule.
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
