"""Workers: real processes that share a planned study, die, and are started again."""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdfast.cli import main
from kdfast.errors import ConfigError, StudyError
from kdfast.jets.hlt import emulate_hlt
from kdfast.store.attempts import Attempt
from kdfast.store.claims import BEAT, Claims
from kdfast.store.packs import missing, planned
from kdfast.store.status import study_status
from kdfast.store.store import StudyStore
from kdfast.study import driver
from kdfast.study import worker as module
from kdfast.study.results import open_study
from kdfast.study.worker import work
from tests.study.processes import ROOT, finish, start, wait_until
from tests.study.small_sweep import GRID, small_jets, small_sweep


def start_worker(study: Path, *options: str) -> subprocess.Popen[str]:
    return start("-m", "kdfast", "worker", "--store", str(study), *options)


@pytest.fixture
def run_worker(capsys) -> Callable[..., tuple[int, str]]:
    """`kdfast worker` in this process: exit status and stderr."""

    def run(study: Path, *options: str) -> tuple[int, str]:
        status = main(["worker", "--store", str(study), *options])
        return status, capsys.readouterr().err

    return run


def table(study: Path) -> str:
    open_study(study).report()
    return (study / "results_summary.csv").read_text()


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> str:
    """The table of the same sweep by one process."""
    study = tmp_path_factory.mktemp("alone") / "study"
    small_sweep(study, epochs=20)
    return (study / "results_summary.csv").read_text()


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Path:
    study = tmp_path_factory.mktemp("planned") / "study"
    results = small_sweep(study, epochs=20, plan_only=True, pack_size=2)
    assert len(results.results) == 0
    assert [len(pack.runs) for pack in planned(StudyStore.open(study))] == [2, 2, 1]
    return study


@pytest.fixture
def study(plan, tmp_path) -> Path:
    shutil.copytree(plan, tmp_path / "study")
    return tmp_path / "study"


@pytest.mark.slow
def test_three_workers_at_once_share_the_study(study, alone):
    ended = [finish(process) for process in [start_worker(study) for _ in range(3)]]
    assert [status for status, *_ in ended] == [0, 0, 0], ended
    assert table(study) == alone
    assert not list(study.glob("results/.*"))
    assert Claims(study / "claims").holders() == []
    before = {path: path.stat().st_mtime_ns for path in study.glob("results/*")}
    status, out, _ = finish(start_worker(study))
    assert (status, out) == (0, f"{study}: 3 packs done; run `kdfast report {study}` to write the report\n")
    assert {path: path.stat().st_mtime_ns for path in study.glob("results/*")} == before


@pytest.mark.slow
def test_a_killed_workers_pack_is_taken_over(study, alone):
    first = start_worker(study, "--array-index", "0")
    wait_until(lambda: list(study.glob("claims/seed42.000/*")), "it has its claim")
    first.kill()
    first.communicate()
    (holder,) = [holder for holder in Claims(study / "claims").holders() if holder.name == "seed42.000"]
    assert (holder.pid, holder.alive) == (first.pid, False)
    assert finish(start_worker(study))[0] == 0
    assert table(study) == alone
    (attempt,) = StudyStore.open(study).attempts()
    assert (attempt.name, attempt.ended, attempt.pid) == ("seed42.000", "lost", first.pid)


@pytest.mark.slow
@pytest.mark.parametrize("log", ["full disk", "reader gone", "none"])
def test_a_log_that_can_not_be_written_costs_no_training(study, log):
    """Messages are lost then, the last line on stdout too."""
    command = shlex.join([sys.executable, "-m", "tests.study.run_cli", "worker", "--store", str(study)])
    where = {"full disk": ">/dev/full 2>&1", "reader gone": "2>&1 | head -n 1", "none": "2>&-"}[log]
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{command} {where}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    store = StudyStore.open(study)
    assert not any(missing(store, pack).runs for pack in planned(store))
    assert store.attempts() == []


def test_one_pack_and_no_more(study):
    store = StudyStore.open(study)
    assert work(study, pack="teacher", progress=False).done == ["teacher"]
    assert [result.key.folder for result in store.results()] == ["teacher.teacher.seed42"]
    work(study, pack="seed42.001", progress=False)
    assert {result.name for result in store.results()} == {"teacher", *(run.name for run in GRID[1:3])}
    outcome = work(study, max_packs=1, progress=False)
    assert (sorted(outcome.done), outcome.left) == (["seed42.000", "seed42.001"], ["seed42.002"])


@pytest.mark.slow
def test_a_pack_that_another_worker_is_at_is_left_or_waited_for(study):
    work(study, pack="teacher", progress=False)
    work(study, max_packs=2, progress=False)
    claim = Claims(study / "claims", beat=0.1).take("seed42.002")
    with claim:
        outcome = work(study, lease=5, progress=False)
        assert outcome.elsewhere == ["seed42.002"]
        waiting = start_worker(study, "--pack", "seed42.002", "--lease", "30")
        time.sleep(3)
        assert waiting.poll() is None
    assert finish(waiting)[0] == 0


