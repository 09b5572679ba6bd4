"""A CSV with a row a run: its name or T and α, the student's AUC and its background rejection.

Unlike a log, which many jobs and faults have written at, a table is right or refused: a cell that is no number or a row
of another length is an error with its line. Columns that are not known are named and passed over.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdfast.errors import ConfigError, DataError
from kdfast.report.importers.found import Found, Measured, Notes, Numbers, Place, configuration, measured

__all__ = ["columns_of", "read_csv"]

# Our name of a column → how others write it, in small letters and with _ for anything else.
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
    "best_epoch": ("best_epoch",),
    "epochs": ("epochs",),
    "auc_baseline": ("auc_baseline", "baseline_auc"),
    "auc_teacher": ("auc_teacher", "teacher_auc"),
    "status": ("status",),
}
_BY_ALIAS = {alias: name for name, aliases in _NAMES.items() for alias in aliases}
_WHOLE = ("seed", "n_bkg_50", "best_epoch", "epochs")
_MORE = ("bkg_rej_30", "bkg_rej_80", "n_bkg_50", "auc_val", "bkg_rej_50_val", "best_epoch", "epochs")


def columns_of(header: str) -> tuple[str, dict[str, int]]:
    """The delimiter of a first line and the places of the columns that are known, by our names."""
    best: tuple[str, dict[str, int]] = (",", {})
    for delimiter in (",", ";", "\t"):
        known: dict[str, int] = {}
        for place, cell in enumerate(next(csv.reader([header], delimiter=delimiter), [])):
            if name := _BY_ALIAS.get(_plain(cell)):
                known.setdefault(name, place)
        if len(known) > len(best[1]):
            best = delimiter, known
    return best


def _plain(cell: str) -> str:
    return re.sub(r"\W+", "_", cell.strip().lower()).strip("_")


def read_csv(path: Path, lines: Iterable[tuple[int, str]], notes: Notes) -> Iterator[Found]:
    """The runs of one table. Raises DataError that names file and line."""
    lines = iter(lines)
    number, header = next(((n, text) for n, text in lines if text.strip()), (1, ""))
    delimiter, columns = columns_of(header)
    heads = next(csv.reader([header], delimiter=delimiter), [])
    _check_columns(columns, heads, Place(path, number), notes)
    for number, text in lines:
        if not text.strip():
            continue
        place = Place(path, number)
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
    unknown = [head for position, head in enumerate(heads) if position not in columns.values()]
    if unknown:
        notes.add(place, f"columns that are not known are passed over: {', '.join(map(repr, unknown))}")


def _run(cells: dict[str, str], place: Place, notes: Notes) -> Found | None:
    def number(name: str) -> float | None:
        text = cells.get(name, "")
        if not text or (name.endswith("_final") and text.lower() in ("constant", "none", "nan")):
            return None
        try:
            value = float(text)
        except ValueError:
            raise DataError(f"{name} must be a number, is {text!r}", where=str(place)) from None
        if name in _WHOLE and value != int(value if math.isfinite(value) else -1):
            raise DataError(f"{name} must be a whole number, is {text!r}", where=str(place))
        return int(value) if name in _WHOLE else value

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
    metrics |= {name: value for name in more if (value := number(name)) is not None and math.isfinite(value)}
    others = {
        kind: Measured({"auc": value}, place)
        for kind in ("teacher", "baseline")
        if (value := number(f"auc_{kind}")) is not None and 0.0 <= value <= 1.0
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
