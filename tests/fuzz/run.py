"""Reads damaged files of every format: each must give jets or a KdfastError, in bounded time and memory.

usage: python -m tests.fuzz.run [--seconds 300] [--files N] [--formats atlas root …] [--first SEED] [--processes 2]
                                [--state FILE] [--keep DIR]

Files are read in child processes, which are watched. They are forked from this process, which has imported everything
and never reads a damaged file, so that a new one costs nothing. Where a library crashes or hangs, the file is read
again with isolate=True, which must give an error with the file's name; that is counted (contained) and no find.
Anything else is a find: its format and seed are printed, and the exit status is 1.

--state adds to the counts of earlier runs and reads other files than they did; --files then is the number in all.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import numpy as np

from kdfast.errors import KdfastError, KdfastWarning
from kdfast.files import write_content
from kdfast.jets import isolated
from tests.fuzz.files import FORMATS, base_files
from tests.fuzz.mutations import mutant

SECONDS_A_FILE = 10.0  # of computing; usually milliseconds
SECONDS_WAITING = 300.0  # without computing
# Bytes that a file of some kilobytes may take. A page of Parquet may announce 2 GiB, which pyarrow then takes.
MEMORY = {"parquet": 5 << 29}
USUAL_MEMORY = 1 << 29
ADDRESSES = 8 << 30  # more than the libraries reserve without use
FILES_A_CHILD = 1_000
FORK = multiprocessing.get_context("fork")
SIGNALS: list[int] = []  # that asked this run to end; an exception would be lost if it came in a fork's hooks


def options(seed: int) -> dict[str, Any]:
    """How the file of a seed is read."""
    return {"on_bad": "drop" if seed % 2 else "error", "require_labels": seed % 3 > 0}


def outcome(name: str, path: Path, seed: int) -> str:
    """ "jets", "errors", or what is wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", KdfastWarning)
            jets = FORMATS[name].read(path, **options(seed))
    except KdfastError as error:
        return "errors" if path.name in str(error) or "paths" in str(error) else f"the file is not named: {error}"
    except Exception as error:
        return _shown(error)
    fine = np.isfinite(jets.constituents).all() and (jets.constituents[:, 0] >= 0).all()
    if FORMATS[name].values_are_checked and not fine:
        return "the jets are not finite"
    return "jets"


def _shown(error: Exception) -> str:
    """An exception in a line: what it is, and where it comes from in kdfast."""
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    ours = [frame for frame in frames if (Path(isolated.__file__).parent / frame.partition(":")[0]).exists()]
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__} at {ours[-1] if ours else frames[-1]}: {first_line}"


@dataclass
class Work:
    """A format while it is fuzzed.

    contents: its valid files. next: the seed of the next file. counts: files by outcome. contained: (seed, what
    happened). finds: what is wrong → its seeds. slowest: of the files that were read, see Progress.
    """

    name: str
    contents: tuple[bytes, ...]
    next: int
    counts: Counter[str]
    contained: list[tuple[int, str]] = field(default_factory=list)
    finds: dict[str, list[int]] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, 0)

    def damaged(self, seed: int) -> bytes:
        return mutant(self.name, self.contents, seed)

    def take(self, files: int) -> range:
        """Seeds of files that were not read before."""
        self.next += files
        return range(self.next - files, self.next)


class Progress:
    """What a child has done, in memory shared with it."""

    def __init__(self, seed: int) -> None:
        self._shared = FORK.Array("d", (seed, 0, 0, 0, 0, seed), lock=False)

    @property
    def seed(self) -> int:
        return int(self._shared[0])

    @property
    def reads(self) -> bool:
        return bool(self._shared[1])

    @property
    def counts(self) -> dict[str, int]:
        return {"jets": int(self._shared[2]), "errors": int(self._shared[3])}

    @property
    def slowest(self) -> tuple[float, int]:
        """(seconds of computing, seed) of the file that took longest."""
        return self._shared[4], int(self._shared[5])

    def begin(self, seed: int) -> None:
        self._shared[0], self._shared[1] = seed, 1

    def end(self, found: str, seconds: float) -> None:
        self._shared[1] = 0
        if seconds > self._shared[4]:
            self._shared[4], self._shared[5] = seconds, self.seed
        if found in self.counts:
            self._shared[2 + list(self.counts).index(found)] += 1


