"""What a Dask worker runs: one pack of a study, or its teacher. dask_engine.py submits it.

Nothing heavy is imported before a task runs: Dask's scheduler, a small process, imports this module to read its tasks.
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from distributed import Worker

    from kdfast.distill.pack import Targets
    from kdfast.store.packs import PlannedPack
    from kdfast.store.settings import StudySettings
    from kdfast.store.store import StudyStore
    from kdfast.study.inputs import Inputs

__all__ = ["Facts", "Study", "dask_setup", "identity", "train", "worker_environment"]

_LOOK = 0.5  # seconds between looks at whether the task is still wanted


@dataclass(frozen=True)
class Study:
    """Where a task finds its study. identity: of the one that is meant. owner: names the sweep that submits the tasks.
    device, backend: as the client has them."""

    path: str
    identity: str
    owner: str
    device: str
    backend: str | None


class Facts(TypedDict):
    """What a task tells. pack: its id. trained: runs that it stored. left: runs of the pack that are not stored. held:
    whether another process holds the pack, so that the task did nothing. stopped: whether it was cancelled or its
    worker closes. said: what a user should read."""

    pack: str
    trained: int
    left: int
    held: bool
    stopped: bool
    seconds: float
    host: str
    said: list[str]


def identity(store: StudyStore) -> str:
    """Tells a study from another one in a folder of the same name, on this machine or one that shares its disks."""
    described = json.dumps([store.settings, store.provenance], sort_keys=True, default=str)
    return hashlib.sha256(described.encode()).hexdigest()


def train(study: Study, document: Mapping[str, Any]) -> Facts:
    """Trains what a pack lacks, and stores each result before it returns. May run twice, also at the same time.

    document: id, seed and runs of the pack; an id alone (plan.TEACHER) stands for the teacher. The task returns early,
    with checkpoints of what ran, where it is cancelled or its worker closes.
    Raises KdfastError, which names the worker, where the study can't be used on it.
    """
    import torch
    from distributed import get_worker

    from kdfast.distill.schedules import RunConfig
    from kdfast.errors import KdfastError
    from kdfast.ops import backend
    from kdfast.store.claims import Claims
    from kdfast.store.packs import TEACHER, PlannedPack
    from kdfast.store.store import StudyStore
    from kdfast.study.interrupt import SweepInterrupted
    from kdfast.study.training import StudyTraining
    from kdfast.study.worker import PackRunner

    began, worker = time.monotonic(), get_worker()
    name = document["id"]
    # A worker's threads are its cores, and Dask runs as many tasks as there are threads: one each. Nothing else of the
    # sweep runs beside the teacher, which takes all of them.
    threads = worker.state.nthreads if name == TEACHER else 1
    torch.set_num_threads(threads)
    forced = nullcontext() if study.backend is None else backend.backend(study.backend)
    try:
        with _stop_when_unwanted(worker, Path(study.path)) as stop, _device(worker, study.device) as device, forced:
            store = StudyStore.open(study.path)
            opened = _open(study, store, device)
            shown = _said()
            if opened.warning is not None:
                shown.say(opened.warning)
            training = StudyTraining(
                opened.settings.model_copy(update={"device": device}),
                store,
                opened.inputs.prepared,
                shown,
                stop,
                threads,
            )
            claims = Claims(store.path / "claims", owner=study.owner)
            runs = tuple(None if run is None else RunConfig(**run) for run in document.get("runs", ()))
            pack = PlannedPack(name, document.get("seed", 0), runs)
            before, held, stopped = _left(store, pack, opened.settings), False, False
            try:
                if before:
                    with opened.lock:
                        runner = PackRunner(training, opened.inputs.teacher, claims, opened.targets_of(store))
                        opened.keep(runner.targets(retry=True), store)  # the client counts the tries
                    held = name != TEACHER and not runner.attempt(pack, retry=True)
            except SweepInterrupted:
                stopped = True
            left = _left(store, pack, opened.settings)
    except KdfastError as error:
        raise type(error)(
            error.what, where=f"{error.where or 'worker'}, on {_here(worker)}", hint=error.hint
        ) from error
    seconds = time.monotonic() - began
    return Facts(
        pack=name,
        trained=before - left,
        left=left,
        held=held,
        stopped=stopped,
        seconds=seconds,
        host=_here(worker),
        said=shown.lines,
    )


def _left(store: StudyStore, pack: PlannedPack, settings: StudySettings) -> int:
    """How many results of the pack are not stored."""
    from kdfast.store.key import RunKey
    from kdfast.store.packs import TEACHER, missing

    if pack.id == TEACHER:
        return int(not store.has(RunKey.teacher(settings.data.seed)))
    return len(missing(store, pack).runs)


def worker_environment(device: str) -> dict[str, str]:
    """identity.environment on a worker, for a client that lacks the device."""
    from distributed import get_worker

    from kdfast.store.identity import environment

    with _device(get_worker(), device) as own:
        return environment(own)


def dask_setup(worker: Worker) -> None:
    """As a preload of workers that Ctrl-C in a terminal, or a batch system, reaches as well: the client stops them."""
    import signal

    from kdfast.study.interrupt import SIGNALS

    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _here(worker: Worker) -> str:
    return f"{platform.node()} ({worker.address})"


# ---- once per process: jets and targets


@dataclass
class _Opened:
    """A study's data in this process, which its tasks share. lock: while targets are made. teacher: the digest of the
    stored one that they are of, as a study may get another one while its cluster waits for the next sweep."""

    study: tuple[str, str]
    settings: StudySettings
    inputs: Inputs
    warning: str | None
    targets: Targets | None = None
    teacher: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def targets_of(self, store: StudyStore) -> Targets | None:
        """The targets, if they are the stored teacher's."""
        there = self._stored(store)
        return self.targets if there is not None and there == self.teacher else None

    def keep(self, targets: Targets, store: StudyStore) -> None:
        """Keeps targets of the stored teacher for tasks to come."""
        self.targets, self.teacher = targets, self._stored(store)

    def _stored(self, store: StudyStore) -> str | None:
        from kdfast.store.key import RunKey

        return store.digest(RunKey.teacher(self.settings.data.seed))


