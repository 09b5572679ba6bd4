"""What ci/gpu found on a card, as NAME.json and NAME.md: outcomes of its stages, and the benchmarks' ratios."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from kdfast.bench import markdown_table, read_rows


@dataclass(frozen=True)
class Stage:
    """outcome: "passed", or what went wrong. summary: its last words, e.g. how many tests passed."""

    name: str
    outcome: str
    seconds: float
    summary: str


def write_results(folder: Path, gpu: dict[str, str], stages: list[Stage], report: Path | None) -> tuple[Path, Path]:
    """The two files. gpu: name, driver and versions. report: pytest-benchmark's JSON, None where there is none."""
    rows = read_rows(report) if report is not None and report.exists() else []
    slug = re.sub(r"[^a-z0-9]+", "-", gpu["name"].lower()).strip("-")
    machine, text = folder / f"{slug}.json", folder / f"{slug}.md"
    content = {
        "gpu": gpu,
        "stages": [asdict(stage) for stage in stages],
        "benchmarks": [asdict(row) | {"verdict": row.verdict} for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    machine.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    lines = [f"# {gpu['name']}", "", *(f"- {name}: {value}" for name, value in gpu.items() if name != "name"), ""]
    lines += ["By `bash ci/gpu`: medians of CUDA events, and p20–p80 of the paired ratios.", ""]
    lines += ["| stage | outcome | seconds | |", "|---|---|---:|---|"]
    lines += [f"| {s.name} | {s.outcome} | {s.seconds:.0f} | {s.summary.replace('|', '/')} |" for s in stages]
    lines += ["", markdown_table(rows).rstrip() if rows else "No benchmark has run."]
    text.write_text("\n".join(lines) + "\n")
    return machine, text
