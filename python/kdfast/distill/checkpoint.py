"""What a member is between two steps: all that its further training depends on, so that it can resume elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["CURVES", "Boundary", "Checkpoints", "MemberCheckpoint", "Stopped", "copy_tensors"]

CURVES = (
    "loss",
    "loss_kd",
    "loss_label",
    "loss_attention",
    "auc_val",
    "temperature",
    "alpha",
    "learning_rate",
)


@dataclass
class MemberCheckpoint:
    """A member at a step boundary.

    step: updates so far, over all epochs. sums: [4] float64, the losses' parts summed over this epoch's steps
    so far. curves: of the epochs that are evaluated; after an epoch's last step and before its evaluation it
    still counts as running. best_epoch (−1: none yet), best_auc, best_state: the kept weights by name.
    seconds: trained so far, in all processes. learner: the engine's own tensors by name: parameters and both
    moments [P], running statistics [R], count of updates [1]. The engines name them alike, so that another
    one can resume (not to the same bits).
    """

    step: int = 0
    sums: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    curves: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CURVES})
    best_epoch: int = -1
    best_auc: float = -1.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    learner: dict[str, Tensor] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """The epoch that is running, counted from 0; also how many are finished."""
        return len(self.curves["loss"])

    @property
    def position(self) -> tuple[int, int]:
        """(epoch, step): members that share it can take their steps together."""
        return self.epoch, self.step

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Whether the planned epochs are over, or `patience` epochs were no better than the best one."""
        return self.epoch >= epochs or self.epoch - 1 - self.best_epoch >= patience

    def end_epoch(self, values: Sequence[float], auc: float, state: Callable[[], dict[str, Tensor]]) -> None:
        """Ends the epoch with its values of CURVES, and keeps the weights that `state` gives if its AUC is the best."""
        for name, value in zip(CURVES, values, strict=True):
            self.curves[name].append(value)
        if auc > self.best_auc:
            self.best_state = state()
            self.best_epoch = self.epoch - 1
            self.best_auc = auc
        self.sums = torch.zeros_like(self.sums)


class Checkpoints(Protocol):
    """Where members' checkpoints are kept; an engine calls it from any of its threads, for different members at once.

    interval: seconds between two checkpoints of a member that runs.
    """

    interval: float

    def load(self, member: str) -> MemberCheckpoint | None:
        """Where the member of this name resumes; None: at its start. What it gives becomes the engine's."""

    def save(self, member: str, checkpoint: MemberCheckpoint) -> None:
        """Keeps a checkpoint, whose tensors and lists change again once this returns. What can't be written
        is no reason to end the training: it must not raise for that."""


class Stopped(Exception):
    """The pack was asked to stop: members that run are given up."""


class Boundary:
    """What an engine asks between two steps. save: makes a checkpoint of what runs."""

    def __init__(
        self, should_stop: Callable[[], bool], checkpoints: Checkpoints | None, save: Callable[[], None]
    ) -> None:
        self._should_stop = should_stop
        self._save = save
        self._interval = float("inf") if checkpoints is None else checkpoints.interval
        self._last = time.monotonic()

    def stop_here(self) -> None:
        """Raises Stopped where the pack is asked to stop."""
        if self._should_stop():
            raise Stopped

    def cross(self) -> None:
        """The same, and a checkpoint when one is due."""
        self.stop_here()
        if time.monotonic() - self._last >= self._interval:
            self._save()
            self._last = time.monotonic()


def copy_tensors(to: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> None:
    """Fills tensors by name, in place. Raises ValueError where a name is missing or a shape or dtype is another."""
    for name, tensor in to.items():
        found = of.get(name)
        if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
            shown = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(f"checkpoint: {name} is {shown}, expected {tensor.dtype} {list(tensor.shape)}")
        tensor.copy_(found)
