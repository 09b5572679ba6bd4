"""Grids: which configurations of temperature, mixing weight and further settings a study compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from pydantic import BaseModel

from kdfast.distill.axes import Settings, in_order, model_of
from kdfast.distill.schedules import Run, RunConfig
from kdfast.errors import ConfigError, suggest
from kdfast.models.config import model_config

__all__ = ["GRIDS", "grid", "with_baselines"]


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
    each final value that differs from the initial one, also above it. Repetitions are left out. With further axes
    all of this is repeated for each combination of their values.

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
    temps_final = _numbers("temperature_final", temperature_final)
    alphas_final = _numbers("alpha_final", alpha_final)
    if preset is not None:
        if temperature is not None or alpha is not None or temps_final or alphas_final:
            raise ConfigError("takes a preset or lists, not both", where="grid")
        if preset not in GRIDS:
            raise ConfigError(f"unknown preset {preset!r}", where="grid", hint=suggest(str(preset), list(GRIDS)))
        return _crossed(_configurations(GRIDS[preset], shape, only_falling=True), settings)
    if temperature is None or alpha is None:
        raise ConfigError("needs a preset, or both temperature and alpha", where="grid", hint='e.g. grid("study")')
    lists = {"temperature": _numbers("temperature", temperature), "alpha": _numbers("alpha", alpha)}
    lists |= {"temperature_final": temps_final, "alpha_final": alphas_final}
    return _crossed(_configurations(lists, shape, only_falling=False), settings)


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


def _crossed(configs: Sequence[RunConfig], settings: Sequence[Settings]) -> list[RunConfig]:
    return [replace(config, settings=each) for each in settings for config in configs]


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
