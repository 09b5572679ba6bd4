"""A CSV with a row for each run: its name or T and α, the student's AUC and its background rejection.

Unlike a log, a table is right or refused: a wrong cell, or a row of another length, is an error with its
line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator

from kdfast.distill.recipe import AXES
from kdfast.errors import DataError
from kdfast.importers.found import Found, Line, Notes, Numbers, Place, configuration, measured
from kdfast.store.table import axis_column

__all__ = ["columns_of", "read_csv"]

_Area = Annotated[float, Field(ge=0, le=1)]
_Rejection = Annotated[float, Field(ge=1, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Metrics(BaseModel):
    """Further metrics of a student, by the names of StoredResult."""

    bkg_rej_30: _Rejection | None = None
    bkg_rej_80: _Rejection | None = None
    n_bkg_30: _Count | None = None
    n_bkg_50: _Count | None = None
    n_bkg_80: _Count | None = None
    auc_val: _Area | None = None
    bkg_rej_30_val: _Rejection | None = None
    bkg_rej_50_val: _Rejection | None = None
    bkg_rej_80_val: _Rejection | None = None
    n_bkg_30_val: _Count | None = None
    n_bkg_50_val: _Count | None = None
    n_bkg_80_val: _Count | None = None
    best_epoch: _Count | None = None
    epochs: _Count | None = None


class _Row(_Metrics):
    """One row. RunConfig checks T and α; `measured` checks AUC and rejection, which are NaN if it diverged."""

    run_name: str | None = None
    strategy: str | None = None
    temp_init: float | None = None
    temp_final: float | None = None
    alpha_init: float | None = None
    alpha_final: float | None = None
    seed: _Count | None = None
    status: str | None = None
    auc: float | None
    bkg_rej_50: float | None
    auc_baseline: _Area | None = None
    auc_teacher: _Area | None = None
    flag_30: str | None = None  # follows from n_bkg_30, and so do the others
    flag_50: str | None = None
    flag_80: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _missing_is_none(cls, cell: str, info: ValidationInfo) -> str | None:
        needed = info.field_name in ("auc", "bkg_rej_50", "seed", "temp_init", "alpha_init")
        return None if cell == "" or (not needed and cell.lower() in ("nan", "none", "constant")) else cell


# Other names of columns, in small letters and with _ for anything else. Where a table has several, the first
# counts.
_OTHER_NAMES = {
    "run_name": ("run_name", "run", "name", "config", "configuration"),
    "temp_init": ("temp_init", "temperature_init", "t_init", "temperature", "temp", "t"),
    "temp_final": ("temp_final", "temperature_final", "t_final"),
    "alpha_init": ("alpha_init", "alpha_kd_init", "a_init", "alpha", "alpha_kd", "a", "α", "α_init"),
    "alpha_final": ("alpha_final", "alpha_kd_final", "a_final", "α_final"),
    "auc": ("auc_student", "student_auc", "auc"),
    "bkg_rej_50": ("bkg_rej_50", "background_rejection_50", "background_rejection", "bkg_rejection", "rejection",
                   "rejection_50", "bkg_rej"),
    "bkg_rej_30": ("bkg_rej_30", "background_rejection_30"),
    "bkg_rej_80": ("bkg_rej_80", "background_rejection_80"),
    "auc_val": ("auc_val", "val_auc", "auc_validation"),
    "auc_baseline": ("auc_baseline", "baseline_auc"),
    "auc_teacher": ("auc_teacher", "teacher_auc"),
}  # fmt: skip


def columns_of(header: str) -> tuple[str, dict[str, int]]:
    """The delimiter of a first line, and the place of each known column by our name for it."""
    best: tuple[str, dict[str, int]] = (",", {})
    for delimiter in (",", ";", "\t"):
        cells = next(csv.reader([header], delimiter=delimiter), [])
        plain = [re.sub(r"\W+", "_", cell.strip().lower()).strip("_") for cell in cells]
        columns = {}
        for field in _Row.model_fields:
            present = [name for name in _OTHER_NAMES.get(field, (field,)) if name in plain]
            if present:
                columns[field] = plain.index(present[0])
        if len(columns) > len(best[1]):
            best = delimiter, columns
    return best


def read_csv(path: Path, lines: Iterable[Line], notes: Notes) -> Iterator[Found]:
    """The networks of one table. Raises DataError that names file and line."""
    lines = (line for line in lines if line.text.strip())
    number, header, _ = next(lines, Line(1, ""))
    delimiter, columns = columns_of(header)
    heads = next(csv.reader([header], delimiter=delimiter), [])
    _check_columns(columns, heads, Place(path, number), notes)
    for number, text, whole in lines:
        place = Place(path, number)
        if not whole:
            notes.add(place, "the table's last line has no end: its last number may be cut short")
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"can't be read as CSV ({error})", where=str(place)) from None
        if len(cells) != len(heads):
            hint = "the row is cut short or has a delimiter too many: correct or remove it"
            raise DataError(f"has {len(cells)} cells, the header has {len(heads)}", where=str(place), hint=hint)
        yield from _networks({name: cells[column].strip() for name, column in columns.items()}, place, notes)


def _check_columns(columns: dict[str, int], heads: list[str], place: Place, notes: Notes) -> None:
    missing = [name for name in ("auc", "bkg_rej_50") if name not in columns]
    if "run_name" not in columns and not columns.keys() >= {"temp_init", "alpha_init"}:
        missing.insert(0, "run_name (or temp_init and alpha_init)")
    if missing:
        hint = f"its columns are {', '.join(heads)}; it needs a run's name or T and α, AUC, rejection"
        raise DataError(f"has no column {', '.join(missing)}", where=str(place), hint=hint)
    in_names = {axis_column(name) for name in AXES} if "run_name" in columns else set()
    unused = [
        repr(head) for position, head in enumerate(heads) if position not in columns.values() and head not in in_names
    ]
    if unused:
        notes.add(place, f"columns that are not used: {', '.join(unused)}")


def _networks(cells: dict[str, str], place: Place, notes: Notes) -> Iterator[Found]:
    """Student, baseline and teacher of one row."""
    row = _checked(cells, place)
    numbers = None
    if row.temp_init is not None and row.alpha_init is not None:
        numbers = Numbers(row.temp_init, row.temp_final, row.alpha_init, row.alpha_final)
    metrics: dict[str, float] = {}
    config = configuration(row.run_name, numbers, place, notes)
    if row.strategy and row.strategy != config.strategy:
        what = f"the strategy is {row.strategy!r}, but T and α are those of {config.strategy!r}"
        raise DataError(what, where=str(place), hint="correct or remove the row")
    if row.status == "diverged":
        diverged = "the table says so"
    elif row.auc is None or row.bkg_rej_50 is None:
        notes.add(place, f"the {'AUC' if row.auc is None else 'background rejection'} is missing: the row is left out")
        return
    else:
        metrics, diverged = measured(row.auc, row.bkg_rej_50, place)
    names = {"epochs"} if diverged else set(_Metrics.model_fields)
    metrics |= row.model_dump(include=names, exclude_none=True)
    yield Found("student", place, metrics, config, row.seed, diverged)
    for kind, auc in (("baseline", row.auc_baseline), ("teacher", row.auc_teacher)):
        if auc is not None:
            yield Found(kind, place, {"auc": auc}, config.baseline if kind == "baseline" else None, row.seed)


def _checked(cells: dict[str, str], place: Place) -> _Row:
    try:
        return _Row.model_validate(cells)
    except ValidationError as error:
        fault = error.errors()[0]
        message = f"{fault['msg'][0].lower()}{fault['msg'][1:]}, is {fault['input']!r}"
        where = f"{place}, {fault['loc'][0]}"
        raise DataError(message, where=where, hint="correct or remove the row") from None
