"""Settings of a study: one checked model, read from and written as TOML."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from kdfast.distill.devices import check_name
from kdfast.distill.pack import PRECISIONS, Recipe
from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, suggest
from kdfast.files import write_atomically
from kdfast.jets.hlt import HLT_PRESETS, HLTConfig, hlt_config
from kdfast.models.config import PRESETS, ModelConfig, model_config
from kdfast.ops.jet_features import NUM_FEATURES
from kdfast.store.grid import GRIDS, grid

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DATA_SOURCE", "GIVEN", "HLTFiles", "StudySettings", "check_counts"]


def check_counts(**counts: Any) -> None:
    """Raises ConfigError for an argument, given by name, that is no whole number from 1 on (None: not given)."""
    for name, value in counts.items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ConfigError(f"must be a whole number, at least 1, is {value!r}", where=name)


class _Table(BaseModel):
    """A table of settings. None of them is a truth value, which would else count as the number 1 or 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if any(isinstance(item, bool) for item in (value if isinstance(value, (list, tuple)) else [value])):
            raise ConfigError(f"takes no truth value, is {value!r}")
        return value


def _as_paths(paths: Any) -> list[str]:
    entries = [paths] if isinstance(paths, (str, PathLike)) else paths
    if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, PathLike)) for entry in entries):
        raise ConfigError(f"must be a path or a list of paths, is {paths!r}", hint='e.g. paths = ["train_*.h5"]')
    return [str(fspath(entry)) for entry in entries]


def _as_seeds(seeds: Any) -> tuple[int, ...]:
    one_or_many = ConfigError(f"must be a whole number or a list of them, is {seeds!r}", hint="e.g. seeds = [42, 43]")
    if isinstance(seeds, (str, bytes, Mapping)):
        raise one_or_many
    entries = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not entries:
        raise ConfigError("has no seed", hint="e.g. seeds = [42]")
    try:
        if any(isinstance(entry, bool) for entry in entries):
            raise TypeError("a truth value")
        return tuple(dict.fromkeys(index(entry) for entry in entries))
    except TypeError:
        raise one_or_many from None


def _or_all(value: Any) -> Any:
    """TOML has no None: "all" stands for it."""
    if isinstance(value, str) and value != "all" and not value.isdecimal():
        raise ConfigError(f'must be a whole number from 1 on or "all", is {value!r}')
    return None if value == "all" else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_paths)]


