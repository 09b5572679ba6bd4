"""What of a study is done, failed, missing or damaged, who is working on it, and how long it will take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from kdfast.store.attempts import GIVEN_UP, Attempt, failures, read_attempt
from kdfast.store.folders import check_complete, committed, manifest, read_each
from kdfast.store.key import RunKey
from kdfast.store.locks import is_held
from kdfast.store.packs import PlannedPack, asked_keys, at_work, read_pack
from kdfast.store.settings import StudySettings
from kdfast.store.store import StoredResult, StudyStore

__all__ = ["RunStatus", "StudyStatus", "study_status"]

# Results that the rate is taken from: the last ones stored.
_STRETCH = 100


@dataclass(frozen=True)
class RunStatus:
    """A run that the study's settings or its packs ask for, or that is there.

    kind, run_name, seed: which run (see RunKey); kind "folder": a damaged folder of the study that is no
    run's. status: "done", "diverged", "damaged", "failed" (given up after some attempts) or "missing";
    message says why.
    """

    kind: str
    run_name: str
    seed: int | None
    status: str
    message: str = ""


@dataclass(frozen=True)
class StudyStatus:
    """A study at one moment.

    running: the processes that hold packs that are not done (pack, host, pid, version, since). sweeping:
    whether a process that this machine knows of is making or finishing the study. per_hour: students and
    baselines stored per hour of work, over the last 100 of them; None: not known. seconds_left: for what is
    missing, at that rate.
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
        counts = Counter(sorted(run.status for run in self.runs))
        return dict(counts.most_common())

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
    """What is done, failed, missing or damaged; hashes no arrays, weights or targets (`verify` does that).

    Works also on a study that is being made, is read-only or has parts missing.
    """
    path = store.path
    stored, damaged = store.complete()
    _, shared = read_each(committed(path / "shared"), lambda folder: check_complete(folder, manifest(folder)))
    attempts, broken = read_each(committed(path / "attempts"), read_attempt)
    packs, more = read_each(committed(path / "packs"), read_pack)
    state = _state(store, stored, attempts, packs)
    for key in state:
        error = damaged.pop(path / "results" / key.folder, None)
        if error is not None:
            state[key] = ("damaged", error.what)
    runs = [RunStatus(*key, *status) for key, status in state.items()]
    for folder, error in (damaged | shared | broken | more).items():
        runs.append(RunStatus("folder", str(folder.relative_to(path)), None, "damaged", error.what))
    per_hour = _per_hour(stored)
    missing = sum(run.status == "missing" for run in runs)
    return StudyStatus(
        str(path),
        runs,
        _running(path),
        is_held(path),
        per_hour,
        missing / per_hour * 3600 if missing and per_hour else None,
    )


def _state(
    store: StudyStore, stored: Sequence[StoredResult], attempts: Sequence[Attempt], packs: Sequence[PlannedPack]
) -> dict[RunKey, tuple[str, str]]:
    """Status and message of each run that is wanted or stored."""
    wanted: list[RunKey] = []
    if "imported" not in store.provenance:  # an import asks for none: what it named is stored
        settings = StudySettings.resolve(store.settings, data_given=True)
        wanted = asked_keys(settings, packs, [result.key for result in stored])
    for pack in packs:  # later calls may have asked for more than the settings
        wanted += pack.keys
    state = dict.fromkeys(wanted, ("missing", ""))
    often = failures(attempts)
    last = {key: attempt for attempt in attempts if attempt.ended != "retry" for key in attempt.members}
    for key in state.keys() & last.keys():
        attempt = last[key]
        count = often[attempt.name]
        if count:
            why = attempt.error or f"lost with {attempt.host}, process {attempt.pid}"
            status = "failed" if count >= GIVEN_UP else "missing"
            state[key] = (status, f"tried {'once' if count == 1 else f'{count} times'}: {why}")
    return state | {result.key: (result.status, result.message) for result in stored}


def _running(path: Path) -> list[dict[str, Any]]:
    try:
        holders = at_work(path)
    except OSError:  # may not be looked into
        return []
    return [{"pack": h.name, "host": h.host, "pid": h.pid, "version": h.version, "since": h.since} for h in holders]


def _per_hour(stored: Collection[StoredResult]) -> float | None:
    """Results per hour of work: the number of the last ones over the time in which any of them was trained.

    So pauses do not count, and members that are trained together do. Times are those of the machines' clocks:
    if one was set back, the rate is wrong but finite.
    """
    spans = []
    for result in stored:
        try:
            stored_at = datetime.fromisoformat(result.stored)
            seconds = max(0.0, float(result.metrics.get("seconds", 0.0)))
        except (ValueError, TypeError):
            continue
        if result.kind != "teacher" and stored_at.tzinfo is not None:  # a teacher takes its own time
            spans.append((stored_at.timestamp(), seconds))
    last = sorted(spans)[-_STRETCH:]
    busy = 0.0
    until = -math.inf
    for begin, end in sorted((end - seconds, end) for end, seconds in last):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return len(last) / busy * 3600 if busy > 0 else None
