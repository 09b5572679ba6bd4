"""Jets that are being written for a long time: kept in a folder next to the output until all are there."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdfast.errors import ConfigError, KdfastError
from kdfast.files import write_atomically

__all__ = ["jets_reporter", "partial_folder"]


@contextmanager
def partial_folder(folder: Path, settings: dict[str, Any]) -> Iterator[None]:
    """Creates the folder, or resumes one of an earlier run with these settings. Locked while in use."""
    described = folder / "settings.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"can't be created ({error.strerror})", where=str(folder)) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError("another process is writing into this folder", where=str(folder)) from error
        if described.exists():
            try:
                before = dict(json.loads(described.read_text()))
            except ValueError:
                before = {}
            differing = [name for name in settings if before.get(name) != settings[name]]
            if differing:
                values = (f"{name} {before.get(name)} (now {settings[name]})" for name in differing)
                described_values = ", ".join(v if len(v) < 80 else v.split()[0] for v in values)
                raise ConfigError(
                    f"holds unfinished jets of other settings: {described_values}",
                    where=str(folder),
                    hint="rerun the command that started them, or delete the folder",
                )
        elif any(folder.iterdir()):
            raise ConfigError(
                "is not a folder of unfinished jets", where=str(folder), hint="choose another output name"
            )
        else:
            try:
                write_atomically(described, lambda file: file.write(json.dumps(settings, indent=1).encode()))
            except OSError as error:
                raise ConfigError(f"can't be written ({error.strerror})", where=str(folder)) from error
        yield
    finally:
        os.close(lock)


@contextmanager
def jets_reporter(doing: str, jets: int, done: int, folder: Path, progress: bool) -> Iterator[Callable[[int], None]]:
    """Gives report(made): a bar on a terminal, elsewhere a line every ten seconds. An interrupt says what is kept."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, quiet=not progress, highlight=False)
    bar = Progress(
        TextColumn(f"{doing} jets"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (progress and console.is_terminal),
    )
    task = bar.add_task("", total=jets, completed=done, rate="")
    begun, made, said = time.monotonic(), 0, time.monotonic()
    if done:
        console.print(f"resuming: {done:,} of {jets:,} jets are finished")

    def report(count: int) -> None:
        nonlocal made, said
        made += count
        rate = f"{made / max(time.monotonic() - begun, 1e-9):,.0f} jets/s"
        bar.update(task, completed=done + made, rate=rate)
        if not console.is_terminal and (time.monotonic() - said > 10 or done + made == jets):
            said = time.monotonic()
            console.print(f"{doing} jets: {done + made:,} of {jets:,}, {rate}")

    try:
        with bar:
            yield report
    except (KeyboardInterrupt, KdfastError):
        kept = f"{done + made:,} of {jets:,} jets are kept in {folder}"
        console.print(f"stopped: {kept}; rerun the same command to resume", soft_wrap=True)
        raise
