"""Sweeps that are killed or stopped half-way: the same command resumes, inside a member too, to the same bits."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from kdfast import report
from kdfast.distill.pack import EpochReport
from kdfast.interrupt import SIGNALS, Stop, SweepInterrupted, stoppable
from kdfast.store.store import StudyStore
from kdfast.store.table import csv_text, results_table
from kdfast.study.progress import SweepProgress
from tests.study.processes import finish, start, wait_until
from tests.study.small_sweep import GRID, small_sweep

EPOCHS = 400  # enough that a signal comes while members are running
EXIT = {signal.SIGINT: 130, signal.SIGTERM: 75, signal.SIGUSR1: 75}


@pytest.fixture(scope="module", autouse=True)
def without_reports():
    """In this process: of a report only the table counts here, and that is cheap."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda store: {})
        yield


def table(out: Path) -> bytes:
    """What results_summary.csv holds."""
    return csv_text(results_table(StudyStore.open(out).results()))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> bytes:
    out = tmp_path_factory.mktemp("sweep") / "study"
    small_sweep(out, epochs=EPOCHS)
    return table(out)


def start_sweep(out: Path, *more: str, code: str | None = None) -> subprocess.Popen[str]:
    run = ["-m", "tests.study.small_sweep"] if code is None else ["-c", textwrap.dedent(code)]
    return start(*run, str(out), str(EPOCHS), *more)


# Each step takes 5 ms more: the teacher a second, students several.
SLOW = """
    import sys, time
    from kdfast.distill import cpu_engine, reference_engine
    from tests.study import small_sweep
    for engine in (cpu_engine, reference_engine):
        def step(*arguments, genuine=engine._Learner.step):
            time.sleep(0.005)
            return genuine(*arguments)
        engine._Learner.step = step
    sys.exit(small_sweep.main(*sys.argv[1:]))
"""


def wait_for(out: Path, pattern: str) -> None:
    wait_until(lambda: list(out.glob(pattern)), f"there is a {pattern}")


def stop(process: subprocess.Popen[str], number: int) -> list[str]:
    """Sends a signal and returns the lines on stderr; the process must be gone in time, with the status for it."""
    began = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 30  # seconds where the machine is busy, too
    assert process.returncode == EXIT[number], errors
    return errors.splitlines()


def epochs_in_checkpoints(out: Path) -> dict[str, int]:
    """Epochs that the newest checkpoint of each member holds, by the name of its result."""
    newest: dict[str, Path] = {}
    for folder in sorted(out.glob("checkpoints/*/0*")):
        newest[folder.parent.name] = folder
    documents = {key: json.loads((folder / "checkpoint.json").read_bytes()) for key, folder in newest.items()}
    return {key: len(document["curves"]["loss"]) for key, document in documents.items()}


