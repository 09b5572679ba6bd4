"""A Dask cluster as the engine: real schedulers, workers and clients, killed at bad moments, end in the same table."""

import contextlib
import ctypes
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
import torch
from distributed import Client, Event, LocalCluster

from kdfast import report
from kdfast.cli import main
from kdfast.errors import BackendError, ClusterError, ConfigError, StudyError
from kdfast.store.attempts import GIVEN_UP, Attempt
from kdfast.store.claims import Claims, Holder
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER
from kdfast.store.store import StudyStore
from kdfast.store.table import csv_text, results_table
from kdfast.study import dask_cluster, dask_engine, training
from kdfast.study import worker as study_worker
from tests.study.small_sweep import GRID, small_sweep

pytestmark = pytest.mark.slow  # tests/study/test_dask_threads.py is quick

ROOT = Path(__file__).parents[2]
EPOCHS = 60
WORKERS, THREADS = 2, 2
LOCAL = {"dashboard_address": None, "resources": {"GPU": 1}}


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
    with LocalCluster(n_workers=WORKERS, threads_per_worker=THREADS, **LOCAL) as cluster, Client(cluster) as client:
        yield client


def table(out: Path) -> str:
    return (out / "results_summary.csv").read_text()


def wait_until(true: Callable[[], Any], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def begun(out: Path, *names: str) -> list[Holder]:
    """Claims that are held, of packs or of these names; not one that is just being written, by nobody known yet."""
    holders = [holder for holder in Claims(out / "claims").holders() if holder.pid > 0]
    return [holder for holder in holders if (holder.name in names if names else holder.name != TEACHER)]


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
def in_workers(client: Client, change: Callable[[], None], back: Callable[[], None]) -> Iterator[None]:
    client.run(change)
    try:
        yield
    finally:
        client.run(back)


def undo() -> None:
    training.train_pack = training.genuine  # type: ignore[attr-defined]


# ---- on a cluster that stays


def record_training() -> None:
    """In a worker: notes what is trained, with how many threads, and how many packs at once."""
    lock, training.genuine = threading.Lock(), training.train_pack  # type: ignore[attr-defined]
    seen = training.seen = {"threads": {}, "now": 0, "most": 0}  # type: ignore[attr-defined]

    def train_pack(pack: Any, *, threads: int, **more: Any) -> Iterator[Any]:
        with lock:
            seen["threads"][pack.members[0].name] = threads
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        yield from training.genuine(pack, threads=threads, **more)  # type: ignore[attr-defined]
        with lock:
            seen["now"] -= 1

    training.train_pack = train_pack  # type: ignore[assignment]


def test_the_same_table_as_without_dask(tmp_path, client, alone, capfd):
    """The jets are given in Python: the workers find them in the study's folder. As many tasks run as there are
    threads, and the teacher on all of them."""
    with in_workers(client, record_training, undo):
        small_sweep(tmp_path / "study", epochs=EPOCHS, client=client, progress=True)
        workers = list(client.run(lambda: training.seen).values())  # type: ignore[attr-defined]
    assert table(tmp_path / "study") == alone
    threads = {name: count for seen in workers for name, count in seen["threads"].items()}
    assert threads.pop("teacher") == THREADS
    assert threads == dict.fromkeys(["baseline", *(run.name for run in GRID)], 1)
    assert max(seen["most"] for seen in workers) == THREADS
    said = capfd.readouterr().err
    assert "plan: 5 runs in 5 packs of up to 1" in said  # more than there are threads
    assert re.search(r"packs [345]/5: .* done, .*\(5/5 done, .* epochs/s", said)
    assert re.search(r" left, best so far 0\.\d{4} ", said)  # the time
    assert Claims(tmp_path / "study" / "claims").holders() == []


def test_a_worker_reads_the_jets_once_until_the_study_changes(tmp_path, client):
    def read() -> list[int]:
        return list(client.run(lambda: dask_engine._inputs.cache_info().misses).values())

    counts = [read()]
    for changes in ({}, {"seeds": [43]}, {"seeds": [44], "checkpoint_every": 7}):
        small_sweep(tmp_path, epochs=2, client=client, pack_size=1, **changes)
        counts.append(read())
    more = [[new - old for old, new in zip(counts[0], later, strict=True)] for later in counts[1:]]
    assert max(more[0]) == max(more[1]) == 1
    assert max(more[2]) == 2


@pytest.mark.parametrize("killed", [False, True])
def test_packs_that_others_hold_are_waited_for_and_large_ones_are_cut(tmp_path, client, alone, monkeypatch, killed):
    """The holder is another process; where it is killed, that is recorded before parts of its pack are trained."""
    out, waiting, hold = tmp_path / "study", threading.Event(), dask_engine._Sweep.wait_for
    small_sweep(out, epochs=EPOCHS, plan_only=True, pack_size=5)
    monkeypatch.setattr(dask_engine, "_LOOK", 0.1)
    monkeypatch.setattr(dask_engine._Sweep, "wait_for", lambda self, pack: (hold(self, pack), waiting.set()))
    code = """if True:
        import sys
        from pathlib import Path
        from kdfast.store.claims import Claims
        with Claims(Path(sys.argv[1])).take("seed42.000"):
            print("taken", flush=True)
            sys.stdin.read()"""
    command = [sys.executable, "-c", code, str(out / "claims")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "taken\n"
        with sweeping(out, client):
            assert waiting.wait(60)
            wait_until(lambda: list(out.glob("results/teacher.*")), "the teacher is stored")
            assert not list(out.glob("results/student.*"))
            if killed:
                other.kill()
            other.stdin.close()
    assert table(out) == alone
    assert {path.name for path in (out / "claims").iterdir()} > {"seed42.000.00", "seed42.000.04"}
    lost = [("seed42.000", "lost", other.pid, 5)] if killed else []
    assert [(a.name, a.ended, a.pid, len(a.members)) for a in StudyStore.open(out).attempts()] == lost


def test_students_of_a_teacher_that_was_replaced(tmp_path, client):
    """Also of a study that was deleted and made anew: nothing of the old teacher is used."""
    out, alone = tmp_path / "study", tmp_path / "alone"
    small_sweep(out, epochs=2, client=client)
    before, teacher = table(out), StudyStore.open(out).get(RunKey.teacher(42))
    state = {name: tensor * 2 for name, tensor in teacher.state.items()}
    other = replace(teacher, state=state, arrays=dict(teacher.arrays), stored="")
    for folder in list((out / "results").iterdir()):
        shutil.rmtree(folder)
    StudyStore.open(out).write(other)
    shutil.copytree(out, alone)
    small_sweep(out, epochs=2, client=client)
    small_sweep(alone, epochs=2)
    assert table(out) == table(alone) != before
    shutil.rmtree(out)
    small_sweep(out, epochs=2, client=client)
    assert table(out) == before


def test_workers_that_can_not_be_used_are_named(tmp_path, client, monkeypatch):
    from kdfast import __version__

    def set_version(version: str) -> None:
        study_worker.__version__ = version

    def block(module: Any = None) -> None:
        sys.modules["kdfast.study.dask_engine"] = module

    def unblock() -> None:
        sys.modules.pop("kdfast.study.dask_engine", None)

    other_version = rf"on .*tcp://.*: was planned by kdfast {__version__}, this is 0\.0\.1: .*\ninstall kdfast"
    with (
        in_workers(client, lambda: set_version("0.0.1"), lambda: set_version(__version__)),
        pytest.raises(StudyError, match=other_version),
    ):
        small_sweep(tmp_path / "version", epochs=2, client=client)
    with in_workers(client, block, unblock), pytest.raises(BackendError, match="workers can't import kdfast"):
        small_sweep(tmp_path / "without", epochs=2, client=client)
    genuine = dask_engine.study_digest
    monkeypatch.setattr(dask_engine, "study_digest", lambda store: genuine(store)[::-1])
    with pytest.raises(StudyError, match="another study there"):
        small_sweep(tmp_path / "folder", epochs=2, client=client)


@pytest.mark.filterwarnings("always::kdfast.errors.KdfastWarning")
def test_another_environment_of_a_worker_is_told(tmp_path, client, monkeypatch):
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: told.put(str(message)))
    small_sweep(tmp_path, epochs=2, plan_only=True)
    provenance = tmp_path / "provenance.json"
    provenance.write_text(re.sub(r'"isa": "\w+"', '"isa": "another"', provenance.read_text()))
    (tmp_path / "manifest.json").unlink()
    small_sweep(tmp_path, epochs=2, client=client)
    message = told.get(timeout=30)  # it comes by the client's other thread
    assert re.search(r"begun in another environment \(isa another → \w+\); last bits may differ", message)


def break_baseline() -> None:
    training.genuine = training.train_pack  # type: ignore[attr-defined]

    def train_pack(pack: Any, **more: Any) -> Iterator[Any]:
        if pack.members[0].name == "baseline":
            raise ValueError("broken on purpose")
        yield from training.genuine(pack, **more)  # type: ignore[attr-defined]

    training.train_pack = train_pack  # type: ignore[assignment]


def test_a_pack_that_fails_does_not_end_the_others(tmp_path, client, alone, capfd):
    out = tmp_path / "study"
    small_sweep(out, epochs=EPOCHS, plan_only=True, pack_size=1)
    for _ in range(2):  # what failed before the sweep does not count
        StudyStore.open(out).write_attempt(Attempt("seed42.000", "error", "RuntimeError: an older fault"))
    with in_workers(client, break_baseline, undo), pytest.raises(ValueError, match="broken on purpose"):
        small_sweep(out, epochs=EPOCHS, client=client, progress=True)
    said = capfd.readouterr().err
    assert re.search(r"seed42\.000 failed on \S+: ValueError: broken on purpose", said)
    assert "older fault" not in said
    assert len(list(out.glob("results/student.*"))) == len(GRID)
    tries = [attempt.ended for attempt in StudyStore.open(out).attempts("seed42.000")]
    assert tries == ["error", "error", "error", "retry", *["error"] * (GIVEN_UP - 1)]
    small_sweep(out, epochs=EPOCHS, client=client)
    assert table(out) == alone


def test_tasks_that_another_client_cancels(tmp_path, client):
    out = tmp_path / "study"
    sweep = sweeping(out, client)
    sweep.__enter__()
    wait_until(lambda: begun(out), "a pack is begun")
    client.cancel([distributed.Future(key, client) for key in list(client.futures)], force=True)
    with pytest.raises(ClusterError, match="cancelled by another client"):
        sweep.__exit__(None, None, None)


def answer(client: Client) -> float:
    """Seconds that the workers' event loops, from which heartbeats are sent, take to answer."""
    began = time.monotonic()
    client.run(os.getpid)
    return time.monotonic() - began


def hold_the_gil() -> None:
    Event("gil").set()
    ctypes.PyDLL(None).usleep(10_000_000)  # PyDLL, unlike CDLL, keeps it


def test_heartbeats_flow_while_members_train_until_it_is_cancelled(tmp_path, client):
    """The worker's event loop answers while members train; a cancelled task saves its members."""
    held = client.submit(hold_the_gil, pure=False)
    Event("gil", client=client).wait(timeout=60)
    blocked = answer(client)
    held.result()
    out = tmp_path / "study"
    teacher = endless_teacher(out, client)
    wait_until(lambda: begun(out, TEACHER), "the teacher is trained")
    answers = [answer(client) for _ in range(7)]
    assert teacher.status == "pending"
    assert statistics.median(answers) < blocked / 2  # a busy machine may delay single ones
    teacher.cancel()
    wait_until(lambda: not Claims(out / "claims").holders(), "the cancelled task has stopped", 20)
    assert list(out.glob("checkpoints/teacher.*/*"))  # at a step, from which the next one resumes


def endless_teacher(out: Path, client: Client) -> Any:
    """The task of a teacher that takes minutes."""
    recipe = {"epochs": 3000, "teacher_patience": 3000}
    small_sweep(out, epochs=None, config={"recipe": recipe}, plan_only=True)
    study = vars(dask_engine._Study(str(out), study_worker.study_digest(StudyStore.open(out)), "owner", "auto", None))
    return client.submit(dask_engine.train, study, TEACHER, 42, [], pure=False)


# ---- GPUs


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
    if torch.cuda.is_available():
        small_sweep(tmp_path / "gpu", epochs=2, client=client, device="cuda")
    else:
        with pytest.raises(BackendError, match="no GPU can be used"):  # says a worker: it was sent there
            small_sweep(tmp_path / "gpu", epochs=2, client=client, device="cuda")
    assert asked
    assert all(one == {"GPU": 1} for one in asked)
    assert dask_cluster.tasks_at_once(client, "cuda") == WORKERS
    assert dask_cluster.tasks_at_once(client, "auto") == WORKERS * THREADS


def test_tasks_of_a_worker_take_different_gpus():
    worker: Any = SimpleNamespace(state=SimpleNamespace(total_resources={"GPU": 2.0}))
    with dask_engine._gpu(worker, "cuda") as first:
        with dask_engine._gpu(worker, "cuda") as second:
            assert {first, second} == {"cuda:0", "cuda:1"}
        with dask_engine._gpu(worker, "cuda") as again:
            assert again == second
    with dask_engine._gpu(worker, "cuda:1") as named, dask_engine._gpu(worker, "auto") as cpu:
        assert (named, cpu) == ("cuda:1", "auto")


# ---- clusters that go


@contextlib.contextmanager
def processes(folder: Path, *options: str, workers: int = 2) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """A cluster that `dask scheduler` and `dask worker` make: the scheduler's file; the scheduler and the workers."""
    file = folder / "scheduler.json"
    quiet: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}
    started: list[subprocess.Popen[str]] = []

    def run(*command: str) -> None:
        line = [sys.executable, "-m", "dask", *command, "--scheduler-file", str(file), "--host", "127.0.0.1"]
        started.append(subprocess.Popen(line, **quiet))

    try:
        run("scheduler", "--port", "0", "--no-dashboard")
        wait_until(file.exists, "the scheduler is there")
        for _ in range(workers):
            run("worker", "--no-dashboard", "--nthreads", "1", "--local-directory", str(folder / "scratch"), *options)
        yield file, started
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start(out: Path, cluster: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.study.small_sweep", str(out), str(EPOCHS), "300", str(cluster)]
    return subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.slow
def test_a_worker_killed_in_mid_pack(tmp_path, alone):
    out = tmp_path / "study"
    with processes(tmp_path, "--no-nanny") as (file, _), Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2)
        with sweeping(out, client, pack_size=2):
            wait_until(lambda: begun(out), "a pack is begun")
            os.kill(begun(out)[0].pid, signal.SIGKILL)
            before = list(out.glob("results/*"))
        assert len(before) < len(GRID) + 2
    assert table(out) == alone


