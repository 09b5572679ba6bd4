"""Settings of a study: one checked model, read from and written as TOML.

Each setting is declared once, here, in data_settings.py or in Recipe: its default, bounds and description are
its field's, and `Shown` holds what the keyword of `sweep` and the option of `kdfast sweep` need beyond that.
store/keywords.py reads them. Imports no torch, so that `--help` is quick.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
)
from pydantic_core import PydanticCustomError

from kdfast.distill.recipe import AXES, PRECISIONS, Recipe, Settings, check_device_name, check_precision, model_of
from kdfast.distill.schedules import SHAPES, RunConfig
from kdfast.errors import ConfigError, suggest
from kdfast.files import read_toml
from kdfast.jets.columns import is_default
from kdfast.jets.hlt_config import HLT_PRESETS, HLTConfig, hlt_config
from kdfast.jets.jet_store import is_store
from kdfast.models.config import PRESETS, DeepSetsConfig, ModelConfig, NetworkConfig, OwnModel, model_config
from kdfast.store.data_settings import DATA_SOURCE, GIVEN, DataSettings, HLTFiles, NumberOrAll, Shown
from kdfast.store.grid import GRIDS, grid
from kdfast.store.search_settings import SearchSettings, as_search
from kdfast.validation import SettingError, SettingsTable, in_words

__all__ = [
    "DATA_SOURCE",
    "DEMO",
    "GIVEN",
    "DataSettings",
    "GridLists",
    "HLTFiles",
    "RecipeSettings",
    "SearchSettings",
    "Shown",
    "StudySettings",
    "check_counts",
]


def check_counts(**counts: Any) -> None:
    """Raises ConfigError for an argument, given by name, that is not a whole number ≥ 1 (None: not given)."""
    for name, value in counts.items():
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise ConfigError(f"must be a whole number, at least 1, is {value!r}", where=name)


class RecipeSettings(Recipe, SettingsTable):
    """[recipe]: how each model is trained (see Recipe), and the teacher's own settings."""

    shuffle_window: Annotated[NumberOrAll, Shown(metavar="N|all", kind=str, unset="all; 262144 for a packed store")] = (
        None
    )
    """Jets that are shuffled together, in windows of blocks from all over the training jets."""
    teacher_epochs: Annotated[int | None, Field(ge=1), Shown(unset="as epochs")] = None
    """Planned epochs of the teacher."""
    teacher_patience: int = Field(default=15, ge=1)
    """Stop the teacher after N epochs without a better validation AUC."""

    def student(self, further: Settings | None = None) -> Recipe:
        """The recipe of students and baseline, with further settings where there are some."""
        further = further or Settings()
        return further.applied(self._recipe(int(further.get("epochs", self.epochs)), self.patience))

    def teacher(self) -> Recipe:
        """The recipe of the teacher."""
        return self._recipe(self.teacher_epochs or self.epochs, self.teacher_patience)

    def _recipe(self, epochs: int, patience: int) -> Recipe:
        """A warm-up that is longer than the training is shortened to it: its last epoch has the whole rate."""
        changes = {"epochs": epochs, "patience": patience, "warmup_epochs": min(self.warmup_epochs, epochs)}
        return Recipe(**self.model_dump(include=set(Recipe.model_fields)) | changes)


