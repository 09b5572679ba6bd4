"""load_jets(…, isolate=True): the same jets, warnings and errors, and an error where a library crashes or hangs."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdfast.errors import ConfigError, DataError, KdfastWarning, ResourceError
from kdfast.jets import isolated, packing
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.readers import load_jets
from kdfast.jets.splits import split_rule
from tests.jets.atlas_files import atlas_arrays, write_arrays, write_atlas
from tests.synthetic import synthetic_jets

JETS = synthetic_jets(60, max_constituents=20)

# In place of the child's program: the request is a line on stdin.
CRASH = "import os, sys; sys.stdin.readline(); os.write(1, b'0\\n1\\n'); os.kill(os.getpid(), 11)"
HANG = "import os, sys\nsys.stdin.readline(); os.write(1, b'0\\n1\\n')\nwhile True: pass"
WAIT = "import os, sys, time; sys.stdin.readline(); os.write(1, b'0\\n1\\n'); time.sleep(60)"
DIES_AT_ONCE = "import os; os._exit(3)"

# Gets the signals that a batch system sends to all of a job's processes, and then works.
SIGNALLED = """
import os
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    os.kill(os.getpid(), number)
"""


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_atlas(tmp_path / f"part_{k}.h5", JETS[30 * k : 30 * k + 30], width=20) for k in range(2)]


@pytest.mark.parametrize(
    "how", [{}, {"max_jets": np.int64(40), "max_constituents": 7}, {"columns": {"preset": "atlas"}, "sort": True}]
)
def test_the_same_jets(files: list[Path], how: dict[str, Any]) -> None:
    jets = load_jets(files, isolate=True, **how)
    assert fingerprint(jets) == fingerprint(load_jets(files, **how))
    jets.constituents[0] = 1  # memory of its own, which can be written
    assert jets.constituents.flags.aligned


@pytest.mark.slow
def test_the_same_warnings_and_errors(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=20)
    arrays["fjet_pt"][3] = np.nan
    bad = write_arrays(tmp_path / "bad.h5", arrays)
    messages = []
    for isolate in (False, True):
        with pytest.raises(DataError) as error:
            load_jets(bad, isolate=isolate)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            jets = load_jets(bad, isolate=isolate, on_bad="drop")
        assert [each.filename for each in caught] == [__file__]
        spelled = error.value.text("there", lambda name, value: f"--{name} {value}")
        messages.append((str(error.value), spelled, str(caught[0].message), fingerprint(jets)))
    assert messages[0] == messages[1]
    with pytest.raises(ConfigError, match="max_constituents: is 99, but only 20"):
        load_jets(bad, max_constituents=99, isolate=True)
    with pytest.raises(ConfigError, match="isolate: must be true or false, is 1"):
        load_jets(bad, isolate=1)  # type: ignore[arg-type]


def test_a_table_in_memory_needs_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_CHILD", DIES_AT_ONCE)
    assert len(load_jets(atlas_arrays(JETS, width=20), isolate=True)) == 60


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (CRASH, r"part_1.h5: the library that reads it crashed \(SIGSEGV\)\ncopy or download it again"),
        (HANG, r"part_1.h5: a block of its rows was not read in 0.5 s of computing: the file is damaged"),
        (WAIT, r"part_1.h5: a block of its rows was not read within 2 s: its storage does not respond"),
        (DIES_AT_ONCE, r"part_0.h5: the library that reads it crashed \(exit status 3\)"),
    ],
)
def test_a_crash_or_a_hang_is_an_error(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    monkeypatch.setattr(isolated, "_CHILD", program)
    monkeypatch.setattr(isolated, "BLOCK_SECONDS", 0.5)
    monkeypatch.setattr(isolated, "WAITING_SECONDS", 60.0 if program == HANG else 2.0)
    with pytest.raises(DataError, match=message):
        load_jets(files, isolate=True)


def test_signals_that_stop_a_sweep_are_for_the_parent(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    program = isolated._CHILD.replace("sys.path[:] =", f"{SIGNALLED}sys.path[:] =")
    monkeypatch.setattr(isolated, "_CHILD", program)
    assert len(load_jets(files, isolate=True)) == 60


def test_more_jets_than_the_memory_holds(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "memory", lambda: 1000)
    with pytest.raises(ResourceError, match=r"60 jets need at least .* GiB, .*\nread fewer \(max_jets\)"):
        load_jets(files)
    assert len(load_jets(files, max_jets=1, max_constituents=1, require_labels=False)) == 1


def test_the_child_ends_with_its_parent(files: list[Path]) -> None:
    """The child of a parent that is killed does not stay."""
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("needs fork")
    if pid == 0:
        program = "import os, time; from kdfast.jets import reading_process as r; r._limit_memory = lambda: ("
        program += f"open({str(files[0].parent / 'pid')!r}, 'w').write(str(os.getpid())), time.sleep(60)); r.main()"
        isolated._CHILD = isolated._CHILD.replace("from kdfast.jets.reading_process import main\nmain()", program)
        load_jets(files, isolate=True)
        os._exit(0)
    written = files[0].parent / "pid"
    end = time.monotonic() + 60
    while not (written.exists() and written.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(written.read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while Path(f"/proc/{child}/cmdline").exists() and time.monotonic() < end:
        if not Path(f"/proc/{child}/cmdline").read_bytes():  # a zombie that nobody waits for
            break
        time.sleep(0.05)
    assert time.monotonic() < end


def test_a_split_by_a_column(files: list[Path]) -> None:
    from kdfast.jets.readers import Reading, read_jets

    rule = split_rule({"column": "EventInfo_mcEventNumber", "test": list(range(30))})
    path = write_atlas(files[0].parent / "v2.h5", JETS, width=20, version=2)
    found = [read_jets(path, Reading(split=rule, isolate=isolate))[1] for isolate in (False, True)]
    np.testing.assert_array_equal(*found)


def test_dropped_jets_are_warned_of_at_the_call(files: list[Path]) -> None:
    with pytest.warns(KdfastWarning, match="are all of class") as caught:
        load_jets(files, max_jets=1, isolate=True)
    assert caught[0].filename == __file__
