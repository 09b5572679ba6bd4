"""The run log of a job, transformer_<job id>.out: free text with a banner, progress, and result lines at the end.

One pass, line by line. A line that says which job or run this is, for the second time, begins another run: requeued
jobs append to their log. Older logs have no banner; there the command line and the folder of the results name the run.
A line without its end does not count: of `Student:  12.62` a killed job may have written `Student:  1`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdfast.errors import ConfigError, DataError
from kdfast.importers.found import Found, Measured, Notes, Numbers, Place, configuration, measured
from kdfast.importers.lines import NUMBER, Line

__all__ = ["read_run_log"]

_KIND = r"(teacher|baseline|student)"
_BANNER = {"Temperature Init": "temp_init", "Alpha Init": "alpha_init"}
_BANNER |= {"Temperature Final": "temp_final", "Alpha Final": "alpha_final"}

# Lines that matter begin, after blanks, with one of these; all others are passed over quickly.
_CANDIDATE = re.compile(
    r"\s*(?:Job ID:|Run Name:|Temperature |Alpha |python |Save dir:|STEP |Ep |Early |FINAL |Background |"
    r"Teacher|Baseline|Student|Skipped |Saved |Training (?:comp|fail))"
)


@dataclass
class _Record:
    """What one run's lines have said so far."""

    place: Place
    identity: dict[str, str] = field(default_factory=dict)  # Job ID, Run Name, Save dir
    banner: dict[str, str] = field(default_factory=dict)
    command: str = ""
    section: str = ""  # teacher, baseline, student; rejection; or none of them
    auc: dict[str, tuple[float, int]] = field(default_factory=dict)  # value and line, by kind
    rejection: dict[str, tuple[float, int]] = field(default_factory=dict)
    auc_val: dict[str, float] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)
    curves: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)  # loss, AUC by epoch
    failed: str = ""


def read_run_log(path: Path, lines: Iterable[Line], notes: Notes) -> Iterator[Found]:
    """The runs of one log. A run whose results are not there (a killed job) is noted and left out. Raises DataError
    for a text without a line of a run log."""
    record = _Record(Place(path, 1))
    found_any, last, whole = False, 1, True
    for last, text, whole in lines:
        if not _CANDIDATE.match(text):
            continue
        if (identity := _IDENTITY.match(text)) and identity[1] in record.identity:
            yield from _finish(record, last, notes)
            record = _Record(Place(path, last))
        for pattern, take in _LINES:
            if match := pattern.match(text):
                if whole or take is _end:
                    take(record, match, last, notes)
                found_any = True
                break
    if not found_any:
        hint = "give run logs (.out), hyperparameter_search_results.txt, or a CSV"
        raise DataError(
            f"is no run log of the study: none of its {last:,} lines is known", where=f"{path}, line 1", hint=hint
        )
    yield from _finish(record, last, notes, whole)


# ---- lines