class _OwnLists(SettingsTable):
    """Temperatures and weights of a grid."""

    preset: Annotated[str | None, Shown(option="--grid", metavar="PRESET")] = None
    """A preset of T and α, to be crossed with further axes."""
    temperature: Annotated[tuple[float, ...] | None, Shown(metavar="T", kind=list[float])] = Field(
        default=None, validate_default=True
    )
    """Temperatures T, > 0."""
    alpha: Annotated[tuple[float, ...] | None, Shown(metavar="α", kind=list[float])] = Field(
        default=None, validate_default=True
    )
    """Weights α of the distillation term, 0 to 1."""
    temperature_final: Annotated[tuple[float, ...], Shown(metavar="T", kind=list[float])] = ()
    """Final temperatures: adds schedules from each T to each of these."""
    alpha_final: Annotated[tuple[float, ...], Shown(metavar="α", kind=list[float])] = ()
    """Final weights: adds schedules from each α to each of these."""
    shape: Annotated[str, Shown(metavar="|".join(SHAPES))] = "linear"
    """Shape of the schedules."""

    @field_validator("temperature", "alpha")
    @classmethod
    def _needed(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.data.get("preset") is None:
            raise PydanticCustomError("missing", "missing")
        return value


def _as_values(values: Any, info: ValidationInfo) -> tuple[Any, ...]:
    """The values of a further axis; sizes of a model stay a table."""
    if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
        raise ConfigError(f"must be a list, is {values!r}")
    name = str(info.field_name)
    return tuple(dict(each) if isinstance(each, Mapping) else Settings({name: each})[name] for each in values)


def _axis(name: str) -> Any:
    of_recipe = Recipe.model_fields.get(name)
    described = of_recipe.description if of_recipe else "Students: presets, or tables of sizes."
    shown = Shown(option="--axis", metavar=f"{name}=V,V…", kind=list[str])
    field = Field(default=None, description=f"Further axis. {described}")
    return Annotated[tuple[Any, ...] | None, BeforeValidator(_as_values), shown], field


_WithAxes: Any = create_model("_WithAxes", __base__=_OwnLists, **{name: _axis(name) for name in AXES})


class GridLists(_WithAxes):  # type: ignore[misc]
    """[grid]: your own grid, the arguments of kdfast.grid."""

    def runs(self) -> list[RunConfig]:
        """The configurations."""
        return grid(**self.model_dump(exclude_none=True))


def _as_hlt(value: Any) -> str | HLTConfig | HLTFiles:
    if isinstance(value, (HLTConfig, HLTFiles)):
        return value
    if isinstance(value, str):
        if value not in HLT_PRESETS and value != GIVEN:
            raise ConfigError(f"unknown HLT preset {value!r}", hint=suggest(value, list(HLT_PRESETS)))
        return value
    name_a_preset = f"name a preset: {', '.join(HLT_PRESETS)}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be a preset's name or a table of numbers, is {value!r}", hint=name_a_preset)
    if set(value) & set(HLTFiles.model_fields):
        if "paths" not in value:
            raise ConfigError("names no HLT jets of the data", hint="give paths, too")
        files = HLTFiles.model_validate(value)
        if not files.paths:
            raise ConfigError("names no file of HLT jets", hint=name_a_preset)
        return files
    known = [field.name for field in fields(HLTConfig)]
    for key in value:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}", hint=suggest(str(key), known))
    needed = [field.name for field in fields(HLTConfig) if field.default is MISSING]
    missing = [key for key in needed if key not in value]
    if missing:
        hint = f"give all of {', '.join(needed)}, or {name_a_preset}"
        raise ConfigError(f"{', '.join(missing)} missing", hint=hint)
    return HLTConfig(**value)


def _as_model(value: Any) -> str | NetworkConfig:
    if isinstance(value, str) and value in PRESETS:
        return value
    if isinstance(value, str) and ":" in value:  # a file of settings never runs code
        hint = "name it with --model, or give the function to kdfast.sweep"
        raise ConfigError(f"a table can't name a network of your own: {value!r}", hint=hint)
    if callable(value):
        from kdfast.models.own_model import own_model

        value = own_model(value)
    config = model_config(value, where="")
    for name in ("num_features", "num_classes"):
        given = getattr(config, name)
        needed = type(config).model_fields[name].default
        if given != needed:
            raise ConfigError(f"{name} is {needed} in a study, not {given}", hint="leave it out")
    return config


def _as_grid(value: Any) -> str | GridLists | tuple[str, ...]:
    if isinstance(value, str):
        if value not in GRIDS:
            raise ConfigError(f"unknown grid {value!r}", hint=suggest(value, list(GRIDS)))
        return value
    if isinstance(value, (Mapping, GridLists)):
        lists = GridLists.model_validate(value)
        _check_models(lists.runs())
        return lists
    if not isinstance(value, Sequence):
        raise ConfigError(f"must be a preset's name, lists or runs, is {value!r}", hint=f"presets: {', '.join(GRIDS)}")
    runs = [run if isinstance(run, RunConfig) else RunConfig.from_name(str(run)) for run in value]
    if not runs:
        raise ConfigError("has no configuration", hint=f"name runs, or a preset: {', '.join(GRIDS)}")
    _check_models(runs)
    return tuple(dict.fromkeys(run.name for run in runs))


def _check_models(runs: Iterable[RunConfig]) -> None:
    """Raises ConfigError for the model of a run that no student can be of."""
    for text in dict.fromkeys(str(run.settings["model"]) for run in runs if "model" in run.settings):
        _as_model(model_of(text))


def _as_seeds(seeds: Any) -> tuple[int, ...]:
    one_or_many = ConfigError(f"must be a whole number or a list of them, is {seeds!r}", hint="e.g. seeds = [42, 43]")
    if isinstance(seeds, (str, bytes, Mapping)):
        raise one_or_many
    entries = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not entries:
        raise ConfigError("is empty", hint="e.g. seeds = [42]")
    if any(isinstance(entry, bool) for entry in entries):
        raise one_or_many
    try:
        found = tuple(index(entry) for entry in entries)
    except TypeError:
        raise one_or_many from None
    repeated = next((seed for seed in found if found.count(seed) > 1), None)
    if repeated is not None:
        hint = "equal seeds train equal networks: give each seed once"
        raise ConfigError(f"has {repeated} more than once", hint=hint)
    return found


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[
    tuple[Seed, ...], BeforeValidator(_as_seeds), Shown(option="--seed", metavar="N", kind=list[int], panel="Grid")
]
Sizes = Annotated[
    str | ModelConfig | DeepSetsConfig | OwnModel,
    BeforeValidator(_as_model),
    Shown(metavar="PRESET", kind=str, panel="Models"),
]
Hlt = Annotated[str | HLTConfig | HLTFiles, BeforeValidator(_as_hlt), Shown(metavar="PRESET", panel="Data")]
Grid = Annotated[str | GridLists | tuple[str, ...], BeforeValidator(_as_grid), Shown(metavar="PRESET", panel="Grid")]

