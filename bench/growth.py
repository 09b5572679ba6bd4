"""How time, memory and disk grow with the number of jets: a packed store, and a small sweep from it.

Jets are the sample's, repeated, each turned in φ and scaled by its own factor, in uncompressed files of the ATLAS
layout. The sweep trains a baseline and one student of the preset `small` for one epoch, with logits in place of a
teacher. Each step is a process of its own, whose largest resident memory the kernel reports. Up to IN_MEMORY jets, the
same sweep is also run from the files, in memory.

    python -m bench.growth --jets 10000 100000 1000000 10000000 --folder FOLDER --write docs/explanation/growth.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import kdfast

IN_MEMORY = 1_000_000
FILE_JETS = 500_000
BLOCK_JETS = 16_000  # the sample
CONSTITUENTS = 40
_DATASETS = ("fjet_clus_pt", "fjet_clus_eta", "fjet_clus_phi", "fjet_clus_E")
_JET = ("fjet_pt", "fjet_eta", "fjet_phi", "fjet_m")


def make_files(folder: Path, jets: int) -> None:
    """Files of `jets` jets, and logits.npy, which knows the labels in part."""
    sample = kdfast.sample().hardest(CONSTITUENTS)
    x, _ = sample.to_padded(CONSTITUENTS)
    random = np.random.default_rng(jets)
    labels = np.empty(jets, np.int32)
    for first in range(0, jets, FILE_JETS):
        number = min(FILE_JETS, jets - first)
        with h5py.File(folder / f"jets_{first // FILE_JETS:03d}.h5", "w") as file:
            for name in _DATASETS:
                file.create_dataset(name, (number, CONSTITUENTS), "f4")
            for name in _JET:
                file.create_dataset(name, (number,), "f4")
            file.create_dataset("labels", (number,), "i4")
            for start in range(0, number, BLOCK_JETS):
                rows = slice(start, min(start + BLOCK_JETS, number))
                chosen = random.permutation(len(sample))[: rows.stop - rows.start]
                scale = (1000 * np.exp(random.normal(0, 0.05, len(chosen)))).astype(np.float32)
                turn = random.uniform(-np.pi, np.pi, len(chosen)).astype(np.float32)
                block, p4 = x[chosen], sample.p4[chosen]
                filled = block[..., 0] > 0
                file[_DATASETS[0]][rows] = block[..., 0] * scale[:, None]
                file[_DATASETS[1]][rows] = block[..., 1]
                file[_DATASETS[2]][rows] = np.where(filled, _wrapped(block[..., 2] + turn[:, None]), 0)
                file[_DATASETS[3]][rows] = block[..., 3] * scale[:, None]
                file[_JET[0]][rows] = p4[:, 0] * scale
                file[_JET[1]][rows] = p4[:, 1]
                file[_JET[2]][rows] = _wrapped(p4[:, 2] + turn)
                file[_JET[3]][rows] = p4[:, 3] * scale
                file["labels"][rows] = sample.labels[chosen]
                labels[first + rows.start : first + rows.stop] = sample.labels[chosen]
    np.save(folder / "logits.npy", (random.normal(0, 1.5, jets) + 4.0 * labels - 2.0).astype(np.float32))


def _wrapped(phi: Any) -> Any:
    return (phi + np.pi) % (2 * np.pi) - np.pi


_SWEEP = """
import json, sys, time
import kdfast
from kdfast.store.settings import StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.inputs import Given, Inputs
data, logits, out = json.loads(sys.argv[1])
table = dict(teacher=logits, model="small", hlt="nominal", grid=dict(temperature=[3.0], alpha=[0.5]),
             data=dict(paths=data), recipe=dict(epochs=1, warmup_epochs=1))
