"""Dask as the engine of a sweep: a task for the teacher, then one for each pack, placed and retried by Dask.

A task runs a worker's PackRunner on the study's folder, through which all results go. It claims its pack as
`kdfast worker` does, which may work on the same study. All tasks of a client have the same owner: where Dask
runs a pack again, it has lost the first worker, and the second try takes its claim over at once.
"""

from __future__ import annotations

import platform
import secrets
import sys
import threading
import time
from asyncio import TimeoutError as AsyncTimeoutError
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from kdfast._version import __version__
from kdfast.distill.devices import check_threads
from kdfast.distill.recipe import Settings
from kdfast.distill.schedules import run_from, run_table
from kdfast.errors import BackendError, ClusterError, ConfigError, KdfastError, KdfastWarning, StudyError
from kdfast.interrupt import Stop, SweepInterrupted
from kdfast.store.attempts import GIVEN_UP
from kdfast.store.claims import Claims
from kdfast.store.identity import other_environment
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER, PlannedPack, at_work, missing, parts
from kdfast.store.settings import StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.inputs import Inputs
from kdfast.study.own_models import importable_names
from kdfast.study.plan import Budget
from kdfast.study.progress import SweepProgress
from kdfast.study.training import StudyTraining
from kdfast.study.worker import PackRunner, UnitFailed, open_inputs, study_digest

if TYPE_CHECKING:
    from distributed import Client, Future, Worker

__all__ = ["budget", "connected", "run_packs", "train"]

# In seconds.
POLL = 0.5
GRACE = 10.0  # that tasks have to save their members when the sweep is stopped
VISIBLE = 120.0  # after which another client of a network file system sees what a worker has written

# Tasks at once that a plan is made for while no worker is there yet, as in an adaptive cluster.
EXPECTED = 16

SAME_FILES = "workers and client have to see the same files under the same path"


# ---- the cluster


def _distributed() -> Any:
    try:
        return import_module("distributed")
    except ImportError as error:
        hint = "install it with: pip install 'kdfast[dask]'"
        raise BackendError(f"Dask is not installed ({error})", where="dask", hint=hint) from error


@contextmanager
def connected(address: str, *, threads: int | None = None, device: str = "auto") -> Iterator[Client]:
    """A client of the scheduler at an address or in its file, or "local": of a cluster on this machine.

    threads: of a local one, in as many processes as Dask thinks best; None: all cores. Raises BackendError
    without the extra [dask] or where no scheduler answers.
    """
    distributed = _distributed()
    if address == "local":
        check_threads(threads)
        if device.startswith("cuda"):  # a task has all GPUs that its worker sees
            shape = {"n_workers": 1, "threads_per_worker": 1, "resources": {"GPU": 1}}
        else:
            cores = threads or import_module("dask.system").CPU_COUNT
            processes, each = import_module("distributed.deploy.utils").nprocesses_nthreads(cores)
            shape = {"n_workers": processes, "threads_per_worker": each}
        preload = ["kdfast.interrupt"]  # its dask_setup
        with (
            import_module("dask.config").set({"distributed.worker.profile.enabled": False}),  # no dashboard shows it
            distributed.LocalCluster(dashboard_address=None, preload=preload, **shape) as cluster,
            cluster.get_client() as client,
        ):
            yield client
        return
    if threads is not None:
        hint = "choose them where the workers are started (dask worker --nthreads)"
        raise ConfigError("a cluster's workers have their own threads", where="threads", hint=hint)
    given = {"scheduler_file": address} if Path(address).is_file() else {"address": address}
    try:
        client = distributed.Client(**given)
    except (OSError, ValueError, AsyncTimeoutError) as error:
        hint = "start one with `dask scheduler`, or use --dask local"
        raise BackendError(f"no Dask scheduler answers ({error})", where=address, hint=hint) from error
    with client:
        yield client


def budget(client: Any, device: str, given: Budget) -> Budget:
    """What a sweep may use of a client's workers: a thread for each task, as many tasks as they run now.

    Raises ConfigError or ClusterError for a client that can't be used, BackendError without the extra [dask].
    """
    if not isinstance(client, _distributed().Client) or client.asynchronous:
        hint = "distributed.Client(address), or distributed.Client() for this machine"
        raise ConfigError(f"must be a distributed.Client, not asynchronous, is {client!r}", where="client", hint=hint)
    if client.status != "running":
        raise ClusterError(f"has no scheduler: it is {client.status}", where="client", hint="make a new one")
    if given.threads is not None:
        raise ConfigError("the workers of a cluster have their own", where="threads", hint="leave it out")
    workers = given.workers or tasks_at_once(client, device) or EXPECTED
    return replace(given, threads=1, workers=workers)