@pytest.mark.slow
def test_a_client_that_goes_away_and_a_scheduler_that_does(tmp_path, alone):
    out = tmp_path / "study"
    with processes(tmp_path) as (file, (scheduler, *_)):
        first = start(out, file)
        wait_until(lambda: begun(out), "a pack is begun")
        owner = begun(out)[0].owner
        first.kill()
        finish(first)
        wait_until(lambda: not Claims(out / "claims").holders(), "the workers have dropped its tasks", 20)
        kept = {path: path.stat().st_mtime_ns for path in out.glob("results/*/manifest.json")}
        assert 0 < len(kept) < len(GRID) + 2
        second = start(out, file)
        wait_until(lambda: any(one.owner != owner for one in begun(out)), "the same command resumes")
        with Client(scheduler_file=str(file)) as client:
            assert not client.run_on_scheduler(lambda: {"torch", "kdfast"} & {*sys.modules})
        scheduler.kill()
        status, errors = finish(second)
    assert status == 75, errors
    lost = "the Dask scheduler is gone\neverything that was stored is kept: rerun the same command to resume"
    assert lost in errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


def test_a_worker_that_is_told_to_close_saves_its_members(tmp_path):
    out = tmp_path / "study"
    with processes(tmp_path, workers=1) as (file, (_, worker)), Client(scheduler_file=str(file)) as client:
        teacher = endless_teacher(out, client)
        wait_until(lambda: begun(out, TEACHER), "the teacher is trained")
        assert not list(out.glob("checkpoints/*"))
        worker.terminate()
        wait_until(lambda: not Claims(out / "claims").holders(), "it has given its claim back", 20)
        assert list(out.glob("checkpoints/teacher.*/*"))
        assert teacher.status == "pending"  # until another worker comes
        teacher.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_by_a_signal_and_started_again(tmp_path, alone, number, expected):
    """A terminal sends SIGINT to the workers of a local cluster, too."""
    out = tmp_path / "study"
    process = start(out, "local")
    wait_until(lambda: begun(out), "a pack is begun")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    status, errors = finish(process)
    assert status == expected, errors
    assert f"stopped: finished runs are stored in {out}; rerun the same command to resume" in errors
    assert Claims(out / "claims").holders() == []  # given back, not left behind
    assert len(list(out.glob("results/*"))) < len(GRID) + 2
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