def _identity(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.identity[match[1]] = match[2].strip()


def _banner(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.banner[_BANNER[match[1]]] = match[2]


def _command(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.command = match[0]


def _step(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.section = match[1].lower()


def _final(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.section = ""


def _epoch(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    if record.section not in ("teacher", "baseline", "student"):
        return  # before the first step: nobody knows whose it is
    record.curves.setdefault(record.section, {})[int(match[1])] = float(match[2]), float(match[3])
    record.auc_val[record.section] = float(match[4])


def _early(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.epochs[match[1].lower()] = int(match[2])


def _kept(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.auc_val[match[1]] = float(match[2])


def _auc(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    _result(record, record.auc, "AUC", match[1].lower(), float(match[2]), line, notes)


def _rejections(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.section = "rejection"


def _rejection(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    if record.section == "rejection":
        _result(record, record.rejection, "rejection", match[1].lower(), float(match[2]), line, notes)


def _result(
    record: _Record,
    results: dict[str, tuple[float, int]],
    what: str,
    kind: str,
    value: float,
    line: int,
    notes: Notes,
) -> None:
    if kind in results and results[kind][0] != value:
        old, where = results[kind]
        text = f"the {what} of the {kind} is given again: {value}, on line {where} {old}; kept: the last"
        notes.add(Place(record.place.path, line), text)
    results[kind] = value, line


def _end(record: _Record, match: re.Match[str], line: int, notes: Notes) -> None:
    record.failed = match[1] or ""


_IDENTITY = re.compile(r"\s*(Job ID|Run Name|Save dir): (.+)")
_Take = Callable[[_Record, "re.Match[str]", int, Notes], None]
_LINES: tuple[tuple[re.Pattern[str], _Take], ...] = tuple(
    (re.compile(pattern), take)
    for pattern, take in (
        (_IDENTITY.pattern, _identity),
        (rf"\s*({'|'.join(_BANNER)}): +({NUMBER}|constant)", _banner),
        (r"\s*python .*--", _command),
        (r"\s*STEP \d+: (TEACHER|BASELINE|STUDENT)\b", _step),
        (r"\s*FINAL TEST EVALUATION", _final),
        (rf"\s*Ep +(\d{{1,5}}): loss={NUMBER}, val_auc={NUMBER}, best={NUMBER}", _epoch),
        (rf"\s*Early stopping {_KIND} at epoch (\d{{1,5}})\b", _early),
        (rf"\s*(?:Skipped saving|Saved) {_KIND} model .*\(best val AUC={NUMBER}\)", _kept),
        (rf"\s*(Teacher) \(Offline\) +{NUMBER}\s*$", _auc),
        (rf"\s*(Baseline) HLT \(no KD\) +{NUMBER}\s*$", _auc),
        (rf"\s*(Student) with KD +{NUMBER}\s*$", _auc),
        (r"\s*Background Rejection at 50% signal efficiency:", _rejections),
        (rf"\s*(Teacher|Baseline|Student): +{NUMBER}\s*$", _rejection),
        (r"\s*Training completed successfully()", _end),
        (r"\s*Training (failed with exit code: \S+)", _end),
    )
)


# ---- a whole run


def _finish(record: _Record, last: int, notes: Notes, whole: bool = True) -> Iterator[Found]:
    """last: its last line. whole: that has an end."""
    path = record.place.path
    end = Place(path, last)
    if "student" not in record.auc or "student" not in record.rejection:
        what = "AUC" if "student" not in record.auc else "background rejection"
        stops = "the log ends here" if whole else "the log ends inside this line"
        why = f"training {record.failed}" if record.failed else stops
        notes.add(end, f"the run has no student's {what} ({why}): left out")
        return
    try:
        config, consistent = configuration(_name(record), _numbers(record), record.place, notes)
        metrics, message = measured(record.auc["student"][0], record.rejection["student"][0])
    except (ConfigError, ValueError) as error:
        what = f"{error.where}: {error.what}" if isinstance(error, ConfigError) and error.where else str(error)
        notes.add(record.place, f"{what}: the run is left out")
        return
    if record.failed:
        notes.add(end, f"training {record.failed}, after the results were written: they are kept")
    known = _validation(record, "student")
    if message:
        known.pop("auc_val", None)
    yield Found(
        source="log",
        config=config,
        place=Place(path, record.auc["student"][1]),
        consistent=consistent,
        metrics=metrics | known,
        status="diverged" if message else "done",
        message=message,
        others=dict(_others(record, notes)),
        curves={kind: _curve(points) for kind, points in record.curves.items()},
    )


def _others(record: _Record, notes: Notes) -> Iterator[tuple[str, Measured]]:
    for kind in ("teacher", "baseline"):
        if kind not in record.auc or kind not in record.rejection:
            continue
        place = Place(record.place.path, record.auc[kind][1])
        try:
            metrics, message = measured(record.auc[kind][0], record.rejection[kind][0])
        except ValueError as error:
            metrics, message = {}, str(error)
        if metrics:
            yield kind, Measured(metrics | _validation(record, kind), place)
        else:
            notes.add(place, f"{message}: the {kind} is left out")


def _validation(record: _Record, kind: str) -> dict[str, float]:
    """What is known of the kept epoch and of the number of epochs."""
    numbers: dict[str, float] = {}
    if 0.0 <= record.auc_val.get(kind, -1.0) <= 1.0:
        numbers["auc_val"] = record.auc_val[kind]
    if kind in record.epochs:
        numbers["epochs"] = record.epochs[kind]
    return numbers


def _curve(points: dict[int, tuple[float, float]]) -> dict[str, list[float]]:
    epochs = sorted(points)
    return {
        "epoch": [float(epoch) for epoch in epochs],
        "loss": [points[epoch][0] for epoch in epochs],
        "auc_val": [points[epoch][1] for epoch in epochs],
    }


def _name(record: _Record) -> str | None:
    if name := record.identity.get("Run Name"):
        return name
    if option := _option(record.command, "run_name"):
        return option
    folder = record.identity.get("Save dir")
    return folder.rstrip("/").rpartition("/")[2] if folder else None


def _numbers(record: _Record) -> Numbers | None:
    """From the banner; what it lacks from the command line, which says what the training was given and leaves out what
    is constant. None where neither gives them all."""
    banner = {key: None if text == "constant" else float(text) for key, text in record.banner.items()}
    options = {key: _option(record.command, key) for key in Numbers._fields}
    command = {key: float(text) for key, text in options.items() if text and re.fullmatch(NUMBER, text)}
    given = command | banner
    if not command and len(given) < len(Numbers._fields):
        return None  # a final value that is lost is not one that is constant
    t, t_final, a, a_final = (given.get(key) for key in Numbers._fields)
    return None if t is None or a is None else Numbers(t, t_final, a, a_final)


def _option(command: str, name: str) -> str | None:
    found = re.search(rf"--{name}[ =](\S+)", command)
    return found[1] if found else None
