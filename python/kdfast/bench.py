"""Runs the benchmarks in bench/ and shows how many times faster kdfast is than each plain baseline.

The benchmarks live in the source tree, with their baselines and committed results, and measure whichever
kdfast is imported, installed or from the tree.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from kdfast.errors import ConfigError

__all__ = ["BenchmarkRow", "find_benchmarks", "markdown_table", "ratio_table", "read_rows", "run_benchmarks"]


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark: medians in seconds per call, the ratio plain / ours for the same work, and its floor and aim."""

    name: str
    ours: float
    plain: float
    baseline: str
    ratio: float
    ratio_p20: float
    ratio_p80: float
    floor: float | None
    aim: float | None
    environment: str

    @property
    def verdict(self) -> str:
        """ "aim", "floor" (reached, but not the aim), "below" (the floor), or "" where neither is set."""
        if self.floor is not None and self.ratio < self.floor:
            return "below"
        if self.aim is not None and self.ratio >= self.aim:
            return "aim"
        return "floor" if self.floor is not None else ""


def find_benchmarks(start: Path | None = None) -> Path:
    """The source tree's bench/: in `start` (default: the current folder), its parents, or next to this package.

    Raises ConfigError if there is none: the benchmarks are not part of an installed package.
    """
    here = (start or Path.cwd()).resolve()
    for root in [here, *here.parents, Path(__file__).resolve().parents[2]]:
        if (root / "bench" / "ratio.py").is_file():
            return root / "bench"
    raise ConfigError(
        "the benchmarks are part of the source tree only, and none was found here",
        where=str(here),
        hint="run `kdfast bench` in a clone of kdfast: it measures the installed kdfast",
    )


def run_benchmarks(select: str | None = None, *, threads: int = 2, save: Path | None = None) -> list[BenchmarkRow]:
    """Runs the benchmarks (those that match `select`, pytest's -k) in a new process and returns their rows.

    save: where to keep pytest-benchmark's JSON file. Raises ConfigError if pytest-benchmark is missing, if
    `select` matches nothing, or if a benchmark fails, as it does when the results of the two sides disagree.
    """
    folder = find_benchmarks()
    for module in ("pytest", "pytest_benchmark"):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"the benchmarks need {module}", hint="pip install 'kdfast[bench]'")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(save or Path(scratch) / "bench.json").resolve()
        command = [sys.executable, "-m", "pytest", str(folder), "-q", "-p", "no:cacheprovider"]
        command += ["--benchmark-json", str(report), "--benchmark-columns=median,rounds"]
        command += ["-W", "default::pytest_benchmark.logger.PytestBenchmarkWarning"]  # that nothing was selected, say
        command += ["-k", select] if select else []
        environment = {**os.environ, "KDFAST_BENCH_THREADS": str(threads)}
        done = subprocess.run(command, cwd=folder.parent, env=environment, capture_output=True, text=True)
        if done.returncode == 5:  # pytest collected nothing
            raise ConfigError(f"no benchmark matches {select!r}", where="select")
        if done.returncode != 0:
            raise ConfigError(f"a benchmark failed:\n{done.stdout[-4000:]}{done.stderr[-1000:]}", where=str(folder))
        return read_rows(report)


def read_rows(report: Path) -> list[BenchmarkRow]:
    """The rows in a JSON file that `run_benchmarks` saved; benchmarks without a baseline are left out."""
    rows = []
    for entry in json.loads(report.read_text())["benchmarks"]:
        info = entry["extra_info"]
        if "ratio" not in info:
            continue
        versions = ", ".join(f"{name} {version}" for name, version in info["versions"].items())
        where = f"{info['cpu']}, {info['isa']}, {info['threads']} threads"
        if "gpu" in info:
            where = ", ".join(f"{name} {value}" for name, value in info["gpu"].items()).removeprefix("name ")
        rows.append(
            BenchmarkRow(
                name=entry["name"].removeprefix("test_"),
                ours=info["ours_s"][1],
                plain=info["plain_s"][1] / info["plain_work"],
                environment=f"{where}; {versions}",
                **{key: info[key] for key in ("baseline", "ratio", "ratio_p20", "ratio_p80", "floor", "aim")},
            )
        )
    return rows


def ratio_table(rows: list[BenchmarkRow]) -> Table:
    """A rich table: benchmark, ours, baseline, ratio (and its p20–p80 over the pairs), floor, aim."""
    table = Table(caption="\n".join(sorted({row.environment for row in rows})), caption_justify="left")
    table.add_column("benchmark", overflow="fold")
    for heading in _HEADINGS[1:]:
        table.add_column(heading, justify="right")
    style = {"below": "red", "floor": "yellow", "aim": "green", "": "default"}
    for row in rows:
        # rich would take a parameter's name, as in step[fp32], for a style
        name, ours, plain, ratio, *rest = map(escape, _cells(row))
        table.add_row(name, ours, plain, f"[{style[row.verdict]}]{ratio}[/]", *rest)
    return table


def markdown_table(rows: list[BenchmarkRow]) -> str:
    """The same in Markdown. The last column is what was reached; below the table is what the timings depend on."""
    words = {"below": "below the floor", "floor": "floor", "aim": "aim", "": ""}
    lines = [[*_HEADINGS, "reached"], ["---", *["---:"] * (len(_HEADINGS) - 1), "---"]]
    lines += [[*_cells(row), words[row.verdict]] for row in rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return "\n\n".join([table, *sorted({row.environment for row in rows})]) + "\n"


_HEADINGS = ("benchmark", "ours", "baseline", "ratio", "p20–p80", "floor", "aim")


def _cells(row: BenchmarkRow) -> list[str]:
    return [
        row.name,
        _time(row.ours),
        f"{_time(row.plain)} {row.baseline}",
        f"{_ratio(row.ratio)}×",
        f"{_ratio(row.ratio_p20)}–{_ratio(row.ratio_p80)}",
        *("" if goal is None else f"{goal:g}×" for goal in (row.floor, row.aim)),
    ]


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 3 else f"{ratio:.1f}"


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
