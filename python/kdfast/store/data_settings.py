"""Settings of a study's jets: which files, how they are read, and how they are split.

They are a part of store/settings.py, which imports them. `Shown` is a part of all settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from kdfast.errors import ConfigError
from kdfast.jets.columns import COLUMN_PRESETS, ColumnMap, column_map, is_default
from kdfast.jets.splits import PARTS, SplitRule, split_rule
from kdfast.validation import SettingsTable

__all__ = ["DATA_SOURCE", "GIVEN", "DataSettings", "HLTFiles", "NumberOrAll", "Shown"]

# In [data]: where the jets are, how they are stored, and which of them are read. The fingerprints of the jets
# and of their split decide, not these.
DATA_SOURCE = ("paths", "validation_paths", "test_paths", "split", "max_jets", "on_bad", "columns", "unit", "sort")

# `hlt`, `validation_paths` or `test_paths` of a study whose HLT, validation or test jets were given in
# Python.
GIVEN = "given"


@dataclass(frozen=True)
class Shown:
    """How a setting appears outside its table, where that does not follow from its name and type.

    keyword: of `sweep`, if not the key. option: of `kdfast sweep`, if not --key. metavar: of its value.
    kind: the option's type on the command line, if neither int nor float nor text. unset: what None means.
    panel: heading of --help, if not the table's.
    """

    keyword: str = ""
    option: str = ""
    metavar: str = ""
    kind: Any = None
    unset: str = ""
    panel: str = ""


def _as_paths(paths: Any) -> list[str]:
    entries = [paths] if isinstance(paths, (str, PathLike)) else paths
    if not isinstance(entries, Sequence) or not all(isinstance(entry, (str, PathLike)) for entry in entries):
        raise ConfigError(f"must be a path or a list of paths, is {paths!r}", hint='e.g. paths = ["train_*.h5"]')
    return [str(fspath(entry)) for entry in entries]


def _as_paths_or_given(paths: Any) -> str | list[str]:
    return GIVEN if paths == GIVEN else _as_paths(paths)


def _as_columns(value: Any) -> str | ColumnMap:
    """A preset stays its name; a file becomes its content, so that study.toml holds it."""
    if isinstance(value, str) and value in COLUMN_PRESETS:
        return value
    columns = column_map(value)
    return "atlas" if is_default(columns) else columns


def _as_shares(value: Any) -> Any:
    three = isinstance(value, (list, tuple)) and len(value) == 3
    numbers = three and all(isinstance(item, (int, float)) and item > 0 for item in value)
    if not numbers or abs(sum(value) - 1) > 1e-6:
        raise ConfigError(f"must be three numbers > 0 that add up to 1, is {value!r}")
    return value


def _as_number_or_all(value: Any) -> Any:
    """TOML has no None; the text "all" means the same."""
    if isinstance(value, str) and value != "all" and not value.isdecimal():
        raise ConfigError(f'must be a whole number ≥ 1 or "all", is {value!r}')
    return None if value == "all" else value


Paths = Annotated[tuple[str, ...], BeforeValidator(_as_paths)]
PathsOrGiven = Annotated[Literal["given"] | tuple[str, ...], BeforeValidator(_as_paths_or_given)]
Shares = Annotated[tuple[float, float, float], BeforeValidator(_as_shares)]
Columns = Annotated[str | ColumnMap, BeforeValidator(_as_columns)]
Split = Annotated[SplitRule | None, BeforeValidator(lambda value: None if value is None else split_rule(value))]
NumberOrAll = Annotated[int | None, Field(ge=1), BeforeValidator(_as_number_or_all)]


def _files(keyword: str, unset: str = "") -> Shown:
    """Of files with an option that may be repeated."""
    return Shown(keyword, f"--{keyword.replace('_', '-')}", metavar="FILE", kind=list[str], unset=unset)


class DataSettings(SettingsTable):
    """[data]: which jets, and how they are split."""

    paths: Annotated[Paths, Shown(keyword="data", option="DATA", metavar="DATA", unset="the bundled sample")] = ()
    """Files of jets, or patterns of them."""
    validation_paths: Annotated[PathsOrGiven, _files("validation_data", "a share of DATA")] = ()
    """Files of the validation jets, or patterns of them in quotes."""
    test_paths: Annotated[PathsOrGiven, _files("test_data", "a share of DATA")] = ()
    """Files of the test jets, or patterns of them in quotes."""
    split: Annotated[Split, Shown(metavar="RULE", unset="by the fractions")] = None
    """Split by a column of DATA: a table, or text such as "fold validation=3 test=4"."""
    max_jets: Annotated[int | None, Field(ge=1), Shown(unset="all")] = None
    """Read only the first N jets (of DATA)."""
    max_constituents: Annotated[NumberOrAll, Shown(metavar="N|all", kind=str, unset="all")] = 40
    """Keep the N hardest constituents of each jet."""
    on_bad: Annotated[Literal["error", "drop"], Shown(metavar="error|drop")] = "error"
    """On a bad jet: stop with an error, or drop and count it."""
    columns: Annotated[Columns, Shown(option="--map", metavar="PRESET|FILE")] = "atlas"
    """Column map of the files of jets and of HLT jets: a preset, or a table (--map: a TOML file)."""
    unit: Annotated[Literal["MeV", "GeV"] | None, Shown(metavar="MeV|GeV", unset="the map's; MeV for atlas")] = None
    """Unit of momenta in the files of jets and of HLT jets."""
    sort: Annotated[bool, Field(strict=True), Shown(kind=bool)] = False
    """Constituents are stored in any order: sort them by falling pT."""
    fractions: Annotated[Shares, Shown(metavar="X X X", kind=tuple[float, float, float])] = (0.70, 0.15, 0.15)
    """Shares of the training, validation and test jets, stratified by label; of parts that share jets, their ratio."""
    seed: Annotated[int, Field(ge=0, lt=2**32), Shown(keyword="data_seed", option="--data-seed")] = 42
    """Seed of the split, the HLT emulation and the teacher."""

    @field_validator("split")
    @classmethod
    def _no_other_split(cls, split: SplitRule | None, info: ValidationInfo) -> SplitRule | None:
        if split is not None and (info.data.get("validation_paths") or info.data.get("test_paths")):
            what = "can't be combined with separate files of validation and test jets"
            raise ConfigError(what, hint="give either the split or the files")
        return split

    @property
    def asks_for_constituents(self) -> bool:
        """Whether max_constituents was given: then it is an error where files store fewer."""
        return self.max_constituents is not None and "max_constituents" in self.model_fields_set

    @property
    def shared(self) -> tuple[str, ...]:
        """The parts (jets.splits.PARTS) that share the jets of DATA, or its training jets, by `fractions`."""
        if self.split is not None:
            return self.split.shared
        own = {"validation": self.validation_paths, "test": self.test_paths}
        return tuple(part for part in PARTS if not own.get(part))


class HLTFiles(SettingsTable):
    """[hlt] of a study without emulation."""

    paths: Annotated[Paths, _files("hlt_data")]
    """Instead of an emulation: files of the same jets, in the same order, as a trigger saw them."""
    validation_paths: Annotated[Paths, _files("hlt_validation_data")] = ()
    """The same of the jets of --validation-data."""
    test_paths: Annotated[Paths, _files("hlt_test_data")] = ()
    """The same of the jets of --test-data."""