Search = Annotated[
    SearchSettings | None,
    BeforeValidator(as_search),
    Shown(metavar="race", kind=str, unset="train all", panel="Grid"),
]

Precision = Annotated[str, AfterValidator(check_precision), Shown(metavar="|".join(PRECISIONS), panel="Running")]
# Whether this machine has the device is not checked: the file may be read elsewhere.
Device = Annotated[str, AfterValidator(check_device_name), Shown(metavar="NAME", panel="Running")]


class StudySettings(SettingsTable):
    """All settings of a study; the defaults are the reproduced study's, with a smaller student.

    `python -m kdfast.store.keywords` prints them as a table, with the keyword, the option and the demo's
    defaults.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    seeds: Seeds = (42,)
    """Seeds of initial weights, batches and dropout; each trains a baseline and the whole grid."""
    grid: Grid = "study"
    """Grid of T and α: study (132 runs), wide (378), or lists of your own."""
    search: Search = None
    """Train only the configurations of the grid that may be the best: race, or a table [search]."""
    hlt: Hlt = Field(default="nominal", description=f"HLT emulation: {', '.join(HLT_PRESETS)}, or a table [hlt].")
    model: Sizes = Field(
        default="small",
        description=f"Students and baseline: {', '.join(PRESETS)}, a table [model], or MODULE:FUNCTION of your own.",
    )
    teacher_model: Sizes = Field(
        default="study",
        description=f"Teacher: {', '.join(PRESETS)}, a table [teacher_model], or MODULE:FUNCTION of your own.",
    )
    teacher: Annotated[str | None, Shown(metavar="FILE", unset="train one", panel="Models")] = None
    """A trained teacher (.safetensors), or its logits for all jets (.npy)."""
    teacher_kind: Annotated[Literal["logit", "probability"], Shown(metavar="KIND", panel="Models")] = "logit"
    """What the numbers of a teacher are: logit, or probability (of signal)."""
    precision: Precision = "fp32"
    """Precision of matrix products: fp32, or bf16, which is faster and what GPUs that have it take by default."""
    device: Device = "auto"
    """Where to train: auto and cpu (the CPU), cuda (all GPUs) or cuda:1 (one of them)."""
    checkpoint_every: Annotated[float, Field(ge=0), Shown(panel="Running")] = 300.0
    """Seconds between checkpoints of a running member."""
    data: DataSettings = DataSettings()
    recipe: RecipeSettings = RecipeSettings()

    def runs(self) -> list[RunConfig]:
        """The grid's configurations."""
        if isinstance(self.grid, str):
            return grid(self.grid)
        if isinstance(self.grid, GridLists):
            return self.grid.runs()
        return [RunConfig.from_name(name) for name in self.grid]

    def student(self, further: Settings) -> tuple[Any, Recipe]:
        """Sizes and recipe of students and baselines with these further settings."""
        model = model_of(str(further["model"])) if "model" in further else self.model
        return model_config(model), self.recipe.student(further)

    def table(self) -> dict[str, Any]:
        """The settings as TOML has them: numbers, text, lists and tables, without those that are None."""
        table = self.model_dump(mode="json", exclude_none=True)
        if isinstance(self.hlt, HLTConfig):
            table["hlt"] = asdict(self.hlt)  # 1 stays 1, and does not become 1.0
        data = table["data"]
        data.setdefault("max_constituents", "all")
        for files in (data, table["hlt"]):
            for key in ("validation_paths", "test_paths"):
                if isinstance(files, dict) and not files.get(key):
                    files.pop(key, None)
        if len(self.data.shared) == 1:
            del data["fractions"]
        if _is_stored(self.data.paths):  # whose default is another
            table["recipe"].setdefault("shuffle_window", "all")
        if is_default(self.data.columns):  # so that kdfast 0.2 reads the file too
            del data["columns"]
            if self.data.unit == "MeV":
                del data["unit"]
        if not self.data.sort:
            del data["sort"]
        if self.teacher_kind == "logit":
            del table["teacher_kind"]
        return table

    def decisive(self) -> dict[str, Any]:
        """The settings that a result depends on, with presets as numbers.

        Left out is what may differ within a study: seeds and grid, which only add runs; the places of data,
        HLT jets and teacher, which their fingerprints identify; device and checkpoints.
        """
        table = self.table()
        for key in ("seeds", "grid", "search", "teacher", "teacher_kind", "device", "checkpoint_every"):
            table.pop(key, None)
        for key in DATA_SOURCE:
            table["data"].pop(key, None)
        for key in ("model", "teacher_model"):
            table[key] = model_config(getattr(self, key)).model_dump(exclude={"name"})
        if isinstance(self.hlt, HLTFiles) or self.hlt == GIVEN:
            del table["hlt"]
        else:
            table["hlt"] = asdict(hlt_config(self.hlt))
        recipe = table["recipe"]
        recipe.setdefault("teacher_epochs", self.recipe.epochs)
        if self.recipe.shuffle_window is None:
            recipe.pop("shuffle_window", None)
        warmup = self.recipe.warmup_epochs
        recipe["warmup_epochs"] = self.recipe.student().warmup_epochs
        if self.recipe.teacher().warmup_epochs != warmup:  # older versions did not shorten it
            recipe["teacher_warmup_epochs"] = self.recipe.teacher().warmup_epochs
        return table

    @classmethod
    def resolve(
        cls,
        config: str | PathLike[str] | Mapping[str, Any] | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        data_given: bool = False,
    ) -> StudySettings:
        """Defaults, then `config` (a TOML file or such a table), then `overrides` (a table; None: not given).

        The defaults are the study's if data are given, here or in either table, otherwise the demo's. Raises
        ConfigError that names the file and the key, SettingError for a value in `overrides`.
        """
        source = ""
        if isinstance(config, (str, PathLike)):
            source = fspath(config)
            given = read_toml(Path(config))
        else:
            given = dict(config or {})
        overrides = _without_none(overrides or {})

        def where(*path: str) -> str:
            key = ".".join(path)
            return f"{source}, {key}" if source else key

        for key in ("data", "recipe"):
            table = given.get(key, {})
            if not isinstance(table, Mapping):
                hint = f"e.g. data = {{ paths = [{table!r}] }}" if key == "data" and isinstance(table, str) else None
                raise ConfigError(f"must be a table, is {table!r}", where=where(key), hint=hint)
        asked = _merge(given, overrides)
        if not _is_given(overrides, ("data", "max_constituents")) and isinstance(asked.get("data"), Mapping):
            # The default's number asks for nothing: every study.toml holds it (see
            # DataSettings.asks_for_constituents).
            same = asked["data"].get("max_constituents") == DataSettings.model_fields["max_constituents"].default
            asked["data"] = {k: v for k, v in asked["data"].items() if not (same and k == "max_constituents")}
        paths = asked.get("data", {}).get("paths")
        data_given = data_given or bool(paths)
        if _is_stored(paths):
            asked = _merge({"recipe": {"shuffle_window": STORED_WINDOW}}, asked)
        try:
            return cls.model_validate(asked if data_given else _merge(DEMO, asked))
        except ValidationError as error:
            path, fault = in_words(error, cls)
            if _is_given(overrides, path):
                raise SettingError(fault.what, path=path, hint=fault.hint) from None
            raise ConfigError(fault.what, where=where(*path), hint=fault.hint) from None


