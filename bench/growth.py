"""How a training step's time grows, and where it goes: `python -m bench.growth` (some five minutes).

Writes into bench/results/ growth.{json,png}: a step's time against members K, jets B, constituents N, width and
threads, each alone, and the reader's against jets on disk; and step_parts.{json,png}: the study's step by part, in
processor time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from bench.compiled_step import CompiledStep, jets, random_targets
from bench.ratio import environment
from kdfast.jets.readers import load_jets
from kdfast.models import PRESETS, ModelConfig
from kdfast.models.encoder import PARTS
from tests.jets.atlas_files import write_atlas
from tests.synthetic import synthetic_jets

PRECISIONS = ("fp32", "bf16")
COLOURS = {"fp32": "#0072B2", "bf16": "#D55E00", "reader": "#009E73"}  # Okabe and Ito's, as are those below
PART_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#D55E00", "#CC79A7", "#999999")
HATCHES = ("", "//", "..")  # tell parts of one colour apart, and all of them in grey
BASE = {"members": 1, "jets": 256, "constituents": 32, "width": 64, "threads": 2}
RANGES = {
    "members": [1, 2, 4, 8, 16, 32, 64, 132],
    "jets": [32, 64, 128, 256, 512, 1024],
    "constituents": [8, 16, 32, 64, 128],
    "width": [32, 64, 128, 256],
    "threads": [1, 2],
}
# A quarter of the batch, or the activations of 132 members, all of them held here, would take 9 GB (in the engine a
# member has some while it runs, one on a thread). From 64 jets on a step's time is proportional to them.
MEMBERS_JETS = 64
FILE_JETS = 10_000  # larger sets are this file under many names: as much is read, unpacked and checked
DISK_JETS = [10**4, 10**5, 10**6, 10**7]
KEPT = 8  # constituents of each jet, or 10^7 of them would not fit
LABELS = {
    "members": f"members K (B = {MEMBERS_JETS})",
    "jets": "jets in a batch B",
    "constituents": "constituents of a jet N",
    "width": "width (FFN: 4 × width)",
    "threads": "threads",
    "disk": f"jets on disk ({KEPT} constituents kept)",
}
STEPS = 5  # timings of a point, of which the median counts


def measure(precision: str, members: int, jets_: int, constituents: int, width: int, threads: int) -> float:
    """Seconds of one step of all members, each on a thread of its own while they are enough for all threads."""
    config = ModelConfig(width=width, layers=3, heads=width // 16, ffn=4 * width)
    view, targets = jets(0, jets_, constituents, constituents), random_targets(jets_)
    pack = [CompiledStep(config, view, targets, precision, seed) for seed in range(members)]
    workers = min(members, threads)

    def run() -> None:
        if workers == 1:
            pack[0].step(threads)
        else:
            list(pool.map(lambda member: member.step(threads // workers), pack))

    with ThreadPoolExecutor(workers) as pool:
        run()
        return statistics.median(timed(run) for _ in range(STEPS))


def timed(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def growth() -> dict[str, Any]:
    """{quantity: {"values": […], precision: seconds}}; what is not varied is as in BASE."""
    result: dict[str, Any] = {}
    for quantity, values in RANGES.items():
        result[quantity] = {"values": values}
        for precision in PRECISIONS:
            base = BASE | {"jets": MEMBERS_JETS} if quantity == "members" else BASE
            points = [base | {quantity: value} for value in values]
            result[quantity][precision] = [
                measure(precision, p["members"], p["jets"], p["constituents"], p["width"], p["threads"]) for p in points
            ]
    return result


def reading() -> dict[str, Any]:
    """{"values": jets, "reader": seconds} of load_jets on gzipped files of FILE_JETS jets with 200 slots each."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.h5" for number in range(max(DISK_JETS) // FILE_JETS)]
        write_atlas(paths[0], synthetic_jets(FILE_JETS, max_constituents=200), width=200)
        for path in paths[1:]:
            path.hardlink_to(paths[0])

        def read(jets_: int) -> None:
            jets = load_jets(paths[: jets_ // FILE_JETS], max_constituents=KEPT)
            assert len(jets) == jets_

        read(FILE_JETS)
        return {"values": DISK_JETS, "reader": [timed(lambda n=n: read(n)) for n in DISK_JETS]}


def step_parts() -> dict[str, dict[str, float]]:
    """Processor time in seconds of each part of the study's gradient on one thread, by precision; medians of runs."""
    result = {}
    for precision in PRECISIONS:
        step = CompiledStep(PRESETS["study"], jets(0), random_targets(512), precision)
        step.gradient(1)
        runs = []
        for _ in range(3):
            seconds = torch.zeros(len(PARTS), dtype=torch.float64)
            step.gradient(1, seconds)
            runs.append(seconds)
        result[precision] = dict(zip(PARTS, torch.stack(runs).median(0).values.tolist(), strict=True))
    return result


def draw_growth(measured: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(17, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4).flatten()
    for ax, (quantity, rows) in zip(axes, measured.items(), strict=False):
        values = rows["values"]
        series = {name: [1e3 * s for s in seconds] for name, seconds in rows.items() if name != "values"}
        for (name, times), marker in zip(series.items(), "os", strict=False):
            ax.plot(values, times, marker=marker, color=COLOURS[name], label=name)
        first = next(iter(series.values()))[0]
        power = -1 if quantity == "threads" else 1
        line = [first * (v / values[0]) ** power for v in values]
        ax.plot(values, line, ":", color="grey", label="inverse" if power < 0 else "proportional")
        what = "reading" if quantity == "disk" else "a step"
        ax.set(xscale="log", yscale="log", xlabel=LABELS[quantity], ylabel=f"time of {what} [ms]")
        ax.set_xticks(values, [str(v) if v < 10_000 else f"$10^{len(str(v)) - 1}$" for v in values])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        ax.grid(alpha=0.3)
        ax.legend()
    axes[-1].axis("off")
    base = "\n".join(f"{LABELS[name]}: {value}" for name, value in BASE.items())
    axes[-1].text(0.0, 0.95, f"What is not varied:\n{base}\nlayers: 3, heads: width / 16", va="top", fontsize=11)
    figure.savefig(path, dpi=120)


def draw_parts(parts: dict[str, dict[str, float]], path: Path) -> None:
    """One bar a precision, parts from the first at the bottom to the last."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    bottom = dict.fromkeys(PRECISIONS, 0.0)
    for number, part in enumerate(PARTS):
        heights = [1e3 * parts[precision][part] for precision in PRECISIONS]
        ax.bar(
            PRECISIONS,
            heights,
            0.6,
            bottom=list(bottom.values()),
            label=part,
            color=PART_COLOURS[number % len(PART_COLOURS)],
            hatch=HATCHES[number // len(PART_COLOURS)],
            edgecolor="white",
            linewidth=0.5,
        )
        bottom = {p: b + h for (p, b), h in zip(bottom.items(), heights, strict=True)}
    ax.set(
        ylabel="processor time of a gradient, one thread [ms]",
        title="The study's model, 512 jets of 23–40 constituents",
    )
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center")
    figure.savefig(path, dpi=120)


def table(parts: dict[str, dict[str, float]]) -> str:
    totals = {precision: sum(parts[precision].values()) for precision in PRECISIONS}
    lines = [f"{'part':<16}" + "".join(f"{p + ' [ms]':>12}{'share':>8}" for p in PRECISIONS)]
    for part in PARTS:
        cells = (f"{1e3 * parts[p][part]:12.2f}{parts[p][part] / totals[p]:8.1%}" for p in PRECISIONS)
        lines.append(f"{part:<16}" + "".join(cells))
    return "\n".join([*lines, f"{'all':<16}" + "".join(f"{1e3 * totals[p]:12.2f}{1:8.1%}" for p in PRECISIONS)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder to write into")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    parts = step_parts()
    draw_parts(parts, folder / "step_parts.png")
    (folder / "step_parts.json").write_text(json.dumps({"seconds": parts, **environment()}, indent=1) + "\n")
    print(table(parts))
    measured = growth() | {"disk": reading()}
    draw_growth(measured, folder / "growth.png")
    (folder / "growth.json").write_text(
        json.dumps({"base": BASE, "seconds": measured, **environment()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
