"""The CUDA engine: all members of a pack in lock-step.

Members share the batches, so a step is batched matrix products over [K, M, D] with one op for all members
between them (models/packed.py). What differs between steps lies on the device as a plan of those to come
(cuda_plan.py), what differs between epochs in vectors of length K; so the step is captured once and replayed
(cuda_step.py), and the host waits for the device once an epoch. Same results as the reference engine within
the accuracy rule; the same pack gives the same bits.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

import torch

from kdfast.distill.checkpoint import Boundary, Checkpoints, MemberCheckpoint, Stopped
from kdfast.distill.cuda_plan import Plan
from kdfast.distill.cuda_step import LockStep
from kdfast.distill.engine import end_epoch
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack
from kdfast.distill.packed_auc import PackedAuc
from kdfast.errors import BackendError, KdfastWarning
from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig
from kdfast.ops import backend
from kdfast.ops.constituent_attention import HEAD_DIMS

__all__ = ["train", "unsupported"]

_CLOSED = 0.88  # share of a group's members that still run, from which the others' places are given up


def unsupported(model: NetworkConfig) -> str | None:
    """Why the kernels that a captured step is made of can't take a model of these sizes; None: they can."""
    if isinstance(model, DeepSetsConfig):
        return None
    if not isinstance(model, ModelConfig):
        return "members in lock step are JetTransformers or DeepSets"
    if model.width % 16 or model.ffn % 8:  # the head halves the width
        return f"on a GPU width {model.width} must be a multiple of 16, ffn {model.ffn} of 8"
    if model.width // model.heads not in HEAD_DIMS:
        return f"width / heads is {model.width // model.heads}, none of {', '.join(map(str, HEAD_DIMS))}"
    if not backend.cuda_module().attention_pooling_takes(model.pooling_heads, model.width):
        return f"no kernel pools width {model.width} by {model.pooling_heads} heads"
    return None


