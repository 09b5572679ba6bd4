"""`kdfast status`: what is done, failed, missing, running where; quick, and whatever the clocks say."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from kdfast.cli import main
from kdfast.errors import StudyError
from kdfast.store.attempts import Attempt, failures
from kdfast.store.claims import Claims
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.status import study_status
from kdfast.store.store import StudyStore
from kdfast.study.plan import plan
from kdfast.study.results import open_study
from tests.report.fake_study import make_study
from tests.store.studies import PROVENANCE, claim_elsewhere, environment, make_result, start_sweep, wait_until

GRID = {"grid": ["baseline_T3.0_A0.5", "baseline_T7.0_A0.5"], "seeds": [1, 2]}
NOW = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(tmp_path):
    return StudyStore.create_or_open(tmp_path / "study", GRID, PROVENANCE)


def store_run(store, name, seed, kind="student", *, at="", seconds=10.0, status="done", message=""):
    config = make_result().config if kind == "student" else None
    stored = at.isoformat() if isinstance(at, datetime) else at
    metrics = {"seconds": seconds, "auc": 0.8}
    result = replace(make_result(name, seed), kind=kind, config=config, metrics=metrics, stored=stored)
    return store.write(replace(result, status=status, message=message))


def store_all(store, *seeds, **options):
    """A baseline and the grid of these seeds; options: of the students."""
    for seed in seeds:
        store_run(store, "baseline", seed, "baseline")
        for name in GRID["grid"]:
            store_run(store, name, seed, **options)


def by_run(store):
    return {(r.run_name, r.seed): (r.status, r.message) for r in study_status(store).runs}


def test_counts_and_messages(store, capsys):
    store_run(store, "baseline_T3.0_A0.5", 1, at=NOW)
    store_run(store, "baseline_T7.0_A0.5", 1, at=NOW, status="diverged", message="the loss is NaN in epoch 2")
    folder = store_run(store, "baseline_T3.0_A0.5", 2)
    (folder / "weights.safetensors").unlink()
    folder = store_run(store, "baseline", 2, "baseline")
    (folder / "result.json").write_text("{}")
    assert main(["status", str(store.path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{store.path}: 7 runs, 3 missing, 2 damaged, 1 diverged, 1 done",
        "  student constant_T7.0_A0.5, seed 1: the loss is NaN in epoch 2",
        "  baseline baseline, seed 2: is damaged: result.json does not match its checksum",
        "  student constant_T3.0_A0.5, seed 2: is damaged: weights.safetensors is missing",
        f"  `kdfast verify {store.path} --repair` moves damaged folders aside",
        "  720 runs per hour, 15 s left at that rate",
    ]


def test_runs_that_were_planned_later_are_missing_too(store, capsys):
    store_all(store, 1, 2)
    store_run(store, "teacher", 42, "teacher")
    assert main(["status", str(store.path), "--quiet"]) == 0
    packs, _ = plan(store, [3], grid(temperature=[3.0], alpha=[0.9]), 1)
    assert main(["status", str(store.path), "--quiet"]) == 1
    assert by_run(store)["baseline_T3.0_A0.9", 3] == by_run(store)["baseline", 3] == ("missing", "")
    (store.path / "packs" / packs[1].id / "pack.json").write_text("{}")
    assert ("baseline_T3.0_A0.9", 3) not in by_run(store)
    assert by_run(store)[f"packs/{packs[1].id}", None][0] == "damaged"
    assert main(["status", str(store.path)]) == 1
    assert f"folder packs/{packs[1].id}: is damaged: pack.json does not match" in capsys.readouterr().out


def test_attempts_are_kept_and_counted(store):
    key = RunKey("student", "baseline_T3.0_A0.5", 1)
    try:
        raise MemoryError("no room for 7 members")
    except MemoryError as error:
        attempt = Attempt.failed("seed1.000", error, [key, RunKey.of(None, 1)], threads=2)
    folder = store.write_attempt(attempt)
    assert folder == store.path / "attempts" / "seed1.000.001"
    store.write_attempt(Attempt("seed1.000", "lost", members=(key,), host="node7", pid=12))
    store.write_attempt(Attempt("seed2.000", "lost"))
    first, second, other = StudyStore.open(store.path).attempts()
    assert first == replace(attempt, number=1)
    assert (first.error, first.what, first.pid) == ("MemoryError: no room for 7 members", {"threads": 2}, os.getpid())
    assert 'raise MemoryError("no room for 7 members")' in first.traceback
    assert datetime.fromisoformat(first.when).tzinfo is not None
    assert (second.number, second.host, other.name, other.number) == (2, "node7", "seed2.000", 1)
    assert by_run(store)["baseline_T3.0_A0.5", 1] == ("missing", "tried once: lost with node7, process 12")
    assert by_run(store)["baseline", 1] == ("missing", "tried once: MemoryError: no room for 7 members")
    for _ in range(2):
        store.write_attempt(attempt)
    assert failures(store.attempts()) == {"seed1.000": 3, "seed2.000": 0}  # what was lost has not failed
    assert by_run(store)["baseline_T3.0_A0.5", 1] == ("failed", "tried 3 times: MemoryError: no room for 7 members")
    store.write_attempt(Attempt("seed1.000", "retry"))  # a user asks for it
    assert failures(store.attempts())["seed1.000"] == 0
    assert by_run(store)["baseline_T3.0_A0.5", 1] == ("missing", "")
    store_run(store, "baseline_T3.0_A0.5", 1)
    assert by_run(store)["baseline_T3.0_A0.5", 1][0] == "done"


def test_attempts_that_can_not_be(store):
    with pytest.raises(StudyError, match="can't name a result"):
        store.write_attempt(Attempt("../up", "lost"))
    folder = store.write_attempt(Attempt("seed1.000", "lost"))
    (folder / "attempt.json").write_text("{}")
    with pytest.raises(StudyError, match=r"attempt\.json does not match its checksum"):
        store.attempts()
    status = study_status(store)  # of the rest all the same
    folders = [(run.run_name, run.status) for run in status.runs if run.kind == "folder"]
    assert folders == [("attempts/seed1.000.001", "damaged")]


WRITE_ATTEMPTS = """
    import sys
    from kdfast.store.attempts import Attempt
    from kdfast.store.store import StudyStore
    for _ in range(20):
        StudyStore.open(sys.argv[1]).write_attempt(Attempt("seed1.000", "error"))
