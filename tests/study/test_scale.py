"""Thousands of runs with faults: the real store, planner, claims and workers, with a training that takes no time.

Each worker is a greenlet that gives way at every operation on the disk and at every wait, and a drawn history decides
who goes on, who is killed (never resumed: what it had written stays as it is), who sleeps through its lease, and when
a heartbeat is lost. Whatever happens: a result that was reported is there and whole, no run is trained by two
workers that both keep their claim, and the survivors finish the study.
"""

import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from greenlet import greenlet
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast.store import claims as claims_module
from kdfast.store import folders as folders_module
from kdfast.store.claims import Claims
from kdfast.store.folders import AlreadyStored
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.packs import PlannedPack, planned
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.verify import verify
from kdfast.study.plan import plan
from kdfast.study.worker import PackRunner

LEASE = 180.0


class World:
    """Workers, a clock, and the disk that they share."""

    def __init__(self, path: Path) -> None:
        self.path, self.now = path, 0.0
        self.hub = greenlet.getcurrent()
        self.alive: list[Worker] = []
        self.dead: list[Worker] = []  # kept: a greenlet that is collected would clean up, which the killed do not
        self.trained: Counter[str] = Counter()
        self.reported: set[str] = set()

    def give_way(self) -> None:
        """Called by a worker: the history goes on elsewhere."""
        if greenlet.getcurrent() is not self.hub:
            self.hub.switch()

    def start(self, number: int) -> None:
        self.alive.append(Worker(self, number))

    def step(self, worker: "Worker") -> None:
        """Lets a worker go on to its next operation."""
        worker.greenlet.switch()
        if worker.greenlet.dead:
            self.alive.remove(worker)

    def kill(self, worker: "Worker") -> None:
        self.alive.remove(worker)
        self.dead.append(worker)

    def beat(self) -> None:
        for worker in self.alive:
            worker.beat()


class Worker:
    """One process on a machine of its own."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.asleep, self.waits = world, False, False
        self.identity = {"host": f"node{number}", "pid": number, "machine": f"machine {number}", "started": "1"}
        self.claims: list[claims_module.Claim] = []
        self.greenlet = greenlet(self.work)
        self.greenlet.worker = self

    def work(self) -> None:
        store = StudyStore.create_or_open(self.world.path, {}, {})  # as a sweep does, which clears leftovers away
        training = SimpleNamespace(
            settings=SimpleNamespace(data=SimpleNamespace(seed=0)),
            store=store,
            shown=SimpleNamespace(say=lambda text: None),
            stop=SimpleNamespace(wait=self.wait, deferred=nullcontext),
            teacher=lambda external: self.teacher(store),
            students=lambda pack, targets, **options: self.students(store, pack, **options),
        )
        PackRunner(training, None, Claims(store.path / "claims", lease=LEASE)).run(planned(store))

    def wait(self, seconds: float) -> None:
        self.waits = True
        self.world.give_way()
        self.waits = False

    def teacher(self, store: StudyStore) -> Any:
        if not store.has(RunKey.teacher(0)):
            self.store(store, StoredResult("teacher", "teacher", 0))
        return "targets"

    def students(self, store: StudyStore, pack: PlannedPack, *, lost: threading.Event, **_: Any) -> None:
        for run in pack.runs:
            self.world.give_way()  # trains
            self.store(store, StoredResult(*RunKey.of(run, pack.seed), run, metrics={"auc_val": 0.5}))
            if lost.is_set():
                return

    def store(self, store: StudyStore, result: StoredResult) -> None:
        self.world.trained[result.key.folder] += 1
        try:
            store.write(result)
        except AlreadyStored:
            assert store.has(result.key)
        self.world.reported.add(result.key.folder)

    def beat(self) -> None:
        if not self.asleep:
            for claim in self.claims:
                claim.beat()


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Everything that a worker does to the disk gives way first; clocks and processes are the world's."""

    def current() -> Worker | None:
        return getattr(greenlet.getcurrent(), "worker", None)

    def giving_way(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            world.give_way()
            return operation(*arguments, **options)

        return call

    def enter(claim: claims_module.Claim) -> claims_module.Claim:
        worker = current()
        assert worker is not None
        worker.claims.append(claim)
        return claim

    def leave(claim: claims_module.Claim, *_: Any) -> None:
        worker = current()
        assert worker is not None
        worker.claims.remove(claim)
        claim.release()

    with pytest.MonkeyPatch.context() as patch:
        slow = SimpleNamespace(**{name: getattr(os, name) for name in dir(os) if not name.startswith("__")})
        slow.rename, slow.fsync = giving_way(os.rename), giving_way(lambda descriptor: None)
        patch.setattr(folders_module, "os", slow)
        patch.setattr(folders_module, "fsync_folder", giving_way(lambda folder: None))
        clocks = SimpleNamespace(monotonic=lambda: world.now)
        patch.setattr(claims_module, "time", clocks)
        hub = {"host": "hub", "pid": 0, "machine": "hub", "started": ""}
        patch.setattr(claims_module, "_this_process", lambda: current().identity if current() else hub)
        patch.setattr(claims_module.Claim, "__enter__", enter)
        patch.setattr(claims_module.Claim, "__exit__", leave)
        yield


@contextmanager
def study(runs: int, pack_size: int) -> Iterator[World]:
    """A planned study in memory."""
    base = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(dir=base)) / "study"
    try:
        store = StudyStore.create_or_open(path, {}, {})
        configs = grid(temperature=[float(i) for i in range(1, 102)], alpha=[i / 100 for i in range(1, 101)])
        plan(store, [0], configs[: runs - 1], pack_size)
        world = World(path)
        with simulated(world):
            yield world
    finally:
        shutil.rmtree(path.parent)


