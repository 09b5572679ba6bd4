"""Which run of a study: its kind, name and seed, and the name of its result's folder."""

from __future__ import annotations

import re
from typing import NamedTuple

from kdfast.distill.schedules import Run, RunConfig
from kdfast.errors import StudyError, suggest

__all__ = ["KINDS", "RunKey", "run_name", "safe_name"]

KINDS = ("teacher", "baseline", "student")

_FOLDER = re.compile(rf"({'|'.join(KINDS)})\.(.+)\.seed(-?\d+)", re.ASCII)


class RunKey(NamedTuple):
    """What makes two runs the same run, in one study or in two.

    kind: "teacher", "baseline" (a student trained without a teacher) or "student". name: unique together with
    kind and seed.
    """

    kind: str
    name: str
    seed: int

    @classmethod
    def of(cls, run: Run, seed: int) -> RunKey:
        """A run with a seed."""
        return cls("student" if isinstance(run, RunConfig) else "baseline", run_name(run), seed)

    @classmethod
    def teacher(cls, seed: int) -> RunKey:
        """The teacher of a study; seed: of its data."""
        return cls("teacher", "teacher", seed)

    @classmethod
    def parse(cls, folder: str) -> RunKey | None:
        """The run of a result's folder by its name; None: no result has such a folder."""
        parts = _FOLDER.fullmatch(folder)
        if parts is None:
            return None
        key = cls(parts[1], parts[2], int(parts[3]))
        return key if key.folder == folder else None

    @property
    def folder(self) -> str:
        """The name of the result's folder, e.g. `student.baseline_T3.0_A0.5.seed42`.

        Raises StudyError for an unknown kind, or a name that no folder can have.
        """
        if self.kind not in KINDS:
            raise StudyError(f"unknown kind of result {self.kind!r}", hint=suggest(self.kind, list(KINDS)))
        return f"{self.kind}.{safe_name(self.name)}.seed{int(self.seed)}"


def run_name(run: Run) -> str:
    """The name of a run; "baseline" for the one without a teacher and further settings."""
    return "baseline" if run is None else run.name


def safe_name(name: str) -> str:
    """The name, if a folder can have it in every file system; else StudyError."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}", name):
        raise StudyError(f"{name!r} can't name a result", hint="use up to 200 letters, digits and _ . + -")
    return name