def test_a_pack_that_fails_does_not_keep_the_others(study, monkeypatch):
    train = module.StudyTraining.students

    def students(self, pack, *arguments, **options):
        if pack.id == "seed42.000":
            raise MemoryError("no memory")
        return train(self, pack, *arguments, **options)

    monkeypatch.setattr(module.StudyTraining, "students", students)
    outcome = work(study, progress=False)
    assert sorted(outcome.done) == ["seed42.001", "seed42.002"]
    assert list(outcome.failed) == ["seed42.000"]
    (attempt,) = StudyStore.open(study).attempts()
    assert (attempt.name, attempt.error, len(attempt.members)) == ("seed42.000", "MemoryError: no memory", 2)
    for _ in range(2):
        work(study, progress=False)
    outcome = work(study, progress=False)  # does not try a fourth time
    assert "has failed 3 times" in str(outcome.failed["seed42.000"])
    assert len(StudyStore.open(study).attempts()) == 3
    monkeypatch.setattr(module.StudyTraining, "students", train)
    assert work(study, progress=False, retry=True).failed == {}


def test_a_teacher_that_fails_is_told_by_the_status(study, monkeypatch):
    def teacher(self, external):
        raise MemoryError("no memory")

    monkeypatch.setattr(module.StudyTraining, "teacher", teacher)
    outcome = work(study, progress=False)
    assert (list(outcome.failed), len(outcome.left)) == (["teacher"], 3)
    told = {run.run_name: run.message for run in study_status(StudyStore.open(study)).runs}
    assert told["teacher"] == "tried once: MemoryError: no memory"


def test_a_teacher_that_fails_is_given_up(tmp_path, run_worker):
    """By a recipe by which every teacher diverges."""
    study = tmp_path / "study"
    recipe = {"learning_rate": 1e30, "epochs": 2, "batch_size": 32}
    small_sweep(study, epochs=None, batch_size=None, config={"recipe": recipe}, plan_only=True)

    def tries() -> list[str]:
        return [attempt.ended for attempt in StudyStore.open(study).attempts() if attempt.name == "teacher"]

    for number, options in enumerate([(), ("--pack", "teacher"), ()], start=1):
        status, errors = run_worker(study, *options)
        assert (status, tries()) == (1, ["error"] * number), errors
        assert "kdfast: pack teacher failed:" in errors
        assert "the teacher diverged" in errors
    for options in [(), ("--pack", "teacher"), ("--array-index", "0")]:
        status, errors = run_worker(study, *options)
        assert (status, tries()) == (1, ["error"] * 3)
        assert "teacher has failed 3 times\nkdfast status says of what; --retry tries it again" in errors
    status, errors = run_worker(study, "--retry", "--pack", "teacher")
    assert (status, tries()) == (1, [*["error"] * 3, "retry", "error"])
    assert "the teacher diverged" in errors
    for _ in range(2):
        work(study, progress=False)
    with pytest.raises(StudyError, match="the teacher diverged"):  # a sweep is a user's wish to try
        small_sweep(study, epochs=None, batch_size=None, config={"recipe": recipe})
    assert tries()[-2:] == ["retry", "error"]


@pytest.mark.slow
def test_a_pack_that_others_have_failed_at_meanwhile_is_given_up(study):
    """With the real program, which waits for the pack while it fails elsewhere."""
    work(study, pack="teacher", progress=False)
    store = StudyStore.open(study)
    with Claims(study / "claims", beat=0.1).take("seed42.000"):
        waiting = start_worker(study, "--pack", "seed42.000", "--lease", "40")
        while "seed42.000: held by other processes" not in waiting.stderr.readline():
            assert waiting.poll() is None
        for _ in range(3):
            store.write_attempt(Attempt("seed42.000", "error", "MemoryError: no memory"))
    status, _, errors = finish(waiting)
    assert status == 1
    assert "pack seed42.000 has failed 3 times\nkdfast status says of what; --retry tries it again" in errors
    assert [result.key.folder for result in store.results()] == ["teacher.teacher.seed42"]
    assert len(store.attempts()) == 3


def test_a_pack_that_was_given_up_is_none_of_the_most_that_a_worker_takes(study):
    for _ in range(3):
        StudyStore.open(study).write_attempt(Attempt("seed42.000", "error", "MemoryError: no memory"))
    outcome = work(study, max_packs=1, progress=False)
    assert (list(outcome.failed), outcome.done, outcome.left) == (["seed42.000"], ["seed42.001"], ["seed42.002"])