_opened: _Opened | None = None
_opening = threading.Lock()


def _open(study: Study, store: StudyStore, device: str) -> _Opened:
    """The study, read at its first task; another one's data are let go for it."""
    from kdfast.errors import StudyError
    from kdfast.store.identity import other_environment
    from kdfast.study.worker import open_inputs

    global _opened
    wanted = study.path, identity(store)
    if wanted[1] != study.identity:
        hint = "workers and client have to see the same files under the same path"
        raise StudyError("is another study there than where the sweep was started", where=study.path, hint=hint)
    with _opening:
        if _opened is None or _opened.study != wanted:
            _opened = None  # before the next one needs its memory
            settings, inputs = open_inputs(store)
            _opened = _Opened(wanted, settings, inputs, other_environment(store, device))
        return _opened


# ---- once per task


@contextmanager
def _stop_when_unwanted(worker: Worker, where: Path) -> Iterator[Any]:
    """A Stop that is set once the scheduler has cancelled the task (the client has, or is gone), or the worker closes
    (it was told to, or has lost the scheduler)."""
    from distributed.core import Status

    from kdfast.study.interrupt import Stop

    stop, ended, key = Stop(where), threading.Event(), worker.get_current_task()

    def look() -> None:
        while not ended.wait(_LOOK):
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
def _device(worker: Worker, device: str) -> Iterator[str]:
    """The device of one task. "cuda": of so many of this process's GPUs as the worker offers, one that no other task is
    at; a worker with one GPU takes the first that it sees."""
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


def _said() -> Any:
    """A SweepProgress that keeps its lines for the client."""
    from kdfast.study.progress import SweepProgress

    class Said(SweepProgress):
        def __init__(self) -> None:
            super().__init__(False)
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

        def epoch(self, report: Any) -> None:
            pass

        def member(self, result: Any) -> None:
            pass  # the client sees it in the folder

    return Said()
