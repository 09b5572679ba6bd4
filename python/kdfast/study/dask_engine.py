"""Dask as the engine of a sweep: the packs of its plan as tasks (dask_task.py says what one does).

What there is to schedule, Dask schedules: a task for the teacher, and when it is stored one for each pack, none bound
to a worker, so that clusters may grow, shrink and lose workers. All results go through the study's folder, which
workers and client share; the scheduler carries ids of packs and a few numbers.

A task takes its pack's claim (claims.py), so that `kdfast worker` may work on the same study, and so may tasks of an
earlier client that are still running. The claims of one sweep have one owner: where Dask runs a task again, its worker
is lost to Dask, and the second try takes the claim over at once. A pack that others hold costs no worker: its task
returns, and the client, which uses no core, watches the claim and submits the pack again when it is free.
"""

from __future__ import annotations

import importlib.util
import queue
import secrets
import time
from asyncio import TimeoutError as AsyncTimeoutError
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kdfast._version import __version__
from kdfast.errors import BackendError, ClusterError, ConfigError, KdfastError, ResourceError, StudyError
from kdfast.ops import backend
from kdfast.store.attempts import GIVEN_UP, Attempt
from kdfast.store.claims import Claim, Claims
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER, PlannedPack, missing, parts
from kdfast.store.settings import StudySettings
from kdfast.store.store import StudyStore
from kdfast.study import dask_task
from kdfast.study.interrupt import Stop
from kdfast.study.progress import SweepProgress
from kdfast.study.worker import Outcome, try_again

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["EXPECTED", "check_client", "connected", "environment_there", "run_packs", "tasks_at_once"]

# Tasks at once that a plan is made for where no worker is there yet, as of an adaptive cluster: packs are small then.
EXPECTED = 16
# Seconds: between looks at signals; at the folder of results; at packs that others hold; at which workers are there.
_POLL, _LOOK, _LOOK_AT_CLAIMS, _LOOK_AT_WORKERS = 0.2, 1.0, 2.0, 5.0
# Seconds: that tasks have to save what they trained when the sweep is stopped; after which another client of a network
# file system sees what was written there.
_GRACE, _VISIBLE = 10.0, 120.0


