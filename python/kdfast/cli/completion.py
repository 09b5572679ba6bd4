"""What a shell completes: presets of settings, and the names of runs and packs of the study that a command names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import typer

from kdfast.distill.recipe import PRECISIONS
from kdfast.distill.schedules import SHAPES
from kdfast.jets.columns import COLUMN_PRESETS
from kdfast.jets.hlt_config import HLT_PRESETS
from kdfast.models.config import PRESETS
from kdfast.store.grid import GRIDS
from kdfast.store.key import RunKey

__all__ = ["choices", "pack_names", "run_names"]

# By the setting's keyword. Another value may be a file, a table or numbers.
_CHOICES: dict[str, Iterable[str]] = {
    "model": PRESETS,
    "teacher_model": PRESETS,
    "hlt": HLT_PRESETS,
    "grid": GRIDS,
    "columns": COLUMN_PRESETS,
    "shape": SHAPES,
    "precision": PRECISIONS,
    "device": ("auto", "cpu", "cuda"),
    "unit": ("MeV", "GeV"),
    "on_bad": ("error", "drop"),
    "teacher_kind": ("logit", "probability"),
}


def choices(keyword: str) -> Callable[[str], list[str]] | None:
    """What completes a setting; None where its values are not known beforehand."""
    known = _CHOICES.get(keyword)
    return None if known is None else lambda incomplete: _beginning(known, incomplete)


def run_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the stored runs."""
    keys = (RunKey.parse(name) for name in _folders(context, "results"))
    return _beginning((key.name for key in keys if key is not None), incomplete)


def pack_names(context: typer.Context, incomplete: str) -> list[str]:
    """The teacher, and the planned packs."""
    return _beginning(["teacher", *_folders(context, "packs")], incomplete)


def _folders(context: typer.Context, inside: str) -> list[str]:
    """Names of the folders in a part of the study, in order; none where no study is named yet."""
    options = [value for value in context.params.values() if isinstance(value, Path)]
    arguments = map(Path, context.args)  # of an unfinished line
    for study in (*options, *arguments):
        if (study / inside).is_dir():
            return sorted(path.name for path in (study / inside).iterdir() if path.is_dir())
    return []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
