"""Schedules of temperature and mixing weight, and the configuration of one run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kdfast.distill.recipe import Settings
from kdfast.errors import ConfigError, suggest

__all__ = ["SHAPES", "NoTeacher", "Run", "RunConfig", "run_from", "run_table", "settings_of", "shown", "stored_name"]

# Progress along a schedule: x in [0, 1] is the share of the epochs done, the value the share of the way.
SHAPES = {
    "linear": lambda x: x,
    "cosine": lambda x: 0.5 * (1.0 - math.cos(math.pi * x)),
    "step": lambda x: 0.0 if x < 0.5 else 1.0,
}

_NUMBER = r"\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_NAME = re.compile(
    rf"(?P<strategy>[a-z]+)_T(?P<temp_init>{_NUMBER})(?:to(?P<temp_final>{_NUMBER}))?"
    rf"_A(?P<alpha_init>{_NUMBER})(?:to(?P<alpha_final>{_NUMBER}))?"
    r"(?:_(?P<shape>(?!swall)[a-z]+)(?![^_]))?"  # swall: a further setting
    r"(?P<settings>(?:_.+)?)"
)
# A constant configuration is "constant_…" where it is shown, and "baseline_…", as the study calls it, in
# files.
_STORED = "baseline"
_SHOWN = "constant"
_LONGEST = 180  # of a name with further settings: it names a folder


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
    settings
        Further settings in which it differs from others of the study, e.g. ``{"learning_rate": 1e-3}``: of the recipe,
        and ``"model"``.

    Raises
    ------
    ConfigError
        For T ≤ 0, α outside [0, 1], values that are not finite, an unknown shape, or a setting that can't be used.

    Examples
    --------
    >>> from kdfast import RunConfig
    >>> run = RunConfig(temp_init=7.0, alpha_init=0.5, temp_final=1.0)
    >>> run.name
    'tempanneal_T7.0to1.0_A0.5'
    >>> RunConfig.from_name("constant_T3_A0.9").alpha_init
    0.9
    >>> RunConfig(3.0, 0.5, settings={"model": "small", "learning_rate": 1e-3}).name
    'baseline_T3.0_A0.5_lr0.001_m-small'
    """

    temp_init: float
    alpha_init: float
    temp_final: float | None = None
    alpha_final: float | None = None
    shape: str = "linear"
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not isinstance(self.settings, Settings):
            object.__setattr__(self, "settings", Settings(self.settings))  # type: ignore[unreachable]
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
        if self.settings and len(self.name) > _LONGEST:
            hint = "use fewer digits, or a preset as model"
            raise ConfigError(f"the name would have {len(self.name)} characters: {self.name}", where="grid", hint=hint)

    @property
    def strategy(self) -> str:
        """``baseline`` (both constant), ``tempanneal``, ``alphasched`` or ``combined``, as the study calls them."""
        if self.temp_final is None:
            return "baseline" if self.alpha_final is None else "alphasched"
        return "tempanneal" if self.alpha_final is None else "combined"

    @property
    def name(self) -> str:
        """For example ``combined_T10.0to1.0_A0.9to0.3``; then a shape other than linear, and further settings."""

        def span(initial: float, final: float | None) -> str:
            return f"{float(initial)}" if final is None else f"{float(initial)}to{float(final)}"

        name = f"{self.strategy}_T{span(self.temp_init, self.temp_final)}_A{span(self.alpha_init, self.alpha_final)}"
        shape = "" if self.shape == "linear" else f"_{self.shape}"
        return f"{name}{shape}{self.settings.suffix}"

    @property
    def baseline(self) -> NoTeacher | None:
        """The run without a teacher that this one is compared with: of the same further settings."""
        settings = self.settings.without_teacher
        return NoTeacher(settings) if settings else None

    @classmethod
    def from_name(cls, name: str) -> RunConfig:
        """Return the configuration with this name; numbers may be written in any way (``T7`` as well as ``T7.0``).

        A constant one may be called ``constant_…`` or, as in files, ``baseline_…``. Raises ConfigError for a
        name of another form, for one whose strategy contradicts its values, and for bad values.
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
                settings=Settings.from_suffix(found["settings"]),
            )
        except ConfigError as error:
            where = ", ".join(filter(None, (repr(name), error.where)))
            raise ConfigError(error.what, where=where, hint=error.hint) from None
        if found["strategy"] not in (config.strategy, _SHOWN if config.strategy == _STORED else None):
            strategy = _SHOWN if config.strategy == _STORED else config.strategy
            raise ConfigError(f"these values are of the strategy {strategy!r}", where=repr(name), hint=example)
        return config

    def at(self, epoch: int, epochs: int) -> tuple[float, float]:
        """(T, α) of an epoch, counted from 0, of the planned epochs: v_init + (v_final − v_init) · s(e / (E − 1))."""
        progress = SHAPES[self.shape](epoch / max(epochs - 1, 1))

        def value(initial: float, final: float | None) -> float:
            return initial if final is None else initial + (final - initial) * progress

        return value(self.temp_init, self.temp_final), value(self.alpha_init, self.alpha_final)


@dataclass(frozen=True)
class NoTeacher:
    """A baseline: a run without a teacher, at further settings. Of those that have none, None is the baseline."""

    settings: Settings

    @property
    def name(self) -> str:
        """For example ``baseline_lr0.001_m-small``."""
        return f"baseline{self.settings.suffix}"


Run = RunConfig | NoTeacher | None
"""A run of a study but for its seed; None: the baseline of runs without further settings."""


def settings_of(run: Run) -> Settings:
    """The further settings of a run."""
    return Settings() if run is None else run.settings


def run_table(run: Run) -> dict[str, Any] | None:
    """A run as files hold it; further settings only where there are some."""
    if run is None:
        return None
    table = {} if isinstance(run, NoTeacher) else {f.name: getattr(run, f.name) for f in fields(run)}
    table.pop("settings", None)
    return table | ({"settings": dict(run.settings)} if run.settings else {})


def run_from(table: Mapping[str, Any] | None) -> Run:
    """The run of such a table. Raises ConfigError and TypeError for one that it can't be."""
    if table is None:
        return None
    if set(table) == {"settings"}:
        return NoTeacher(Settings(table["settings"]))
    return RunConfig(**table)


_NAMED_STORED = re.compile(rf"(?<![\w./-]){_STORED}_(?=T\d)")  # not in the name of a file


def shown(text: str) -> str:
    """A text with the names of constant configurations as they are shown, ``constant_…``."""
    return _NAMED_STORED.sub(f"{_SHOWN}_", text)


def stored_name(name: str) -> str:
    """The name under which a run is stored, of any way to write it; another name as it is."""
    try:
        return RunConfig.from_name(name).name
    except ConfigError:
        return name
