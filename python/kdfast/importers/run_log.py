"""The run log of a job, transformer_<job id>.out: free text with a banner, progress, and results at the end.

One pass, line by line. A second job ID, run name or folder begins another run: requeued jobs append to their
log. Older logs have no banner; there the command line and the folder of the results name the run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from kdfast.errors import DataError
from kdfast.importers.found import KNOWN_FILES, NUMBER, Found, Line, Notes, Numbers, Place, configuration, measured

__all__ = ["read_run_log"]

_BANNER = {
    "Temperature Init": "temp_init",
    "Temperature Final": "temp_final",
    "Alpha Init": "alpha_init",
    "Alpha Final": "alpha_final",
}
_KIND = r"(teacher|baseline|student)"
_LINES = {
    "identity": r"(Job ID|Run Name|Save dir): (.+)",
    "banner": rf"({'|'.join(_BANNER)}): +(?:{NUMBER}|constant)",
    "command": r"(python .*--.*)",
    "step": r"STEP \d+: (TEACHER|BASELINE|STUDENT)\b",
    "final": r"FINAL TEST EVALUATION",
    "epoch": rf"Ep +(\d{{1,5}}): loss={NUMBER}, val_auc={NUMBER}, best={NUMBER}",
    "early": rf"Early stopping {_KIND} at epoch (\d{{1,5}})\b",
    "kept": rf"(?:Skipped saving|Saved) {_KIND} model .*\(best val AUC={NUMBER}\)",
    "auc": rf"(Teacher|Baseline|Student) (?:\(Offline\)|HLT \(no KD\)|with KD) +{NUMBER}\s*$",
    "rejections": r"Background Rejection at 50% signal efficiency:",
    "rejection": rf"(Teacher|Baseline|Student): +{NUMBER}\s*$",
    "end": r"Training (completed successfully|failed with exit code: \S+)",
}
_LINE = re.compile(r"\s*(?:" + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _LINES.items()) + ")")


@dataclass
class _Run:
    """What the lines of one run have said so far. Dictionaries of networks are keyed by their kind."""

    place: Place  # of its first line
    identity: dict[str, str] = field(default_factory=dict)  # Job ID, Run Name, Save dir
    banner: dict[str, float | None] = field(default_factory=dict)
    command: str = ""
    section: str = ""  # teacher, baseline, student; rejection; or none of them
    auc: dict[str, float] = field(default_factory=dict)
    rejection: dict[str, float] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)  # of the AUC
    validation: dict[str, dict[str, float]] = field(default_factory=dict)  # auc_val, epochs
    curves: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)  # loss and AUC of each epoch
    end: str = ""


def read_run_log(path: Path, lines: Iterable[Line], notes: Notes) -> Iterator[Found]:
    """The networks of one log's runs. A run without results (of a killed job) is left out with a warning.

    Raises DataError for a text without a line of a run log.
    """
    run = _Run(Place(path, 1))
    number = 1
    whole = True
    known = False
    for number, text, whole in lines:
        match = _LINE.match(text)
        if match is None or match.lastgroup is None:
            continue
        known = True
        _, *values = (value for value in match.groups() if value is not None)
        if match.lastgroup == "identity" and values[0] in run.identity:
            yield from _networks(run, number, notes)
            run = _Run(Place(path, number))
        if whole or match.lastgroup == "end":  # `Student:  1` may have been going to be `Student:  12.62`
            _take(run, match.lastgroup, values, Place(path, number), notes)
    if not known:
        what = f"is no run log of the study: none of its {number:,} lines is known"
        raise DataError(what, where=f"{path}, line 1", hint=KNOWN_FILES)
    yield from _networks(run, number, notes)


def _take(run: _Run, what: str, values: list[str], place: Place, notes: Notes) -> None:
    """Notes what one line says. values: the groups of its pattern in _LINES."""
    kind = values[0].lower() if values else ""
    match what:
        case "identity":
            run.identity[values[0]] = values[1].strip()
        case "banner":
            run.banner[_BANNER[values[0]]] = float(values[1]) if values[1:] else None
        case "command":
            run.command = values[0]
        case "step":
            run.section = kind
        case "final":
            run.section = ""
        case "epoch" if run.section in ("teacher", "baseline", "student"):
            epoch, loss, auc, best = int(values[0]), *map(float, values[1:])
            run.curves.setdefault(run.section, {})[epoch] = loss, auc
            run.validation.setdefault(run.section, {})["auc_val"] = best
        case "early":
            run.validation.setdefault(kind, {})["epochs"] = int(values[1])
        case "kept":
            run.validation.setdefault(kind, {})["auc_val"] = float(values[1])
        case "auc":
            _result(run.auc, "AUC", kind, float(values[1]), place, notes)
            run.places[kind] = place
        case "rejections":
            run.section = "rejection"
        case "rejection" if run.section == "rejection":
            _result(run.rejection, "rejection", kind, float(values[1]), place, notes)
        case "end":
            run.end = values[0]


def _result(results: dict[str, float], what: str, kind: str, value: float, place: Place, notes: Notes) -> None:
    if kind in results and results[kind] != value:
        change = f"{value}, before {results[kind]}"
        notes.add(place, f"the {what} of the {kind} is given again: {change}; the last one counts")
    results[kind] = value


def _networks(run: _Run, last: int, notes: Notes) -> Iterator[Found]:
    """Student, baseline and teacher of a run that ends with the line `last`."""
    end = Place(run.place.path, last)
    failed = f"training {run.end}" if run.end.startswith("failed") else ""
    for results, what in ((run.auc, "AUC"), (run.rejection, "background rejection")):
        if "student" not in results:
            notes.add(end, f"the run has no {what} of the student ({failed or 'the log ends here'}): left out")
            return
    if failed:
        notes.add(end, f"{failed}, after the results were written: they are kept")
    for kind in ("student", "baseline", "teacher"):
        if kind not in run.auc or kind not in run.rejection:
            continue
        try:
            network = _network(run, kind)
            if kind == "student":
                yield replace(network, config=configuration(_name(run), _numbers(run), run.place, notes))
            elif network.diverged:
                notes.add(network.place, f"{network.diverged}: the {kind} is left out")
            else:
                yield network
        except DataError as error:
            if kind == "student":
                notes.add(run.places[kind], f"{error.what}: the run is left out")
                return
            notes.add(run.places[kind], f"{error.what}: the {kind} is left out")


def _network(run: _Run, kind: str) -> Found:
    metrics, diverged = measured(run.auc[kind], run.rejection[kind], run.places[kind])
    validation = dict(run.validation.get(kind, {}))
    if diverged or not 0.0 <= validation.get("auc_val", -1.0) <= 1.0:
        validation.pop("auc_val", None)
    points = run.curves.get(kind, {})
    curves: dict[str, list[float]] = {}
    if points:
        curves["epoch"] = [float(epoch) for epoch in sorted(points)]
        curves["loss"] = [points[epoch][0] for epoch in sorted(points)]
        curves["auc_val"] = [points[epoch][1] for epoch in sorted(points)]
    return Found(kind, run.places[kind], metrics | validation, diverged=diverged, curves=curves)


def _name(run: _Run) -> str | None:
    folder = run.identity.get("Save dir", "").rstrip("/").rpartition("/")[2]
    return run.identity.get("Run Name") or _option(run.command, "run_name") or folder or None


def _numbers(run: _Run) -> Numbers | None:
    """T and α of a complete banner, or of the command line, which leaves out what is constant; or None."""
    if run.banner.keys() >= set(Numbers._fields):
        given = run.banner
    else:
        options = {name: _option(run.command, name) for name in Numbers._fields}
        given = {name: float(text) for name, text in options.items() if text and re.fullmatch(NUMBER, text)}
    temp_init, temp_final, alpha_init, alpha_final = (given.get(name) for name in Numbers._fields)
    if temp_init is None or alpha_init is None:
        return None
    return Numbers(temp_init, temp_final, alpha_init, alpha_final)


def _option(command: str, name: str) -> str | None:
    found = re.search(rf"--{name}[ =](\S+)", command)
    return found[1] if found else None
