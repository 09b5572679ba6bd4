"""Schedules of temperature and mixing weight, and the configuration of one run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kdfast.errors import ConfigError, suggest

__all__ = ["SHAPES", "RunConfig"]

# Progress along a schedule: x in [0, 1] is the share of the epochs done, the value the share of the way.
SHAPES = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1.0 - math.cos(math.pi * x)),
    "step": lambda x: 0.0 if x < 0.5 else 1.0,
}

_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_NAME = re.compile(
    rf"(?P<strategy>[a-z]+)_T(?P<temp_init>{_NUMBER})(?:to(?P<temp_final>{_NUMBER}))?"
    rf"_A(?P<alpha_init>{_NUMBER})(?:to(?P<alpha_final>{_NUMBER}))?(?:_(?P<shape>[a-z]+))?"
)


@dataclass(frozen=True)
class RunConfig:
    """One configuration of a grid: temperature T and mixing weight α over the epochs.

    Parameters
    ----------
    temp_init, temp_final
        T in the first and in the last epoch. ``temp_final=None`` keeps T constant.
    alpha_init, alpha_final
        Likewise for α, the weight of the distillation term; the labels have the weight 1 − α.
    shape
        Of both schedules: ``"linear"`` (the study's), ``"cosine"`` or ``"step"``. A configuration without a
        final value has no schedule, so its shape is always ``"linear"``.

    Raises
    ------
    ConfigError
        For T ≤ 0, α outside [0, 1], values that are not finite, or an unknown shape.

    Examples
    --------
    >>> from kdfast import RunConfig
    >>> run = RunConfig(temp_init=7.0, alpha_init=0.5, temp_final=1.0)
    >>> run.name
    'tempanneal_T7.0to1.0_A0.5'
    >>> RunConfig.from_name("baseline_T3_A0.9").alpha_init
    0.9
    """

    temp_init: float
    alpha_init: float
    temp_final: float | None = None
    alpha_final: float | None = None
    shape: str = "linear"

    def __post_init__(self) -> None:
        for name in ("temp_init", "temp_final"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"temperature must be finite and above 0, is {value}", where=name)
        for name in ("alpha_init", "alpha_final"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:  # NaN fails too
                raise ConfigError(f"α must lie in [0, 1], is {value}", where=name)
        if self.shape not in SHAPES:
            raise ConfigError(f"unknown schedule {self.shape!r}", where="shape", hint=suggest(self.shape, list(SHAPES)))
        if self.temp_final is None and self.alpha_final is None:
            object.__setattr__(self, "shape", "linear")

    @property
    def strategy(self) -> str:
        """``baseline`` (both constant), ``tempanneal``, ``alphasched`` or ``combined``, as the study calls them."""
        if self.temp_final is None:
            return "baseline" if self.alpha_final is None else "alphasched"
        return "tempanneal" if self.alpha_final is None else "combined"

    @property
    def name(self) -> str:
        """For example ``combined_T10.0to1.0_A0.9to0.3``; a shape other than linear is appended."""

        def span(initial: float, final: float | None) -> str:
            return f"{float(initial)}" if final is None else f"{float(initial)}to{float(final)}"

        name = f"{self.strategy}_T{span(self.temp_init, self.temp_final)}_A{span(self.alpha_init, self.alpha_final)}"
        return name if self.shape == "linear" else f"{name}_{self.shape}"

    @classmethod
    def from_name(cls, name: str) -> RunConfig:
        """Return the configuration with this name; numbers may be written in any way (``T7`` as well as ``T7.0``).

        Raises ConfigError for a name of another form, for one whose strategy contradicts its values, and
        for bad values.
        """
        example = "a run's name looks like tempanneal_T7.0to1.0_A0.5"
        found = _NAME.fullmatch(name)
        if found is None:
            raise ConfigError("is not the name of a run", where=repr(name), hint=example)
        numbers = {key: found[key] for key in ("temp_init", "alpha_init", "temp_final", "alpha_final")}
        try:
            config = cls(
                **{key: None if text is None else float(text) for key, text in numbers.items()},  # type: ignore[arg-type]
                shape=found["shape"] or "linear",
            )
        except ConfigError as error:
            raise ConfigError(error.what, where=f"{name!r}, {error.where}", hint=error.hint) from None
        if found["strategy"] != config.strategy:
            raise ConfigError(f"these values are of the strategy {config.strategy!r}", where=repr(name), hint=example)
        return config

    def at(self, epoch: int, epochs: int) -> tuple[float, float]:
        """(T, α) of an epoch, counted from 0, of the planned epochs: v_init + (v_final − v_init) · s(e / (E − 1))."""
        progress = SHAPES[self.shape](epoch / max(epochs - 1, 1))

        def value(initial: float, final: float | None) -> float:
            return initial if final is None else initial + (final - initial) * progress

        return value(self.temp_init, self.temp_final), value(self.alpha_init, self.alpha_final)
