"""A CSV with a row a run: its name or T and α, the student's AUC and its background rejection.

Unlike a log, which many jobs and faults have written at, a table is right or refused: a cell that is no number or a row
of another length is an error with its line. Columns that are not known are named and passed over.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdfast.errors import ConfigError, DataError
from kdfast.importers.found import Found, Measured, Notes, Numbers, Place, configuration, measured
from kdfast.importers.lines import Line

__all__ = ["columns_of", "read_csv"]

# Our name of a column → how others write it, in small letters and with _ for anything else. Where several are there,
# the first in this order counts.
_NAMES = {
    "run_name": ("run_name", "run", "name", "config", "configuration"),
    "strategy": ("strategy",),
    "temp_init": ("temp_init", "temperature_init", "t_init", "temperature", "temp", "t"),
    "temp_final": ("temp_final", "temperature_final", "t_final"),
    "alpha_init": ("alpha_init", "alpha_kd_init", "a_init", "alpha", "alpha_kd", "a", "α", "α_init"),
    "alpha_final": ("alpha_final", "alpha_kd_final", "a_final", "α_final"),
    "seed": ("seed",),
    "auc": ("auc_student", "student_auc", "auc"),
    "bkg_rej_50": (
        "bkg_rej_50",
        "background_rejection_50",
        "background_rejection",
        "bkg_rejection",
        "rejection",
        "rejection_50",
        "bkg_rej",
    ),
    "bkg_rej_30": ("bkg_rej_30", "background_rejection_30"),
    "bkg_rej_80": ("bkg_rej_80", "background_rejection_80"),
    "n_bkg_50": ("n_bkg_50",),
    "auc_val": ("auc_val", "val_auc", "auc_validation"),
    "bkg_rej_50_val": ("bkg_rej_50_val",),
    "n_bkg_50_val": ("n_bkg_50_val",),
    "best_epoch": ("best_epoch",),
    "epochs": ("epochs",),
    "auc_baseline": ("auc_baseline", "baseline_auc"),
    "auc_teacher": ("auc_teacher", "teacher_auc"),
    "status": ("status",),
}
_BY_ALIAS = {alias: (name, place) for name, aliases in _NAMES.items() for place, alias in enumerate(aliases)}
_DIGITS = re.compile(r"[-+]?[0-9]{1,30}")  # more are no count, and float reads them
_WHOLE = ("seed", "n_bkg_50", "n_bkg_50_val", "best_epoch", "epochs")
_MORE = ("bkg_rej_30", "bkg_rej_80", "n_bkg_50", "auc_val", "bkg_rej_50_val", "n_bkg_50_val", "best_epoch", "epochs")
# Least and largest value. (RunConfig knows those of T and α, `measured` those of the test results.)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_WHOLE, (0, 2**63 - 1)),
    **dict.fromkeys(("auc_val", "auc_baseline", "auc_teacher"), (0.0, 1.0)),
    **dict.fromkeys(("bkg_rej_30", "bkg_rej_80", "bkg_rej_50_val"), (1.0, sys.float_info.max)),
}


def columns_of(header: str) -> tuple[str, dict[str, int]]:
    """The delimiter of a first line and the places of the columns that are known, by our names."""
    best: tuple[str, dict[str, int]] = (",", {})
    for delimiter in (",", ";", "\t"):
        found: dict[str, tuple[int, int]] = {}  # place of the alias in _NAMES, place of the column
        for place, cell in enumerate(next(csv.reader([header], delimiter=delimiter), [])):
            if alias := _BY_ALIAS.get(_plain(cell)):
                name, preference = alias
                found[name] = min(found.get(name, (preference, place)), (preference, place))
        if len(found) > len(best[1]):
            best = delimiter, {name: place for name, (_, place) in found.items()}
    return best


def _plain(cell: str) -> str:
    return re.sub(r"\W+", "_", cell.strip().lower()).strip("_")


def read_csv(path: Path, lines: Iterable[Line], notes: Notes) -> Iterator[Found]:
    """The runs of one table. Raises DataError that names file and line."""
    lines = iter(lines)
    number, header, _ = next((line for line in lines if line.text.strip()), Line(1, ""))
    delimiter, columns = columns_of(header)
    heads = next(csv.reader([header], delimiter=delimiter), [])
    _check_columns(columns, heads, Place(path, number), notes)
    for number, text, whole in lines:
        if not text.strip():
            continue
        place = Place(path, number)
        if not whole:
            notes.add(place, "the table's last line has no end: if it was cut short, its last number is wrong")
        try:
            cells = next(csv.reader([text], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise DataError(f"can't be read as CSV ({error})", where=str(place)) from None
        if len(cells) != len(heads):
            hint = "the row is cut short or has a delimiter too many: mend or remove it"
            raise DataError(f"has {len(cells)} cells, the header has {len(heads)}", where=str(place), hint=hint)
        found = _run({name: cells[column].strip() for name, column in columns.items()}, place, notes)
        if found is not None:
            yield found


def _check_columns(columns: dict[str, int], heads: list[str], place: Place, notes: Notes) -> None:
    named = "run_name" in columns or columns.keys() >= {"temp_init", "alpha_init"}
    missing = [] if named else ["run_name (or temp_init and alpha_init)"]
    if missing := missing + [name for name in ("auc", "bkg_rej_50") if name not in columns]:
        hint = (
            f"it has {', '.join(heads)}; needed: a run's name or T and α, the student's AUC, its background rejection"
        )
        raise DataError(f"has no column {', '.join(missing)}", where=str(place), hint=hint)
    unknown = []
    for head in (head for position, head in enumerate(heads) if position not in columns.values()):
        if alias := _BY_ALIAS.get(_plain(head)):
            used = heads[columns[alias[0]]]
            notes.add(place, f"the column {head!r} also holds {alias[0]}: passed over, {used!r} counts")
        else:
            unknown.append(head)
    if unknown:
        notes.add(place, f"columns that are not known are passed over: {', '.join(map(repr, unknown))}")


def _run(cells: dict[str, str], place: Place, notes: Notes) -> Found | None:
    def number(name: str) -> float | None:
        text = cells.get(name, "")
        if not text or (name.endswith("_final") and text.lower() in ("constant", "none", "nan")):
            return None
        value: float
        try:
            value = int(text) if name in _WHOLE and _DIGITS.fullmatch(text) else float(text)
        except ValueError:
            raise DataError(f"{name} must be a number, is {text!r}", where=str(place)) from None
        if name in _WHOLE:
            if not math.isfinite(value) or value != int(value):
                raise DataError(f"{name} must be a whole number, is {text!r}", where=str(place))
            value = int(value)
        if name in _RANGES and not (math.isnan(value) or _RANGES[name][0] <= value <= _RANGES[name][1]):
            hint = "mend or remove the row"
            raise DataError(f"{name} is {value}, which it can't be", where=str(place), hint=hint)
        return value

    t, t_final, a, a_final = (number(name) for name in Numbers._fields)
    numbers = None if t is None or a is None else Numbers(t, t_final, a, a_final)
    auc, rejection = number("auc"), number("bkg_rej_50")
    metrics: dict[str, float] = {}
    try:
        config, consistent = configuration(cells.get("run_name") or None, numbers, place, notes)
        if cells.get("status") == "diverged":
            message = "the table says so"
        elif auc is None or rejection is None:
            notes.add(place, f"the {'AUC' if auc is None else 'background rejection'} is missing: the row is left out")
            return None
        else:
            metrics, message = measured(auc, rejection)
    except ConfigError as error:
        where = f"{place}, {error.where}" if error.where else str(place)
        raise DataError(error.what, where=where) from None
    except ValueError as error:
        raise DataError(str(error), where=str(place), hint="mend or remove the row") from None
    if (strategy := cells.get("strategy")) and strategy != config.strategy:
        notes.add(
            place, f"the strategy is {strategy!r} by its column, {config.strategy!r} by T and α; kept: the latter"
        )
    more = ("epochs",) if message else _MORE  # of a diverged run nothing else is known
    metrics |= {name: value for name in more if (value := number(name)) is not None and not math.isnan(value)}
    others = {
        kind: Measured({"auc": value}, place)
        for kind in ("teacher", "baseline")
        if (value := number(f"auc_{kind}")) is not None and not math.isnan(value)
    }
    seed = number("seed")
    return Found(
        source="table",
        config=config,
        place=place,
        consistent=consistent,
        seed=None if seed is None else int(seed),
        metrics=metrics,
        status="diverged" if message else "done",
        message=message,
        others=others,
    )