def check(world: World, runs: int) -> None:
    store = StudyStore.open(world.path)
    results = {result.key.folder for result in store.results()}
    expected = {"teacher.teacher.seed0"}
    expected |= {key.folder for pack in planned(store) for key in pack.keys}
    assert results == expected
    assert len(results) == 1 + runs
    assert world.reported <= results
    assert verify(world.path).findings == ()
    left = {holder.host for holder in Claims(world.path / "claims").holders()}
    assert left <= {worker.identity["host"] for worker in world.dead}  # killed between their last result and its end


def finish(world: World) -> None:
    """Those who are left work on a quiet cluster."""
    steps = 0
    while world.alive:
        world.now += 1.0
        world.step(world.alive[steps % len(world.alive)])
        world.beat()
        steps += 1
        assert steps < 1_000_000


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["step"] * 12 + ["run", "run", "kill", "start", "sleep", "wake", "later", "silence"]),
        st.integers(0, 7),
        st.integers(1, 60),
    ),
    max_size=150,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    history=ACTIONS,
    workers=st.integers(1, 5),
    pack_size=st.integers(1, 4),
)
def test_any_history(history, workers, pack_size):
    with study(9, pack_size) as world:
        for number in range(workers):
            world.start(number)
        started = workers
        for action, which, count in history:
            worker = world.alive[which % len(world.alive)] if world.alive else None
            if action == "start" and started < 8:
                world.start(started)
                started += 1
            elif action == "later":
                world.now += 10.0
                world.beat()
            elif action == "silence":  # a network that is away: nobody's heartbeat arrives
                world.now += 2 * LEASE
            elif worker is None:
                continue
            elif action in ("step", "run"):
                for _ in range(count if action == "run" else 1):
                    if not worker.greenlet.dead:
                        world.step(worker)
            elif action == "kill":
                world.kill(worker)
            elif action in ("sleep", "wake"):
                worker.asleep = action == "sleep"
            stored = {path.name for path in (world.path / "results").iterdir() if not path.name.startswith(".")}
            assert world.reported <= stored
        if {action for action, *_ in history} & {"kill", "silence", "sleep"}:
            world.start(10_000)  # the user starts one more
            finish(world)
        else:
            finish(world)
            assert set(world.trained.values()) == {1}
        check(world, 9)


@pytest.mark.slow
def test_ten_thousand_runs(capsys):
    """Twenty workers, of which one in fifty operations' turns is killed or falls silent."""
    runs, random = 10_000, Random(1)
    with study(runs, 25) as world:
        for number in range(20):
            world.start(number)
        began, started, kills = time.process_time(), 20, 0
        while world.alive:
            worker = random.choice(world.alive)
            for _ in range(random.randint(1, 400)):
                if worker in world.alive:
                    world.step(worker)
                if worker.waits:
                    break
            world.now += 1.0
            if random.random() < 0.3:
                world.beat()
            event = random.random()
            if event < 0.1 and kills < 60 and worker in world.alive:
                world.kill(worker)
                world.start(started)
                started, kills = started + 1, kills + 1
            elif event < 0.12:
                worker.asleep = not worker.asleep
        took = time.process_time() - began
        check(world, runs)
        repeated = sum(world.trained.values()) - len(world.trained)
        with capsys.disabled():
            print(f"\n{runs} runs, {kills} kills: {took / runs * 1e3:.2f} ms of a core a run, {repeated} trained twice")
        assert kills > 40
