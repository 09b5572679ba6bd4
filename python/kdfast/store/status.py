"""What of a study is done, failed, missing or damaged, where it is being worked on, and how long it will take."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from kdfast.errors import StudyError
from kdfast.store.attempts import GIVEN_UP, Attempt, failures, read_attempt
from kdfast.store.folders import check_complete, folders, manifest
from kdfast.store.key import RunKey
from kdfast.store.packs import PlannedPack, at_work, read_pack
from kdfast.store.settings import StudySettings
from kdfast.store.store import StoredResult, StudyStore

__all__ = ["RunStatus", "StudyStatus", "study_status"]

T = TypeVar("T")

# Results that the rate is taken from: the last ones stored.
_STRETCH = 100


@dataclass(frozen=True)
class RunStatus:
    """A run that the study's settings or its packs ask for, or that is there.

    Attributes
    ----------
    kind, run_name, seed
        Which run: see RunKey. kind "folder": a damaged one that is no result's.
    status : str
        "done", "diverged", "damaged", "failed" (given up after some attempts) or "missing".
    message : str
        Why.
    """

    kind: str
    run_name: str
    seed: int | None
    status: str
    message: str = ""


@dataclass(frozen=True)
class StudyStatus:
    """A study at one moment.

    Attributes
    ----------
    study : str
        The study's folder.
    runs : list of RunStatus
        All runs.
    running : list of dict
        The processes that hold packs that are not done: pack, host, pid, version, since.
    sweeping : bool
        Whether a process that this machine knows of is making or finishing the study.
    per_hour : float, optional
        Students and baselines stored per hour of work, over the last 100 of them; None: not known.
    seconds_left : float, optional
        For what is missing, at that rate.
    """

    study: str
    runs: list[RunStatus]
    running: list[dict[str, Any]] = field(default_factory=list)
    sweeping: bool = False
    per_hour: float | None = None
    seconds_left: float | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status, the most frequent first."""
        found = [run.status for run in self.runs]
        return {name: found.count(name) for name in sorted(set(found), key=lambda name: (-found.count(name), name))}

    @property
    def finished(self) -> bool:
        """Whether all runs are done."""
        return all(run.status == "done" for run in self.runs)

    @property
    def at_rest(self) -> bool:
        """Whether nothing more is to come: what is not done has diverged, is damaged or was given up."""
        return not (self.running or self.sweeping or any(run.status == "missing" for run in self.runs))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "counts": self.counts, "finished": self.finished}


def study_status(store: StudyStore) -> StudyStatus:
    """What is done, failed, missing or damaged; no arrays, weights or targets are hashed (`verify` does that).

    Works also on a study that is being made, is read-only or has parts missing.
    """
    stored, unreadable = store.readable(complete=True)
    damaged = {folder: error.what for folder, error in unreadable.items()}
    _, shared = _readable(store.path / "shared", lambda folder: check_complete(folder, manifest(folder)))
    damaged |= {store.path / name: what for name, what in shared.items()}
    attempts, broken = _readable(store.path / "attempts", read_attempt)
    packs, more = _readable(store.path / "packs", read_pack)
    runs = _runs(store, stored, damaged, attempts, packs)
    runs += [RunStatus("folder", name, None, "damaged", what) for name, what in (broken | more).items()]
    per_hour = _per_hour(stored)
    missing = sum(run.status == "missing" for run in runs)
    return StudyStatus(
        str(store.path),
        runs,
        _running(store.path),
        store.is_written(),
        per_hour,
        missing / per_hour * 3600 if missing and per_hour else None,
    )


def _readable(parent: Path, read: Callable[[Path], T]) -> tuple[list[T], dict[str, str]]:
    """What can be read of the folders in parent, and for the others, by their path in the study, why they can't."""
    found, broken = [], {}
    for folder in folders(parent):
        try:
            found.append(read(folder))
        except StudyError as error:
            broken[f"{parent.name}/{folder.name}"] = error.what
    return found, broken


def _runs(
    store: StudyStore,
    stored: Sequence[StoredResult],
    damaged: dict[Path, str],
    attempts: Sequence[Attempt],
    packs: Sequence[PlannedPack],
) -> list[RunStatus]:
    wanted = _of_settings(store)
    for pack in packs:  # later calls may have asked for more than the settings
        wanted += pack.keys
    wanted = list(dict.fromkeys(wanted))
    state = dict.fromkeys(wanted, ("missing", ""))
    tried, often = _tried(attempts), failures(attempts)
    for run in wanted:
        if (last := tried.get(run)) is not None and often[last.name]:
            times = "once" if often[last.name] == 1 else f"{often[last.name]} times"
            why = last.error or f"lost with {last.host}, process {last.pid}"
            state[run] = "failed" if often[last.name] >= GIVEN_UP else "missing", f"tried {times}: {why}"
    for result in stored:
        state[result.key] = (result.status, result.message)
    left = {path.name: what for path, what in damaged.items()}
    for run in wanted:
        if what := left.pop(run.folder, None):
            state[run] = ("damaged", what)
    runs = [RunStatus(*run, *values) for run, values in state.items()]
    return runs + [RunStatus("folder", name, None, "damaged", what) for name, what in left.items()]


def _of_settings(store: StudyStore) -> list[RunKey]:
    """The runs that the settings ask for. An import asks for none: what it named is stored."""
    if "imported" in store.provenance:
        return []
    settings = StudySettings.resolve(store.settings, data_given=True)
    wanted = [RunKey.teacher(settings.data.seed)]  # one per study, made with the seed of its data
    for seed in settings.seeds:
        wanted.append(RunKey.of(None, seed))
        wanted += [RunKey.of(config, seed) for config in settings.runs()]
    return wanted


def _tried(attempts: Sequence[Attempt]) -> dict[RunKey, Attempt]:
    """The last attempt at each result."""
    return {key: attempt for attempt in attempts if attempt.ended != "retry" for key in attempt.members}


def _running(path: Path) -> list[dict[str, Any]]:
    try:
        holders = at_work(path)
    except OSError:  # may not be looked into
        return []
    return [{"pack": h.name, "host": h.host, "pid": h.pid, "version": h.version, "since": h.since} for h in holders]


def _per_hour(stored: Collection[StoredResult]) -> float | None:
    """Results per hour of work: how many there are of the last ones, over the time in which any of them was trained.

    So pauses do not count, and members that are trained together do. Times are those of the machines' clocks: of one
    that was set back the rate is wrong and still a rate.
    """
    spans = []
    for result in stored:
        try:
            stored_at = datetime.fromisoformat(result.stored)
            seconds = max(0.0, float(result.metrics.get("seconds", 0.0)))
        except (ValueError, TypeError):  # of an older version
            continue
        if result.kind != "teacher" and stored_at.tzinfo is not None:  # a teacher takes its own time
            spans.append((stored_at.timestamp(), seconds))
    last = sorted(spans)[-_STRETCH:]
    busy, until = 0.0, -math.inf
    for begin, end in sorted((end - seconds, end) for end, seconds in last):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return len(last) / busy * 3600 if busy > 0 else None
