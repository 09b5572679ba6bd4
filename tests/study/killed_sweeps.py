"""Sweeps that end at their n-th call that changes the disk, and are resumed; kill_at.c must be preloaded.

`LD_PRELOAD=kill_at.so python -m tests.study.killed_sweeps FOLDER [COUNT]` prints a line of JSON for the whole sweep and
for each of COUNT numbers n, evenly spread over its calls (without COUNT: for all of them). Each sweep is a fork of this
process, which has imported everything and computed nothing.
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from kdfast.report import page
from kdfast.store.store import StudyStore
from kdfast.store.verify import verify
from kdfast.study.progress import SweepProgress
from kdfast.study.worker import PackRunner
from tests.study.small_sweep import GRID, small_sweep

# Of a result.json, what differs between two runs of the same sweep.
OF_THE_RUN = ("stored", "resumed_from")


@dataclass
class Swept:
    """What became of a sweep: killed by the signal, runs that it reported as done, how often it waited for another
    process, calls that it made, and its error."""

    killed: bool
    reported: list[str] = field(default_factory=list)
    waits: int = 0
    calls: int = 0
    error: str = ""


def swept(out: Path, n: int) -> Swept:
    """A sweep in a process of its own, which ends at its n-th call; 0: it is not ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os._exit(sweep(out, n, write))
    os.close(write)
    with os.fdopen(read) as said:
        lines = [line.split() for line in said]
    status = os.waitpid(child, 0)[1]
    found = Swept(os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    for word, value in lines:
        if word == "done":
            found.reported.append(value)
        elif word == "wait":
            found.waits += 1
        elif word == "calls":
            found.calls = int(value)
        else:
            found.error = bytes.fromhex(value).decode()
    if not found.killed and status and not found.error:
        found.error = f"exit status {status}"
    return found


def sweep(out: Path, n: int, pipe: int) -> int:
    """Runs it, and writes to the pipe what happens."""

    def say(word: str, value: Any) -> None:
        os.write(pipe, f"{word} {value}\n".encode())

    def waited(runner: PackRunner, why: str) -> None:
        say("wait", 1)

    library = ctypes.CDLL(None)
    library.kill_at(str(out).encode(), ctypes.c_long(n))
    drawn = {"report.html": b"a page", "figures/one.png": b"a figure"}  # figures take seconds, and write as any file
    try:
        with (
            mock.patch.object(SweepProgress, "member", lambda self, result: say("done", result.name)),
            mock.patch.object(PackRunner, "_wait", waited),
            mock.patch.object(page, "page_files", return_value=drawn),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            small_sweep(out, batch_size=128, checkpoint_every=0.0, threads=1)
    except BaseException:
        say("error", traceback.format_exc().encode().hex())
        return 1
    say("calls", library.calls_made())
    return 0


def bits(study: Path) -> dict[str, str]:
    """A digest of each result's numbers, scores and weights, and of the table."""
    found = {"results_summary.csv": hashlib.sha256((study / "results_summary.csv").read_bytes()).hexdigest()}
    for folder in (study / "results").iterdir():
        document = json.loads((folder / "result.json").read_bytes())
        document["metrics"].pop("seconds", None)
        for name in OF_THE_RUN:
            del document[name]
        content = [json.dumps(document).encode()]
        content += [(folder / f"{name}.safetensors").read_bytes() for name in ("arrays", "weights")]
        found[folder.name] = hashlib.sha256(b"".join(content)).hexdigest()
    return found


def checked(folder: Path, count: int | None) -> Iterator[dict[str, Any]]:
    """What is found for each n; a fault is in "faults"."""
    whole = swept(folder / "whole", 0)
    expected = bits(folder / "whole")
    yield {"n": 0, **asdict(whole), "faults": [whole.error] if whole.error or len(expected) != 3 + len(GRID) else []}
    step = 1 if count is None else max(1, whole.calls // count)
    for n in range(step // 2 + 1, whole.calls + 1, step):
        out, faults = folder / str(n), []
        cut = swept(out, n)
        if cut.error or not cut.killed:
            faults.append(f"was not killed: {cut.error}")
        if (out / "provenance.json").exists():
            stored = {result.name for result in StudyStore.open(out).results()}
            amiss = [f"{found.path} {found.what}" for found in verify(out).findings if found.remedy != "remove"]
        else:
            stored, amiss = set(), []
        faults += [f"lost: {name}" for name in cut.reported if name not in stored] + amiss
        resumed = swept(out, 0)
        if resumed.error:
            faults.append(resumed.error)
        elif bits(out) != expected:
            faults.append("other bits than the whole sweep's")
        elif findings := verify(out).findings:
            faults.append(f"the end is not intact: {findings}")
        if resumed.waits:
            faults.append(f"waited {resumed.waits} times for a process that is dead")
        shutil.rmtree(out)
        yield {"n": n, "reported": len(cut.reported), "faults": faults}


if __name__ == "__main__":
    for line in checked(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None):
        print(json.dumps(line), flush=True)
