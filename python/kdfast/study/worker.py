"""A worker: takes packs of a study, trains what they are missing, and stores each result.

Any number of workers may be at one study, each a process that needs nothing but the study's folder (and the
files of jets that its settings name). They share the packs through claims; a pack whose worker is gone is
taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.distill.devices import check_threads
from kdfast.distill.pack import Targets
from kdfast.errors import BusyError, CallbackError, ConfigError, StudyError
from kdfast.interrupt import stoppable
from kdfast.models.tagger import Tagger
from kdfast.store.attempts import GIVEN_UP, Attempt, failures
from kdfast.store.claims import LEASE, Claim, Claims
from kdfast.store.identity import warn_of_other_environment
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER, PlannedPack, find, missing, no_packs, planned
from kdfast.store.settings import StudySettings, check_counts
from kdfast.store.store import StudyStore
from kdfast.study.inputs import Inputs, stored_inputs
from kdfast.study.own_models import Factory, with_own_models
from kdfast.study.progress import SweepProgress
from kdfast.study.search import plan_next_round
from kdfast.study.training import StudyTraining

__all__ = ["Outcome", "PackRunner", "UnitFailed", "open_inputs", "study_digest", "work"]


@dataclass
class Outcome:
    """What became of packs, by id: done (every run is stored), failed (and of what), elsewhere (other
    processes are at them), left (not reached)."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class UnitFailed(Exception):
    """A pack, or the teacher, has failed with an error that does not concern the rest of the study."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name, error)
        self.name = name
        self.error = error


class _GivenUp(StudyError):
    """A pack, or the teacher, that has failed too often to be tried again without a request."""


class PackRunner:
    """Trains packs, each under a claim. teacher: that the study was given: a Tagger, logits, or None."""

    def __init__(self, training: StudyTraining, teacher: Tagger | NDArray[np.float32] | None, claims: Claims) -> None:
        self.training = training
        self.store = training.store
        self.claims = claims
        self._external = teacher
        self._targets: Targets | None = None
        self._said: set[str] = set()

    def sweep(self, packs: Sequence[PlannedPack]) -> Outcome:
        """Trains teacher and packs, also those that have failed too often, and waits for what others hold."""
        outcome = self.teacher(retry=True)
        return outcome if outcome.failed else self.run(packs, retry=True)

    def teacher(self, *, retry: bool = False) -> Outcome:
        """Trains the teacher where it is not stored, in one process of all, and keeps its targets.

        retry: also where it has failed too often.
        """
        if retry:
            self._try_again([TEACHER])
        key = RunKey.teacher(self.training.settings.data.seed)
        try:
            while self._targets is None:
                if self.store.has(key):
                    self._targets = self.training.teacher(self._external)
                elif (claim := self.claims.take(TEACHER)) is not None:
                    with claim, self._recorded(claim, [key]):
                        self._targets = self.training.teacher(self._external)
                else:
                    self._wait("the teacher is being trained by another process: waiting for it")
        except UnitFailed as failed:
            return Outcome(failed={TEACHER: failed.error})
        return Outcome(done=[TEACHER])

    def run(
        self, packs: Sequence[PlannedPack], *, max_packs: int | None = None, wait: bool = True, retry: bool = False
    ) -> Outcome:
        """Trains what the packs are missing, in their order, and does not stop for one that fails.

        max_packs: takes at most this many. wait: for the packs that others hold, until they are done or given
        up; else only until each holder has given a sign of life. retry: tries also those that have failed too
        often. Where the teacher fails, it is in `failed`, and all packs are left. Raises StudyError where the
        folder can't be written, and SweepInterrupted.
        """
        outcome = Outcome()
        taken = 0
        stored = self.store.keys()
        pending = [pack for pack in packs if self._is_left(pack, outcome, stored)]
        if pending and retry:
            self._try_again([pack.id for pack in pending])
        if pending:
            outcome.failed = self.teacher(retry=retry).failed
            if outcome.failed:
                outcome.left = [pack.id for pack in pending]
                return outcome
        while pending:
            held: list[PlannedPack] = []
            for number, pack in enumerate(pending):
                with self.training.stop.deferred():  # a claim that was taken is given back
                    if not self._is_left(pack, outcome):
                        continue
                    if max_packs is not None and taken >= max_packs:
                        outcome.left.append(pack.id)
                        continue
                    try:
                        taken += self._attempt(pack, pending[number + 1 :])
                    except UnitFailed as failed:
                        taken += not isinstance(failed.error, _GivenUp)
                        outcome.failed[pack.id] = failed.error
                    else:
                        if self._is_left(pack, outcome):  # others hold it, or have taken it over
                            held.append(pack)
            pending = held
            if pending and not wait and all(self.claims.is_beating(pack.id) for pack in pending):
                outcome.elsewhere += [pack.id for pack in pending]
                return outcome
            if pending:
                names = ", ".join(pack.id for pack in pending[:3]) + (", …" if len(pending) > 3 else "")
                self._wait(f"{names}: held by other processes, waiting until they are done or silent")
        return outcome

    def _attempt(self, pack: PlannedPack, later: Sequence[PlannedPack]) -> bool:
        """Trains what the pack is missing, under its claim, until that is lost. False: another process holds
        it. later: packs that come after it, for the progress. Raises UnitFailed."""
        assert self._targets is not None, "run has trained the teacher"
        claim = self.claims.take(pack.id)
        if claim is None:
            return False
        with claim:
            left = missing(self.store, pack)  # now: it may have been finished before it was claimed
            if left.runs:
                done = len(pack.runs) - len(left.runs)
                after = sum(len(other.runs) for other in later)  # at most
                with self._recorded(claim, pack.keys):
                    self.training.students(left, self._targets, lost=claim.lost, done=done, later=after)
        return True

    def _is_left(self, pack: PlannedPack, outcome: Outcome, stored: Collection[RunKey] | None = None) -> bool:
        if missing(self.store, pack, stored).runs:
            return True
        outcome.done.append(pack.id)
        return False

    @contextmanager
    def _recorded(self, claim: Claim, members: Iterable[RunKey]) -> Iterator[None]:
        """Stores an attempt where the one before was cut off, and where this one fails; raises UnitFailed
        then, also where too many have failed. members: the runs to train."""
        name = claim.name
        before = claim.taken_from
        if before is not None:
            self.store.write_attempt(Attempt.lost(name, before.host, before.pid, members))
        if failures(self.store.attempts(name))[name] >= GIVEN_UP:  # asked under the claim: others may have failed since
            what = f"{name if name == TEACHER else f'pack {name}'} has failed {GIVEN_UP} times"
            hint = "kdfast status says of what; --retry tries it again"
            raise UnitFailed(name, _GivenUp(what, where=str(self.store.path), hint=hint))
        try:
            yield
        except Exception as error:
            if isinstance(error, CallbackError):  # no fault of the pack
                raise
            if isinstance(error.__cause__, OSError):  # of the folder, which can't be written then
                raise
            self.store.write_attempt(Attempt.failed(name, error, members))
            raise UnitFailed(name, error) from error

    def _try_again(self, names: Iterable[str]) -> None:
        """Asks for another try of those of these packs (or the teacher) that were given up."""
        failed = failures(self.store.attempts())
        for name in names:
            if failed[name] >= GIVEN_UP:
                self.store.write_attempt(Attempt(name, "retry"))

    def _wait(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            self.training.shown.say(why)
        self.training.stop.wait(min(5.0, self.claims.lease / 10))


def study_digest(store: StudyStore) -> str:
    """Tells a study from another one in a folder of the same path."""
    described = json.dumps([store.settings, store.provenance], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def open_inputs(
    store: StudyStore, model: Factory | None = None, teacher_model: Factory | None = None
) -> tuple[StudySettings, Inputs]:
    """Settings and inputs of a study that was planned, from its folder. model, teacher_model: its own networks.

    Raises StudyError if another version of kdfast planned it, or its jets or teacher have changed since.
    """
    planner = store.provenance.get("environment", {}).get("kdfast")
    if planner != __version__:
        what = f"was planned by kdfast {planner}, this is {__version__}: results of both would not belong together"
        raise StudyError(what, where=str(store.path), hint=f"install kdfast {planner} for this study's workers")
    settings = StudySettings.resolve(store.settings, data_given=True)
    trains_teacher = "teacher" not in store.provenance.get("decisive", {})
    settings = with_own_models(settings, model, teacher_model, trains_teacher=trains_teacher)
    return settings, Inputs.load(settings, stored_inputs(store), store)


def work(
    study: str | PathLike[str],
    *,
    pack: str | None = None,
    array_index: int | None = None,
    max_packs: int | None = None,
    retry: bool = False,
    threads: int | None = None,
    lease: float = LEASE,
    progress: bool = True,
    model: Factory | None = None,
    teacher_model: Factory | None = None,
) -> Outcome:
    """Trains packs of a planned study that are not done, sharing them with all other workers on it.

    pack: only this one, e.g. "seed42.003", or "teacher"; it is waited for while another worker holds it.
    array_index: likewise the pack of this number, from 0. max_packs: at most this many. retry: also packs
    that have failed three times. threads: of the training; None: torch's. lease: seconds without a sign of
    life after which another worker counts as gone. model, teacher_model: functions, or their names, that make
    the study's own networks.

    Raises ConfigError for an unknown pack; StudyError for a study that has no packs, is of another version,
    is damaged or can't be written; SweepInterrupted on a signal (running members have checkpoints).
    """
    check_counts(threads=threads, max_packs=max_packs)
    check_threads(threads)
    if lease <= 0:
        raise ConfigError(f"must be more than 0 seconds, is {lease}", where="lease")
    if sum(value is not None for value in (pack, array_index, max_packs)) > 1:
        raise ConfigError("pack, array_index and max_packs exclude each other", where="worker", hint="give one of them")
    store = StudyStore.open(Path(study))
    packs = planned(store)
    if not packs and pack != TEACHER:
        raise no_packs(store, "to work on")
    one = pack is not None or array_index is not None
    if array_index is not None:
        if not 0 <= array_index < len(packs):
            hint = f"the study has packs 0 to {len(packs) - 1}"
            raise ConfigError(f"there is no pack number {array_index}", where="array_index", hint=hint)
        packs = [packs[array_index]]
    elif pack is not None:
        packs = [] if pack == TEACHER else [find(packs, pack)]
    with SweepProgress(progress) as shown, stoppable(shown.say, store.path) as stop:
        stored = store.keys()
        races = "search" in store.settings and not one and max_packs is None
        left = races or any(missing(store, each, stored).runs for each in packs)
        if packs and not left:  # before the data are read
            return Outcome(done=[each.id for each in packs])
        settings, inputs = open_inputs(store, model, teacher_model)
        warn_of_other_environment(store, settings.device)
        training = StudyTraining(settings, store, inputs.prepared, shown, stop, threads)
        runner = PackRunner(training, inputs.teacher, Claims(store.path / "claims", lease=lease))
        if pack == TEACHER:
            return runner.teacher(retry=retry)
        outcome = runner.run(packs, max_packs=max_packs, wait=one or races, retry=retry)
        while races and not outcome.failed:
            try:
                packs = plan_next_round(store, settings, threads or torch.get_num_threads(), shown.say)
            except BusyError:  # a sweep, which plans the rounds itself
                break
            if not packs:
                break
            done = outcome.done
            outcome = runner.run(packs, wait=True, retry=retry)
            outcome.done[:0] = done
        return outcome
