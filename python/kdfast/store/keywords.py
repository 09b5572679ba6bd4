"""Settings as users give them: keyword of `sweep`, option of `kdfast sweep`, row of the documentation.

All of it is read from the models in store/settings.py; `python -m kdfast.store.keywords` prints the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from os import PathLike
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kdfast.distill.recipe import AXES
from kdfast.errors import suggest
from kdfast.store.settings import (
    DEMO,
    DataSettings,
    GridLists,
    HLTFiles,
    RecipeSettings,
    SearchSettings,
    Shown,
    StudySettings,
)
from kdfast.validation import SettingError, UnknownSetting

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from kdfast.distill.schedules import RunConfig
    from kdfast.jets.columns import ColumnMap
    from kdfast.jets.hlt_config import HLTConfig
    from kdfast.jets.packed import PackedJets
    from kdfast.jets.splits import SplitRule
    from kdfast.models.config import NetworkConfig
    from kdfast.models.tagger import Tagger

__all__ = [
    "AXIS",
    "GRID_LISTS",
    "HLT_FILES",
    "SETTINGS",
    "Setting",
    "SweepSettings",
    "by_keyword",
    "by_option",
    "nested",
    "settings_table",
    "with_settings",
]


class SweepSettings(TypedDict, total=False):
    """The settings that `sweep` takes as keywords, for editors and type checkers. None: not given.

    Their meaning, bounds and defaults are those of the models in store/settings.py; a test compares the two.
    """

    grid: str | Mapping[str, Any] | Sequence[RunConfig | str] | None
    model: str | NetworkConfig | Mapping[str, Any] | Callable[[], Any] | None
    hlt: str | HLTConfig | Mapping[str, Any] | PackedJets | Sequence[PackedJets] | None
    teacher: str | PathLike[str] | Tagger | Callable[[], Any] | ArrayLike | None
    epochs: int | None
    seeds: int | Sequence[int] | None
    batch_size: int | None
    max_constituents: int | Literal["all"] | None
    precision: Literal["fp32", "bf16"] | None
    device: str | None
    search: Literal["race", "grid"] | Mapping[str, Any] | None
    teacher_kind: Literal["logit", "probability"] | None
    teacher_model: str | NetworkConfig | Mapping[str, Any] | Callable[[], Any] | None
    checkpoint_every: float | None
    validation_data: str | PathLike[str] | Sequence[str | PathLike[str]] | PackedJets | Mapping[str, Any] | Any | None
    test_data: str | PathLike[str] | Sequence[str | PathLike[str]] | PackedJets | Mapping[str, Any] | Any | None
    split: str | Mapping[str, Any] | SplitRule | None
    max_jets: int | None
    on_bad: Literal["error", "drop"] | None
    columns: str | PathLike[str] | Mapping[str, Any] | ColumnMap | None
    unit: Literal["MeV", "GeV"] | None
    sort: bool | None
    fractions: tuple[float, float, float] | None
    data_seed: int | None
    learning_rate: float | None
    weight_decay: float | None
    warmup_epochs: int | None
    clip_norm: float | None
    patience: int | None
    attention_weight: float | None
    shuffle_window: int | Literal["all"] | None
    teacher_epochs: int | None
    teacher_patience: int | None


@dataclass(frozen=True)
class Setting:
    """One setting, read from its field.

    path: in study.toml, e.g. ("recipe", "epochs"). keyword: of `sweep`. option: of `kdfast sweep`. kind: the
    option's type. metavar: of its value. panel: its heading in --help. default, demo: as text; demo "": as
    default. bounds: as text, e.g. "≥ 1".
    """

    path: tuple[str, ...]
    keyword: str
    option: str
    kind: Any
    metavar: str
    panel: str
    description: str
    default: str
    demo: str
    bounds: str

    def help(self, more: str = "") -> str:
        """The description, more text, and bounds and defaults, for --help."""
        defaults = f"default: {self.default}" if self.default else ""
        demo = f"demo: {self.demo}" if self.demo else ""
        notes = "; ".join(filter(None, (defaults, demo, self.bounds)))
        return f"{self.description}{more}  [{notes}]" if notes else f"{self.description}{more}"


def _settings(model: type[BaseModel], table: tuple[str, ...], panel: str, demo: Mapping[str, Any]) -> Iterator[Setting]:
    for key, field in model.model_fields.items():
        shown = next((item for item in field.metadata if isinstance(item, Shown)), Shown())
        kind = shown.kind or _number_type(field.annotation) or str
        yield Setting(
            path=(*table, key),
            keyword=shown.keyword or key,
            option=shown.option or f"--{key.replace('_', '-')}",
            kind=kind,
            metavar=shown.metavar or {int: "N", float: "X", bool: ""}.get(kind, "NAME"),
            panel=shown.panel or panel,
            description=field.description or "",
            default="" if field.is_required() else _plain(field.default, shown),
            demo=_plain(demo[key], shown) if key in demo else "",
            bounds=_bounds(field),
        )


def _number_type(annotation: Any) -> type | None:
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not NoneType]
    return kinds[0] if kinds in ([int], [float]) else None


def _plain(value: Any, shown: Shown) -> str:
    if value is None or value == ():
        return shown.unset
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(field: FieldInfo) -> str:
    """A number's bounds as text, without those of its representation (2³² and above)."""
    bounds = []
    for sign, name in (("≥", "ge"), (">", "gt"), ("≤", "le"), ("<", "lt")):
        values = (getattr(item, name, None) for item in field.metadata)
        bounds += [f"{sign} {value:g}" for value in values if value is not None and value < 2**32]
    return ", ".join(bounds)


