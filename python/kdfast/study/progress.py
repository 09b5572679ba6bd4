"""What a user sees while a sweep runs: a live line in a terminal or a notebook, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, TextIO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from kdfast.distill.pack import EpochReport, MemberResult
from kdfast.distill.schedules import shown
from kdfast.messages import Messages

if TYPE_CHECKING:
    from kdfast.store.store import StoredResult

__all__ = ["SweepProgress"]

# Without a terminal, seconds between lines about epochs; every finished member has its line anyway.
PLAIN_INTERVAL = 30.0


class _Live(Progress):
    """A bar, and below it the best run: in one line the two would be cut in a terminal of 80 columns."""

    best = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.best:
            yield Text(self.best, no_wrap=True, overflow="ellipsis")


class SweepProgress:
    """Takes the trainer's events, from any thread; shows members done, epoch, jets/s, time left, best so far.

    Used as a context manager around a sweep; each pack starts with `begin`. Everything goes to stderr, so
    that stdout has only results. Lines that can't be written there are lost; the sweep continues.

    on_epoch: the user's function for the same events, which the training calls.
    """

    def __init__(
        self,
        enabled: bool = True,
        console: Console | None = None,
        on_epoch: Callable[[EpochReport], object] | None = None,
    ) -> None:
        self.on_epoch = on_epoch
        self._console = console or _stderr()
        self._enabled = enabled
        terminal = self._console.is_terminal and not self._console.is_dumb_terminal  # a dumb one can't show it
        live = enabled and (terminal or self._console.is_jupyter)
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[status]}"))
        self._live = _Live(*columns, console=self._console) if live else None
        self._lock = threading.Lock()
        self._what = ""
        self._best: tuple[float, str] | None = None
        self._last_line = time.monotonic()

    def __enter__(self) -> SweepProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, what: str, *, members: int, epochs: int, done: int = 0, later: int = 0) -> None:
        """A pack starts: `what` it is, members to train, planned epochs of each, members done in earlier
        runs, and members of packs that come after it."""
        with self._lock:
            self._what = what
            self._members = members + done
            self._done = done
            self._epochs = epochs
            self._epochs_left = members * epochs
            self._epochs_trained = 0
            self._later = later * epochs
            self._running: dict[str, int] = {}  # epochs trained, by member
            self._jets = 0
            self._began = time.monotonic()
            if self._live is not None:
                for task in self._live.task_ids:
                    self._live.remove_task(task)
                self._task = self._live.add_task(what, total=members * epochs, status="")

    def best(self, name: str, auc_val: float) -> None:
        """A student's validation AUC; the highest one is shown."""
        with self._lock:
            if self._best is None or auc_val > self._best[0]:
                self._best = (auc_val, name)

    def epoch(self, report: EpochReport) -> None:
        """A member has trained an epoch."""
        with self._lock:
            # What an earlier process trained of a member counts as done from its first epoch here on.
            self._epochs_left -= report.epoch + 1 - self._running.get(report.member, 0)
            self._running[report.member] = report.epoch + 1
            self._epochs_trained += 1
            self._jets += report.jets
            self._show()
            if self._live is None and time.monotonic() - self._last_line > PLAIN_INTERVAL:
                self._line(f"{report.member} in training, AUC(val) {report.auc_val:.4f}")

    def stored(self, result: StoredResult, what: str) -> None:
        """Another process has trained a member. what: the pack's new name, as it grows by what is done."""
        with self._lock:
            self._what = what
            self._epochs_trained += int(result.metrics.get("epochs", 0))
            if self._live is not None:
                self._live.update(self._task, description=what)
        if result.kind == "student" and result.status == "done":
            self.best(result.name, result.metrics["auc_val"])
        self.member(result)

    def member(self, result: MemberResult | StoredResult) -> None:
        """A member is finished; epochs that it did not need count as done."""
        with self._lock:
            self._done += 1
            self._epochs_left -= self._epochs - self._running.pop(result.name, 0)
            self._show()
            if result.status != "done":
                self._line(f"{result.name} {result.status}: {result.message}")
            elif self._live is None:
                self._line(f"{result.name} done, AUC(val) {max(result.curves['auc_val']):.4f}")

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.say(shown(f"{self._what}: {text} ({', '.join(filter(None, (self._status(), self._leader())))})"))

    def _show(self) -> None:
        if self._live is not None:
            total = self._members * self._epochs
            self._live.best = self._leader()
            self._live.update(self._task, completed=total - self._epochs_left, total=total, status=self._status())

    def _status(self) -> str:
        elapsed = time.monotonic() - self._began
        parts = [f"{self._done}/{self._members} done"]
        if self._running:
            parts.append(f"epoch {max(self._running.values())}/{self._epochs}")
        if self._jets:
            parts.append(f"{self._jets / elapsed:,.0f} jets/s")
        elif self._epochs_trained:  # elsewhere
            rate = self._epochs_trained / elapsed
            parts.append(f"{rate:,.0f} epochs/s" if rate >= 10 else f"{rate:.2g} epochs/s")
        if self._epochs_left + self._later and self._epochs_trained:
            parts.append(f"{duration(elapsed / self._epochs_trained * (self._epochs_left + self._later))} left")
        return ", ".join(parts)

    def _leader(self) -> str:
        return "" if self._best is None else f"best so far {self._best[0]:.4f} {shown(self._best[1])}"


def _stderr() -> Console:
    """The console of stderr. A notebook shows a live line by means of ipywidgets; without, it gets plain lines."""
    stderr = cast(TextIO, Messages(sys.stderr))
    console = Console(file=stderr)
    if console.is_jupyter and find_spec("ipywidgets") is None:
        return Console(file=stderr, force_jupyter=False)
    return console


def duration(seconds: float) -> str:
    """E.g. "45 s", "12 min", "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
