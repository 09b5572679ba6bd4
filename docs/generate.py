"""Pages of the documentation that are made from the program itself: the command line and the settings."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def repository() -> str:
    """The project's address, which pyproject.toml alone holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Source"]


def pages() -> dict[str, str]:
    """File name → text, for docs/_generated/."""
    from kdfast.report.schema import Analysis
    from kdfast.store.keywords import settings_table

    schema = json.dumps(Analysis.model_json_schema(), indent=2) + "\n"
    return {
        "cli.md": command_line(),
        "settings.md": settings_table(),
        "presets.md": presets(),
        "report.schema.json": schema,
    }


def undocumented() -> list[str]:
    """Public names that no page of the API reference mentions."""
    import kdfast
    from kdfast import models, nn, ops

    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference" / "api").glob("*.md"))
    modules = {"kdfast": kdfast, "kdfast.models": models, "kdfast.nn": nn, "kdfast.ops": ops}
    names = [
        (f"{where}.{name}", name)
        for where, module in modules.items()
        for name in module.__all__
        if not _is_module(module, name)
    ]
    return [full for full, name in names if not re.search(rf":: kdfast\.(\w+\.)?{name}$", text, re.MULTILINE)]


def _is_module(home: Any, name: str) -> bool:
    return name.startswith("__") or inspect.ismodule(getattr(home, name))


# ---- presets and features

# What each of kdfast.jets.features.FEATURE_NAMES is; of the jet: the sum of its constituents in the same view.
FORMULAS = {
    "delta_eta": "Δη = η − η of the jet",
    "delta_phi": "Δφ = φ − φ of the jet, wrapped into [−π, π)",
    "ln_pt": "ln pT (GeV)",
    "ln_energy": "ln E (GeV)",
    "ln_pt_rel": "ln (pT / pT of the jet)",
    "ln_energy_rel": "ln (E / E of the jet)",
    "delta_r": "ΔR = √(Δη² + Δφ²)",
}


def presets() -> str:
    """The presets of the HLT emulation and of models, and the features, as tables."""
    from dataclasses import asdict

    from kdfast.jets.features import FEATURE_NAMES
    from kdfast.jets.hlt_config import HLT_PRESETS
    from kdfast.models.build import build_network
    from kdfast.models.config import PRESETS

    hlt = {name: asdict(config) for name, config in HLT_PRESETS.items()}
    sizes = {}
    for name, config in PRESETS.items():
        network = build_network(config)
        given = config.model_dump(exclude={"family", "num_features", "num_classes"})
        sizes[name] = {
            "network": type(network).__name__,
            "sizes": ", ".join(f"{key} {value}" for key, value in given.items()),
            "parameters": f"{network.num_parameters():,}",
        }
    features = {f"`{name}`": {"formula": FORMULAS[name]} for name in FEATURE_NAMES}
    parts = (("HLT emulation", "preset", hlt), ("Models", "preset", sizes), ("Features", "feature", features))
    return "\n".join(f"## {title}\n\n{_table(first, rows)}\n" for title, first, rows in parts)


def _table(first: str, rows: dict[str, dict[str, Any]]) -> str:
    keys = list(next(iter(rows.values())))
    lines = [[first, *keys], ["---"] * (1 + len(keys))]
    lines += [[name, *(str(row[key]) for key in keys)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ---- the command line


def command_line() -> str:
    """A section for each command, with what its --help prints."""
    from typer.main import get_command

    from kdfast.cli import app

    sections = []
    for name, command in _commands(get_command(app), "kdfast"):
        context = command.context_class(command, info_name=name, terminal_width=100, max_content_width=100)
        sections.append(f"## `{name}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, sub in getattr(command, "commands", {}).items():
        if not sub.hidden:
            yield from _commands(sub, f"{name} {child}")
