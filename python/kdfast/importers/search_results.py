"""hyperparameter_search_results.txt: a header, then a block a run, to which many jobs append.

A block that a killed job left unfinished is noted and left out. So is one whose lines are mixed with another's: that
shows as a field that stands twice, or, after an unfinished block, as a name that does not fit what follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kdfast.errors import ConfigError, DataError
from kdfast.importers.found import Found, Notes, Numbers, Place, configuration, measured
from kdfast.importers.lines import NUMBER, Line

__all__ = ["read_search_results"]

_RUN = re.compile(r"Run: (\S+)\s*$")
_END = re.compile(r"={70}\s*$")
_FIELDS = {
    "temperature": re.compile(rf"  Temperature: {NUMBER} (?:-> {NUMBER} \(annealing\)|\(constant\))\s*$"),
    "alpha": re.compile(rf"  Alpha_KD: {NUMBER} (?:-> {NUMBER} \(scheduling\)|\(constant\))\s*$"),
    "rejection": re.compile(rf"  Background Rejection @ 50% efficiency: {NUMBER}\s*$"),
    "auc": re.compile(rf"  AUC \(Student\): {NUMBER}\s*$"),
    "saved": re.compile(r"  Saved to: (\S+)\s*$"),
}


@dataclass
class _Block:
    name: str
    place: Place
    after_open: bool  # the block before it was not closed
    values: dict[str, re.Match[str]] = field(default_factory=dict)
    twice: str = ""


def read_search_results(path: Path, lines: Iterable[Line], notes: Notes) -> Iterator[Found]:
    """The runs of one summary file. Raises DataError where there is no block at all."""
    block: _Block | None = None
    blocks = 0
    for number, text, _ in lines:
        if run := _RUN.match(text):
            if block is not None:
                notes.add(block.place, f"the block of {block.name} is cut short: left out")
            block = _Block(run[1], Place(path, number), after_open=block is not None)
            blocks += 1
        elif _END.match(text):
            if block is not None:
                yield from _finish(block, notes)
            block = None
        elif text.startswith("  "):
            for name, pattern in _FIELDS.items():
                if match := pattern.match(text):
                    if block is None:
                        notes.add(Place(path, number), f"belongs to no block: {text.strip()!r} is passed over")
                    elif name in block.values:
                        block.twice = name
                    else:
                        block.values[name] = match
                    break
    if block is not None:
        notes.add(block.place, f"the block of {block.name} is cut short: left out")
    if not blocks:
        raise DataError("holds no run", where=f"{path}, line 1", hint="its blocks begin with `Run: …`")


def _finish(block: _Block, notes: Notes) -> Iterator[Found]:
    values, saved = block.values, block.values.get("saved")
    other = saved is not None and saved[1].rstrip("/").rpartition("/")[2] != block.name
    if block.twice or other:
        what = f"its {block.twice} stands twice" if block.twice else f"its results were saved to {values['saved'][1]}"
        notes.add(block.place, f"the block of {block.name} is mixed with another ({what}): left out")
        return
    if missing := [name for name in ("temperature", "alpha", "rejection", "auc") if name not in values]:
        notes.add(block.place, f"the block of {block.name} lacks {', '.join(missing)}: left out")
        return
    numbers = Numbers(*_span(values["temperature"]), *_span(values["alpha"]))
    try:
        config, consistent = configuration(block.name, numbers, block.place, notes)
        metrics, message = measured(float(values["auc"][1]), float(values["rejection"][1]))
    except (ConfigError, ValueError) as error:
        what = error.what if isinstance(error, ConfigError) else str(error)
        notes.add(block.place, f"{what}: {block.name} is left out")
        return
    if block.after_open and not consistent:
        notes.add(block.place, f"the block of {block.name} is mixed with the unfinished one before it: left out")
        return
    status = "diverged" if message else "done"
    yield Found("summary", config, block.place, consistent, metrics=metrics, status=status, message=message)


def _span(match: re.Match[str]) -> tuple[float, float | None]:
    return float(match[1]), None if match[2] is None else float(match[2])
