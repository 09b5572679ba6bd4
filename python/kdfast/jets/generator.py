"""Generates top and QCD jets with Pythia 8 into a file of the ATLAS layout: `kdfast generate`.

Worker processes (kdfast.jets.pythia) make chunks of jets of one class. The chunks are kept in a folder next
to the output until all are there; then the file is put together.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import zipfile
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.errors import BackendError, ConfigError, StudyError
from kdfast.files import fsync_folder
from kdfast.jets import pythia
from kdfast.jets.partial import jets_reporter, partial_folder

__all__ = ["generate"]

CHUNK_JETS = 500  # of one class: what a kill can cost, some seconds of one core
ROWS = 512  # jets in one block of the file (HDF5 chunk): 400 kB of each dataset
MAX_JETS = 100_000_000
_PYTHIA_SEEDS = 900_000_000  # Pythia takes 1 … 900,000,000; each is a sequence of its own


def generate(jets: int, out: str | Path, *, seed: int, jobs: int | None = None, progress: bool = True) -> Path:
    """Generates top and QCD jets, half of each, into an HDF5 file of the ATLAS layout.

    Proton-proton collisions at 13 TeV (PYTHIA_SETTINGS in kdfast.jets.pythia); anti-kT jets with R = 1.0,
    450–1200 GeV and |η| < 2; both classes have the same pT spectrum (SELECTION there). Finished chunks of 500
    jets are kept in the folder `<out>.partial` until the whole file appears: after an interrupt or a kill the
    same call resumes.

    The file has fjet_clus_pt/eta/phi/E [N, 200] float32 (MeV, falling pT, zeros behind the last constituent),
    fjet_pt/eta/phi/m [N] float32 (MeV), labels [N] (1: top) and weights [N] (all 1), some 780 bytes a jet.
    Its attributes record settings, versions and seeds.

    Parameters
    ----------
    jets : int
        Number of jets N, even, from 2 to 10⁸.
    out : path
        The file to write. It must not exist.
    seed : int
        0 ≤ seed < 2⁶³. The content depends on `jets`, `seed`, and the versions of kdfast and Pythia alone.
    jobs : int, optional
        Number of processes, some 40 jets/s each; by default the cores that this process may use. They are spawned, so
        a script calls this function under ``if __name__ == "__main__":``.
    progress : bool
        Whether to show progress on standard error.

    Returns
    -------
    pathlib.Path
        `out`.

    Raises
    ------
    BackendError
        The extra [generate] is not installed, or Pythia fails.
    ConfigError
        A bad argument; `out` exists, can't be written, or is being written by another process; `<out>.partial` has
        jets of other settings.
    StudyError
        The file can't be written at the end.

    Examples
    --------
    >>> kdfast.jets.generator.generate(100_000, "jets.h5", seed=1)  # doctest: +SKIP
    PosixPath('jets.h5')
    """
    out = Path(out)
    jobs = jobs if jobs is not None else len(os.sched_getaffinity(0))
    if not isinstance(jets, int) or not 2 <= jets <= MAX_JETS or jets % 2:  # type: ignore[redundant-expr]
        raise ConfigError(f"must be an even number from 2 to {MAX_JETS:,}, is {jets}", where="jets")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:  # type: ignore[redundant-expr]
        raise ConfigError(f"must be a whole number from 0 to 2^63 − 1, is {seed}", where="seed")
    if jobs < 1:
        raise ConfigError(f"must be at least 1, is {jobs}", where="jobs")
    if importlib.util.find_spec("pythia8mc") is None:
        raise BackendError(
            "pythia8mc is not installed", where="generate", hint="install it with: pip install 'kdfast[generate]'"
        )
    if out.exists():
        raise ConfigError("exists already", where=str(out), hint="choose another name, or delete it first")
    settings = {
        "jets": jets,
        "seed": seed,
        "kdfast": __version__,
        "pythia8mc": version("pythia8mc"),
        "pythia_settings": {name: list(lines) for name, lines in pythia.PYTHIA_SETTINGS.items()},
        "selection": pythia.SELECTION,
    }
    folder = out.with_name(f"{out.name}.partial")
    with partial_folder(folder, settings):
        chunks = _plan(jets, seed, folder)
        missing = [chunk for chunk in chunks if not chunk["path"].exists()]
        done = jets - sum(chunk["count"] for chunk in missing)
        with jets_reporter("generating", jets, done, folder, progress) as report:
            _make_chunks(missing, min(jobs, len(missing)), report)
        try:
            _write_file(folder / "whole.h5", chunks, settings)
            os.replace(folder / "whole.h5", out)
            fsync_folder(out.absolute().parent)
        except OSError as error:
            raise StudyError(f"can't be written ({error})", where=str(out), hint=_RESUME) from error
        shutil.rmtree(folder, ignore_errors=True)  # the jets are safe; an orphan of a killed run may still write here
    return out


_RESUME = "finished jets are kept: rerun the same command to resume"


def _plan(jets: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """The chunks of a file, as arguments of `pythia.write_chunk`; they depend on (jets, seed) alone."""
    first_seed = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    chunks: list[dict[str, Any]] = []
    for first in range(0, jets // 2, CHUNK_JETS):
        for label in (0, 1):
            number = len(chunks)
            chunks.append(
                {
                    "path": folder / f"chunk_{number:06d}.npz",
                    "label": label,
                    "first": first,
                    "count": min(CHUNK_JETS, jets // 2 - first),
                    "pythia_seed": 1 + (first_seed + number) % _PYTHIA_SEEDS,
                }
            )
    return chunks


def _make_chunks(chunks: list[dict[str, Any]], jobs: int, report: Callable[[int], None]) -> None:
    """Lets `jobs` processes make the chunks. Returns when all are on disk; an error or an interrupt ends all processes.

    They are spawned, not forked: each has a Pythia of its own, and this process may have torch's threads.
    """
    context = multiprocessing.get_context("spawn")
    waiting = iter(chunks)
    with ExitStack() as stack:
        alive, held = context.Pipe(duplex=False)
        stack.callback(alive.close)
        pool = ProcessPoolExecutor(jobs, context, pythia.begin_worker, (alive,))
        stack.enter_context(pool)
        stack.callback(held.close)  # first of all at the end: the workers then exit
        running = {pool.submit(pythia.write_chunk, **chunk) for chunk in islice(waiting, 2 * jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    report(future.result())
                except BrokenProcessPool as error:
                    what = "a worker process was killed or failed to start"
                    hint = (
                        f"is there enough memory? A script must call this under `if __name__ == '__main__'`. {_RESUME}"
                    )
                    raise BackendError(what, where="generate", hint=hint) from error
                except Exception as error:
                    what = f"a worker stopped: {type(error).__name__}: {error}"
                    raise BackendError(what, where="generate", hint=_RESUME) from error
            running |= {pool.submit(pythia.write_chunk, **chunk) for chunk in islice(waiting, len(done))}


def _write_file(path: Path, chunks: list[dict[str, Any]], settings: dict[str, Any]) -> None:
    """Puts the chunks together: classes in random order, a class's chunks one after the other, block by block."""
    import h5py

    jets = settings["jets"]
    labels = np.random.default_rng(settings["seed"]).permutation(np.arange(jets) % 2)
    streams = [_Stream([c["path"] for c in chunks if c["label"] == label]) for label in (0, 1)]
    fields = {"fjet_clus_pt": "MeV", "fjet_clus_eta": "", "fjet_clus_phi": "rad", "fjet_clus_E": "MeV"}
    jet_fields = {"fjet_pt": "MeV", "fjet_eta": "", "fjet_phi": "rad", "fjet_m": "MeV"}
    packing: dict[str, Any] = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    slots = pythia.MAX_CONSTITUENTS
    with h5py.File(path, "w") as file:
        rows = min(ROWS, jets)
        for name, unit in fields.items():
            file.create_dataset(name, (jets, slots), "f4", chunks=(rows, slots), **packing).attrs["unit"] = unit
        for name, unit in jet_fields.items():
            file.create_dataset(name, (jets,), "f4", **packing).attrs["unit"] = unit
        file.create_dataset("labels", data=labels.astype(np.int32), **packing)
        file.create_dataset("weights", data=np.ones(jets, np.float32), **packing)
        for start in range(0, jets, ROWS):
            block = labels[start : start + ROWS]
            padded = np.zeros((4, len(block), slots), np.float32)
            p4 = np.zeros((len(block), 4), np.float32)
            for label, stream in enumerate(streams):
                places = np.flatnonzero(block == label)
                constituents, counts, p4[places] = stream.take(len(places))
                slot = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                padded[:, np.repeat(places, counts), slot] = constituents.T
            for field, name in enumerate(fields):
                file[name][start : start + len(block)] = padded[field]
            for field, name in enumerate(jet_fields):
                file[name][start : start + len(block)] = p4[:, field]
        file.attrs["constit"] = list(fields)
        file.attrs["jet"] = list(jet_fields)
        for name, value in settings.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
        file.attrs["chunk_jets"] = CHUNK_JETS
        file.attrs["pythia_seeds"] = np.array([c["pythia_seed"] for c in chunks], np.int64)
        file.attrs["description"] = (
            "Pythia 8 hadronic top jets (label 1) and QCD jets (label 0); made by `kdfast generate`"
        )
    with open(path, "rb") as written:
        os.fsync(written.fileno())


class _Stream:
    """The jets of one class, chunk after chunk, taken in portions."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = iter(paths)
        self._constituents = np.zeros((0, 4), np.float32)
        self._counts = np.zeros(0, np.int64)
        self._jets = np.zeros((0, 4), np.float32)

    def take(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """constituents [M, 4], counts [count], jets [count, 4] of the next jets."""
        while len(self._counts) < count:
            path = next(self._paths)
            try:
                with np.load(path) as chunk:
                    constituents, counts, jets = (chunk[name] for name in ("constituents", "counts", "jets"))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                hint = "delete it and rerun the same command"
                raise StudyError(f"is damaged ({error})", where=str(path), hint=hint) from error
            self._constituents = np.concatenate([self._constituents, constituents])
            self._counts = np.concatenate([self._counts, counts])
            self._jets = np.concatenate([self._jets, jets])
        split = int(self._counts[:count].sum())
        taken = self._constituents[:split], self._counts[:count], self._jets[:count]
        self._constituents = self._constituents[split:]
        self._counts = self._counts[count:]
        self._jets = self._jets[count:]
        return taken
