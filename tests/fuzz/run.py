"""Reads damaged files of every format: each must give jets or a KdfastError, in bounded time and memory.

usage: python -m tests.fuzz.run [--seconds 300] [--formats atlas root …] [--first SEED] [--processes 2] [--keep DIR]

Files are read in child processes, which are watched. Where a library crashes or hangs, the file is read again with
isolate=True, which must give an error with the file's name; that is counted (contained) and no find. Anything else is a
find: its format and seed are printed, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import queue
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np

from kdfast.errors import KdfastError, KdfastWarning
from kdfast.jets import isolated
from kdfast.jets.readers import load_jets
from tests.fuzz.files import FORMATS, base_files
from tests.fuzz.mutations import mutant

SECONDS_A_FILE = 20.0  # on a busy machine; usually milliseconds
# Bytes that a file of some kilobytes may take. A page of Parquet may announce 2 GiB, which pyarrow then takes.
MEMORY = {"parquet": 5 << 29}
USUAL_MEMORY = 1 << 29
ADDRESSES = 8 << 30  # more than the libraries reserve without use
FILES_A_CHILD = 20_000


def outcome(name: str, path: Path, seed: int) -> str:
    """ "jets", "error", or what is wrong."""
    how: dict[str, Any] = {"on_bad": "drop" if seed % 2 else "error", "require_labels": seed % 3 > 0}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", KdfastWarning)
            jets = load_jets(path, columns=FORMATS[name].columns, **how)
    except KdfastError as error:
        return "error" if path.name in str(error) or "paths" in str(error) else f"the file is not named: {error}"
    except Exception as error:
        return _shown(error)
    if not np.isfinite(jets.constituents).all() or not (jets.constituents[:, 0] >= 0).all():
        return "the jets are not finite"
    return "jets"


def _shown(error: Exception) -> str:
    """An exception in a line: what it is, and where it comes from in kdfast."""
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    ours = [frame for frame in frames if (Path(isolated.__file__).parent / frame.partition(":")[0]).exists()]
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__} at {ours[-1] if ours else frames[-1]}: {first_line}"


def read_many(name: str, first: int, step: int, folder: Path, shared: Any, finds: Any) -> None:
    """Reads seeds first, first + step, … until it is ended. shared: [seed, time it began, jets, errors, memory]."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    path = folder / f"{name}-{first % step}.file"
    base_files(name)
    for seed in range(first, first + FILES_A_CHILD * step, step):
        path.unlink(missing_ok=True)  # a library may still hold the last one
        path.write_bytes(mutant(name, seed))
        shared[0], shared[1] = seed, time.time()
        found = outcome(name, path, seed)
        shared[1] = 0.0
        if found in ("jets", "error"):
            shared[2 if found == "jets" else 3] += 1
        else:
            finds.put((name, seed, found))
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if not shared[4]:
            shared[4] = used
        if used > shared[4] + MEMORY.get(name, USUAL_MEMORY):
            finds.put((name, seed, f"took {(used - shared[4]) / 2**20:.0f} MiB"))
            return
    shared[0] += step


class Reader:
    """A child that reads files of one format, started again after each crash and hang."""

    def __init__(self, name: str, first: int, step: int, folder: Path, finds: Any) -> None:
        self.name, self.next, self.step, self.folder, self.finds = name, first, step, folder, finds
        self.counts: Counter[str] = Counter()
        self.contained: list[tuple[int, str]] = []
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.shared = context.Array("d", 5, lock=False)
        self.shared[0] = self.next - self.step
        arguments = (self.name, self.next, self.step, self.folder, self.shared, self.finds)
        self.child = context.Process(target=read_many, args=arguments, daemon=True)
        self.child.start()

    def watch(self) -> None:
        began = self.shared[1]
        hangs = self.child.is_alive() and began and time.time() - began > SECONDS_A_FILE
        if self.child.is_alive() and not hangs:
            return
        seed, was_reading = int(self.shared[0]), bool(began)
        self.end()
        if was_reading:
            how = "hang" if hangs else f"exit status {self.child.exitcode}"
            self.check_contained(seed, how)
        self.next = seed + self.step
        self.start()

    def check_contained(self, seed: int, how: str) -> None:
        """Whether isolate=True makes an error of what a library does."""
        path = self.folder / f"{self.name}-again.file"
        path.write_bytes(mutant(self.name, seed))
        isolated.BLOCK_SECONDS = SECONDS_A_FILE
        try:
            load_jets(path, columns=FORMATS[self.name].columns, isolate=True, on_bad="drop" if seed % 2 else "error")
        except KdfastError as error:
            if str(path) in str(error):
                self.contained.append((seed, f"{how}: {str(error).splitlines()[0]}"))
                self.counts["contained"] += 1
                return
        self.finds.put((self.name, seed, f"{how}, and isolate=True does not give an error"))

    def end(self) -> None:
        self.counts["jets"] += int(self.shared[2])
        self.counts["errors"] += int(self.shared[3])
        self.shared[2] = self.shared[3] = 0
        self.child.kill()
        self.child.join()


def fuzz(names: list[str], seconds: float, first: int, processes: int, keep: Path | None) -> int:
    """Reads damaged files of these formats, one format after the other; the number of finds."""
    folder = Path(mkdtemp(prefix="kdfast-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    number = 0
    for name in names:
        finds = multiprocessing.get_context("spawn").Queue()
        readers = [Reader(name, first + k, processes, folder, finds) for k in range(processes)]
        end = time.monotonic() + seconds / len(names)
        while time.monotonic() < end:
            time.sleep(0.2)
            for reader in readers:
                reader.watch()
        for reader in readers:
            reader.end()
        counts = sum((reader.counts for reader in readers), Counter())
        print(f"{name}: {counts['jets'] + counts['errors'] + counts['contained']:,} files, {dict(counts)}", flush=True)
        for seed, how in sorted(each for reader in readers for each in reader.contained):
            print(f"  contained, seed {seed}: {how}", flush=True)
        found: dict[str, list[int]] = {}
        with contextlib.suppress(queue.Empty):
            while True:
                _, seed, what = finds.get(timeout=0.5)
                found.setdefault(what, []).append(seed)
        number += len(found)
        for what, seeds in found.items():
            print(f"  FIND, {len(seeds)} times, seed {seeds[0]}: {what}", flush=True)
            if keep is not None:
                keep.mkdir(exist_ok=True)
                (keep / f"{name}-{seeds[0]}").write_bytes(mutant(name, seeds[0]))
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--first", type=int, default=int(time.time()) * 1000, help="seed of the first file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="folder for the files of finds")
    given = parser.parse_args()
    print(f"seeds from {given.first}", flush=True)
    number = fuzz(given.formats, given.seconds, given.first, given.processes, given.keep)
    print(f"{number} finds" if number else "no finds")
    return 1 if number else 0


if __name__ == "__main__":
    sys.exit(main())
