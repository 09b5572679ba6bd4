"""The column map: which columns of a file hold the jets, in which form and unit, and which classes they are of.

A column is named by its path: `fjet_pt` (a dataset, an array), `jets/pt` (a field of a structured dataset, a
dataset of a group, a branch of a tree), `X/0` (the first entry on the last axis of an array), `table/E_*`
(one column a slot).
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationError, model_validator

from kdfast.errors import ConfigError, suggest
from kdfast.files import read_toml
from kdfast.validation import SettingsTable, in_words

__all__ = ["COLUMN_PRESETS", "JET", "ColumnMap", "LabelRule", "column_map", "has_default_names", "is_default"]

# The forms in which constituents can be stored; energies that are missing are computed, for massless
# constituents where there is no mass either. Only for massless ones is the rapidity the same as η.
FORMS = (
    ("pt", "eta", "phi", "energy"),
    ("pt", "eta", "phi", "mass"),
    ("pt", "eta", "phi"),
    ("pt", "rapidity", "phi"),
    ("px", "py", "pz", "energy"),
)
JET = ("pt", "eta", "phi", "mass")


def _as_names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _as_classes(value: Any) -> Any:
    entries = (value,) if isinstance(value, (int, str)) else value
    known = isinstance(entries, (list, tuple)) and all(isinstance(item, (int, str)) for item in entries)
    if not known or len(set(entries)) < len(entries):
        raise ConfigError(f"must be a list of different whole numbers or of columns' names, is {value!r}")
    return entries


class ConstituentColumns(SettingsTable):
    """[constituents]: one of the forms pt, eta, phi, energy; pt, eta, phi, mass; pt, eta, phi; pt, rapidity,
    phi; and px, py, pz, energy."""

    pt: str | None = None
    """Transverse momentum."""
    eta: str | None = None
    """Pseudorapidity."""
    rapidity: str | None = None
    """Rapidity of massless constituents, taken as their η."""
    phi: str | None = None
    """Azimuth, in rad, in any range."""
    energy: str | None = None
    """Energy; computed where it is missing."""
    mass: str | None = None
    """Mass, from which the energy is computed. Without mass and energy, constituents are massless."""
    px: str | None = None
    """Momentum along x."""
    py: str | None = None
    """Momentum along y."""
    pz: str | None = None
    """Momentum along the beam."""
    valid: str | None = None
    """True where a slot holds a constituent. Other slots may contain anything."""

    @model_validator(mode="after")
    def _one_form(self) -> ConstituentColumns:
        if not self.form:
            given = ", ".join(self._given()) or "nothing"
            forms = "; ".join(", ".join(form) for form in FORMS)
            raise ConfigError(f"are given by {given}", hint=f"give exactly: {forms}")
        return self

    def _given(self) -> list[str]:
        return [key for key in type(self).model_fields if key != "valid" and getattr(self, key) is not None]

    @property
    def form(self) -> tuple[str, ...]:
        """The keys that are given, as FORMS has them."""
        given = set(self._given())
        return next((form for form in FORMS if set(form) == given), ())

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in the order of `form`."""
        return tuple(getattr(self, key) for key in self.form)


class JetColumns(SettingsTable):
    """[jet]: the jets themselves. What is missing is computed from all constituents of a jet."""

    pt: str | None = None
    """Transverse momentum."""
    eta: str | None = None
    """Pseudorapidity."""
    phi: str | None = None
    """Azimuth, in rad."""
    mass: str | None = None
    """Mass."""