# The demo: the bundled sample on two cores in minutes. docs/explanation/sample.md says how its settings were
# chosen.
DEMO: dict[str, Any] = {
    "hlt": "mild",
    "model": "demo",
    "teacher_model": "medium",
    "data": {"fractions": (0.1, 0.08, 0.82)},
    "recipe": {
        "epochs": 40,
        "batch_size": 128,
        "learning_rate": 4e-3,
        "warmup_epochs": 1,
        "patience": 8,
        "teacher_epochs": 20,
    },
}


STORED_WINDOW = 1 << 18  # jets: their features take some 80 MB of the trigger's view, 300 MB of the offline view


def _is_stored(paths: Any) -> bool:
    """Whether the jets are in a packed store."""
    entries = paths if isinstance(paths, (list, tuple)) else [paths]
    return any(is_store(entry) for entry in entries if isinstance(entry, (str, PathLike)))


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key in [data] and [recipe]; everything else is replaced whole."""
    merged = {**base, **over}
    for key in ("data", "recipe"):
        if isinstance(base.get(key), Mapping) and isinstance(over.get(key), Mapping):
            merged[key] = {**base[key], **over[key]}
    return merged


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in table.items() if v is not None}
    return {k: v for k, v in kept.items() if not (isinstance(v, dict) and not v)}


def _is_given(table: Any, path: Sequence[str]) -> bool:
    """Whether a table gives the setting at this path, or the whole that it is a part of (see _merge)."""
    whole = path[:2] if path[0] in ("data", "recipe") else path[:1]
    for key in whole:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table is not None