def train(
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """The engine's entrance; see trainer.train_pack. threads: not used.

    As many members at once as the device's memory holds, the others after them; where it turns out to hold
    fewer, three quarters of them. Members resume together with those that are at the same step, the furthest
    first: as a pack of another size they may end in other last bits.
    """
    waiting = [_start(member, checkpoints) for member in pack.members]
    most = len(waiting)
    try:
        plan = Plan(pack)
    except RuntimeError as error:
        raise _too_small(pack, error) from error
    while waiting and not stop.is_set():
        furthest = max(start.position for _, start in waiting)
        together = [number for number, (_, start) in enumerate(waiting) if start.position == furthest]
        together = together[: min(most, plan.members_at_once())]
        starts = [waiting[number] for number in together]
        waiting = [start for number, start in enumerate(waiting) if number not in together]
        left = yield from _train_together(pack, starts, plan, stop, checkpoints, on_epoch)
        if left:
            most = max(1, 3 * len(starts) // 4)
            what = (
                f"device '{pack.device}': its memory is too small for {len(starts)} runs at once; {most} train at once"
            )
            warnings.warn(what, KdfastWarning, stacklevel=2)
            waiting = left + waiting


_Start = tuple[Member, MemberCheckpoint]


def _start(member: Member, checkpoints: Checkpoints | None) -> _Start:
    return member, (checkpoints.load(member.name) if checkpoints else None) or MemberCheckpoint()


def _train_together(
    pack: Pack,
    starts: list[_Start],
    plan: Plan,
    stop: threading.Event,
    checkpoints: Checkpoints | None,
    on_epoch: Callable[[EpochReport], None] | None,
) -> Generator[MemberResult, None, list[_Start]]:
    """Trains members at the same step to their ends; where memory runs out, returns those that have not ended.

    Raises BackendError where it runs out for a single one.
    """
    group = None
    try:
        group = _Group(pack, starts, plan, stop, checkpoints)
        yield from group.train(on_epoch)
        return []
    except RuntimeError as error:
        fault = _too_small(pack, error)
        if len(starts) == 1:
            raise fault from error
    # After the handler: its exception holds the frames, and so the tensors, of what has failed.
    if group is None:
        return [_start(member, checkpoints) for member, _ in starts]
    return group.left()


def _too_small(pack: Pack, error: RuntimeError) -> BackendError:
    """What to raise for an allocation that has failed; any other error is raised as it is."""
    causes = (error, error.__context__)  # the end of a capture fails after an allocation within it, with its own error
    failed = next((cause for cause in causes if isinstance(cause, torch.OutOfMemoryError)), None)
    if failed is None and "ALLOC_FAILED" not in str(error):  # cuBLAS's and cuDNN's own workspaces
        raise error
    what = f"its memory is too small ({str(failed or error).partition('. ')[0]})"
    hint = "take a smaller batch_size or model, fewer jets, or the device 'cpu'"
    return BackendError(what, where=f"device '{pack.device}'", hint=hint)


class _Group:
    """Members at the same step, trained together to their ends."""

    def __init__(
        self,
        pack: Pack,
        starts: list[tuple[Member, MemberCheckpoint]],
        plan: Plan,
        stop: threading.Event,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.pack = pack
        self.checkpoints = checkpoints
        self.members = [member for member, _ in starts]
        self.at = [start for _, start in starts]
        self.began = time.perf_counter()
        self.seconds_before = [at.seconds for at in self.at]
        self.running = set(range(len(starts)))
        self.position = self.saved = self.at[0].position
        self.trainer = LockStep(pack, self.members, plan)
        self.auc = PackedAuc(pack.validation.labels, pack.validation.weights, plan.device)
        for k, at in enumerate(self.at):
            if at.step:
                self.trainer.load(k, at)
                # they lie on the device now
                at.learner = {}
                at.best_state = {}
        self.boundary = Boundary(stop.is_set, checkpoints, self._save)
        self.whole = True  # False while the state on the device is not that of `position`

    def train(self, on_epoch: Callable[[EpochReport], None] | None) -> Generator[MemberResult, None, None]:
        try:
            yield from self._finished()
            while self.running:
                yield from self._epoch(on_epoch)
                yield from self._finished()
                if 0 < len(self.running) <= _CLOSED * len(self.members):
                    self._close_ranks()
        except Stopped:
            self._save()

    def _epoch(self, on_epoch: Callable[[EpochReport], None] | None) -> Generator[MemberResult, None, None]:
        """What is left of the running epoch; the results of members that have diverged in it."""
        pack = self.pack
        trainer = self.trainer
        recipe = pack.recipe
        epoch, _ = self.position
        began = time.perf_counter()
        steps = trainer.steps_of_epoch
        done = self.position[1] - epoch * steps
        trainer.begin_epoch(epoch, done)
        for _ in range(done, steps):
            self.boundary.cross()
            self.whole = False
            trainer.advance()
            self.position = epoch, self.position[1] + 1
            self.whole = True
        if epoch + 1 < recipe.epochs:
            trainer.plan.epoch(epoch + 1)  # sorted while the device is at the last steps
        aucs = self.auc(trainer.logits(pack.validation, self.boundary.stop_here)).tolist()
        self.whole = False
        means = (trainer.sums / steps).tolist()
        died = trainer.died.tolist()
        rates = trainer.rate.tolist()
        temperatures = trainer.temperature.tolist()
        alphas = trainer.alpha.tolist()
        improved = torch.zeros(len(self.members), dtype=torch.bool)
        for k in sorted(self.running):
            if died[k] >= 0:
                self.running.remove(k)
                yield self._result(k, "diverged", f"loss or gradient not finite in epoch {epoch}, step {died[k]}")
                continue
            diverged = end_epoch(self.at[k], aucs[k], means[k], (temperatures[k], alphas[k], rates[k]), dict)
            if diverged:
                self.running.remove(k)
                yield self._result(k, "diverged", diverged)
                continue
            improved[k] = self.at[k].best_epoch == epoch
        trainer.keep_best(improved)
        trainer.sums.zero_()
        self.position = epoch + 1, self.position[1]
        self.whole = True
        seconds = time.perf_counter() - began
        if on_epoch is not None:
            jets = (steps - done) * recipe.batch_size
            for k in sorted(self.running):
                name = self.members[k].name
                auc = self.at[k].curves["auc_val"][-1]
                best = self.at[k].best_auc
                loss = means[k][0]
                on_epoch(EpochReport(name, epoch, recipe.epochs, loss, auc, best, jets, seconds, pack.seed))

    def _finished(self) -> Generator[MemberResult, None, None]:
        """The results of members that have come to their end."""
        trainer = self.trainer
        recipes = trainer.recipes
        ended = [k for k in sorted(self.running) if self.at[k].is_finished(recipes[k].epochs, recipes[k].patience)]
        if not ended:
            return
        numbers = torch.tensor(ended)
        views = (self.pack.validation, self.pack.test)
        scores = [trainer.logits(view, self.boundary.stop_here, numbers).cpu() for view in views]
        self.running.difference_update(ended)
        for k, validation, test in zip(ended, *scores, strict=True):
            if not test.isfinite().all():  # those of the validation jets were finite when they were the best
                best = self.at[k].best_epoch
                yield self._result(
                    k, "diverged", f"logits of the test jets not finite with the weights of epoch {best}"
                )
                continue
            yield self._result(k, "done", "", validation.clone(), test.clone(), trainer.state(k))

    def _close_ranks(self) -> None:
        """Goes on with the members that run alone: a step's cost is that of all there are. It is captured anew."""
        numbers = sorted(self.running)
        before = self.trainer
        before.graph = None  # its memory is free for the next one's
        members = [self.members[k] for k in numbers]
        trainer = LockStep(self.pack, members, before.plan)
        trainer.take(before, numbers)
        self.trainer = trainer
        self.members = members
        self.at = [self.at[k] for k in numbers]
        self.seconds_before = [self.seconds_before[k] for k in numbers]
        self.running = set(range(len(numbers)))

    def _save(self) -> None:
        """Of every member that runs. One that has diverged since its last checkpoint will do so again."""
        if self.checkpoints is None or self.position == self.saved:
            return
        for member, checkpoint in self._running_members():
            self.checkpoints.save(member.name, checkpoint)
        self.saved = self.position

    def left(self) -> list[_Start]:
        """The members that have not ended, where they are now, or at their checkpoints or starts where that is lost."""
        whole = {member.name: checkpoint for member, checkpoint in self._running_members()} if self.whole else {}
        members = [self.members[k] for k in sorted(self.running)]
        return [
            (member, whole[member.name]) if member.name in whole else _start(member, self.checkpoints)
            for member in members
        ]

    def _running_members(self) -> Iterator[_Start]:
        """Those that run, without those that have diverged since their last checkpoint, as they are now."""
        # waits for the device
        died = self.trainer.died.tolist()
        sums = self.trainer.sums.cpu()
        for k in sorted(self.running):
            if died[k] >= 0:
                continue
            at = self.at[k]
            yield (
                self.members[k],
                replace(
                    at,
                    step=self.position[1],
                    sums=sums[k].clone(),
                    best_state=self.trainer.state(k) if at.best_epoch >= 0 else {},
                    seconds=self._seconds(k),
                    learner={name: tensor.cpu() for name, tensor in self.trainer.tensors(k).items()},
                ),
            )

    def _seconds(self, k: int) -> float:
        return self.seconds_before[k] + time.perf_counter() - self.began

    def _result(self, k: int, status: str, message: str, *scores_and_state: Any) -> MemberResult:
        name = self.members[k].name
        at = self.at[k]
        return MemberResult(
            name, status, message, at.best_epoch, at.epoch, self._seconds(k), at.curves, *scores_and_state
        )
