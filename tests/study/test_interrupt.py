"""Sweeps that are killed or stopped half-way: the same command goes on and ends in the same table, bit for bit."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdfast.study.interrupt import Stop, stoppable
from kdfast.study.store import StudyStore
from tests.study.small_sweep import GRID, small_sweep

EPOCHS = 60  # enough that a signal comes while members are running


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("sweep") / "study"
    small_sweep(out, epochs=EPOCHS)
    return (out / "results_summary.csv").read_text()


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.study.small_sweep", str(out), str(EPOCHS)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(out: Path, pattern: str) -> None:
    deadline = time.monotonic() + 120
    while not list(out.glob(f"results/{pattern}")):
        assert time.monotonic() < deadline, "the sweep has stored nothing"
        time.sleep(0.01)


@pytest.mark.parametrize("pattern", ["teacher.*", "student.*"])
def test_killed_and_started_again(tmp_path, uninterrupted, pattern):
    out = tmp_path / "study"
    process = start(out)
    wait_for(out, pattern)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = {result.key for result in StudyStore.open(out).results()}
    assert 0 < len(before) < len(GRID) + 2
    modified = {key: (out / "results" / key / "manifest.json").stat().st_mtime_ns for key in before}
    small_sweep(out, epochs=EPOCHS)
    assert {key: (out / "results" / key / "manifest.json").stat().st_mtime_ns for key in before} == modified
    assert (out / "results_summary.csv").read_text() == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_started_again(tmp_path, uninterrupted, number):
    out = tmp_path / "study"
    process = start(out)
    wait_for(out, "student.*")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopping: unfinished members are given up, finished ones are stored" in errors
    last = errors.splitlines()[-1]
    assert last == f"stopped: what has finished is stored in {out}; the same command goes on from there"
    before = {result.key for result in StudyStore.open(out).results()}
    assert 0 < len(before) < len(GRID) + 2
    small_sweep(out, epochs=EPOCHS)
    assert (out / "results_summary.csv").read_text() == uninterrupted


def test_the_second_signal_acts_as_usual():
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    said: list[str] = []
    try:
        with stoppable(said.append) as stop:
            assert not stop.event.is_set()
            signal.raise_signal(signal.SIGINT)
            assert stop.event.wait(5)
            assert stop.signum == signal.SIGINT
            assert len(said) == 1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, outer)


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stoppable(print):
        assert signal.getsignal(signal.SIGINT) is not before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_installed():
    found: list[Stop] = []

    def work() -> None:
        with stoppable(print) as stop:
            found.append(stop)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 1
    assert signal.getsignal(signal.SIGINT) is before
