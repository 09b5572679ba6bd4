"""How a sweep grows with Dask workers: `python -m bench.dask_scaling` (some minutes on two quiet cores).

The same students on one worker process of one thread, and on two of them, in turns; the teacher, the clusters' start,
and each worker's first look at the jets are not timed. Writes bench/results/dask_scaling.json. Ratio to reach: 1.7.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

from distributed import Client, LocalCluster

import kdfast
from bench.ratio import environment
from kdfast.store.store import StudyStore

FLOOR = 1.7
TEMPERATURES, ALPHAS = [2.0, 3.0, 4.0, 5.0, 7.0, 10.0], [0.25, 0.5, 0.75, 0.9]


def seconds(client: Client, out: Path, epochs: int) -> tuple[float, float, float]:
    """Of the demo's students on warm workers: from the first task to the last result stored, by the results' own
    times, so that neither the plan nor the report counts; how much of that was training, over all workers; and their
    processors' time, which should not grow with their number (and, unlike the others, hardly does where other work
    runs beside)."""
    grid = {"temperature": TEMPERATURES, "alpha": ALPHAS}
    common = {"epochs": epochs, "teacher_epochs": 1, "pack_size": 1, "progress": False, "client": client}
    kdfast.sweep(None, out, grid={"temperature": [1.0], "alpha": [0.1, 0.2, 0.3, 0.4]}, **common)  # workers are warm
    before = {result.key for result in StudyStore.open(out).results()}
    processor = sum(client.run(time.process_time).values())
    kdfast.sweep(None, out, grid=grid, **common)
    processor = sum(client.run(time.process_time).values()) - processor
    spans = [
        (datetime.fromisoformat(result.stored).timestamp(), result.metrics["seconds"])
        for result in StudyStore.open(out).results()
        if result.key not in before
    ]
    assert len(spans) == len(TEMPERATURES) * len(ALPHAS)
    span = max(end for end, _ in spans) - min(end - took for end, took in spans)
    return span, sum(took for _, took in spans), processor


def measure(workers: int, epochs: int) -> tuple[float, float, float]:
    """The same on so many workers."""
    with (
        patch("kdfast.report.write"),  # the report is not what is measured
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        return seconds(client, Path(folder) / "study", epochs)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    took: dict[int, list[float]] = {1: [], 2: []}
    for number in range(chosen.rounds):
        for workers in (1, 2):
            span, trained, processor = measure(workers, chosen.epochs)
            took[workers].append(span)
            parts = f"{trained / span / workers:.0%} of it training, {processor:.1f} s of processors"
            print(f"round {number + 1}: {workers} workers, {span:.1f} s, {parts}", flush=True)
    ratios = [one / two for one, two in zip(took[1], took[2], strict=True)]
    ratio = statistics.median(ratios)
    print(f"two workers are {ratio:.2f} times as fast as one ({min(ratios):.2f} to {max(ratios):.2f}); floor {FLOOR}")
    found = {
        "floor": FLOOR,
        "ratio": ratio,
        "ratios": ratios,
        "seconds": took,
        "epochs": chosen.epochs,
        "students": len(TEMPERATURES) * len(ALPHAS),
        "environment": environment(),
    }
    (Path(__file__).parent / "results" / "dask_scaling.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