_TOP = tuple(each for each in _settings(StudySettings, (), "", DEMO) if each.path[0] not in ("data", "recipe"))
_DATA = tuple(_settings(DataSettings, ("data",), "Data", DEMO["data"]))
_RECIPE = tuple(_settings(RecipeSettings, ("recipe",), "Recipe", DEMO["recipe"]))
SETTINGS = (*_TOP, *_DATA, *_RECIPE)

# What the keywords `grid` and `hlt` take as mappings, and the command line as options.
_GRID = tuple(_settings(GridLists, ("grid",), "Your own grid", {}))
GRID_LISTS = tuple(each for each in _GRID if each.keyword not in ("preset", *AXES))
_AXIS = "A further axis: model, or a setting of the recipe, e.g. learning_rate=5e-4,1e-3. With --grid, too."
_GRID_AXIS = ("grid", "axis")
AXIS = Setting(_GRID_AXIS, "axis", "--axis", list[str], "NAME=V,V…", "Your own grid", _AXIS, "", "", "")
HLT_FILES = tuple(_settings(HLTFiles, ("hlt",), "Data", {}))
_SEARCH = tuple(_settings(SearchSettings, ("search",), "Grid", {}))

_BY_KEYWORD = {setting.keyword: setting for setting in SETTINGS}


def nested(keywords: Mapping[str, Any], known: Iterable[str] = ()) -> dict[str, Any]:
    """Keywords of `sweep` as the tables of study.toml.

    known: all keywords, for the hint. Raises UnknownSetting for another one.
    """
    tables: dict[str, Any] = {"data": {}, "recipe": {}}
    for keyword, value in keywords.items():
        if keyword not in _BY_KEYWORD:
            hint = suggest(keyword, list(known or _BY_KEYWORD))
            raise UnknownSetting(f"unknown keyword {keyword!r}", where="sweep", hint=hint)
        *table, key = _BY_KEYWORD[keyword].path
        (tables[table[0]] if table else tables)[key] = value
    return tables


def with_settings(signature: Signature) -> Signature:
    """The signature of a function with `**settings`, with a keyword for each setting in their place.

    Defaults: None where they depend on whether data are given, and for settings of data and recipe.
    """
    own = [each for each in signature.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    positional = [each for each in own if each.kind is Parameter.POSITIONAL_OR_KEYWORD]
    settings = []
    for keyword, annotation in SweepSettings.__annotations__.items():
        key = _BY_KEYWORD[keyword].path[0]
        default = None if key in DEMO or key == "data" else StudySettings.model_fields[key].default
        text = getattr(annotation, "__forward_arg__", annotation)
        settings.append(Parameter(keyword, Parameter.KEYWORD_ONLY, default=default, annotation=text))
    return signature.replace(parameters=[*positional, *settings, *own[len(positional) :]])


def by_keyword(error: SettingError) -> SettingError:
    """The error with the setting's keyword in place of its path."""
    return _named(error, {setting.path: setting.keyword for setting in SETTINGS})


def by_option(error: SettingError) -> SettingError:
    """The error with the setting's option in place of its path."""
    return _named(error, {setting.path: setting.option for setting in (*SETTINGS, *_GRID, *HLT_FILES)})


def _named(error: SettingError, names: Mapping[tuple[str, ...], str]) -> SettingError:
    """The error with the name of the setting, or of the one that it is inside and the rest of the path."""
    for length in range(len(error.path), 0, -1):
        name = names.get(error.path[:length])
        if name is not None:
            return error.named(".".join((name, *error.path[length:])))
    return error


def settings_table() -> str:
    """All settings in Markdown, a section and a table for each table of study.toml."""
    tables = {
        "Top level": _TOP,
        "[data]": _DATA,
        "[recipe]": _RECIPE,
        "[grid]": _GRID,
        "[search]": _SEARCH,
        "[hlt]": HLT_FILES,
    }
    lines = []
    for title, settings in tables.items():
        lines += [
            f"## {title}\n",
            "| key | `kdfast.sweep` | `kdfast sweep` | default | meaning |",
            "|---|---|---|---|---|",
        ]
        lines += [_row(setting) for setting in settings]
        lines.append("")
    return "\n".join(lines)


def _row(setting: Setting) -> str:
    keyword = f"{setting.keyword}=" if setting in SETTINGS else f'{setting.path[0]}={{"{setting.path[1]}": …}}'
    option = setting.option if setting.metavar in ("", setting.option) else f"{setting.option} {setting.metavar}"
    default = f"{setting.default} (demo: {setting.demo})" if setting.demo else setting.default
    meaning = f"{setting.description} ({setting.bounds})" if setting.bounds else setting.description
    cells = [f"`{setting.path[-1]}`", f"`{keyword}`", f"`{option}`", default, meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(settings_table())