@pytest.mark.slow
def test_the_command(tmp_path):
    options = ["--max-jets", "600", "--epochs", "1", "--teacher-epochs", "1", "--temperature", "2", "--alpha", "0.5"]
    options += ["--model", "small", "--teacher-model", "small"]
    for name, more in (("alone", []), ("dask", ["--dask", "local", "--threads", "2"])):
        assert main(["sweep", "--quiet", *options, "--out", str(tmp_path / name), *more]) == 0
    assert table(tmp_path / "dask") == table(tmp_path / "alone")
    assert list((tmp_path / "dask").glob("claims/seed42.*"))


def test_the_local_cluster_suits_the_settings_file(tmp_path, monkeypatch):
    started: list[Any] = []

    def recording(**shape: Any) -> None:
        started.append(shape)
        raise ClusterError("not started: only its shape is asked for")

    monkeypatch.setattr(distributed, "LocalCluster", recording)
    for device, resources in (("cuda", {"GPU": max(1, torch.cuda.device_count())}), ("cpu", None)):
        (tmp_path / "mine.toml").write_text(f'device = "{device}"')
        assert main(["sweep", "--config", str(tmp_path / "mine.toml"), "--dask", "local", "--out", str(tmp_path)]) == 75
        assert started.pop().get("resources") == resources
    (tmp_path / "mine.toml").write_text("device = 5")
    assert main(["sweep", "--config", str(tmp_path / "mine.toml"), "--dask", "local"]) == 2
    assert not started


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_by_a_signal_while_the_cluster_starts(tmp_path, number, expected):
    code = """if True:
        import sys, time, distributed
        from kdfast.cli import main
        def slow(**shape):
            print("starting", flush=True)
            time.sleep(60)
        distributed.LocalCluster = slow
        sys.exit(main(["sweep", "--dask", "local", "--out", sys.argv[1]]))"""
    command = [sys.executable, "-c", code, str(tmp_path / "study")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "starting\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == expected, errors
    assert errors.startswith("kdfast: stopped: finished runs are stored in ")


def test_no_scheduler_and_no_client(tmp_path, client, monkeypatch):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(BackendError, match="no Dask scheduler answers"),
        dask_cluster.connected("tcp://127.0.0.1:9"),
    ):
        pass
    with pytest.raises(ConfigError, match=r"client: must be a distributed\.Client, is str"):
        small_sweep(tmp_path / "study", client="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match="have their own"):
        small_sweep(tmp_path / "study", client=client, threads=2)
    closed = Client(client.cluster)
    closed.close()
    with pytest.raises(ClusterError, match="has no scheduler"):
        small_sweep(tmp_path / "study", client=closed)
    monkeypatch.setattr(dask_cluster, "find_spec", lambda name: None)
    what = r"dask and distributed are not installed\n.*pip install 'kdfast\[dask\]'"
    with pytest.raises(BackendError, match=what), dask_cluster.connected("local"):
        pass


def test_a_cluster_that_grows_when_there_is_work(tmp_path, alone):
    """It has no worker at first, and few packs would be no reason for many."""
    with (
        LocalCluster(n_workers=0, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
        sweeping(tmp_path / "study", client),
    ):
        wait_until(lambda: list((tmp_path / "study").glob("packs/*")), "the study is planned")
        cluster.adapt(minimum=0, maximum=2, interval="100ms")
    assert table(tmp_path / "study") == alone