def read_many(work: Work, seeds: range, path: Path, progress: Progress, finds: Connection) -> None:
    """A child: reads the files of these seeds, and sends (seed, what is wrong) of each find."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with its parent
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they are for the parent
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    before = 0
    for seed in seeds:
        FORMATS[work.name].write(path, work.damaged(seed))
        progress.begin(seed)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_A_FILE)  # SIGPROF ends a child that computes for longer
        found = outcome(work.name, path, seed)
        left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
        progress.end(found, SECONDS_A_FILE - left)
        if found not in ("jets", "errors"):
            finds.send((seed, found))
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        before = before or used
        if used > before + MEMORY.get(work.name, USUAL_MEMORY):
            finds.send((seed, f"took {(used - before) / 2**20:.0f} MiB"))
            return


class Child:
    """A child, and what is known of it."""

    def __init__(self, work: Work, seeds: range, path: Path) -> None:
        self.work, self.seeds, self.path = work, seeds, path
        self.progress = Progress(seeds.start - 1)
        self.finds, sending = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=read_many, args=(work, seeds, path, self.progress, sending), daemon=True)
        self.process.start()
        sending.close()
        self.seen = (seeds.start - 1, time.monotonic())

    def watch(self) -> bool:
        """Takes what the child has found; whether it still works. Ends one that waits without an end."""
        while self.finds.poll():
            try:
                seed, what = self.finds.recv()
            except (EOFError, OSError):
                break
            self.work.finds.setdefault(what, []).append(seed)
        if self.progress.seed != self.seen[0]:
            self.seen = (self.progress.seed, time.monotonic())
        elif time.monotonic() - self.seen[1] > SECONDS_WAITING:
            self.process.kill()
            self.process.join()
        return self.process.is_alive()

    def finish(self) -> range:
        """Counts the files of a child that has ended, or is ended here; the seeds that it did not come to."""
        by_itself = not self.process.is_alive()
        self.process.kill()
        self.process.join()
        self.watch()
        self.finds.close()
        self.work.counts.update(self.progress.counts)
        self.work.slowest = max(self.work.slowest, self.progress.slowest)
        if by_itself and self.progress.seed < self.seeds.start:
            raise RuntimeError(f"a child ended at once, with exit status {self.process.exitcode}")
        if by_itself and self.progress.reads:
            self._check_contained()
        return range(self.progress.seed + 1, self.seeds.stop)

    def _check_contained(self) -> None:
        """Whether isolate=True makes an error of what a library does."""
        seed, status = self.progress.seed, self.process.exitcode or 0
        how = {-signal.SIGPROF: "no end of computing", -signal.SIGKILL: "no end of waiting"}.get(status)
        how = how or f"exit status {status}"
        path = self.path.with_suffix(".again")
        FORMATS[self.work.name].write(path, self.work.damaged(seed))
        isolated.BLOCK_SECONDS = SECONDS_A_FILE
        try:
            FORMATS[self.work.name].read(path, isolate=True, **options(seed))
        except KdfastError as error:
            if str(path) in str(error):
                self.work.contained.append((seed, f"{how}: {str(error).splitlines()[0]}"))
                self.work.counts["contained"] += 1
                return
        self.work.finds.setdefault(f"{how}, and isolate=True does not give an error", []).append(seed)


class State:
    """The counts of earlier runs, in a file. None: there is no file, and all begins at a seed."""

    def __init__(self, path: Path | None, first: int) -> None:
        self.path, self.first = path, first
        self.known: dict[str, dict[str, int]] = {}
        if path is not None and path.exists():
            self.known = json.loads(path.read_text())

    def of(self, name: str) -> Work:
        known = dict(self.known.get(name, {}))
        # in a process of its own: a fork would not copy the threads that the tools start
        with FORK.Pool(1, signal.signal, (signal.SIGTERM, signal.SIG_DFL)) as pool:
            contents = pool.apply(base_files, (name,))
        for tool in FORMATS[name].tools:
            importlib.import_module(tool)
        return Work(name, contents, known.pop("next", self.first), Counter(known))

    def save(self, work: Work) -> None:
        if self.path is not None:
            self.known[work.name] = {"next": work.next, **work.counts}
            write_content(self.path, json.dumps(self.known, indent=1).encode())


def read_files(work: Work, state: State, seconds: float, files: int | None, folder: Path, processes: int) -> None:
    """Reads damaged files of a format for some time, or up to a number of files."""
    end = time.monotonic() + seconds

    def over() -> bool:
        return bool(SIGNALS) or time.monotonic() >= end

    waiting: list[range] = []
    children: list[Child | None] = [None] * processes
    try:
        while True:
            for place, child in enumerate(children):
                if child is not None and not child.watch():
                    rest = child.finish()
                    if rest:
                        waiting.append(rest)
                    children[place] = child = None
                    state.save(work)
                left = sys.maxsize if files is None else files - work.counts.total()
                running = sum(len(each.seeds) for each in children if each is not None)
                if child is None and (waiting or running < left) and not over():
                    seeds = waiting.pop() if waiting else work.take(min(FILES_A_CHILD, left - running))
                    children[place] = Child(work, seeds, folder / f"{work.name}-{place}.file")
            working = [child for child in children if child is not None]
            if not working or over():
                break
            wait([child.process.sentinel for child in working], timeout=0.5)
    finally:
        for child in children:
            if child is not None:
                child.finish()
        state.save(work)


def fuzz(
    names: list[str],
    seconds: float,
    first: int,
    processes: int,
    keep: Path | None = None,
    state_file: Path | None = None,
    files: int | None = None,
) -> int:
    """Reads damaged files of these formats, one format after the other; the number of finds."""
    folder = Path(mkdtemp(prefix="kdfast-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    state = State(state_file, first)
    number = 0
    try:
        for name in names:
            if SIGNALS:
                break
            work = state.of(name)
            read_files(work, state, seconds / len(names), files, folder, processes)
            number += len(work.finds)
            _print(work, keep)
    finally:
        rmtree(folder)
    return number


def _print(work: Work, keep: Path | None) -> None:
    print(f"{work.name}: {work.counts.total():,} files, {dict(work.counts)}", flush=True)
    print("  slowest: {:.1f} s, seed {}".format(*work.slowest), flush=True)
    for seed, how in sorted(work.contained):
        print(f"  contained, seed {seed}: {how}", flush=True)
    for what, seeds in work.finds.items():
        print(f"  FIND, {len(seeds)} times, seed {seeds[0]}: {what}", flush=True)
    if keep is not None:
        keep.mkdir(exist_ok=True)
        for seed in [seeds[0] for seeds in work.finds.values()] + [seed for seed, _ in work.contained]:
            (keep / f"{work.name}-{seed}").write_bytes(work.damaged(seed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--files", type=int, help="of each format; fewer if the time is over")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--first", type=int, default=int(time.time()) * 1000, help="seed of the first file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--state", type=Path, help="file of the counts so far")
    parser.add_argument("--keep", type=Path, help="folder for the files of finds, and of what is contained")
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: SIGNALS.append(received))
    print(f"seeds from {given.first}", flush=True)
    finds = fuzz(given.formats, given.seconds, given.first, given.processes, given.keep, given.state, given.files)
    print(f"{finds} finds" if finds else "no finds")
    return 128 + SIGNALS[0] if SIGNALS else int(finds > 0)


if __name__ == "__main__":
    sys.exit(main())
