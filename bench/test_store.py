"""What the store costs: a result written, and a study of N results opened and resumed.

The figures are printed by `python -m bench.test_store [N...]`; on a busy machine they tell orders of magnitude. As a
benchmark: opening 2,000 stored results, and resuming over them, compared with a plain loop that reads and hashes the
same files.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from bench.ratio import compare
from kdfast.distill.schedules import RunConfig
from kdfast.store.key import RunKey
from kdfast.store.status import study_status
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.verify import verify

EPOCHS, JETS, WEIGHTS = 50, 450, 4_000  # of a demo's student: curves of the study's length, scores, parameters


def result(seed: int, jets: int = JETS, weights: int = WEIGHTS) -> StoredResult:
    rng = np.random.default_rng(seed)
    return StoredResult(
        "student",
        "combined_T3.0to1.0_A0.9to0.1",
        seed,
        RunConfig(3.0, 0.9, 1.0, 0.1),
        metrics={f"metric_{number}": float(number) for number in range(20)} | {"seconds": 1.0},
        curves={name: rng.random(EPOCHS).tolist() for name in ("loss", "loss_kd", "loss_label", "auc_val")},
        arrays={f"scores_{split}": rng.random(jets).astype(np.float32) for split in ("validation", "test")},
        state={"weights": torch.rand(weights)},
        card={"of": "nothing"},
    )


def make(path: Path, number: int) -> StudyStore:
    """A study of so many results, written without waiting for the disk."""
    store = StudyStore.create_or_open(path, {"seeds": [0]}, {})
    with mock.patch.object(os, "fsync", return_value=None):
        for seed in range(number):
            store.write(result(seed))
    return store


def opened(path: Path) -> list[Any]:
    return [(r.key, r.metrics) for r in StudyStore.open(path).results()]


def resumed(path: Path) -> list[bool]:
    store, name = StudyStore.open(path), result(0).name
    return [store.has(RunKey("student", name, int(folder.name.rpartition("seed")[2]))) for folder in _folders(path)]


def _folders(path: Path) -> list[Path]:
    return sorted((path / "results").iterdir())


def hashed(path: Path, *names: str) -> list[str]:
    """A plain loop over the results' files of these names; of none: all."""
    files = (file for folder in _folders(path) for file in folder.iterdir() if not names or file.name in names)
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_open_2000_results(benchmark, tmp_path):
    make(tmp_path / "study", 2000)
    compare(
        benchmark,
        ours=lambda: opened(tmp_path / "study"),
        plain=lambda: hashed(tmp_path / "study", "manifest.json", "result.json"),
        check=lambda ours, plain: None,
        floor=0.2,
        baseline="manifest.json and result.json of each read and hashed",
    )


def test_resume_over_2000_results(benchmark, tmp_path):
    make(tmp_path / "study", 2000)
    compare(
        benchmark,
        ours=lambda: resumed(tmp_path / "study"),
        plain=lambda: hashed(tmp_path / "study"),
        check=lambda ours, plain: None,
        floor=0.2,
        baseline="every file read and hashed",
    )


def _median(call: Callable[[], Any], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def main(numbers: list[int]) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        store = StudyStore.create_or_open(Path(folder) / "written", {"seeds": [0]}, {})
        for what, sizes in (("demo", (JETS, WEIGHTS)), ("study's model", (4500, 1_300_000))):
            results = iter([result(seed + sizes[0] * 1000, *sizes) for seed in range(60)])
            seconds = _median(lambda r=results: store.write(next(r)), 30)
            print(f"result written with fsync, {what}: {seconds * 1e3:.1f} ms")
        print("results  opened  hashed  resumed  hashed  status  verified")
        for number in numbers:
            path = Path(folder) / str(number)
            make(path, number)
            store = StudyStore.open(path)
            calls = (
                opened,
                lambda path: hashed(path, "manifest.json", "result.json"),
                resumed,
                hashed,
                lambda path, store=store: study_status(store),
                verify,
            )
            columns = [_median(lambda c=call, p=path: c(p), 3) for call in calls]
            print(f"{number:7}" + "".join(f"  {seconds * 1e3:6.0f}" for seconds in columns) + " ms")


if __name__ == "__main__":
    main([int(number) for number in sys.argv[1:]] or [100, 1000, 10_000])
