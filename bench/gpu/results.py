"""What ci/gpu found on a card, as NAME.json and NAME.md: outcomes of its stages, and the benchmarks' ratios.

Calls of single stages add up: what a stage found replaces what it found before, and the others' results remain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.gpu.trace import Group, markdown
from kdfast.bench import BenchmarkRow, markdown_table, read_rows

ORDER = ("build", "grid", "profile", "kernels", "tests", "sanitizer")  # of the stages in the files


@dataclass(frozen=True)
class Stage:
    """outcome: "passed", or what went wrong. summary: its last words, e.g. how many tests passed."""

    name: str
    outcome: str
    seconds: float
    summary: str
    commit: str = "unknown"


def write_results(folder: Path, gpu: dict[str, str], stages: Sequence[Stage], reports: Path) -> tuple[Path, Path]:
    """The two files. gpu: name, driver and versions. reports: has a stage's pytest-benchmark JSON as STAGE.json."""
    slug = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    machine = folder / f"{slug}.json"
    text = folder / f"{slug}.md"
    content: dict[str, Any] = {"gpu": gpu, "stages": [], "benchmarks": {}}
    if machine.exists():
        content |= json.loads(machine.read_text())
        content["gpu"] = gpu
    fresh = {stage.name: asdict(stage) for stage in stages}
    every = {stage["name"]: stage for stage in content["stages"]} | fresh
    content["stages"] = sorted(every.values(), key=lambda stage: ORDER.index(stage["name"]))
    if "profile" in fresh:
        report = reports / "profile.json"
        content["profile"] = json.loads(report.read_text()) if report.exists() else None
    for name in fresh.keys() - {"profile"}:
        report = reports / f"{name}.json"
        content["benchmarks"].pop(name, None)
        if report.exists():
            rows = read_rows(report)
            content["benchmarks"][name] = [asdict(row) | {"verdict": row.verdict} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    machine.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    text.write_text(_markdown(content))
    return machine, text


def _markdown(content: dict[str, Any]) -> str:
    gpu = content["gpu"]
    lines = [f"# {gpu['name']}", ""]
    lines += [f"- {name}: {value}" for name, value in gpu.items() if name != "name"]
    lines += ["", "By `bash ci/gpu`: medians of CUDA events, and p20–p80 of the paired ratios.", ""]
    lines += ["| stage | outcome | seconds | commit | |", "|---|---|---:|---|---|"]
    for stage in content["stages"]:
        summary = stage["summary"].replace("|", "/")
        cells = stage["name"], stage["outcome"], f"{stage['seconds']:.0f}", stage["commit"], summary
        lines.append(f"| {' | '.join(cells)} |")
    rows = []
    for name in ORDER:
        for row in content["benchmarks"].get(name, []):
            rows.append(BenchmarkRow(**{key: value for key, value in row.items() if key != "verdict"}))
    lines += ["", markdown_table(rows).rstrip() if rows else "No benchmark has run."]
    if content.get("profile"):
        lines += ["", *_profile(content["profile"])]
    return "\n".join(lines) + "\n"


def _profile(report: dict[str, Any]) -> list[str]:
    copy = report["copy_bytes_per_second"]
    product = report["product_flops_per_second"] / 1e12
    lines = ["## Profile", ""]
    lines += [
        "By `bash ci/gpu profile`: times by torch.profiler, bytes and FLOP by formula (`bench/step_model.py`).",
        "",
    ]
    lines += [f"- a copy: {copy / 1e9:.0f} GB/s, read and written", f"- {report['product']}: {product:.1f} TFLOP/s", ""]
    lines += ["| attention, bf16 | forward | forward and backward |", "|---|---:|---:|"]
    for times in report["attention"]:
        forward, both = (f"{times[name] * 1e6:.0f} µs" for name in ("forward", "forward_and_backward"))
        lines.append(f"| {times['jets']} jets, dropout {times['dropout']:g} | {forward} | {both} |")
    for step in report["steps"]:
        lines += ["", f"### {step['members']} members: {step['seconds'] * 1e3:.2f} ms a step", ""]
        if "memory_peak" in step:
            peak, estimate, reserved = (step[f"memory_{name}"] / 2**30 for name in ("peak", "estimate", "reserved"))
            lines += [f"Memory: peak {peak:.2f} GiB, estimate {estimate:.2f} GiB, reserved {reserved:.2f} GiB.", ""]
        names = ("label", "calls", "seconds", "bytes", "flops")
        groups = [Group(**{name: kernel[name] for name in names}) for kernel in step["kernels"]]
        lines.append(markdown(groups, copy) if groups else "The trace has no kernels.")
    return lines