def go_on(out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Finishes the sweep; returns the first epoch that this process trained of each member, by its name."""
    first: dict[str, int] = {}
    genuine = SweepProgress.epoch

    def epoch(self: SweepProgress, report: EpochReport) -> None:
        first.setdefault(report.member, report.epoch)
        genuine(self, report)

    monkeypatch.setattr(SweepProgress, "epoch", epoch)
    small_sweep(out, epochs=EPOCHS)
    return first


def assert_went_on(before: dict[str, int], first: dict[str, int]) -> None:
    """Members with a checkpoint began at its epoch, all others at 0."""
    expected = {key.split(".", 1)[1].removesuffix(".seed42"): epochs for key, epochs in before.items()}
    assert before
    assert max(expected.values()) > 0
    for name, epoch in first.items():
        assert epoch == expected.get(name, 0), name


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["teacher.*", "student.*"])
def test_killed_and_started_again(tmp_path, uninterrupted, pattern):
    out = tmp_path / "study"
    process = start_sweep(out)
    wait_for(out, f"results/{pattern}")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = {result.key.folder for result in StudyStore.open(out).results()}
    assert 0 < len(before) < len(GRID) + 2
    modified = {key: (out / "results" / key / "manifest.json").stat().st_mtime_ns for key in before}
    small_sweep(out, epochs=EPOCHS)
    assert {key: (out / "results" / key / "manifest.json").stat().st_mtime_ns for key in before} == modified
    assert table(out) == uninterrupted


@pytest.mark.slow
@pytest.mark.parametrize("member", ["teacher.*", "student.*"])
def test_killed_after_a_checkpoint_it_goes_on_inside_the_member(tmp_path, uninterrupted, monkeypatch, member):
    out = tmp_path / "study"
    process = start_sweep(out, "0.1", code=SLOW)
    wait_for(out, f"checkpoints/{member}/0*")
    process.kill()
    process.communicate()
    before = epochs_in_checkpoints(out)
    assert_went_on(before, go_on(out, monkeypatch))
    assert table(out) == uninterrupted
    assert not list(out.glob("checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_stopped_by_a_signal_it_goes_on_inside_the_members(tmp_path, uninterrupted, monkeypatch, number):
    out = tmp_path / "study"
    process = start_sweep(out, code=SLOW)
    wait_for(out, "results/teacher.*")
    time.sleep(0.8)  # members run, and no interval has passed yet
    lines = stop(process, number)
    assert "stopping: saving the running members; rerun the same command to resume" in lines
    assert lines[-1] == f"stopped: finished runs are stored in {out}; rerun the same command to resume"
    before = epochs_in_checkpoints(out)
    assert not before.keys() & {result.key.folder for result in StudyStore.open(out).results()}
    assert_went_on(before, go_on(out, monkeypatch))
    assert table(out) == uninterrupted


STAGES = """
    import sys, time
    from tests.study import small_sweep
    from kdfast import report
    from kdfast.study import inputs, training
    def slow(*_, **__):
        print("slow", flush=True)
        time.sleep(120)
    STAGE = slow
    sys.exit(small_sweep.main(sys.argv[1], "2"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("inputs.load_sets", signal.SIGTERM),  # reading the data
        ("inputs.prepare", signal.SIGUSR1),
        ("training.teacher_targets", signal.SIGTERM),
        ("report.write", signal.SIGUSR1),
        ("report.write", signal.SIGINT),
    ],
)
def test_stopped_outside_the_training(tmp_path, stage, number):
    out = tmp_path / "study"
    process = start_sweep(out, code=STAGES.replace("STAGE", stage))
    assert process.stdout.readline() == "slow\n"
    lines = stop(process, number)
    assert lines[-1] == f"stopped: finished runs are stored in {out}; rerun the same command to resume"


# In exec, as modules make their classes: Python ends itself by a SIGINT where a KeyboardInterrupt has left one.
SLOW_TORCH = "import time\nprint('importing', flush=True)\nexec('time.sleep(60)')\n"
DEAF_TORCH = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:
    pass  # as torch, which goes on without numpy; that lacks something then
"""

# As from a terminal: what a shell runs in the background ignores Ctrl-C.
WITH_SIGINT = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("kdfast", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("torch", [SLOW_TORCH, DEAF_TORCH])
@pytest.mark.parametrize(
    ("command", "number", "expected"),
    [
        (["sweep", "--out"], signal.SIGTERM, (75, "kdfast: stopped:")),
        (["sweep", "--out"], signal.SIGINT, (130, "kdfast: stopped:")),
        (["refine"], signal.SIGTERM, (75, "kdfast: stopped:")),
        (["report"], signal.SIGINT, (130, "kdfast: interrup")),
    ],
)
def test_stopped_while_torch_is_imported(tmp_path, command, number, expected, torch):
    (tmp_path / "torch.py").write_text(torch)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = start("-c", WITH_SIGINT, *command, str(tmp_path / "study"), env=os.environ | {"PYTHONPATH": path})
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    status, _, errors = finish(process)
    assert (status, errors[:16]) == expected
    assert "Traceback" not in errors


def test_a_signal_in_training_only_sets_the_event_until_its_end():
    said: list[str] = []
    signals: list[int] = []

    def train() -> None:
        with stoppable(said.append, Path("study")) as stop, stop.deferred():
            signal.raise_signal(signal.SIGUSR1)
            assert stop.event.is_set()
            signals.append(stop.signum)

    with pytest.raises(SweepInterrupted) as stopped:
        train()
    assert (signals, len(said)) == ([signal.SIGUSR1], 1)
    assert stopped.value.exit_code == os.EX_TEMPFAIL == 75
    assert str(stopped.value).startswith("stopped: finished runs are stored in study;")


def test_deferrals_may_be_nested():
    reached: list[bool] = []

    def train() -> None:
        with stoppable(lambda text: None, Path("study")) as stop, stop.deferred():
            with stop.deferred():
                pass
            signal.raise_signal(signal.SIGTERM)  # still deferred
            reached.append(stop.event.is_set())

    with pytest.raises(SweepInterrupted):
        train()
    assert reached == [True]


def test_elsewhere_it_is_raised_at_once_and_no_training_begins_after_it():
    with stoppable(print, Path("study")) as stop:
        with pytest.raises(SweepInterrupted) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.exit_code == 75
        with pytest.raises(SweepInterrupted), stop.deferred():
            pytest.fail("this would train")


def test_more_signals_of_a_batch_system_do_not_keep_it_from_saving():
    """SIGTERM after the warning, or both of a job's shell and of the batch system itself."""
    said: list[str] = []
    saved: list[int] = []

    def train() -> None:
        with stoppable(said.append, Path("study")) as stop, stop.deferred():
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
                signal.raise_signal(number)
            saved.append(stop.signum)

    with pytest.raises(SweepInterrupted):
        train()
    assert (saved, len(said)) == ([signal.SIGUSR1], 1)


def test_the_second_ctrl_c_acts_as_usual():
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it

    def train() -> None:
        with stoppable(lambda text: None, Path("study")) as stop, stop.deferred():
            signal.raise_signal(signal.SIGINT)
            assert stop.event.is_set()
            signal.raise_signal(signal.SIGINT)

    try:
        with pytest.raises(KeyboardInterrupt) as interrupted:
            train()
        assert not isinstance(interrupted.value, SweepInterrupted)
    finally:
        signal.signal(signal.SIGINT, outer)


def test_a_block_in_another_one_is_stopped_with_it():
    """As of a command and the sweep in it: one signal stops both, and the second Ctrl-C is Python's own."""
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)
    said: list[str] = []
    try:
        with stoppable(print, Path("study")) as command:
            inner = stoppable(said.append, Path("study"))
            with pytest.raises(SweepInterrupted), inner as stop, stop.deferred():
                signal.raise_signal(signal.SIGINT)
            assert len(said) == 1
            assert command.event.is_set()
            signal.raise_signal(signal.SIGTERM)  # while the command ends
            with pytest.raises(KeyboardInterrupt) as interrupted:
                signal.raise_signal(signal.SIGINT)
            assert not isinstance(interrupted.value, SweepInterrupted)
    finally:
        signal.signal(signal.SIGINT, outer)


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with stoppable(print, Path("study")):
        assert all(signal.getsignal(number) is not handler for number, handler in zip(SIGNALS, before, strict=True))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_outside_the_main_thread_nothing_is_installed():
    found: list[Stop] = []

    def work() -> None:
        with stoppable(print, Path("study")) as stop, stop.deferred():
            found.append(stop)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1
    assert signal.getsignal(signal.SIGINT) is before
