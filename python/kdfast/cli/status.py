"""How `kdfast status` shows a study: as text, as JSON, or live."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import typer

from kdfast.cli.common import console
from kdfast.distill import schedules
from kdfast.errors import ConfigError
from kdfast.store.status import StudyStatus, study_status
from kdfast.store.store import StudyStore
from kdfast.study.progress import duration

__all__ = ["show"]

_REFRESH = 2.0  # seconds
_PLAIN_INTERVAL = 5.0  # where there is no terminal, seconds between what has changed


def show(study: Path, *, watch: bool, as_json: bool, quiet: bool) -> int:
    """Prints the status; returns the exit status."""
    if watch and as_json:
        raise ConfigError("exclude each other", where="--watch and --json", hint="give one of them")
    status = study_status(StudyStore.open(study))
    if watch and not quiet:
        return int(not _watch(study, status).finished)
    if as_json:
        typer.echo(json.dumps(status.to_json(), indent=1, ensure_ascii=False))
    elif not quiet:
        for line in _lines(status):
            typer.echo(line)
    return int(not status.finished)


def _watch(study: Path, status: StudyStatus) -> StudyStatus:
    from rich.live import Live
    from rich.text import Text

    terminal = console()
    lively = terminal.is_terminal and not terminal.is_dumb_terminal  # elsewhere Live shows nothing until it ends
    shown = ""
    not_before = 0.0
    with Live(console=terminal, auto_refresh=False) if lively else nullcontext() as live:
        while True:
            text = "\n".join(_lines(status))
            ends = status.finished or status.at_rest
            if live is not None:
                live.update(Text(text), refresh=True)
            elif text != shown and (ends or time.monotonic() >= not_before):
                typer.echo(text)
                shown = text
                not_before = time.monotonic() + _PLAIN_INTERVAL
            if ends:
                return status
            time.sleep(_REFRESH)
            status = study_status(StudyStore.open(study))


def _lines(status: StudyStatus) -> Iterator[str]:
    yield f"{status.study}: {len(status.runs)} runs, " + ", ".join(f"{n} {name}" for name, n in status.counts.items())
    for run in status.runs:
        if run.status in ("diverged", "failed", "damaged") or (run.message and run.status == "missing"):
            seed = "" if run.seed is None else f", seed {run.seed}"
            yield f"  {run.kind} {schedules.shown(run.run_name)}{seed}: {run.message or run.status}"
    if any(run.status == "damaged" for run in status.runs):
        yield f"  `kdfast verify {status.study} --repair` moves damaged folders aside"
    for at in status.running:
        yield f"  running {at['pack']}: {at['host']}, process {at['pid']}, since {at['since']}"
    if status.sweeping and not status.running:
        yield "  a sweep is running"
    if status.per_hour is not None and not status.finished:
        left = "" if status.seconds_left is None else f", {duration(status.seconds_left)} left at that rate"
        rate = f"{status.per_hour:,.0f}" if status.per_hour >= 100 else f"{status.per_hour:.3g}"
        yield f"  {rate} runs per hour{left}"
