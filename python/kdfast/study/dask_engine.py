"""Dask as the engine of a sweep: a task for the teacher, then one for each pack. Dask places them and retries them.

A task runs the worker's own PackRunner on the study's folder, through which all results go; the scheduler handles
names of runs and a few numbers. A task takes its pack's claim, so `kdfast worker`, and tasks of an earlier client that
are still running, may work on the same study. All claims of one sweep have the same owner: where Dask runs a task
again, it has lost the first worker, and the second try takes the claim over at once. A pack that another process holds
costs no worker: its task returns, and the client submits it again a little later.
"""

from __future__ import annotations

import math
import platform
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdfast._version import __version__
from kdfast.distill.schedules import RunConfig
from kdfast.errors import BackendError, ClusterError, KdfastError, KdfastWarning, ResourceError, StudyError
from kdfast.interrupt import Stop, SweepInterrupted
from kdfast.ops import backend
from kdfast.store.attempts import GIVEN_UP
from kdfast.store.claims import Claims
from kdfast.store.identity import other_environment
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER, PlannedPack, missing, parts
from kdfast.store.settings import StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.dask_cluster import on_gpu, tasks_at_once
from kdfast.study.inputs import Inputs
from kdfast.study.progress import SweepProgress
from kdfast.study.training import StudyTraining
from kdfast.study.worker import Outcome, PackRunner, UnitFailed, open_inputs, record_lost, study_digest, try_again

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

__all__ = ["run_packs", "train"]

# Seconds between looks: of the client at signals and tasks; at results, held packs and workers; of a task at whether
# it is still wanted.
_POLL, _LOOK, _LOOK_AT_TASK = 0.2, 2.0, 0.5
# Seconds that tasks have to save their members when the sweep is stopped; seconds after which another client of a
# network file system sees what a worker has written.
_GRACE, _VISIBLE = 10.0, 120.0


# ---- the client


def run_packs(
    client: Client,
    store: StudyStore,
    settings: StudySettings,
    packs: Sequence[PlannedPack],
    pack_size: int,
    shown: SweepProgress,
    stop: Stop,
) -> Outcome:
    """Has the workers train what the packs are missing; the study's inputs are stored (inputs.write_inputs).

    A pack that is missing more than pack_size runs (planned for fewer workers) is cut into parts; this process holds
    its claim, and tasks take claims of the parts.

    A pack that fails does not end the others. Raises ClusterError where the scheduler is lost, KdfastError for what
    every pack would meet (another version on a worker, another folder, a teacher that fails), SweepInterrupted.
    """
    left = [missing(store, pack) for pack in packs]
    outcome = Outcome(done=[pack.id for pack in left if not pack.runs])
    left = [pack for pack in left if pack.runs]
    if left:
        sweep = _Sweep(client, store, settings, left, pack_size, shown, stop, outcome)
        with stop.deferred(), sweep.own_claims:
            try:
                sweep.run()
            except Exception as error:
                if not isinstance(error, KdfastError):  # a call to a scheduler that has just gone
                    _check(client)
                raise
            finally:
                sweep.cancel()
    return outcome


