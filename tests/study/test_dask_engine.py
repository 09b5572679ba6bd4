"""A Dask cluster as the engine: real schedulers, workers and clients, killed at bad moments, end in the same table."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed
import pytest
import torch
from distributed import Client, LocalCluster

from kdfast import report
from kdfast.cli import main
from kdfast.errors import BackendError, ClusterError, ConfigError, StudyError
from kdfast.store.attempts import GIVEN_UP, Attempt
from kdfast.store.claims import Claims, Holder
from kdfast.store.key import RunKey
from kdfast.store.packs import TEACHER, planned
from kdfast.store.store import StudyStore
from kdfast.store.table import csv_text, results_table
from kdfast.study import dask_engine, dask_task, training
from kdfast.study import worker as study_worker
from tests.study.small_sweep import GRID, small_sweep

pytestmark = pytest.mark.slow  # tests/study/test_dask_threads.py is quick

ROOT = Path(__file__).parents[2]
EPOCHS = 60
WORKERS, THREADS = 2, 2


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
    return (out / "results_summary.csv").read_text()


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=THREADS, resources={"GPU": 1}, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def table(out: Path) -> str:
    return (out / "results_summary.csv").read_text()


def wait_until(true: Callable[[], Any], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def begun(out: Path) -> list[Holder]:
    """Packs that are held; not those whose claim is just being written, whose holder is not known yet."""
    return [holder for holder in Claims(out / "claims").holders() if holder.name != TEACHER and holder.pid > 0]


@contextlib.contextmanager
def sweeping(out: Path, client: Client, **changes: Any) -> Iterator[None]:
    """A sweep beside the block, ended with it; what it raises is raised."""
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


# ---- on a cluster that stays


def test_the_same_table_as_without_dask(tmp_path, client, alone, capfd):
    """The jets are given in Python: the workers find them in the study's folder."""
    small_sweep(tmp_path / "study", epochs=EPOCHS, client=client, progress=True)
    assert table(tmp_path / "study") == alone
    said = capfd.readouterr().err
    assert "plan: 5 runs in 5 packs of up to 1" in said  # more than there are threads
    assert re.search(r"packs [345]/5: .* done, .*\(5/5 done, .* epochs/s", said)
    assert re.search(r" left, best so far 0\.\d{4} ", said)  # the time
    assert Claims(tmp_path / "study" / "claims").holders() == []


def record_training() -> None:
    """In a worker: counts what is trained, and with how many threads."""
    original, lock = training.train_pack, threading.Lock()
    seen: dict[str, Any] = {"threads": {}, "now": 0, "most": 0, "torch": set()}
    training.recorded = seen  # type: ignore[attr-defined]

    def train_pack(pack: Any, *, threads: int, **more: Any) -> Iterator[Any]:
        with lock:
            seen["threads"][pack.members[0].name] = threads
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
        yield from original(pack, threads=threads, **more)
        with lock:
            seen["now"] -= 1

    training.train_pack = train_pack  # type: ignore[assignment]
    training.original = original  # type: ignore[attr-defined]


def recorded() -> dict[str, Any]:
    training.train_pack = training.original  # type: ignore[attr-defined]
    return training.recorded  # type: ignore[attr-defined,no-any-return]


def test_as_many_tasks_as_threads_and_the_teacher_on_all_of_them(tmp_path, client):
    client.run(record_training)
    small_sweep(tmp_path / "study", epochs=EPOCHS, client=client, pack_size=1)
    workers = list(client.run(recorded).values())
    threads = {name: count for seen in workers for name, count in seen["threads"].items()}
    assert threads.pop("teacher") == THREADS
    assert threads == dict.fromkeys(["baseline", *(run.name for run in GRID)], 1)
    assert max(seen["most"] for seen in workers) == THREADS


def opened() -> int | None:
    return None if dask_task._opened is None else id(dask_task._opened)