@pytest.mark.parametrize("options", [(), ("--pack", "teacher")])
def test_a_damaged_teacher_is_a_study_that_can_not_be_used(study, run_worker, options):
    """By a flipped bit, and not what a pack does: no attempt tells of it, and `kdfast status` sees no weights."""
    work(study, pack="teacher", progress=False)
    weights = study / "results" / "teacher.teacher.seed42" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    status, errors = run_worker(study, *options)
    assert status == 2, errors
    assert "is damaged: weights.safetensors does not match its checksum\n`kdfast verify --repair`" in errors
    assert "pack teacher failed" not in errors
    assert StudyStore.open(study).attempts() == []


def test_another_version_is_refused(study, monkeypatch):
    monkeypatch.setattr(module, "__version__", "9.9")
    with pytest.raises(StudyError, match=r"was planned by kdfast .*, this is 9\.9"):
        work(study, progress=False)
    assert list((study / "results").iterdir()) == []


def test_what_was_given_in_python_is_in_the_folder(tmp_path, run_worker):
    """The plan keeps jets, HLT jets and logits; a study that was swept, not planned, says what it lacks."""
    jets = small_jets()
    given = {"hlt": emulate_hlt(jets, "severe"), "teacher": jets.labels * 4.0 - 2.0}
    expected = small_sweep(tmp_path / "swept", **given)
    small_sweep(tmp_path / "study", plan_only=True, **given)
    assert run_worker(tmp_path / "study")[0] == 0
    assert table(tmp_path / "study") == (expected.path / "results_summary.csv").read_text()
    shutil.rmtree(tmp_path / "swept" / "results" / "baseline.baseline.seed42")
    status, errors = run_worker(tmp_path / "swept")
    assert status == 2
    assert "was given its jets in Python, and does not hold them" in errors


def test_packs_appear_when_workers_can_open_the_study(tmp_path, monkeypatch):
    packs: list[int] = []

    def write_inputs(store, *arguments):
        packs.append(len(planned(store)))
        return genuine(store, *arguments)

    genuine = driver.write_inputs
    monkeypatch.setattr(driver, "write_inputs", write_inputs)
    small_sweep(tmp_path / "study", plan_only=True)
    assert packs == [0]
    assert planned(StudyStore.open(tmp_path / "study"))


def test_changed_jets_are_refused(plan_in, tmp_path):
    plan_in(tmp_path / "study")
    (tmp_path / "other").mkdir()
    small_sweep(tmp_path / "other" / "study", small_jets()[:350], plan_only=True)
    shutil.rmtree(tmp_path / "study" / "inputs")
    shutil.copytree(tmp_path / "other" / "study" / "inputs", tmp_path / "study" / "inputs")
    with pytest.raises(StudyError, match="the jets are others"):
        work(tmp_path / "study", progress=False)


def test_a_lease_is_longer_than_a_living_worker_is_silent(tmp_path, capsys):
    for lease, why in ((2 * BEAT - 0.5, "--lease"), (2 * BEAT, "does not exist")):
        assert main(["worker", "--store", str(tmp_path / "none"), "--lease", str(lease)]) == 2
        assert why in capsys.readouterr().err


def test_bad_arguments(study, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no pack 'seed42\.9'\n.*known: teacher, seed42\.000"):
        work(study, pack="seed42.9", progress=False)
    with pytest.raises(ConfigError, match="there is no pack number 3"):
        work(study, array_index=3, progress=False)
    with pytest.raises(ConfigError, match="exclude each other"):
        work(study, array_index=0, max_packs=1, progress=False)
    with pytest.raises(ConfigError, match=r"threads: 99999 threads are more than the \d+ CPUs that this"):
        work(study, threads=99999, progress=False)
    for options in ({"threads": 0}, {"max_packs": -1}, {"lease": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))}: must be"):
            work(study, progress=False, **options)
    with pytest.raises(StudyError, match="has no packs"):
        work(StudyStore.create_or_open(tmp_path / "empty", {}, {}).path, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_stopped_by_a_signal(study, alone, number, expected):
    process = start_worker(study)
    wait_until(lambda: list(study.glob("results/student*")), "a student is stored")
    os.kill(process.pid, number)
    for more in itertools.cycle((signal.SIGTERM, signal.SIGUSR1)):  # until the interpreter has ended, too
        if process.poll() is not None:
            break
        process.send_signal(more)
        time.sleep(0.02)
    status, _, _ = finish(process)
    assert status == expected
    assert Claims(study / "claims").holders() == []
    assert finish(start_worker(study))[0] == 0
    assert table(study) == alone


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_stopped_while_it_starts(tmp_path, monkeypatch, number, expected):
    """A slow file system may take a minute to import torch from."""
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    process = start_worker(tmp_path / "study")
    assert process.stdout.readline() == "importing\n"
    os.kill(process.pid, number)
    status, _, errors = finish(process)
    assert (status, errors.splitlines()[-1][:16]) == (expected, "kdfast: stopped:")
