"""A Dask cluster as the engine: real schedulers, workers and clients, killed at bad moments, end in the same table."""

import contextlib
import ctypes
import itertools
import os
import queue
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import distributed
import pandas as pd
import pytest
import torch
from distributed import Client, Event, LocalCluster

import kdfast
from kdfast import __version__, report
from kdfast.cli import main
from kdfast.distill import cpu_engine
from kdfast.errors import BackendError, ClusterError, ConfigError, StudyError
from kdfast.store.attempts import GIVEN_UP, Attempt
from kdfast.store.claims import Claims, Holder
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER
from kdfast.store.store import StudyStore
from kdfast.store.table import csv_text, results_table
from kdfast.study import dask_engine, training
from kdfast.study import worker as study_worker
from tests.jets.atlas_files import write_atlas
from tests.study.processes import finish, start, wait_until
from tests.study.small_sweep import GRID, small_jets, small_sweep

pytestmark = pytest.mark.slow  # tests/study/test_dask_threads.py is quick

EPOCHS = 60
WORKERS, THREADS = 2, 2
SIGNALS = pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])


@pytest.fixture(scope="module", autouse=True)
def only_the_table() -> Iterator[None]:
    """Of the report: it takes longer than the sweeps here."""

    def rebuild(store: StudyStore) -> None:
        (store.path / "results_summary.csv").write_text(csv_text(results_table(store.results())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", rebuild)
        yield


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """The table of the same sweep by one process."""
    out = tmp_path_factory.mktemp("alone") / "study"
    small_sweep(out, epochs=EPOCHS)
    return table(out)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    shape = {"n_workers": WORKERS, "threads_per_worker": THREADS, "resources": {"GPU": 1}}
    with LocalCluster(dashboard_address=None, **shape) as cluster, Client(cluster) as client:
        yield client


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "study"


def table(out: Path) -> str:
    return (out / "results_summary.csv").read_text()


def results(out: Path, kind: str = "*") -> list[Path]:
    return list(out.glob(f"results/{kind}.*"))


def begun(out: Path) -> list[Holder]:
    """Claims of packs that are held; not one that is just being written, by nobody known yet."""
    return [holder for holder in Claims(out / "claims").holders() if holder.pid > 0 and holder.name != TEACHER]


def wait_until_given_back(out: Path) -> None:
    wait_until(lambda: not Claims(out / "claims").holders(), "the workers have given their claims back", 20)


@contextlib.contextmanager
def sweeping(out: Path, client: Client, **changes: Any) -> Iterator[None]:
    """A sweep in a thread, ended with the block; what it raises is raised."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            small_sweep(out, client=client, **({"epochs": EPOCHS} | changes))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    for error in raised:
        raise error


@contextlib.contextmanager
def in_workers(client: Client, module: Any, name: str, value: Any) -> Iterator[None]:
    """Sets a module's attribute in all workers, until the end of the block."""
    before = getattr(module, name)
    client.run(setattr, module, name, value)
    try:
        yield
    finally:
        client.run(setattr, module, name, before)


# ---- on a cluster that stays


train_pack, running, seen = training.train_pack, set[str](), list[tuple[str, int, int]]()
mapped_from: list[str] = []
broken = ""


def train_and_note(pack: Any, **more: Any) -> Iterator[Any]:
    """A worker's train_pack that notes what is trained, on how many threads, and of how many packs at once; a pack that
    begins with the broken member fails."""
    name = pack.members[0].name
    if name == broken:
        raise ValueError("broken on purpose")
    running.add(name)
    seen.append((name, more["threads"], len(running)))
    yield from train_pack(pack, **more)
    running.discard(name)


def noted() -> list[tuple[str, int, int]]:
    return seen


def test_the_same_table_as_without_dask(out, client, alone, capfd):
    """The jets are given in Python: the workers find them in the study's folder. As many tasks run as there are
    threads, and the teacher on all of them."""
    with in_workers(client, training, "train_pack", train_and_note):
        small_sweep(out, epochs=EPOCHS, client=client, progress=True)
        names, threads, at_once = zip(*itertools.chain(*client.run(noted).values()), strict=True)
    assert table(out) == alone
    expected = {"teacher": THREADS, "baseline": 1, **{run.name: 1 for run in GRID}}
    assert dict(zip(names, threads, strict=True)) == expected
    assert max(at_once) == THREADS
    said = capfd.readouterr().err
    assert "plan: 5 runs in 5 packs of up to 1" in said  # more than there are threads
    assert re.search(r"packs [345]/5: .* done, .*\(5/5 done, .* epochs/s", said)
    assert re.search(r" left, best so far 0\.\d{4} ", said)  # the time
    assert Claims(out / "claims").holders() == []


def train_from_files(pack: Any, **more: Any) -> Iterator[Any]:
    """A worker's train_pack that notes the file of the jets that it trains on."""
    mapped_from.append(pack.train.mapped[0].filename)
    yield from train_pack(pack, **more)


def trained_from() -> list[str]:
    return mapped_from


def test_a_store_is_read_in_place(out, tmp_path, client):
    """With the results of the store's files, bit for bit."""
    file = write_atlas(tmp_path / "jets.h5", small_jets(), width=60)
    store = kdfast.prepare(file, tmp_path / "jets.store", progress=False)
    alone = small_sweep(tmp_path / "files", [file])
    with in_workers(client, training, "train_pack", train_from_files):
        found = small_sweep(out, store, client=client)
        files = [Path(name) for worker in client.run(trained_from).values() for name in worker]
    assert len(files) == 2 + len(alone.results)  # with teacher and baseline
    assert all(each.is_relative_to(store / "views") for each in files)
    assert not (out / "inputs").exists()
    for name in alone.results.run_name:
        pd.testing.assert_frame_equal(found.scores(name, 42), alone.scores(name, 42))
    assert csv_text(found.results) == csv_text(alone.results)


def test_a_worker_reads_the_jets_once_until_the_study_changes(out, client):
    def read() -> list[int]:
        return list(client.run(lambda: dask_engine._inputs.cache_info().misses).values())

    counts = [read()]
    for changes in ({}, {"seeds": [43]}, {"seeds": [44], "checkpoint_every": 7}):
        small_sweep(out, epochs=2, client=client, pack_size=1, **changes)
        counts.append(read())
    more = [[new - old for old, new in zip(counts[0], later, strict=True)] for later in counts[1:]]
    assert max(more[0]) == max(more[1]) == 1
    assert max(more[2]) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_a_pack_that_another_process_holds_is_waited_for_and_a_large_one_is_cut(out, client, alone, killed):
    """Where the holder is killed, that is recorded before its pack is trained."""
    small_sweep(out, epochs=EPOCHS, plan_only=True, pack_size=3)
    code = """if True:
        import sys
        from pathlib import Path
        from kdfast.store.claims import Claims
        with Claims(Path(sys.argv[1])).take("seed42.000"):
            print("taken", flush=True)
            sys.stdin.read()"""
    with start("-c", code, str(out / "claims"), stdin=subprocess.PIPE) as other:
        assert other.stdout.readline() == "taken\n"
        with sweeping(out, client, pack_size=1):
            wait_until(lambda: len(results(out, "student")) == 2, "the other pack is done")
            if killed:
                other.kill()
            other.stdin.close()
    assert table(out) == alone
    packs = {path.name for path in (out / "claims").iterdir() if path.is_dir()} - {TEACHER}
    assert packs == {"seed42.000", "seed42.001.00", "seed42.001.01"}
    lost = [("seed42.000", "lost", other.pid, 3)] if killed else []
    assert [(a.name, a.ended, a.pid, len(a.members)) for a in StudyStore.open(out).attempts()] == lost


def test_the_profiler_of_workers_is_stopped_where_it_may_deadlock(out, client):
    """In CPython 3.11.0 to 3.11.8: a worker has hung in it."""

    def profiled(dask_worker: Any) -> bool:
        return dask_worker.periodic_callbacks["profile"].is_running()

    small_sweep(out, epochs=2, client=client)
    safe = not (3, 11) <= sys.version_info < (3, 11, 9)
    assert all(client.run(profiled).values()) == safe  # a worker that had no task still profiles


def test_students_of_a_teacher_that_was_replaced(out, tmp_path, client):
    """Also of a study that was deleted and made anew: nothing of the old teacher is used."""
    small_sweep(out, epochs=2, client=client)
    before, teacher = table(out), StudyStore.open(out).get(RunKey.teacher(42))
    state = {name: tensor * 2 for name, tensor in teacher.state.items()}
    other = replace(teacher, state=state, arrays=dict(teacher.arrays), stored="")
    for folder in results(out):
        shutil.rmtree(folder)
    StudyStore.open(out).write(other)
    shutil.copytree(out, tmp_path / "alone")
    small_sweep(out, epochs=2, client=client)
    small_sweep(tmp_path / "alone", epochs=2)
    assert table(out) == table(tmp_path / "alone") != before
    shutil.rmtree(out)
    small_sweep(out, epochs=2, client=client)
    assert table(out) == before


def test_workers_that_can_not_be_used_are_named(tmp_path, client, monkeypatch):
    named = rf"on .*tcp://.*: was planned by kdfast {__version__}, this is 0\.0\.1: .*\ninstall kdfast"
    with in_workers(client, study_worker, "__version__", "0.0.1"), pytest.raises(StudyError, match=named):
        small_sweep(tmp_path / "version", epochs=2, client=client)
    client.run(lambda: sys.modules.update({"kdfast.study.dask_engine": None}))
    with pytest.raises(BackendError, match="workers can't import kdfast"):
        small_sweep(tmp_path / "without", epochs=2, client=client)
    client.run(lambda: sys.modules.pop("kdfast.study.dask_engine"))
    genuine = dask_engine.study_digest
    monkeypatch.setattr(dask_engine, "study_digest", lambda store: genuine(store)[::-1])
    with pytest.raises(StudyError, match=r"on .*tcp://.*: is another study there"):
        small_sweep(tmp_path / "folder", epochs=2, client=client)


def test_results_that_the_client_never_sees_are_an_error(out, client, monkeypatch):
    """As on machines that do not see the same files."""
    monkeypatch.setattr(dask_engine, "VISIBLE", 1.0)
    monkeypatch.setattr(StudyStore, "keys", lambda store: set())
    with pytest.raises(StudyError, match=r"the workers have stored 5 runs that are not here\n.*see the same files"):
        small_sweep(out, epochs=2, client=client)


@pytest.mark.filterwarnings("always::kdfast.errors.KdfastWarning")
def test_another_environment_of_a_worker_is_told(out, client, monkeypatch):
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: told.put(str(message)))
    small_sweep(out, epochs=2, plan_only=True)
    provenance = out / "provenance.json"
    provenance.write_text(re.sub(r'"isa": "\w+"', '"isa": "another"', provenance.read_text()))
    (out / "manifest.json").unlink()
    small_sweep(out, epochs=2, client=client)
    message = told.get(timeout=30)  # it comes by the client's other thread
    assert re.search(r"begun in another environment \(isa another → \w+\); last bits may differ", message)


def test_a_pack_that_fails_does_not_end_the_others(out, client, alone, capfd):
    small_sweep(out, epochs=EPOCHS, plan_only=True, pack_size=1)
    for _ in range(2):  # what failed before the sweep does not count
        StudyStore.open(out).write_attempt(Attempt("seed42.000", "error", "RuntimeError: an older fault"))
    with (
        in_workers(client, sys.modules[__name__], "broken", "baseline"),
        in_workers(client, training, "train_pack", train_and_note),
        pytest.raises(ValueError, match="broken on purpose"),
    ):
        small_sweep(out, epochs=EPOCHS, client=client, progress=True)
    said = capfd.readouterr().err
    assert "seed42.000 failed: ValueError: broken on purpose" in said
    assert "older fault" not in said
    assert len(results(out, "student")) == len(GRID)
    tries = [attempt.ended for attempt in StudyStore.open(out).attempts("seed42.000")]
    assert tries == ["error", "error", "error", "retry", *["error"] * (GIVEN_UP - 1)]
    small_sweep(out, epochs=EPOCHS, client=client)
    assert table(out) == alone


def test_tasks_that_another_client_cancels(out, client):
    def cancel_once_begun() -> None:
        wait_until(lambda: begun(out), "a pack is begun")
        client.cancel([distributed.Future(key, client) for key in list(client.futures)], force=True)

    other = threading.Thread(target=cancel_once_begun)
    other.start()
    with pytest.raises(ClusterError, match="another client has cancelled the tasks"):
        small_sweep(out, epochs=EPOCHS, client=client)
    other.join()


def hold_the_gil() -> None:
    Event("gil").set()
    ctypes.PyDLL(None).usleep(10_000_000)  # PyDLL, unlike CDLL, keeps it


def answer(client: Client) -> float:
    """Seconds that the workers' event loops, from which heartbeats are sent, take to answer."""
    began = time.monotonic()
    client.run(os.getpid)
    return time.monotonic() - began


steps: list[None] = []
take_step = cpu_engine._Learner.step


def counted_step(*arguments: Any) -> Any:
    steps.append(None)
    return take_step(*arguments)


def steps_taken() -> int:
    return len(steps)


def endless_teacher(out: Path, client: Client) -> Any:
    """The task of a teacher that takes minutes, once it has taken a few steps."""
    client.wait_for_workers(1)
    client.run(setattr, cpu_engine._Learner, "step", counted_step)
    recipe = {"epochs": 3000, "teacher_patience": 3000}
    small_sweep(out, epochs=None, config={"recipe": recipe}, plan_only=True)
    digest = study_worker.study_digest(StudyStore.open(out))
    task = client.submit(dask_engine.train, str(out), digest, "owner", TEACHER, 42, (), pure=False)
    wait_until(lambda: max(client.run(steps_taken).values()) > 5, "the teacher is trained")
    return task


def test_heartbeats_flow_while_members_train_until_it_is_cancelled(out, client):
    """The worker's event loop answers while members train; a cancelled task saves its members."""
    held = client.submit(hold_the_gil, pure=False)
    Event("gil", client=client).wait(timeout=60)
    blocked = 0.0
    while not held.done():  # the first answer may come before it is held
        blocked = max(blocked, answer(client))
    teacher = endless_teacher(out, client)
    answers = [answer(client) for _ in range(7)]
    assert teacher.status == "pending"
    assert statistics.median(answers) < blocked / 2  # a busy machine may delay single ones
    teacher.cancel()
    wait_until_given_back(out)
    assert list(out.glob("checkpoints/teacher.*/*"))  # at a step, from which the next one resumes


def test_gpus_are_asked_for_and_told_where_they_are_missing(tmp_path, client, monkeypatch):
    asked: list[Any] = []
    submit = client.submit

    def recording(*arguments: Any, **options: Any) -> Any:
        asked.append(options["resources"])
        return submit(*arguments, **options)

    monkeypatch.setattr(client, "submit", recording)
    small_sweep(tmp_path / "cpu", epochs=2, client=client)
    assert set(asked) == {None}
    asked.clear()
    without = pytest.raises(BackendError, match="no GPU can be used")  # says a worker: it was sent there
    with contextlib.nullcontext() if torch.cuda.is_available() else without:
        small_sweep(tmp_path / "gpu", epochs=2, client=client, device="cuda")
    assert asked
    assert all(one == {"GPU": 1} for one in asked)
    assert dask_engine.tasks_at_once(client, "cuda") == WORKERS
    assert dask_engine.tasks_at_once(client, "auto") == WORKERS * THREADS


# ---- clusters that go


@contextlib.contextmanager
def processes(folder: Path, *options: str, workers: int = 2) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """A cluster that `dask scheduler` and `dask worker` make: the scheduler's file; the scheduler and the workers."""
    file = folder / "scheduler.json"
    where = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--no-dashboard"]
    worker = ["worker", *where, "--nthreads", "1", "--local-directory", str(folder / "scratch"), *options]
    with contextlib.ExitStack() as started:

        def run(command: list[str]) -> subprocess.Popen[str]:
            process = start("-m", "dask", *command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            started.callback(process.wait)
            started.callback(process.kill)
            return process

        scheduler = run(["scheduler", *where, "--port", "0"])
        wait_until(file.exists, "the scheduler is there")
        yield file, [scheduler, *(run(worker) for _ in range(workers))]


def start_sweep(out: Path, cluster: Path | str) -> subprocess.Popen[str]:
    command = ["-m", "tests.study.small_sweep", str(out), str(EPOCHS), "300", str(cluster)]
    return start(*command, start_new_session=True)


def test_a_worker_killed_in_mid_pack(out, tmp_path, alone):
    with processes(tmp_path, "--no-nanny") as (file, _), Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2)
        with sweeping(out, client, pack_size=2):
            wait_until(lambda: begun(out), "a pack is begun")
            os.kill(begun(out)[0].pid, signal.SIGKILL)
            assert len(results(out)) < len(GRID) + 2
    assert table(out) == alone


def test_a_client_that_goes_away_and_a_scheduler_that_does(out, tmp_path, alone):
    with processes(tmp_path) as (file, (scheduler, *_)):
        first = start_sweep(out, file)
        wait_until(lambda: begun(out), "a pack is begun")
        owner = begun(out)[0].owner
        first.kill()
        finish(first)
        wait_until_given_back(out)
        kept = {path: path.stat().st_mtime_ns for path in out.glob("results/*/manifest.json")}
        assert 0 < len(kept) < len(GRID) + 2
        second = start_sweep(out, file)
        wait_until(lambda: any(one.owner != owner for one in begun(out)), "the same command resumes")
        with Client(scheduler_file=str(file)) as client:
            assert not client.run_on_scheduler(lambda: {"torch", "kdfast"} & {*sys.modules})
        scheduler.kill()
        status, _, errors = finish(second)
    assert status == 75, errors
    assert "the Dask scheduler is gone" in errors
    assert "everything that was stored is kept: rerun the same command to resume" in errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


def test_a_worker_that_is_told_to_close_saves_its_members(out, tmp_path):
    with processes(tmp_path, workers=1) as (file, (_, worker)), Client(scheduler_file=str(file)) as client:
        teacher = endless_teacher(out, client)
        assert not list(out.glob("checkpoints/*"))
        worker.terminate()
        wait_until_given_back(out)
        assert list(out.glob("checkpoints/teacher.*/*"))
        assert teacher.status == "pending"  # until another worker comes
        teacher.cancel()


@SIGNALS
def test_stopped_by_a_signal_and_started_again(out, alone, number, expected):
    """A terminal sends SIGINT to the workers of a local cluster, too."""
    process = start_sweep(out, "local")
    wait_until(lambda: begun(out), "a pack is begun")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    status, _, errors = finish(process)
    assert status == expected, errors
    assert f"stopped: finished runs are stored in {out}; rerun the same command to resume" in errors
    assert Claims(out / "claims").holders() == []  # given back, not left behind
    assert len(results(out)) < len(GRID) + 2
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


@SIGNALS
def test_stopped_by_a_signal_while_the_cluster_starts(out, number, expected):
    code = """if True:
        import sys, time, distributed
        from kdfast.cli import main
        def slow(**shape):
            print("starting", flush=True)
            time.sleep(60)
        distributed.LocalCluster = slow
        sys.exit(main(["sweep", "--dask", "local", "--out", sys.argv[1]]))"""
    process = start("-c", code, str(out))
    assert process.stdout.readline() == "starting\n"
    process.send_signal(number)
    status, _, errors = finish(process)
    assert status == expected, errors
    assert errors.startswith("kdfast: stopped: finished runs are stored in ")


def test_the_command(tmp_path):
    options = ["--max-jets", "600", "--epochs", "1", "--teacher-epochs", "1", "--temperature", "2", "--alpha", "0.5"]
    options += ["--model", "small", "--teacher-model", "small", "--batch-size", "32"]
    for name, more in (("alone", []), ("dask", ["--dask", "local", "--threads", "2"])):
        assert main(["sweep", "--quiet", *options, "--out", str(tmp_path / name), *more]) == 0
    assert table(tmp_path / "dask") == table(tmp_path / "alone")
    assert list((tmp_path / "dask").glob("claims/seed42.*"))


def test_the_local_cluster_suits_the_settings_file(tmp_path, monkeypatch):
    started: list[Any] = []

    def recording(**shape: Any) -> None:
        started.append(shape)
        assert not dask.config.get("distributed.worker.profile.enabled")  # nobody could see the profiles
        raise ClusterError("not started: only its shape is asked for")

    monkeypatch.setattr(distributed, "LocalCluster", recording)
    file = tmp_path / "mine.toml"
    for device, resources in (("cuda", {"GPU": 1}), ("cpu", None)):
        file.write_text(f'device = "{device}"')
        assert main(["sweep", "--config", str(file), "--dask", "local", "--out", str(tmp_path)]) == 75
        assert started.pop().get("resources") == resources
    file.write_text("device = 5")
    assert main(["sweep", "--config", str(file), "--dask", "local"]) == 2
    assert not started


def test_no_scheduler_and_no_client(out, client, monkeypatch):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(BackendError, match="no Dask scheduler answers"),
        dask_engine.connected("tcp://127.0.0.1:9"),
    ):
        pass
    closed = Client(client.cluster)
    closed.close()
    for error, match, given in (
        (ConfigError, r"client: must be a distributed\.Client, .*is 'tcp://127\.0\.0\.1:9'", "tcp://127.0.0.1:9"),
        (ConfigError, "have their own", client),
        (ClusterError, "has no scheduler", closed),
    ):
        with pytest.raises(error, match=match):
            small_sweep(out, client=given, threads=2 if given is client else None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    what = r"Dask is not installed .*\n.*pip install 'kdfast\[dask\]'"
    with pytest.raises(BackendError, match=what), dask_engine.connected("local"):
        pass


def test_a_cluster_that_grows_when_there_is_work(out, alone):
    """It has no worker at first, and few packs would be no reason for many."""
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        sweeping(out, client),
    ):
        wait_until(lambda: list(out.glob("packs/*")), "the study is planned")
        cluster.adapt(minimum=0, maximum=2, interval="100ms")
    assert table(out) == alone