def _distributed() -> Any:
    missing = [name for name in ("dask", "distributed") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise BackendError(what, where="dask", hint="install it with: pip install 'kdfast[dask]'")
    import distributed

    return distributed


# ---- the cluster


@contextmanager
def connected(address: str, *, threads: int | None = None, device: str = "auto") -> Iterator[Client]:
    """A client of the scheduler at an address or in a scheduler's file, or "local": of a cluster on this machine.

    threads: of a local one, in as many processes as Dask thinks best; None: all cores. Raises BackendError without the
    extra [dask] or where no scheduler answers.
    """
    distributed = _distributed()
    if address != "local":
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
        return
    import torch
    from dask.system import CPU_COUNT
    from distributed.deploy.utils import nprocesses_nthreads

    if device.startswith("cuda"):  # one process feeds all GPUs
        gpus = max(1, torch.cuda.device_count() if device == "cuda" else 1)
        shape = {"n_workers": 1, "threads_per_worker": gpus, "resources": {"GPU": gpus}}
    else:
        processes, each = nprocesses_nthreads(threads or CPU_COUNT)
        shape = {"n_workers": processes, "threads_per_worker": each}
    preload = [dask_task.__name__]
    with (
        distributed.LocalCluster(processes=True, dashboard_address=None, preload=preload, **shape) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def check_client(client: Any) -> None:
    """Raises ConfigError unless it is a client that a sweep can use, BackendError without the extra [dask]."""
    distributed = _distributed()
    if not isinstance(client, distributed.Client):
        hint = "distributed.Client(address), or distributed.Client() for this machine"
        raise ConfigError(f"must be a distributed.Client, is {type(client).__name__}", where="client", hint=hint)
    if client.asynchronous:
        raise ConfigError("is asynchronous", where="client", hint="make it with asynchronous=False")
    if client.status != "running":
        raise ClusterError(f"has no scheduler: it is {client.status}", where="client", hint="make a new one")


def _on_gpu(device: str) -> bool:
    return device.startswith("cuda")


def _resources(device: str) -> dict[str, float] | None:
    return {"GPU": 1} if _on_gpu(device) else None


def tasks_at_once(client: Client, device: str) -> int:
    """How many tasks of a sweep the workers that are there now run at the same time."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return int(sum(w["resources"].get("GPU", 0) if _on_gpu(device) else w["nthreads"] for w in workers))


def environment_there(client: Client, device: str, shown: SweepProgress, stop: Stop) -> dict[str, str]:
    """identity.environment of a GPU worker, which waits for one. Raises BackendError where it can't use its GPU."""
    _say_if_none(client, device, shown)
    future = client.submit(
        dask_task.worker_environment, device, key=f"kdfast-environment-{secrets.token_hex(16)}", resources={"GPU": 1}
    )
    try:
        while not future.done():
            _check(client)
            stop.wait(_POLL)
        if future.status == "error" and (refused := _refused(future.exception())) is not None:
            raise refused
        return {**future.result(), "kdfast": __version__}  # another one of the worker's is refused with its first pack
    finally:
        future.cancel()


def _say_if_none(client: Client, device: str, shown: SweepProgress) -> bool:
    """Says where no worker can take a task; returns whether one can."""
    if tasks_at_once(client, device):
        return True
    gpu = " with a GPU (dask worker --resources GPU=1)" if _on_gpu(device) else ""
    shown.say(f"no worker{gpu} is there: waiting for one (if they end at once, their logs say why)")
    return False


def _refused(error: BaseException) -> BaseException | None:
    """What every pack would meet; None: a fault of one pack or worker."""
    if isinstance(error, KdfastError) and not isinstance(error, ResourceError):
        return error
    if isinstance(error, ImportError) or "deserialization" in str(error):  # by a scheduler or worker without kdfast
        what = "the cluster can't read the tasks of a sweep: its scheduler or workers lack kdfast, or have another one"
        refused = BackendError(what, where="dask", hint=f"install kdfast {__version__} on all of them")
        refused.__cause__ = error
        return refused
    return None


def _check(client: Client) -> None:
    if client.status != "running":
        raise _lost("the Dask scheduler is gone")


def _lost(what: str) -> ClusterError:
    return ClusterError(what, hint="everything that was stored is kept: the same command goes on from there")


# ---- the packs


def run_packs(
    client: Client,
    store: StudyStore,
    settings: StudySettings,
    packs: Sequence[PlannedPack],
    pack_size: int,
    shown: SweepProgress,
    stop: Stop,
) -> Outcome:
    """Has the workers train what the packs lack; the study's inputs are stored (inputs.write_inputs).

    A pack that lacks more than pack_size runs (planned for fewer workers) is cut into parts; this process holds its
    claim, and tasks take claims of the parts.

    A pack that fails does not end the others. Raises ClusterError where the scheduler is lost, KdfastError for what
    every pack would meet (another version on a worker, another folder, a teacher that fails), SweepInterrupted.
    """
    pending = [left for pack in packs if (left := missing(store, pack)).runs]
    outcome = Outcome(done=[pack.id for pack in packs if pack.id not in {left.id for left in pending}])
    if pending:
        with stop.deferred(), _Sweep(client, store, settings, pending, pack_size, shown, stop, outcome) as sweep:
            try:
                sweep.run()
            except Exception as error:
                if not isinstance(error, KdfastError):  # a call to a scheduler that has just gone
                    _check(client)
                raise
        sweep.wait_until_visible()
    return outcome


class _Idle(Exception):
    """A task that did nothing, and could go on doing so for ever. Another process that takes the claim over may cause
    it, too, but hardly again and again."""


class _Sweep:
    """The tasks of one call of run_packs."""

    def __init__(
        self,
        client: Client,
        store: StudyStore,
        settings: StudySettings,
        packs: Sequence[PlannedPack],
        pack_size: int,
        shown: SweepProgress,
        stop: Stop,
        outcome: Outcome,
    ) -> None:
        self.client, self.store, self.settings, self.shown = client, store, settings, shown
        self.stop, self.outcome = stop, outcome
        self.planned, self.pack_size = packs, pack_size
        self.packs: dict[str, PlannedPack] = {}  # that tasks train: planned ones, and parts of large ones
        self.own_claims = ExitStack()
        owner = secrets.token_hex(16)
        self.study = dask_task.Study(
            str(store.path.absolute()), dask_task.identity(store), owner, settings.device, backend.forced()
        )
        self.claims = Claims(store.path / "claims", owner=owner)
        self.ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.running: dict[Future, str] = {}  # tasks that are submitted and not ended, with their packs
        self.held: dict[str, PlannedPack] = {}
        self.missing: dict[str, int] = {}  # results of a pack, when it was submitted
        self.tries: Counter[str] = Counter()
        self.said: set[str] = set()
        self.unseen = {key for pack in packs for key in pack.keys}  # results that are not shown yet

    def __enter__(self) -> _Sweep:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.own_claims:
            self.cancel()

    # ---- submitting

    def offer(self, pack: PlannedPack) -> None:
        """Submits a pack of the plan."""
        if len(pack.runs) <= self.pack_size:
            offered = [pack]
        elif (claim := self.claim(pack)) is not None:
            self.own_claims.enter_context(claim)
            offered = parts(pack, self.pack_size)
        else:
            self.hold(pack)
            return
        for part in offered:
            self.packs[part.id] = part
            self.submit(part.id)

    def submit(self, pack: str) -> None:
        document: dict[str, Any] = {"id": pack}
        if pack in self.packs:
            planned = self.packs[pack]
            runs = [None if run is None else asdict(run) for run in planned.runs]
            document |= {"seed": planned.seed, "runs": runs}
            self.missing[pack] = len(missing(self.store, planned).runs)
        future = self.client.submit(
            dask_task.train,
            self.study,
            document,
            # Its first part groups the tasks: Dask learns how long one takes, by which adaptive clusters grow.
            key=(f"kdfast-{'teacher' if pack == TEACHER else 'pack'}", pack, self.study.owner, secrets.token_hex(4)),
            resources=_resources(self.settings.device),
            retries=0,  # errors: see `failed`; lost workers are none
        )
        self.running[future] = pack
        future.add_done_callback(self.ended.put)

    def run(self) -> None:
        """To the end of all packs."""
        if self.store.has(RunKey.teacher(self.settings.data.seed)):
            self.begin()
        else:
            self.shown.say("the teacher is trained first")
            self.submit(TEACHER)
        self.any_workers = _say_if_none(self.client, self.settings.device, self.shown)
        chores = {self.show: _LOOK, self.look_at_claims: _LOOK_AT_CLAIMS, self.look_at_workers: _LOOK_AT_WORKERS}
        last = dict.fromkeys(chores, time.monotonic())
        while self.running or self.held:
            self.stop.check()
            with suppress(queue.Empty):
                self.take(self.ended.get(timeout=_POLL))
            _check(self.client)
            for chore, interval in chores.items():
                if time.monotonic() - last[chore] > interval:
                    chore()
                    last[chore] = time.monotonic()
        self.show()

    def take(self, future: Future) -> None:
        """What a task that has ended means."""
        name = self.running.pop(future)
        if future.status == "error":
            self.failed(name, future.exception())
            return
        try:
            facts = future.result(timeout=10) if future.status == "finished" else None
        except (TimeoutError, AsyncTimeoutError):  # its worker died right after it
            self.submit(name)
            return
        if facts is None:
            _check(self.client)
            raise _lost("the tasks were cancelled by another client, or the cluster was restarted")
        for line in facts["said"]:
            self.say_once(line, facts["host"])
        if facts["held"]:
            self.hold(self.packs[name])
        elif facts["left"] and not (facts["trained"] or facts["stopped"]):
            self.failed(name, _Idle("a task ended without an error, and trained nothing of what is missing"))
        elif facts["left"]:  # its worker was told to close, or another process has taken the claim over
            self.submit(name)
        elif name == TEACHER:
            self.begin()
        else:
            self.outcome.done.append(name)
            self.show()

    def failed(self, name: str, error: BaseException) -> None:
        """Submits the pack again, gives it up, or raises what every pack would meet.

        What Dask itself tries again when it loses a worker (distributed.scheduler.allowed-failures) counts as once.
        """
        from distributed import KilledWorker

        if (refused := _refused(error)) is not None:
            raise refused
        left = len(missing(self.store, self.packs[name]).runs) if name in self.packs else 1
        if left < self.missing.get(name, 1):
            self.tries[name] = 0
        self.tries[name] += 1
        if self.tries[name] < GIVEN_UP:
            self.shown.say(f"{name}: {type(error).__name__}: {error}; tried again")
            self.submit(name)
            return
        if isinstance(error, KilledWorker):
            hint = "look at the workers' logs; a worker that ran out of memory needs more, or fewer threads"
            error = StudyError(f"its workers died, each time it was tried: {error}", where=name, hint=hint)
        elif isinstance(error, _Idle):
            error = StudyError(str(error), where=name, hint="start the workers anew, and the same sweep")
        if name == TEACHER:
            raise error
        self.outcome.failed[name] = error if isinstance(error, Exception) else RuntimeError(str(error))

    def hold(self, pack: PlannedPack) -> None:
        self.say_once(f"{pack.id}: held by another process, waiting until it is done or silent")
        self.held[pack.id] = pack

    def claim(self, pack: PlannedPack) -> Claim | None:
        """Its claim, if nobody holds it; an attempt that was cut off is recorded here, as no task sees it any more."""
        claim = self.claims.take(pack.id)
        if claim is not None and (before := claim.taken_from) is not None:
            self.store.write_attempt(Attempt.lost(pack.id, before.host, before.pid, pack.keys))
        return claim

    def look_at_claims(self) -> None:
        """Offers packs again that others have given back, or have been silent at for a lease."""
        for name, pack in list(self.held.items()):
            left = missing(self.store, pack)
            if not left.runs:
                del self.held[name]
                self.outcome.done.append(name)
            elif (claim := self.claim(pack)) is not None:
                with claim:
                    pass  # free: the task takes it
                del self.held[name]
                self.offer(left)

    def look_at_workers(self) -> None:
        """Says when the last one has gone."""
        if self.any_workers:
            self.any_workers = _say_if_none(self.client, self.settings.device, self.shown)
        else:
            self.any_workers = tasks_at_once(self.client, self.settings.device) > 0

    # ---- showing

    def begin(self) -> None:
        """The teacher is there: all packs are submitted."""
        members, epochs = len(self.unseen), self.settings.recipe.epochs
        self.shown.begin("packs", members=members, epochs=epochs)
        try_again(self.store, *(pack.id for pack in self.planned))  # tasks may know parts of them alone
        for pack in self.planned:
            self.offer(pack)

    def what(self) -> str:
        return f"packs {len(self.outcome.done)}/{len(self.packs | self.held)}"

    def show(self) -> None:
        """Results that have appeared, whoever trained them."""
        for key in sorted(self.unseen & self.store.keys()):
            self.unseen.remove(key)
            self.shown.stored(self.store.get(key), self.what())

    def say_once(self, text: str, host: str = "") -> None:
        if text not in self.said:
            self.said.add(text)
            self.shown.say(f"{host}: {text}" if host else text)

    # ---- ending

    def cancel(self) -> None:
        """Cancels what is not done, and waits until the tasks that ran have saved their members."""
        left = list(self.running)
        if not left or self.client.status != "running":
            return
        with suppress(Exception):  # the scheduler may be going, too
            self.client.cancel(left)
        names, deadline = set(self.running.values()), time.monotonic() + _GRACE
        while time.monotonic() < deadline and any(
            holder.alive and holder.owner == self.study.owner and holder.name in names
            for holder in self.claims.holders()
        ):
            time.sleep(_POLL)

    def wait_until_visible(self) -> None:
        """Until this process sees what the workers have stored. Raises StudyError where it never does."""
        done = [self.packs[name] for name in self.outcome.done if name in self.packs]
        deadline = time.monotonic() + _VISIBLE
        while unseen := [pack.id for pack in done if missing(self.store, pack).runs]:
            if time.monotonic() > deadline:
                what = f"the workers have stored {unseen[0]}, and it is not here"
                hint = "workers and client have to see the same files under the same path"
                raise StudyError(what, where=str(self.store.path), hint=hint)
            self.stop.wait(_LOOK)