class DataSettings(_Table):
    """[data]: which jets, and how they are split.

    paths: files; none: the bundled sample, or jets given in Python. max_jets: None for all. max_constituents: the
    hardest of each jet; None or "all" for all. on_bad: "error" or "drop", what a bad jet gets. fractions: of training,
    validation and test, stratified by label. seed: of the split and of the HLT emulation; the members' seeds do not
    change it.
    """

    paths: Paths = ()
    max_jets: int | None = Field(default=None, ge=1)
    max_constituents: Annotated[int | None, Field(ge=1), BeforeValidator(_or_all)] = 40
    on_bad: Literal["error", "drop"] = "error"
    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    seed: int = Field(default=42, ge=0, lt=2**32)

    @field_validator("fractions")
    @classmethod
    def _shares(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(f > 0 for f in fractions) or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError(f"must be three shares above 0 that add up to 1, are {list(fractions)}")
        return fractions


class RecipeSettings(Recipe, _Table):
    """[recipe]: how each model is trained (see Recipe), and what the teacher has of its own.

    teacher_epochs: None: as many as the others. teacher_patience: epochs without a better validation AUC.
    """

    teacher_epochs: int | None = Field(default=None, ge=1)
    teacher_patience: int = Field(default=15, ge=1)

    def student(self) -> Recipe:
        """The recipe of students and baseline."""
        return Recipe(**self.model_dump(include=set(Recipe.model_fields)))

    def teacher(self) -> Recipe:
        """The recipe of the teacher."""
        epochs = self.teacher_epochs or self.epochs
        return self.student().model_copy(update={"epochs": epochs, "patience": self.teacher_patience})


class GridLists(_Table):
    """[grid]: a grid of one's own, the arguments of kdfast.grid."""

    temperature: tuple[float, ...]
    alpha: tuple[float, ...]
    temperature_final: tuple[float, ...] = ()
    alpha_final: tuple[float, ...] = ()
    shape: str = "linear"


class HLTFiles(_Table):
    """[hlt] of a study without emulation: the files of the same jets, in the same order, as a trigger saw them."""

    paths: Paths


# Of [data]: where the jets are, and how files are cut to them. (The jets' fingerprint decides.)
DATA_SOURCE = ("paths", "max_jets", "on_bad")

# `hlt` of a study whose HLT jets were given in Python.
GIVEN = "given"


def _as_hlt(value: Any) -> str | HLTConfig | HLTFiles:
    if isinstance(value, (HLTConfig, HLTFiles)):
        return value
    if isinstance(value, str):
        if value not in HLT_PRESETS and value != GIVEN:
            raise ConfigError(f"unknown HLT preset {value!r}", hint=suggest(value, list(HLT_PRESETS)))
        return value
    presets = f"or name a preset: {', '.join(HLT_PRESETS)}"
    if isinstance(value, Mapping) and "paths" in value:
        files = HLTFiles.model_validate(value)
        if not files.paths:
            raise ConfigError("names no file of HLT jets", hint=presets[3:])
        return files
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a preset's name or a table of numbers, is {value!r}", hint=presets[3:])
    known = [field.name for field in fields(HLTConfig)]
    for key in value:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", hint=suggest(str(key), known))
    needed = [field.name for field in fields(HLTConfig) if field.default is MISSING]
    if missing := [key for key in needed if key not in value]:
        raise ConfigError(f"lacks {', '.join(missing)}", hint=f"give all of {', '.join(needed)}, {presets}")
    return HLTConfig(**value)


def _as_model(value: Any) -> str | ModelConfig:
    if isinstance(value, str) and value in PRESETS:
        return value
    config = model_config(value, where="")
    for name, needed in (("num_features", NUM_FEATURES), ("num_classes", 1)):
        if getattr(config, name) != needed:
            raise ConfigError(f"{name} is {needed} in a study, not {getattr(config, name)}", hint="leave it out")
    return config


def _as_grid(value: Any) -> str | GridLists | tuple[str, ...]:
    if isinstance(value, str):
        if value not in GRIDS:
            raise ConfigError(f"unknown grid {value!r}", hint=suggest(value, list(GRIDS)))
        return value
    if isinstance(value, (Mapping, GridLists)):
        lists = GridLists.model_validate(value)
        grid(**lists.model_dump())
        return lists
    if not isinstance(value, Sequence):
        raise ConfigError(f"must be a preset's name, lists or runs, is {value!r}", hint=f"presets: {', '.join(GRIDS)}")
    names = [run.name if isinstance(run, RunConfig) else RunConfig.from_name(str(run)).name for run in value]
    if not names:
        raise ConfigError("has no configuration", hint=f"name runs, or a preset: {', '.join(GRIDS)}")
    return tuple(dict.fromkeys(names))


class StudySettings(_Table):
    """Everything that a study can be told; the defaults are the published study's.

    hlt: a preset's name or five numbers of the emulation; files of HLT jets instead of it, or "given" where these are
    given in Python. model, teacher_model: sizes of student (and baseline) and teacher, a preset's name or numbers.
    teacher: file of a trained teacher or of its logits (.npy); None: one is trained. seeds: of the members; each seed
    trains a baseline and the whole grid. grid: a preset's name, lists, or names of runs. precision, device: of the
    training; device is "cpu", "cuda" (all GPUs) or "cuda:1" (one of them), "auto" the CPU. checkpoint_every: seconds
    between two checkpoints of a member that runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], BeforeValidator(_as_seeds)] = (42,)
    grid: Annotated[str | GridLists | tuple[str, ...], BeforeValidator(_as_grid)] = "study"
    hlt: Annotated[str | HLTConfig | HLTFiles, BeforeValidator(_as_hlt)] = "nominal"
    model: Annotated[str | ModelConfig, BeforeValidator(_as_model)] = "study"
    teacher_model: Annotated[str | ModelConfig, BeforeValidator(_as_model)] = "study"
    teacher: str | None = None
    precision: str = "fp32"
    device: str = "auto"
    checkpoint_every: float = Field(default=300.0, ge=0)
    data: DataSettings = DataSettings()
    recipe: RecipeSettings = RecipeSettings()

    @field_validator("precision")
    @classmethod
    def _precision(cls, precision: str) -> str:
        if precision not in PRECISIONS:
            raise ConfigError(f"unknown precision {precision!r}", hint=suggest(precision, list(PRECISIONS)))
        return precision

    @field_validator("device")
    @classmethod
    def _device(cls, device: str) -> str:
        check_name(device)  # whether it is there is asked where it is used: the file may be read elsewhere
        return device

    def runs(self) -> list[RunConfig]:
        """The grid's configurations."""
        if isinstance(self.grid, str):
            return grid(self.grid)
        if isinstance(self.grid, GridLists):
            return grid(**self.grid.model_dump())
        return [RunConfig.from_name(name) for name in self.grid]

    def table(self) -> dict[str, Any]:
        """The settings as plain values (numbers, text, lists, tables), without what is None, as TOML has it."""

        def plain(value: Any) -> Any:
            if isinstance(value, BaseModel):
                return plain({name: getattr(value, name) for name in type(value).model_fields})
            if isinstance(value, HLTConfig):
                return asdict(value)
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items() if item is not None}
            return [plain(item) for item in value] if isinstance(value, tuple) else value

        table: dict[str, Any] = plain(self)
        table["data"].setdefault("max_constituents", "all")
        return table

    def write_toml(self, path: str | Path) -> None:
        """Writes all settings; `StudySettings.read` gives them back."""
        write_atomically(Path(path), lambda file: tomli_w.dump(self.table(), file))

    def decisive(self) -> dict[str, Any]:
        """The settings that a result depends on, presets as their numbers; what may differ within a study is left out:
        seeds and grid (they only add runs), where data, HLT jets and teacher lie (fingerprints decide), device and
        checkpoints."""
        table = self.table()
        for key in ("seeds", "grid", "teacher", "device", "checkpoint_every"):
            table.pop(key, None)
        for key in DATA_SOURCE:
            table["data"].pop(key, None)
        for key in ("model", "teacher_model"):
            table[key] = model_config(getattr(self, key)).model_dump()
        if isinstance(self.hlt, HLTFiles) or self.hlt == GIVEN:
            del table["hlt"]
        else:
            table["hlt"] = asdict(hlt_config(self.hlt))
        table["recipe"].setdefault("teacher_epochs", self.recipe.epochs)
        return table

    @classmethod
    def read(cls, path: str | Path) -> StudySettings:
        """Settings from a TOML file alone. Raises ConfigError that names file and key."""
        return cls.resolve(path)

    @classmethod
    def resolve(
        cls,
        config: str | PathLike[str] | Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        data_given: bool = False,
    ) -> StudySettings:
        """Defaults, then `config` (a TOML file or a table like it), then `overrides` (a table; None does not count).

        Where data are given, here or in either table, the defaults are the study's, else the demo's.
        Raises ConfigError that names the file or argument, the key, and for a misspelt key the nearest known one.
        """
        given = _read_toml(Path(config)) if isinstance(config, (str, PathLike)) else dict(config or {})
        overrides = _without_none(overrides or {})
        source = fspath(config) if isinstance(config, (str, PathLike)) else ""
        for key in ("data", "recipe"):
            if not isinstance(table := given.get(key, {}), (Mapping, BaseModel)):
                where = f"{source}, {key}" if source else key
                hint = f"e.g. data = {{ paths = [{table!r}] }}" if key == "data" and isinstance(table, str) else None
                raise ConfigError(f"must be a table, is {table!r}", where=where, hint=hint)
        asked = _merge(given, overrides)
        data = asked.get("data")
        data_given = data_given or (isinstance(data, Mapping) and bool(data.get("paths")))
        try:
            return cls.model_validate(asked if data_given else _merge(DEMO, asked))
        except ValidationError as error:
            raise _in_words(error, source, overrides) from None