def test_a_worker_reads_the_jets_once_until_the_study_changes(tmp_path, client):
    small_sweep(tmp_path / "one", epochs=2, client=client, pack_size=1)
    first = client.run(opened)
    small_sweep(tmp_path / "one", epochs=2, client=client, pack_size=1, seeds=[42, 43])
    second = client.run(opened)
    assert [second[worker] for worker, one in first.items() if one is not None] == [
        one for one in first.values() if one
    ]
    small_sweep(tmp_path / "two", epochs=2, client=client, pack_size=1)
    third = client.run(lambda: dask_task._opened and Path(dask_task._opened.study[0]).name)
    assert "two" in third.values()


def test_checkpoints_are_as_often_as_the_last_call_says(tmp_path, client):
    small_sweep(tmp_path, epochs=2)
    small_sweep(tmp_path, epochs=2, client=client, seeds=[43], checkpoint_every=7)
    seen = client.run(lambda: dask_task._opened and (dask_task._opened.study[0], dask_task._opened.settings))
    assert {opened[1].checkpoint_every for opened in seen.values() if opened and opened[0] == str(tmp_path)} == {7}


def test_a_task_that_runs_twice_at_once(tmp_path, client, alone):
    out = tmp_path / "study"
    small_sweep(out, epochs=EPOCHS, plan_only=True, pack_size=5)
    store = StudyStore.open(out)
    study = dask_task.Study(str(out), dask_task.identity(store), "owner", "auto", None)
    client.submit(dask_task.train, study, {"id": TEACHER}, pure=False).result()
    (pack,) = planned(store)
    document = {"id": pack.id, "seed": 42, "runs": [None, *map(vars, GRID)]}
    workers = client.scheduler_info()["workers"]
    twice = [client.submit(dask_task.train, study, document, workers=[one], pure=False) for one in workers]
    facts = client.gather(twice)
    assert {one["host"] for one in facts} != {facts[0]["host"]}
    assert {one["pack"] for one in facts} == {pack.id}
    assert 0 in {one["left"] for one in facts}  # the other one gives up when it sees that it has lost the claim
    assert not any(one["held"] for one in facts)
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


def test_packs_that_others_hold_are_waited_for_and_large_ones_are_cut(tmp_path, client, alone, monkeypatch):
    out = tmp_path / "study"
    small_sweep(out, epochs=EPOCHS, plan_only=True, pack_size=5)
    monkeypatch.setattr(dask_engine, "_LOOK_AT_CLAIMS", 0.1)
    other = Claims(out / "claims").take("seed42.000")
    assert other is not None
    with sweeping(out, client):
        wait_until(lambda: list(out.glob("results/teacher.*")), "the teacher is stored")
        time.sleep(0.5)
        assert not list(out.glob("results/student.*"))
        with other:
            pass
    assert table(out) == alone
    assert {path.name for path in (out / "claims").iterdir()} > {"seed42.000.00", "seed42.000.04"}


@contextlib.contextmanager
def held_by_a_process(out: Path, name: str) -> Iterator[int]:
    """A claim of another process, which is killed in the end; its id."""
    code = """if True:
        import sys, time
        from pathlib import Path
        from kdfast.store.claims import Claims
        claim = Claims(Path(sys.argv[1])).take(sys.argv[2])
        print("taken", flush=True)
        time.sleep(600)"""
    command = [sys.executable, "-c", code, str(out / "claims"), name]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("killed", ["before", "meanwhile"])
def test_a_pack_of_a_process_that_was_killed_is_recorded(tmp_path, client, monkeypatch, killed):
    """Before the sweep's parts of it, of which tasks know alone, are trained."""
    out = tmp_path / "study"
    small_sweep(out, epochs=2, plan_only=True, pack_size=5)
    monkeypatch.setattr(dask_engine, "_LOOK_AT_CLAIMS", 0.1)
    with contextlib.ExitStack() as sweeps:
        with held_by_a_process(out, "seed42.000") as pid:
            if killed == "meanwhile":
                sweeps.enter_context(sweeping(out, client, epochs=2))
                wait_until(lambda: list(out.glob("results/teacher.*")), "the teacher is stored")
                time.sleep(0.5)
        if killed == "before":
            sweeps.enter_context(sweeping(out, client, epochs=2))
    (attempt,) = StudyStore.open(out).attempts()
    assert (attempt.name, attempt.ended, attempt.pid, len(attempt.members)) == ("seed42.000", "lost", pid, 5)


