"""hyperparameter_search_results.txt: a header, then a block for each run, appended by many jobs.

Only a block whose lines are complete and in order counts: two jobs that write at once mix theirs, and a
killed one leaves its block unfinished.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kdfast.errors import DataError
from kdfast.importers.found import NUMBER, Found, Line, Notes, Numbers, Place, configuration, measured

__all__ = ["read_search_results"]

_FIRST, _LAST = "Run: ", "=" * 70
_BLOCK = re.compile(
    rf"""Run: (\S+)
  Temperature: {NUMBER} (?:\(constant\)|-> {NUMBER} \(annealing\))
  Alpha_KD: {NUMBER} (?:\(constant\)|-> {NUMBER} \(scheduling\))
  Background Rejection @ 50% efficiency: {NUMBER}
  AUC \(Student\): {NUMBER}
  Saved to: (?:.*/)?\1/?"""
)


def read_search_results(path: Path, lines: Iterable[Line], notes: Notes) -> Iterator[Found]:
    """The runs of one summary file. Raises DataError where it has no block at all."""
    block: list[str] = []
    place = None
    for number, text, _ in lines:
        if text.startswith(_FIRST):
            if block and place is not None:
                notes.add(place, "the block is incomplete: left out")
            block = [text.rstrip()]
            place = Place(path, number)
        elif block and place is not None:
            if text.startswith(_LAST):
                yield from _run("\n".join(block), place, notes)
                block = []
            elif text.strip() and len(block) < 10:
                block.append(text.rstrip())
    if place is None:
        raise DataError("has no run", where=f"{path}, line 1", hint="a run's block begins with `Run: …`")
    if block:
        notes.add(place, "the block is incomplete: left out")


def _run(block: str, place: Place, notes: Notes) -> Iterator[Found]:
    match = _BLOCK.fullmatch(block)
    if match is None:
        notes.add(place, "the block is incomplete or mixed with another: left out")
        return
    name, t, t_final, a, a_final, rejection, auc = match.groups()
    numbers = Numbers(float(t), float(t_final) if t_final else None, float(a), float(a_final) if a_final else None)
    try:
        config = configuration(name, numbers, place, notes)
        metrics, diverged = measured(float(auc), float(rejection), place)
    except DataError as error:
        notes.add(place, f"{error.what}: {name} is left out")
        return
    yield Found("student", place, metrics, config, diverged=diverged)
