"""SIGKILL at random moments over a study, and at its n-th change of the disk: what was reported is kept, and the end is
the same.

KDFAST_KILLS: how many random moments (ci/torture: 200). KDFAST_CALLS: how many n, or "all" (ci/torture).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest

from kdfast.distill.schedules import stored_name
from kdfast.store.store import StudyStore
from kdfast.store.verify import verify
from tests.study.small_sweep import GRID, small_sweep

KILLS = int(os.environ.get("KDFAST_KILLS", "20"))
CALLS = os.environ.get("KDFAST_CALLS", "12")
EPOCHS = 30
ROOT = Path(__file__).parents[2]


class Sweep:
    """The program, in a process of its own, and the runs that it has reported as done."""

    def __init__(self, out: Path) -> None:
        command = [sys.executable, "-m", "tests.study.small_sweep", str(out), str(EPOCHS), "0.1"]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        self.reported: set[str] = set()
        self.lines: list[str] = []
        self.works = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self.works.set()  # its first line comes when it has begun to write
            if found := re.match(r"\S+( \S+)*: (\S+) done, AUC", line):
                self.reported.add(stored_name(found[2]))

    def wait(self, seconds: float | None) -> bool:
        """Whether it has ended by itself."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join()
        return True

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._reader.join()


@pytest.mark.slow
@pytest.mark.timeout(60 * KILLS)
def test_killed_at_any_moment(tmp_path, capsys):
    began = time.monotonic()
    small_sweep(tmp_path / "whole", epochs=EPOCHS)
    length = 1.2 * (time.monotonic() - began)  # the work of one study, on this machine now
    expected = (tmp_path / "whole" / "results_summary.csv").read_bytes()

    random, kills, studies, starts = Random(1), 0, 0, 0
    while kills < KILLS:
        out, studies = tmp_path / f"study{studies}", studies + 1
        reported: set[str] = set()
        ended = False
        while not ended:
            sweep = Sweep(out)
            starts += 1
            if kills < KILLS:
                if random.random() < 0.8:  # else also while it starts
                    sweep.works.wait(120)
                ended = sweep.wait(random.uniform(0, length))
                if not ended:
                    sweep.kill()
                    kills += 1
            else:
                ended = sweep.wait(300)
            reported |= sweep.reported
            if not (out / "provenance.json").exists():
                assert not reported
                continue
            stored = {result.name for result in StudyStore.open(out).results()}
            assert reported <= stored, f"lost: {reported - stored}"
            # Half-written folders, and a report that was cut off, may be there; nothing else may be amiss.
            assert [found for found in verify(out).findings if found.remedy != "remove"] == []
        assert sweep.process.returncode == 0, "".join(sweep.lines)
        assert (out / "results_summary.csv").read_bytes() == expected
        assert len(reported) > 0 or starts == 1
        assert len(StudyStore.open(out).keys()) == 2 + len(GRID)
    with capsys.disabled():
        print(f"\n{kills} kills over {studies} studies, {starts} starts")


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600 if CALLS == "all" else 900)
def test_killed_at_each_change_of_the_disk(tmp_path, capsys):
    """Also: a resumed sweep waits for no process that is dead."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = tmp_path / "kill_at.so"
    source = Path(__file__).with_name("kill_at.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    command = [sys.executable, "-m", "tests.study.killed_sweeps", str(tmp_path), *([] if CALLS == "all" else [CALLS])]
    environment = os.environ | {"LD_PRELOAD": str(library)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    whole, *killed = map(json.loads, done.stdout.splitlines())
    assert whole["calls"] > 300
    assert len(killed) >= (whole["calls"] if CALLS == "all" else int(CALLS))
    assert [line for line in (whole, *killed) if line["faults"]] == []
    with capsys.disabled():
        print(f"\nkilled at {len(killed)} of {whole['calls']} calls that change the disk")