# The demo: the bundled sample on two cores in minutes, with settings that still mean something. On the test jets the
# teacher reaches an AUC of 0.967, the baseline 0.925, and with three times the epochs 0.936. At twice the rate so few
# epochs gain more (0.927), but training is chaotic: other rounding (another instruction set, the references) moves
# students' AUC by 0.003; at this rate by less than 0.0001.
DEMO: dict[str, Any] = {
    "model": "small",
    "teacher_model": "medium",
    "recipe": {"epochs": 5, "batch_size": 128, "learning_rate": 2e-3, "warmup_epochs": 1, "teacher_epochs": 6},
}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key in [data] and [recipe]; everything else is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        both = key in ("data", "recipe") and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    return merged


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in table.items() if v is not None}
    return {k: v for k, v in kept.items() if not (isinstance(v, dict) and not v)}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"can't be read ({error.strerror})", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"is no valid TOML ({error})", where=str(path)) from None


def _in_words(error: ValidationError, source: str, overrides: Any) -> ConfigError:
    """The first fault of a validation, as one of ours: file or argument, key, what, what to do.

    source: the file. overrides: the table of arguments; a key that stands there is not blamed on the file.
    """
    fault = error.errors()[0]
    parts = [part for part in fault["loc"] if isinstance(part, str)]  # without places in lists
    key = ".".join(parts)
    for part in parts:
        overrides = overrides.get(part) if isinstance(overrides, Mapping) else overrides
    where = key if overrides is not None or not source else f"{source}, {key}"
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        inside = f"{cause.where}: " if cause.where and cause.where not in parts else ""
        return ConfigError(f"{inside}{cause.what}", where=where, hint=cause.hint)
    if fault["type"] == "extra_forbidden":
        tables: dict[str, type[BaseModel]]
        tables = {"data": DataSettings, "recipe": RecipeSettings, "grid": GridLists, "hlt": HLTFiles}
        known = (StudySettings if len(parts) == 1 else tables[parts[0]]).model_fields
        return ConfigError(f"unknown key {parts[-1]!r}", where=where, hint=suggest(parts[-1], list(known)))
    if fault["type"] == "missing":  # as of [grid] alone
        return ConfigError("is missing", where=where, hint="a grid of one's own needs both temperature and alpha")
    if isinstance(cause, ValueError):
        return ConfigError(str(cause), where=where)
    message, value = fault["msg"], fault["input"]
    shown = f", is {value!r}" if isinstance(value, (str, int, float)) else ""
    return ConfigError(f"{message[0].lower()}{message[1:]}{shown}", where=where)
