"""What the tests of the store share: results, claims, damage, processes, small disks."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from kdfast.distill.schedules import RunConfig
from kdfast.store.store import StoredResult

SETTINGS = {"data": "sample", "model": {"width": 32, "dropout": 0.1}, "seeds": [42, 43]}
FILES_OF_A_RESULT = ["manifest.json", "result.json", "arrays.safetensors", "weights.safetensors"]
PROVENANCE = {"kdfast": "0.1.0", "isa": "avx2", "data": "0123abcd"}


def make_result(name="combined_T3.0to1.0_A0.9to0.1", seed=42, jets=50):
    rng = np.random.default_rng(seed)
    buffer = torch.arange(12.0)
    return StoredResult(
        kind="student",
        name=name,
        seed=seed,
        config=RunConfig(3.0, 0.9, 1.0, 0.1),
        metrics={"auc": 0.1 + 0.2, "n_bkg_50": np.int64(3), "best_epoch": 7},
        curves={"loss": [1 / 3, 0.1, float("nan"), float("inf")], "auc_val": [0.5, 0.6]},
        arrays={"scores_validation": rng.normal(size=jets), "scores_test": rng.normal(size=jets).astype(np.float32)},
        # views of one flat buffer, one of them not contiguous
        state={"w": buffer[:6].view(2, 3).T, "b": buffer[6:], "n": torch.tensor(3)},
        card={"view": "hlt", "mean": [0.5, 1e-3]},
    )


ELSEWHERE = {"host": "elsewhere", "pid": 7, "machine": "another machine", "started": "1"}
CLAIM = json.dumps({**ELSEWHERE, "version": "0", "since": "then", "owner": "", "inode": 1}) + "\n"


def claim_elsewhere(study: Path, name: str) -> None:
    """As a worker of another machine leaves it that is lost, or holds it."""
    folder = study / "claims" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "000099.claim").write_text(CLAIM)


def flip_a_bit(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 4
    path.write_bytes(bytes(content))


def environment():
    """For a process that imports this copy of kdfast and of the tests."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}


def start_sweep(out, epochs):
    run = [sys.executable, "-m", "tests.study.small_sweep", str(out), str(epochs)]
    return subprocess.Popen(run, stderr=subprocess.DEVNULL, env=environment())


def wait_until(true):
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def mounted(*options, where):
    """A mount for the time of the block; the test is skipped where that is not permitted."""
    where.mkdir(exist_ok=True)
    mount = shutil.which("mount")
    run = [str(mount), *options, str(where)]
    if mount is None or subprocess.run(run, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)