began = time.perf_counter()
Inputs.load(StudySettings.resolve(table), Given())
opened = time.perf_counter() - began
kdfast.sweep(config=table, out=out, progress=False)
store = StudyStore.open(out)
seconds = [each.metrics["seconds"] for each in store.results() if each.key.kind != "teacher"]
print(json.dumps([opened, seconds]))
"""


@dataclass(frozen=True)
class Step:
    """What one process took: seconds, largest resident memory in GiB, and what it printed."""

    seconds: float
    memory: float
    printed: str


def run(command: Sequence[str]) -> Step:
    """Runs a process to its end."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        assert process.stderr is not None
        raise SystemExit(f"{' '.join(command)}\n{process.stderr.read()}")
    return Step(time.perf_counter() - began, usage.ru_maxrss / 2**20, printed)


def size(*paths: Path) -> float:
    """GB of files and folders."""
    return sum(file.stat().st_size for path in paths for file in [path, *path.rglob("*")] if file.is_file()) / 1e9


def measure(jets: int, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    python = sys.executable
    this = "from pathlib import Path; from bench.growth import make_files"
    run([python, "-c", f"{this}; make_files(Path({str(folder)!r}), {jets})"])
    files = sorted(map(str, folder.glob("*.h5")))
    store = folder / "jets.store"
    logits = str(folder / "logits.npy")
    row: dict[str, Any] = {"jets": jets, "files": size(*map(Path, files))}
    prepared = run([python, "-m", "kdfast", "prepare", *files, "--out", str(store), "--quiet"])
    row |= {"prepare": prepared.seconds, "prepare_memory": prepared.memory, "store": size(store)}
    swept = run([python, "-c", _SWEEP, json.dumps([[str(store)], logits, str(folder / "study")])])
    opened, seconds = json.loads(swept.printed.splitlines()[-1])
    row |= {"open": opened, "rate": sum(0.7 * jets / each for each in seconds)}
    row |= {"sweep": swept.seconds, "sweep_memory": swept.memory, "views": size(store / "views")}
    if jets <= IN_MEMORY:
        whole = run([python, "-c", _SWEEP, json.dumps([files, logits, str(folder / "memory")])])
        opened, seconds = json.loads(whole.printed.splitlines()[-1])
        row |= {"memory_rate": sum(0.7 * jets / each for each in seconds), "memory_memory": whole.memory}
    shutil.rmtree(folder)
    return row


HEADINGS = {
    "jets": ("jets", "{:,}"),
    "files": ("files (GB)", "{:.2f}"),
    "prepare": ("prepare (s)", "{:.1f}"),
    "prepare_memory": ("its memory (GiB)", "{:.2f}"),
    "store": ("store (GB)", "{:.2f}"),
    "views": ("views (GB)", "{:.2f}"),
    "open": ("views and checks (s)", "{:.1f}"),
    "sweep_memory": ("memory of the sweep (GiB)", "{:.2f}"),
    "memory_memory": ("the same in memory (GiB)", "{:.2f}"),
    "rate": ("training (jets/s)", "{:,.0f}"),
    "ratio": ("relative to in memory", "{:.2f}"),
}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    for row in rows:
        if "memory_rate" in row:
            row["ratio"] = row["rate"] / row["memory_rate"]
    lines = [" | ".join(heading for heading, _ in HEADINGS.values()), " | ".join("--:" for _ in HEADINGS)]
    lines += [
        " | ".join(shown.format(row[name]) if name in row else "" for name, (_, shown) in HEADINGS.items())
        for row in rows
    ]
    return "".join(f"| {line} |\n" for line in lines)


def write_table(page: Path, name: str, content: str) -> None:
    """Replaces what stands between a page's marks of this name."""
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, rest = page.read_text().split(first)
    page.write_text(f"{before}{first}\n{content}\n{last}{rest.split(last)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jets", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, required=True, help="for files; 3 kB a jet are needed there")
    parser.add_argument("--write", type=Path, help="replace the table of this page")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for jets in given.jets:
        rows.append(measure(jets, given.folder / f"growth-{jets}"))
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    if given.write is not None:
        write_table(given.write, "growth", table(rows))


if __name__ == "__main__":
    main()