@dataclass
class _Sweep:
    """The tasks of one call of run_packs.

    running: tasks that have not ended. again: packs to submit again. stored: when a task said that a pack is stored of
    which results are not seen here yet. begun: whether the teacher is there. own_claims: of packs that are cut.
    """

    client: Client
    store: StudyStore
    settings: StudySettings
    packs: Sequence[PlannedPack]
    pack_size: int
    shown: SweepProgress
    stop: Stop
    outcome: Outcome
    running: dict[Future, PlannedPack] = field(default_factory=dict)
    again: list[PlannedPack] = field(default_factory=list)
    stored: dict[str, float] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    begun: bool = False
    own_claims: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        from distributed import as_completed

        path, device = str(self.store.path.absolute()), self.settings.device
        self.study = _Study(path, study_digest(self.store), secrets.token_hex(16), device, backend.forced())
        self.claims = Claims(self.store.path / "claims")
        self.ended = as_completed(loop=self.client.loop, with_results=True, raise_errors=False)
        self.unseen = {key for pack in self.packs for key in pack.keys}  # results that are not shown yet
        self.attempts = {(attempt.name, attempt.number) for attempt in self.store.attempts()}

    def run(self) -> None:
        """To the end of all packs."""
        if self.store.has(RunKey.teacher(self.settings.data.seed)):
            self.begin()
        else:
            self.shown.say("the teacher is trained first")
            self.submit(PlannedPack(TEACHER, self.settings.data.seed, ()))
        looked = -math.inf
        while self.running or self.again:
            self.stop.wait(_POLL)
            _check(self.client)
            batch = self.ended.next_batch(block=False)
            while batch:  # a future that is kept would be computed again with its worker's loss
                self.take(*batch.pop())
            if time.monotonic() - looked > _LOOK:
                self.look()
                looked = time.monotonic()
        self.show()

    def offer(self, pack: PlannedPack) -> None:
        """Submits a pack; a large one in parts, once nobody else holds it."""
        if len(pack.runs) <= self.pack_size:
            self.submit(pack)
            return
        claim = self.claims.take(pack.id)
        if claim is None:
            self.wait_for(pack)
            return
        self.own_claims.enter_context(claim)
        record_lost(self.store, claim, pack.keys)  # here, as no task takes this claim
        for part in parts(pack, self.pack_size):
            self.submit(part)

    def wait_for(self, pack: PlannedPack) -> None:
        self.say_once(f"{pack.id}: held by another process, waiting until it is done or silent")
        self.again.append(pack)

    def submit(self, pack: PlannedPack) -> None:
        """Sends a task as code, so that the scheduler needs neither kdfast nor torch to read it.

        Errors are retried; workers that die are no errors (see distributed.scheduler.allowed-failures).
        """

        def task(*given: Any) -> bool:
            return bool(import_module("kdfast.study.dask_engine").train(*given))

        runs = [None if run is None else asdict(run) for run in pack.runs]
        future = self.client.submit(
            task,
            asdict(self.study),
            pack.id,
            pack.seed,
            runs,
            # The first part groups the tasks: Dask learns how long one takes, by which adaptive clusters grow.
            key=("kdfast-teacher" if pack.id == TEACHER else "kdfast-pack", pack.id, secrets.token_hex(16)),
            resources={"GPU": 1} if on_gpu(self.settings.device) else None,
            retries=GIVEN_UP - 1,
        )
        self.running[future] = pack
        self.ended.add(future)

    def take(self, future: Future, result: Any) -> None:
        """What a task that has ended means."""
        pack = self.running.pop(future)
        if future.status == "error":
            self.fail(pack, future.exception())
        elif not isinstance(result, bool):  # an error of cancelling
            raise _lost("the tasks were cancelled by another client, or the cluster was restarted")
        elif pack.id == TEACHER:
            self.begin()
        elif not missing(self.store, pack).runs:
            self.outcome.done.append(pack.id)
            self.show()
        elif not result:
            self.wait_for(pack)
        elif time.monotonic() - self.stored.setdefault(pack.id, time.monotonic()) < _VISIBLE:
            self.again.append(pack)
        else:
            hint = "workers and client have to see the same files under the same path"
            what = f"the workers have stored {pack.id}, and it is not here"
            raise StudyError(what, where=self.study.path, hint=hint)

    def fail(self, pack: PlannedPack, error: BaseException) -> None:
        """Notes that a pack has failed as often as it may, or raises what every pack would meet."""
        from distributed import KilledWorker

        if isinstance(error, ImportError):
            what = f"the cluster's workers can't import kdfast {__version__} ({error})"
            hint = "install this version of kdfast on all of them"
            raise BackendError(what, where="dask", hint=hint) from error
        if isinstance(error, KdfastError) and not isinstance(error, ResourceError):
            raise error
        if isinstance(error, UnitFailed):
            error = error.error
        elif isinstance(error, KilledWorker):
            hint = "look at the workers' logs; a worker that ran out of memory needs more, or fewer threads"
            error = StudyError(f"its workers died each time it was tried: {error}", where=pack.id, hint=hint)
        if pack.id == TEACHER:
            raise error
        self.outcome.failed[pack.id] = error if isinstance(error, Exception) else RuntimeError(str(error))

    def look(self) -> None:
        """At what has appeared in the folder, packs to submit again, and whether there are workers."""
        self.show()
        again, self.again = self.again, []
        for pack in again:
            self.offer(missing(self.store, pack))  # none left: its task says so
        if not tasks_at_once(self.client, self.settings.device):
            gpu = " with a GPU (dask worker --resources GPU=1)" if on_gpu(self.settings.device) else ""
            self.say_once(f"no worker{gpu} yet: waiting for one (if workers end at once, their logs say why)")

    def begin(self) -> None:
        """The teacher is there: all packs are submitted. They do not depend on its task: with the worker that holds its
        result, Dask would run it again, and all packs that are running."""
        self.begun = True
        self.shown.begin("packs", members=len(self.unseen), epochs=self.settings.recipe.epochs)
        try_again(self.store, *(pack.id for pack in self.packs))  # tasks may know parts of them alone
        for pack in self.packs:
            self.offer(pack)

    def show(self) -> None:
        """Failures and results that have appeared, whoever had or trained them."""
        for attempt in self.store.attempts():
            if attempt.ended == "error" and (attempt.name, attempt.number) not in self.attempts:
                self.attempts.add((attempt.name, attempt.number))
                self.shown.say(f"{attempt.name} failed on {attempt.host}: {attempt.error}")
        if not self.begun:
            return
        done = len(self.outcome.done)
        total = done + len(self.outcome.failed) + len(self.running) + len(self.again)
        for key in sorted(self.unseen & self.store.keys()):
            self.unseen.remove(key)
            self.shown.stored(self.store.get(key), f"packs {done}/{total}")

    def say_once(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.shown.say(text)

    def cancel(self) -> None:
        """Cancels what is not done, and waits until the tasks that ran have saved their members."""
        if not self.running or self.client.status != "running":
            return
        with suppress(Exception):  # the scheduler may be going, too
            self.client.cancel(list(self.running))
        deadline = time.monotonic() + _GRACE
        while time.monotonic() < deadline and any(
            holder.alive and holder.owner == self.study.owner for holder in self.claims.holders()
        ):
            time.sleep(_POLL)


def _check(client: Client) -> None:
    if client.status != "running":
        raise _lost("the Dask scheduler is gone")


def _lost(what: str) -> ClusterError:
    return ClusterError(what, hint="everything that was stored is kept: rerun the same command to resume")


# ---- a task


@dataclass(frozen=True)
class _Study:
    """Where a task finds its study. digest: of the one that is meant. owner: of the sweep's claims. device, backend:
    as the client has them."""

    path: str
    digest: str
    owner: str
    device: str
    backend: str | None


def train(study: Mapping[str, Any], name: str, seed: int, runs: Sequence[Mapping[str, Any] | None]) -> bool:
    """A task: trains what a pack is missing, or the teacher, and stores each result before it returns.

    Returns whether all is stored, which it is not where another process holds the pack. A task that is cancelled, or
    whose worker closes, saves its members and is rescheduled.
    Raises UnitFailed, and KdfastError, which names the worker, where the study can't be used there.
    """
    from distributed import Reschedule, get_worker, warn

    there, worker = _Study(**study), get_worker()
    # Dask runs as many tasks as a worker has threads: one each. The teacher, which all others wait for, takes all.
    threads = worker.state.nthreads if name == TEACHER else 1
    torch.set_num_threads(threads)
    forced = nullcontext() if there.backend is None else backend.backend(there.backend)
    try:
        with _stop_when_unwanted(worker, Path(there.path)) as stop, _gpu(worker, there.device) as device, forced:
            store = StudyStore.open(there.path)
            with _opening:
                settings, inputs = _inputs(there.path, there.digest)
                claims = _claims(there.path, there.owner)
            if (warning := other_environment(store, device)) is not None:
                warn(f"{platform.node()}: {warning}", KdfastWarning)  # on the client, too
            settings = settings.model_copy(update={"device": device})
            training = StudyTraining(settings, store, inputs.prepared, SweepProgress(False), stop, threads)
            runner = PackRunner(training, inputs.teacher, claims)
            runner.targets(retry=True)  # Dask counts the tries
            if name == TEACHER:
                return True
            pack = PlannedPack(name, seed, tuple(None if run is None else RunConfig(**run) for run in runs))
            runner.attempt(pack, retry=True)
            return not missing(store, pack).runs
    except SweepInterrupted:
        raise Reschedule from None
    except KdfastError as error:
        here = f"{error.where or 'worker'}, on {platform.node()} ({worker.address})"
        KdfastError.__init__(error, error.what, where=here, hint=error.hint)
        raise


@lru_cache(maxsize=1)  # of the last study, for all tasks of this process
def _inputs(path: str, digest: str) -> tuple[StudySettings, Inputs]:
    store = StudyStore.open(path)
    if study_digest(store) != digest:
        hint = "workers and client have to see the same files under the same path"
        raise StudyError("is another study there than where the sweep was started", where=path, hint=hint)
    return open_inputs(store)


@lru_cache(maxsize=1)  # one for all tasks, so that they notice who has been silent
def _claims(path: str, owner: str) -> Claims:
    return Claims(Path(path) / "claims", owner=owner)


_opening = threading.Lock()


@contextmanager
def _stop_when_unwanted(worker: Worker, where: Path) -> Iterator[Stop]:
    """A Stop that is set once the scheduler has cancelled the task (the client has, or is gone), or the worker closes
    (on request, or as it has lost the scheduler)."""
    from distributed.core import Status

    stop, ended, key = Stop(where), threading.Event(), worker.get_current_task()

    def look() -> None:
        while not ended.wait(_LOOK_AT_TASK):
            task = worker.state.tasks.get(key)
            wanted = task is not None and task.state not in ("cancelled", "released")
            if not wanted or worker.status not in (Status.running, Status.paused):
                stop.event.set()
                return

    thread = threading.Thread(target=look, name="kdfast-wanted", daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        ended.set()
        thread.join()


_gpus_in_use: set[int] = set()
_choosing = threading.Lock()


@contextmanager
def _gpu(worker: Worker, device: str) -> Iterator[str]:
    """The device of one task. "cuda": of as many of this process's GPUs as the worker offers, one that no other task
    uses; a worker with one GPU takes the first that it sees."""
    if device != "cuda":
        yield device
        return
    with _choosing:
        offered = max(1, int(worker.state.total_resources.get("GPU", 1)))
        gpu = min(set(range(offered)) - _gpus_in_use, default=0)
        _gpus_in_use.add(gpu)
    try:
        yield f"cuda:{gpu}"
    finally:
        with _choosing:
            _gpus_in_use.discard(gpu)