@pytest.fixture
def one_worker() -> Iterator[Client]:
    """Of which each task comes after the other in one process."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_study_that_is_made_anew_on_the_same_cluster(tmp_path, one_worker, monkeypatch):
    """Its workers have the targets of a teacher that is gone."""
    out, submit, keys = tmp_path / "study", one_worker.submit, []

    def counting(*arguments: Any, **options: Any) -> Any:
        keys.append(options["key"][0])
        assert keys.count("kdfast-teacher") < 5, "the teacher is submitted again and again"
        return submit(*arguments, **options)

    small_sweep(out, epochs=2, client=one_worker)
    before = table(out)
    shutil.rmtree(out)
    monkeypatch.setattr(one_worker, "submit", counting)
    small_sweep(out, epochs=2, client=one_worker)
    assert table(out) == before
    assert keys.count("kdfast-teacher") == 1


def test_students_of_a_teacher_that_was_replaced(tmp_path, one_worker):
    out, alone = tmp_path / "study", tmp_path / "alone"
    small_sweep(out, epochs=2, client=one_worker)
    before, store = table(out), StudyStore.open(out)
    teacher = store.get(RunKey.teacher(42))
    state = {name: tensor * 2 for name, tensor in teacher.state.items()}
    other = replace(teacher, state=state, arrays=dict(teacher.arrays), stored="")
    for folder in list((out / "results").iterdir()):
        shutil.rmtree(folder)
    StudyStore.open(out).write(other)
    shutil.copytree(out, alone)
    small_sweep(out, epochs=2, client=one_worker)
    small_sweep(alone, epochs=2)
    assert table(out) == table(alone) != before


def do_nothing() -> None:
    study_worker.genuine = study_worker.PackRunner.attempt  # type: ignore[attr-defined]
    study_worker.PackRunner.attempt = lambda self, pack, retry: True  # type: ignore[method-assign, assignment]


def do_it_again() -> None:
    study_worker.PackRunner.attempt = study_worker.genuine  # type: ignore[attr-defined, method-assign]


def test_tasks_that_train_nothing_are_not_submitted_for_ever(tmp_path, client, capfd):
    client.run(do_nothing)
    try:
        with pytest.raises(StudyError, match="a task ended without an error, and trained nothing of what is missing"):
            small_sweep(tmp_path / "study", epochs=2, client=client, pack_size=5, progress=True)
    finally:
        client.run(do_it_again)
    assert capfd.readouterr().err.count("; tried again") >= GIVEN_UP - 1


def set_version(version: str) -> None:
    study_worker.__version__ = version


def test_a_worker_with_another_version_is_refused(tmp_path, client):
    from kdfast import __version__

    client.run(set_version, "0.0.1")
    try:
        with pytest.raises(StudyError, match=rf"was planned by kdfast {__version__}, this is 0\.0\.1") as raised:
            small_sweep(tmp_path / "study", epochs=2, client=client)
    finally:
        client.run(set_version, __version__)
    assert "tcp://" in str(raised.value.where)
    assert "install kdfast" in str(raised.value)


def test_a_folder_that_workers_do_not_share_is_named(tmp_path, client):
    out = tmp_path / "study"
    small_sweep(out, epochs=2, plan_only=True)
    study = dask_task.Study(str(out), "another", "owner", "auto", None)
    with pytest.raises(StudyError, match="another study there"):
        client.submit(dask_task.train, study, {"id": TEACHER}, pure=False).result()


def endless_teacher(out: Path) -> dask_task.Study:
    """A study whose teacher takes minutes."""
    recipe = {"epochs": 3000, "teacher_patience": 3000}
    small_sweep(out, epochs=None, config={"recipe": recipe}, plan_only=True)
    return dask_task.Study(str(out), dask_task.identity(StudyStore.open(out)), "owner", "auto", None)


def worst_answer(client: Client, during: Any) -> float:
    """Seconds of the slowest answer of the workers' event loops, from which heartbeats are sent, until a task ends."""
    worst = 0.0
    while not during.done():
        began = time.monotonic()
        client.run(os.getpid)
        worst = max(worst, time.monotonic() - began)
    return worst