def tasks_at_once(client: Client, device: str) -> int:
    """How many tasks of a sweep the workers that are there now run at the same time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return int(sum(w["resources"].get("GPU", 0) if device.startswith("cuda") else w["nthreads"] for w in workers))


# ---- the client


def run_packs(
    client: Client, training: StudyTraining, packs: Sequence[PlannedPack], sizes: Mapping[Settings, int]
) -> dict[str, Exception]:
    """Has the workers train what the packs are missing; the study's inputs are stored (inputs.write_inputs).

    sizes: runs of a pack, by its shared settings; one that is missing more (planned for fewer workers) is cut
    into parts. Returns the errors of packs that failed, by id; they do not end the others.

    Raises ClusterError where the cluster is lost, KdfastError for what every pack would meet (another version
    on a worker, another folder, a teacher that fails), SweepInterrupted.
    """
    store = training.store
    settings = training.settings
    shown = training.shown
    packs = [left for pack in packs if (left := missing(store, pack)).runs]
    if not packs:
        return {}
    with training.stop.deferred():
        try:
            if not tasks_at_once(client, settings.device):
                gpu = " with a GPU (dask worker --resources GPU=1)" if settings.device.startswith("cuda") else ""
                shown.say(f"no worker{gpu} yet: waiting for one (if workers end at once, their logs say why)")
            # No pack depends on its task: with the worker of its result, Dask would run all of them again.
            if not store.has(RunKey.teacher(settings.data.seed)):
                shown.say("the teacher is trained first")
                for error in _run(client, training, [PlannedPack(TEACHER, settings.data.seed, ())]).values():
                    raise error
            shown.begin("packs", members=sum(len(pack.runs) for pack in packs), epochs=settings.recipe.epochs)
            return _run(client, training, list(_in_parts(store, packs, sizes)))
        except Exception as error:
            if client.status == "running" or isinstance(error, KdfastError):
                raise
            raise _lost() from error


def _in_parts(store: StudyStore, packs: Iterable[PlannedPack], sizes: Mapping[Settings, int]) -> Iterator[PlannedPack]:
    """The packs, those of more runs than their size cut into parts. One that another process trains stays
    whole: its task waits for that process."""
    held = {holder.name for holder in at_work(store.path)}
    for pack in packs:
        size = sizes[pack.shared]
        if len(pack.runs) <= size or pack.id in held:
            yield pack
        else:
            yield from parts(pack, size)


def _run(client: Client, training: StudyTraining, packs: Sequence[PlannedPack]) -> dict[str, Exception]:
    """Has the workers train these packs, until the results of each are seen here or it has failed."""
    store = training.store
    shown = training.shown
    failed: dict[str, Exception] = {}
    unseen = {key for pack in packs for key in pack.keys}
    running = {_submit(client, training, pack): pack for pack in reversed(packs)}  # `kdfast worker` begins in front
    ended = time.monotonic()
    try:
        while running or unseen:
            training.stop.wait(POLL)
            for pack, error in _take_ended(running):
                ended = time.monotonic()
                if error is not None:
                    failed[pack.id] = error
                    unseen.difference_update(pack.keys)
                    shown.say(f"{pack.id} failed: {type(error).__name__}: {error}")
            for key in sorted(unseen & store.keys()):  # whoever trained them
                unseen.remove(key)
                shown.stored(store.get(key), f"packs {len(packs) - len(running)}/{len(packs)}")
            if not running and time.monotonic() - ended > VISIBLE:
                what = f"the workers have stored {len(unseen)} runs that are not here"
                raise StudyError(what, where=str(store.path), hint=SAME_FILES)
    finally:
        if running and client.status == "running":
            _cancel(client, store, running)
    return failed


def _submit(client: Client, training: StudyTraining, pack: PlannedPack) -> Future:
    """The task of a pack. Errors are retried; workers that die are no errors (Dask's allowed-failures)."""
    store = training.store

    def task(*given: Any) -> None:
        """Code that is no module's, and plain arguments: the scheduler needs neither kdfast nor torch to read them."""
        import_module("kdfast.study.dask_engine").train(*given)

    return client.submit(
        task,
        str(store.path.absolute()),
        study_digest(store),
        client.id,
        pack.id,
        pack.seed,
        [run_table(run) for run in pack.runs],
        importable_names(training.settings),
        # The first part groups the tasks: Dask learns how long one takes, by which adaptive clusters grow.
        key=("kdfast-teacher" if pack.id == TEACHER else "kdfast-pack", pack.id, secrets.token_hex(16)),
        resources={"GPU": 1} if training.settings.device.startswith("cuda") else None,
        retries=GIVEN_UP - 1,
    )


def _take_ended(running: dict[Future, PlannedPack]) -> list[tuple[PlannedPack, Exception | None]]:
    """Packs whose tasks have ended, and why those failed that did. Raises what every pack would meet.

    The futures are not kept: with the worker that holds its result, Dask would run a task again.
    """
    ended = []
    for future in [future for future in running if future.done()]:
        if future.status not in ("finished", "error"):
            raise _lost()
        pack = running.pop(future)
        ended.append((pack, _pack_error(future.exception(), pack)))
    return ended


def _pack_error(error: Any, pack: PlannedPack) -> Exception | None:
    if isinstance(error, ImportError):
        what = f"the cluster's workers can't import kdfast {__version__} ({error})"
        raise BackendError(what, where="dask", hint="install this version of kdfast on all of them") from error
    if isinstance(error, KdfastError):
        raise error
    if isinstance(error, UnitFailed):
        return error.error
    if isinstance(error, import_module("distributed").KilledWorker):
        hint = "look at the workers' logs; a worker that ran out of memory needs more, or fewer threads"
        return StudyError(f"its workers died each time it was tried: {error}", where=pack.id, hint=hint)
    return error


def _cancel(client: Client, store: StudyStore, running: Iterable[Future]) -> None:
    """Cancels tasks, and waits until those that ran have saved their members."""
    with suppress(Exception):  # the scheduler may be going, too
        client.cancel(list(running))
    claims = Claims(store.path / "claims")
    deadline = time.monotonic() + GRACE
    while any(holder.alive and holder.owner == client.id for holder in claims.holders()):
        if time.monotonic() > deadline:
            return
        time.sleep(POLL)


def _lost() -> ClusterError:
    what = "the Dask scheduler is gone, was restarted, or another client has cancelled the tasks"
    return ClusterError(what, hint="everything that was stored is kept: rerun the same command to resume")


# ---- a task


def train(
    path: str,
    digest: str,
    owner: str,
    name: str,
    seed: int,
    runs: Sequence[Mapping[str, Any] | None],
    own_models: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """A task: trains what a pack is missing (name: its id), or the teacher. When it returns, all is stored.

    digest: of the study that is meant (study_digest). owner: of the claims. own_models: see importable_names.

    A task that is cancelled, or whose worker closes, saves its members and is rescheduled. Raises UnitFailed,
    and KdfastError, which names the worker, where the study can't be used there.
    """
    from distributed import Reschedule, get_worker

    worker = get_worker()
    _stop_profiler(worker)
    # Dask runs as many tasks as a worker has threads: one each. The teacher, before all others, takes all.
    threads = worker.state.nthreads if name == TEACHER else 1
    torch.set_num_threads(threads)
    try:
        with _opening:
            settings, inputs = _inputs(path, digest, tuple(own_models.items()))
        store = StudyStore.open(path)
        stop = Stop(store.path, _Unwanted(worker))
        training = StudyTraining(settings, store, inputs.prepared, SweepProgress(False), stop, threads)
        runner = PackRunner(training, inputs.teacher, Claims(store.path / "claims", owner=owner))
        pack = PlannedPack(name, seed, tuple(map(run_from, runs)))
        outcome = runner.sweep([] if name == TEACHER else [pack])
        for unit, error in outcome.failed.items():
            raise UnitFailed(unit, error)
    except SweepInterrupted:
        raise Reschedule from None
    except KdfastError as error:
        here = f"{error.where or 'worker'}, on {platform.node()} ({worker.address})"
        KdfastError.__init__(error, error.what, where=here, hint=error.hint)
        raise


def _stop_profiler(worker: Worker) -> None:
    """A worker's profiler reads the frames of its threads a hundred times a second. CPython 3.11.0 to 3.11.8 may
    deadlock in that (github.com/python/cpython/issues/106883), and the scheduler restarts a worker that does not
    answer after 5 to 10 minutes only."""
    if (3, 11) <= sys.version_info < (3, 11, 9) and "profile" in worker.periodic_callbacks:
        worker.loop.add_callback(worker.periodic_callbacks["profile"].stop)


_opening = threading.Lock()


@lru_cache(maxsize=1)  # of the last study, for all tasks of this process
def _inputs(path: str, digest: str, own_models: tuple[tuple[str, str], ...]) -> tuple[StudySettings, Inputs]:
    store = StudyStore.open(path)
    if study_digest(store) != digest:
        raise StudyError("is another study there than where the sweep was started", where=path, hint=SAME_FILES)
    settings, inputs = open_inputs(store, **dict(own_models))
    warning = other_environment(store, settings.device)
    if warning is not None:
        import_module("distributed").warn(f"{platform.node()}: {warning}", KdfastWarning)  # on the client, too
    return settings, inputs


class _Unwanted(threading.Event):
    """Set once the scheduler has cancelled this task (the client has, or is gone), or its worker closes."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker
        self._key = worker.get_current_task()

    def is_set(self) -> bool:
        task = self._worker.state.tasks.get(self._key)
        cancelled = task is None or task.state in ("cancelled", "released")
        if cancelled or self._worker.status.name not in ("running", "paused"):
            self.set()
        return super().is_set()