class LabelRule(SettingsTable):
    """[label]: which jets are signal, and which are background."""

    column: str | None = None
    """A column of whole numbers. Without it, `signal` and `background` name columns of 0 and 1, one for each class."""
    signal: Annotated[tuple[int | str, ...], BeforeValidator(_as_classes)]
    """Values of `column`, or names of columns, of the signal."""
    background: Annotated[tuple[int | str, ...], BeforeValidator(_as_classes)] = ()
    """The same of the background. Empty: all other jets are background."""
    other: Literal["error", "skip"] = "error"
    """Jets of neither: bad jets (error), or not asked for (skip)."""

    @model_validator(mode="after")
    def _one_kind(self) -> LabelRule:
        kind = str if self.column is None else int
        what = "names of columns" if self.column is None else f"values of the column {self.column}"
        for key in ("signal", "background"):
            classes = getattr(self, key)
            if not all(isinstance(item, kind) for item in classes):
                hint = "with label.column, classes are whole numbers; without it, names of columns of 0 and 1"
                raise ConfigError(f"{key} must hold {what}, is {list(classes)}", hint=hint)
        if not self.signal:
            raise ConfigError("signal is empty", hint=f"give {what}")
        both = [item for item in self.signal if item in self.background]
        if both:
            raise ConfigError(f"{both[0]!r} is both signal and background")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that tell the classes."""
        return (self.column,) if self.column else tuple(map(str, (*self.signal, *self.background)))


class ColumnMap(SettingsTable):
    """Which columns of a file hold the jets.

    A TOML file with these keys and tables (`kdfast sweep --map FILE`), the table [data.columns], or a dict.
    With `preset`, it changes a preset: tables merge key by key, but [constituents] is replaced whole.
    """

    constituents: ConstituentColumns
    jet: JetColumns = JetColumns()
    label: LabelRule | None = None
    """None: the files have no labels, and their jets can only be scored."""
    weights: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = ()
    """Event weights: the first of these columns that a file has. None: weight 1."""
    id: str | None = None
    """A whole number that no other jet has: the jets' index, in place of their row."""
    unit: Literal["MeV", "GeV"]
    """Unit of momenta, energies and masses in the file."""
    order: Literal["sorted", "sort"] = "sorted"
    """Constituents are stored by falling pT, which is checked (sorted), or in any order (sort)."""
    padding: Literal["zeros", "nan"] = "zeros"
    """What slots without a constituent contain, where `constituents.valid` does not tell."""

    @property
    def is_packed_form(self) -> bool:
        """Whether constituents are stored as they are packed, and nothing needs to be computed of them."""
        parts = self.constituents
        stored = parts.form == FORMS[0] and parts.valid is None
        complete = all(getattr(self.jet, key) for key in JET)
        return stored and complete and self.order == "sorted" and self.padding == "zeros"

    def changed(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The map as a table, with changes."""
        table = self.model_dump(exclude_none=True)
        for key, value in changes.items():
            merges = key in ("jet", "label") and isinstance(value, Mapping)
            table[key] = {**table.get(key, {}), **value} if merges else value
        return table


_ATLAS = ColumnMap(
    constituents=ConstituentColumns(pt="fjet_clus_pt", eta="fjet_clus_eta", phi="fjet_clus_phi", energy="fjet_clus_E"),
    jet=JetColumns(pt="fjet_pt", eta="fjet_eta", phi="fjet_phi", mass="fjet_m"),
    label=LabelRule(column="labels", signal=(1,), background=(0,)),
    weights=("weights", "training_weights"),  # v1, v2
    unit="MeV",
)

_SALT = ColumnMap(
    constituents=ConstituentColumns(
        pt="consts/pt", eta="consts/eta", phi="consts/phi", energy="consts/energy", valid="consts/valid"
    ),
    jet=JetColumns(pt="jets/pt", eta="jets/eta", mass="jets/mass"),
    label=LabelRule(column="jets/R10TruthLabel_R22v1", signal=(1,), background=(10,), other="skip"),
    unit="MeV",
    order="sort",
)

# The top tagging reference set of Kasieczka, Plehn, Thompson and Russell: a DataFrame with four columns a
# slot.
_TOP_REFERENCE = ColumnMap(
    constituents=ConstituentColumns(px="table/PX_*", py="table/PY_*", pz="table/PZ_*", energy="table/E_*"),
    label=LabelRule(column="table/is_signal_new", signal=(1,), background=(0,)),
    unit="GeV",
    order="sort",  # sorted by pT, but for its rounding
)

# Particles (pt, y, phi, PDG id) of quark and gluon jets: massless, so that their rapidity y is η.
_ENERGYFLOW = ColumnMap(
    constituents=ConstituentColumns(pt="X/0", rapidity="X/1", phi="X/2"),
    label=LabelRule(column="y", signal=(1,), background=(0,)),  # quarks, gluons
    unit="GeV",
    order="sort",
)

# JetClass has ten classes; a map with this preset chooses others.
_JETCLASS = ColumnMap(
    constituents=ConstituentColumns(px="tree/part_px", py="tree/part_py", pz="tree/part_pz", energy="tree/part_energy"),
    jet=JetColumns(pt="tree/jet_pt", eta="tree/jet_eta", phi="tree/jet_phi"),
    label=LabelRule(signal=("tree/label_Tbqq",), background=("tree/label_QCD",), other="skip"),
    unit="GeV",
    order="sort",
)

COLUMN_PRESETS: dict[str, ColumnMap] = {
    "atlas": _ATLAS,
    "energyflow": _ENERGYFLOW,
    "jetclass": _JETCLASS,
    "salt": _SALT,
    "top-reference": _TOP_REFERENCE,
}


def is_default(columns: str | ColumnMap | None) -> bool:
    """Whether this is the layout of the ATLAS Top Tagging Open Data."""
    return columns is None or columns in ("atlas", _ATLAS)


def has_default_names(columns: ColumnMap) -> bool:
    """Whether the columns are those of the ATLAS layout, in whatever order and unit."""
    return columns.model_copy(update={"order": _ATLAS.order, "unit": _ATLAS.unit}) == _ATLAS


def column_map(value: Any) -> ColumnMap:
    """A preset's name, a TOML file, a table or a map, as a map; None: the preset atlas. Raises ConfigError."""
    if value is None:
        return _ATLAS
    if isinstance(value, ColumnMap):
        return value
    if isinstance(value, str) and value in COLUMN_PRESETS:
        return COLUMN_PRESETS[value]
    if isinstance(value, (str, PathLike)):
        path = fspath(value)
        if not path.endswith(".toml"):
            hint = f"{suggest(path, list(COLUMN_PRESETS))}; or name a file FILE.toml"
            raise ConfigError(f"unknown column map {path!r}", hint=hint)
        try:
            return _validated(read_toml(Path(path)))
        except ConfigError as error:
            where = path if error.where in (None, path) else f"{path}, {error.where}"
            raise ConfigError(error.what, where=where, hint=error.hint) from None
    if isinstance(value, Mapping):
        return _validated(value)
    hint = f"presets: {', '.join(COLUMN_PRESETS)}"
    raise ConfigError(f"must be a preset's name, a TOML file or a table, is {type(value).__name__}", hint=hint)


def _validated(table: Mapping[str, Any]) -> ColumnMap:
    table = dict(table)
    preset = table.pop("preset", None)
    if preset is not None:
        if preset not in COLUMN_PRESETS:
            hint = suggest(str(preset), list(COLUMN_PRESETS))
            raise ConfigError(f"unknown preset {preset!r}", where="preset", hint=hint)
        table = COLUMN_PRESETS[preset].changed(table)
    try:
        return ColumnMap.model_validate(table)
    except ValidationError as error:
        path, fault = in_words(error, ColumnMap)
        raise ConfigError(fault.what, where=".".join(path) or None, hint=fault.hint) from None