def hold_the_gil() -> None:
    ctypes.PyDLL(None).usleep(3_000_000)  # PyDLL, unlike CDLL, keeps it


def test_heartbeats_flow_while_members_train(tmp_path, client):
    held = client.submit(hold_the_gil, pure=False)
    assert worst_answer(client, held) > 2  # what it would be like
    out = tmp_path / "study"
    teacher = client.submit(dask_task.train, endless_teacher(out), {"id": TEACHER}, pure=False)
    wait_until(lambda: list(out.glob("claims/teacher/*")), "the teacher is trained")
    cancel = threading.Timer(4, teacher.cancel)
    cancel.start()
    worst = worst_answer(client, teacher)
    cancel.join()
    assert teacher.status == "cancelled"  # until then it was trained
    assert worst < 2
    wait_until(lambda: not Claims(out / "claims").holders(), "the cancelled task has stopped", 10)
    assert list(out.glob("checkpoints/teacher.*/*"))  # at a step, from which the next one goes on


def test_a_worker_killed_in_mid_pack(tmp_path, client, alone):
    out = tmp_path / "study"
    with sweeping(out, client, pack_size=2):
        wait_until(lambda: begun(out), "a pack is begun")
        os.kill(begun(out)[0].pid, signal.SIGKILL)
        before = list(out.glob("results/*"))
    assert len(before) < len(GRID) + 2
    assert table(out) == alone
    client.wait_for_workers(WORKERS)


def break_baseline() -> None:
    training.original = training.train_pack  # type: ignore[attr-defined]

    def train_pack(pack: Any, **more: Any) -> Iterator[Any]:
        if pack.members[0].name == "baseline":
            raise ValueError("broken on purpose")
        yield from training.original(pack, **more)  # type: ignore[attr-defined]

    training.train_pack = train_pack  # type: ignore[assignment]


def repair_baseline() -> None:
    training.train_pack = training.original  # type: ignore[attr-defined]


def test_a_pack_that_fails_does_not_end_the_others(tmp_path, client, alone, capfd):
    out = tmp_path / "study"
    client.run(break_baseline)
    try:
        with pytest.raises(ValueError, match="broken on purpose"):
            small_sweep(out, epochs=EPOCHS, client=client, pack_size=1, progress=True)
    finally:
        client.run(repair_baseline)
    assert capfd.readouterr().err.count("seed42.000: ValueError: broken on purpose; tried again") == GIVEN_UP - 1
    assert len(list(out.glob("results/student.*"))) == len(GRID)
    assert {attempt.name for attempt in StudyStore.open(out).attempts()} == {"seed42.000"}
    small_sweep(out, epochs=EPOCHS, client=client)
    assert table(out) == alone


def fail_once_each() -> None:
    for name in ("teacher", "students"):
        genuine, faults = getattr(training.StudyTraining, name), ["a passing fault"]

        def method(self: Any, *given: Any, genuine: Any = genuine, faults: list[str] = faults, **more: Any) -> Any:
            if faults:
                raise RuntimeError(faults.pop())
            return genuine(self, *given, **more)

        setattr(training.StudyTraining, name, method)


def test_what_failed_before_the_sweep_does_not_count(tmp_path, one_worker, capfd):
    out = tmp_path / "study"
    small_sweep(out, epochs=2, plan_only=True, pack_size=5)
    for name in (TEACHER, "seed42.000") * 2:
        StudyStore.open(out).write_attempt(Attempt(name, "error", "RuntimeError: an older fault"))
    one_worker.run(fail_once_each)
    small_sweep(out, epochs=2, client=one_worker, pack_size=5, progress=True)
    said = capfd.readouterr().err
    for name in (TEACHER, "seed42.000"):
        assert f"{name}: RuntimeError: a passing fault; tried again" in said
        ended = [attempt.ended for attempt in StudyStore.open(out).attempts(name)]
        assert ended == ["error", "error", "error", "retry"]


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
    assert dask_engine.tasks_at_once(client, "cuda") == WORKERS
    assert dask_engine.tasks_at_once(client, "auto") == WORKERS * THREADS