"""


def test_a_number_that_something_else_has_is_passed_over(store):
    (store.path / "attempts").mkdir()
    (store.path / "attempts" / "seed1.000.001").write_text("no folder")
    assert store.write_attempt(Attempt("seed1.000", "retry")).name == "seed1.000.002"


def test_attempts_of_several_processes_get_numbers_of_their_own(store):
    run = [sys.executable, "-c", textwrap.dedent(WRITE_ATTEMPTS), str(store.path)]
    writers = [subprocess.Popen(run, env=environment()) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [attempt.number for attempt in store.attempts()] == list(range(1, 41))


@pytest.mark.parametrize(
    ("stored", "per_hour"),
    [
        ([(NOW, 3600), (NOW + HOUR, 3600), (NOW + 2 * HOUR, 3600)], 1.0),  # one after the other
        ([(NOW, 3600)] * 4, 4.0),  # a pack in lock-step
        ([(NOW, 3600)] * 4 + [(NOW + 50 * HOUR, 3600)] * 4, 4.0),  # and another after a pause
        ([(NOW, 1800), (NOW + HOUR / 4, 1800)], 2 / 0.75),  # two threads
        ([(NOW, 3600), (NOW - 24 * HOUR, 3600)], 1.0),  # the clock set back
        ([(None, 3600), (NOW, 3600)], 1.0),  # one whose time is no time
        ([(NOW, 0)], None),
        ([], None),
    ],
)
def test_rate(store, stored, per_hour):
    runs = [(f"baseline_T{t}.0_A0.5", seed) for t in (3, 7, 10, 20) for seed in (1, 2)]
    store_run(store, "teacher", 42, "teacher", at=NOW, seconds=1e6)
    for (name, seed), (at, seconds) in zip(runs, stored, strict=False):
        store_run(store, name, seed, at=at or "some day", seconds=seconds)
    status = study_status(StudyStore.open(store.path))
    assert status.per_hour == (None if per_hour is None else pytest.approx(per_hour))
    missing = status.counts.get("missing", 0)
    assert status.seconds_left == (pytest.approx(missing / per_hour * 3600) if per_hour and missing else None)


@pytest.mark.slow
def test_a_thousand_runs_take_less_than_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = make_study(tmp_path / "study", jets=4, seeds=tuple(range(1, 9)), kinematics=False)
    began = time.process_time()  # what others do on the machine does not count
    status = study_status(StudyStore.open(store.path))
    assert time.process_time() - began < 1.0
    assert status.counts["done"] > 1000


def test_a_study_of_which_hardly_anything_is_there(store, capsys):
    for folder in ("results", "shared", "targets"):
        shutil.rmtree(store.path / folder)
    assert main(["status", str(store.path)]) == 1
    assert capsys.readouterr().out == f"{store.path}: 7 runs, 7 missing\n"
    (store.path / "study.toml").write_text("?")
    assert main(["status", str(store.path)]) == 2


@pytest.mark.slow
def test_while_a_sweep_runs_and_until_it_is_done(tmp_path, capsys):
    out = tmp_path / "study"
    sweep = start_sweep(out, 100)

    def has_begun():
        assert sweep.poll() is None
        if (out / "provenance.json").exists():
            assert main(["status", str(out), "--quiet"]) == 1  # at any moment
        return list(out.glob("results/student.*"))

    wait_until(has_begun)
    sweep.send_signal(signal.SIGSTOP)
    try:
        assert main(["status", str(out), "--json"]) == 1
        status = json.loads(capsys.readouterr().out)
        assert status["sweeping"] is True
        assert {at["pid"] for at in status["running"]} == {sweep.pid}
        assert {at["host"] for at in status["running"]} == {os.uname().nodename}
        assert status["counts"]["done"] >= 2
        assert status["per_hour"] > 0
        assert len(status["runs"]) == 6
        main(["status", str(out)])
        assert f"{os.uname().nodename}, process {sweep.pid}, since 20" in capsys.readouterr().out
    finally:
        sweep.send_signal(signal.SIGCONT)
    watch = [sys.executable, "-m", "tests.study.run_cli", "status", str(out), "--watch"]
    done = subprocess.run(watch, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert sweep.wait() == 0
    assert done.returncode == 0, done.stderr
    assert "6 runs, 6 done" in done.stdout
    assert list(open_study(out).status()["status"]) == ["done"] * 6


def test_a_watch_ends_where_nothing_more_is_to_come(store, capsys):
    store_all(store, 1, status="diverged")
    store_all(store, 2)
    store_run(store, "teacher", 42, "teacher")
    assert main(["status", str(store.path), "--watch"]) == 1
    assert "7 runs, 5 done, 2 diverged" in capsys.readouterr().out
    assert main(["status", str(store.path), "--watch", "--json"]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.slow
def test_a_watch_that_goes_to_a_file_says_each_change(store, tmp_path):
    log = tmp_path / "log"
    watch = [sys.executable, "-m", "tests.study.run_cli", "status", str(store.path), "--watch"]
    with log.open("w") as file:
        watching = subprocess.Popen(watch, stdout=file, env=environment())

    def wait_for(counts):
        wait_until(lambda: counts in log.read_text() or watching.poll() is not None)
        assert counts in log.read_text()

    try:
        wait_for("7 runs, 7 missing\n")
        store_run(store, "teacher", 42, "teacher")
        wait_for("7 runs, 6 missing, 1 done\n")
        store_all(store, 1, 2)
        assert watching.wait(60) == 0
    finally:
        watching.kill()
    _, *between, last = log.read_text().splitlines()
    assert last.endswith("7 runs, 7 done")
    assert len(between) <= 4  # nothing is said twice
    assert "\x1b" not in log.read_text()


def test_a_claim_that_a_lost_machine_left_is_not_waited_for(store, capsys):
    """Of packs that are done, though a run of theirs has diverged: --watch ends."""
    (pack, *_), _ = plan(store, [1, 2], grid(temperature=[3.0, 7.0], alpha=[0.5]), 3)
    for name in (pack.id, "teacher"):
        claim_elsewhere(store.path, name)
    for seed in (1, 2):
        store_run(store, "baseline", seed, "baseline")
        store_run(store, "baseline_T3.0_A0.5", seed)
    store_run(store, "baseline_T7.0_A0.5", 2)
    store_run(store, "teacher", 42, "teacher")
    assert [at["pack"] for at in study_status(store).running] == [pack.id]
    store_run(store, "baseline_T7.0_A0.5", 1, status="diverged")
    assert study_status(store).running == []
    assert main(["status", str(store.path), "--watch"]) == 1
    assert "running" not in capsys.readouterr().out


def test_a_claim_of_a_dead_process_is_not_running(store):
    gone = subprocess.Popen(["true"])
    gone.wait()
    with Claims(store.path / "claims").take("seed1.000"):
        (path,) = (store.path / "claims" / "seed1.000").iterdir()
        assert [at["pack"] for at in study_status(store).running] == ["seed1.000"]
        who = json.loads(path.read_text().splitlines()[0])
        path.write_text(json.dumps({**who, "pid": gone.pid}) + "\n")
        assert study_status(store).running == []