def test_tasks_of_a_worker_take_different_gpus():
    worker: Any = SimpleNamespace(state=SimpleNamespace(total_resources={"GPU": 2.0}))
    with dask_task._device(worker, "cuda") as first:
        with dask_task._device(worker, "cuda") as second:
            assert {first, second} == {"cuda:0", "cuda:1"}
        with dask_task._device(worker, "cuda") as again:
            assert again == second
    with dask_task._device(worker, "cuda:1") as named, dask_task._device(worker, "auto") as cpu:
        assert (named, cpu) == ("cuda:1", "auto")


# ---- clusters that go


@contextlib.contextmanager
def processes(folder: Path, workers: int = 2) -> Iterator[tuple[Path, list[subprocess.Popen[str]]]]:
    """A cluster that `dask scheduler` and `dask worker` make: the scheduler's file; the scheduler and the workers."""
    file = folder / "scheduler.json"
    quiet: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True}

    def run(*command: str) -> None:
        line = [sys.executable, "-m", "dask", *command, "--scheduler-file", str(file), "--host", "127.0.0.1"]
        started.append(subprocess.Popen(line, **quiet))

    started: list[subprocess.Popen[str]] = []
    try:
        run("scheduler", "--port", "0", "--no-dashboard")
        wait_until(file.exists, "the scheduler is there")
        for _ in range(workers):
            run("worker", "--no-dashboard", "--nthreads", "1", "--local-directory", str(folder / "scratch"))
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
        wait_until(lambda: any(one.owner != owner for one in begun(out)), "the same command goes on")
        scheduler.kill()
        status, errors = finish(second)
    assert status == 75, errors
    assert (
        "the Dask scheduler is gone\neverything that was stored is kept: the same command goes on from there" in errors
    )
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


def test_a_worker_that_is_told_to_close_saves_its_members(tmp_path):
    out = tmp_path / "study"
    with processes(tmp_path, workers=1) as (file, (_, worker)), Client(scheduler_file=str(file)) as client:
        teacher = client.submit(dask_task.train, endless_teacher(out), {"id": TEACHER}, pure=False)
        wait_until(lambda: list(out.glob("claims/teacher/*")), "the teacher is trained")
        time.sleep(1)
        assert not list(out.glob("checkpoints/*"))
        worker.terminate()
        wait_until(lambda: not Claims(out / "claims").holders(), "it has given its claim back", 20)
        assert list(out.glob("checkpoints/teacher.*/*"))
        assert teacher.status == "pending"  # until another worker comes
        teacher.cancel()


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_stopped_by_a_signal_and_started_again(tmp_path, alone, number, expected):
    """A terminal sends SIGINT to the workers of a local cluster, too."""
    out = tmp_path / "study"
    process = start(out, "local")
    wait_until(lambda: begun(out), "a pack is begun")
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    status, errors = finish(process)
    assert status == expected, errors
    assert f"stopped: what has finished is stored in {out}; the same command goes on from there" in errors
    assert Claims(out / "claims").holders() == []  # given back, not left behind
    assert len(list(out.glob("results/*"))) < len(GRID) + 2
    small_sweep(out, epochs=EPOCHS)
    assert table(out) == alone


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
    assert errors.startswith("kdfast: stopped: what has finished is stored in ")


# ---- what can't be used


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(dask_engine.importlib.util, "find_spec", lambda name: None)
    what = r"dask and distributed are not installed\n.*pip install 'kdfast\[dask\]'"
    with pytest.raises(BackendError, match=what), dask_engine.connected("local"):
        pass


def test_no_scheduler_and_no_client(tmp_path, client):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}),
        pytest.raises(BackendError, match="no Dask scheduler answers"),
        dask_engine.connected("tcp://127.0.0.1:9"),
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
