"""The loop over a pack's members and their epochs, which every engine shares.

A member runs on a Python thread of its own while there are more members than threads; where fewer are left, each may
use several threads in its steps, if its engine can.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Protocol

import torch
from torch import Tensor

from kdfast.distill.batches import epoch_batches
from kdfast.distill.optimizer import learning_rate
from kdfast.distill.trainer import EpochReport, Member, MemberResult, Pack, View
from kdfast.metrics import roc_auc
from kdfast.ops.philox import derive_seed, fold_seed

__all__ = ["CURVES", "Learner", "train_members"]

CURVES = ("loss", "loss_kd", "loss_label", "loss_attention", "auc_val", "temperature", "alpha", "learning_rate")


class Learner(Protocol):
    """One member's model and optimizer, as an engine keeps them. num_threads: what a call may use."""

    def step(
        self, jets: Tensor, temperature: float, alpha: float, rate: float, dropout_seed: int, num_threads: int
    ) -> Tensor | None:
        """One update on a batch (positions [b] in the training view).

        Returns [4] float64: loss, KL, BCE and attention-transfer parts as weighted. None where the loss or the
        gradient is not finite; the member ends then.
        """

    def logits(self, view: View, num_threads: int) -> Tensor:
        """Logits [B] of a view's jets in evaluation mode."""

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights and running statistics, by name."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""


class _Stopped(Exception):
    """The pack was asked to stop; the member is given up."""


def train_members(
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    new_learner: Callable[[Pack, Member], Learner],
) -> Generator[MemberResult, None, None]:
    """An engine's `train`; see trainer.train_pack."""
    waiting: queue.SimpleQueue[Member] = queue.SimpleQueue()
    for member in pack.members:
        waiting.put(member)
    finished: queue.SimpleQueue[MemberResult | BaseException] = queue.SimpleQueue()
    given_up = threading.Event()  # this pack's own: an abandoned iterator must not stop the caller's other packs
    running = [max(1, min(threads, len(pack.members)))]

    def should_stop() -> bool:
        return stop.is_set() or given_up.is_set()

    def work() -> None:
        torch.set_num_threads(1)
        try:
            while not should_stop():
                try:
                    member = waiting.get_nowait()
                except queue.Empty:
                    break
                finished.put(
                    _train_member(
                        pack, member, new_learner(pack, member), on_epoch, should_stop, lambda: threads // running[0]
                    )
                )
        except _Stopped:
            pass
        except BaseException as error:
            finished.put(error)
        finally:
            finished.put(_WORKER_DONE)

    num_threads = torch.get_num_threads()
    # Each worker sees the caller's context: a backend forced by `with kdfast.backend(...)` holds there too.
    workers = [
        threading.Thread(target=contextvars.copy_context().run, args=(work,), name=f"kdfast-member-{i}", daemon=True)
        for i in range(running[0])
    ]
    try:
        for worker in workers:
            worker.start()
        while running[0]:
            result = finished.get()
            if result is _WORKER_DONE:
                running[0] -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    finally:
        given_up.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(num_threads)


_WORKER_DONE = MemberResult("", "", "", -1, 0, 0.0, {})


def _train_member(
    pack: Pack,
    member: Member,
    learner: Learner,
    on_epoch: Callable[[EpochReport], None] | None,
    should_stop: Callable[[], bool],
    threads_each: Callable[[], int],
) -> MemberResult:
    """Trains one member to its end."""
    recipe, began = pack.recipe, time.perf_counter()
    curves: dict[str, list[float]] = {name: [] for name in CURVES}
    best_epoch, best_auc, best_state = -1, -1.0, {}
    dropout_seed = derive_seed(pack.seed, "dropout")
    step = 0

    def num_threads() -> int:
        return max(1, threads_each())

    for epoch in range(recipe.epochs):
        epoch_began = time.perf_counter()
        rate = learning_rate(epoch, recipe.epochs, recipe.warmup_epochs, recipe.learning_rate)
        temperature, alpha = member.config.at(epoch, recipe.epochs) if member.config else (1.0, 0.0)
        sums = torch.zeros(4, dtype=torch.float64)
        batches = epoch_batches(pack.seed, epoch, len(pack.train), recipe.batch_size)
        for jets in batches:
            if should_stop():
                raise _Stopped
            terms = learner.step(jets, temperature, alpha, rate, fold_seed(dropout_seed, step), num_threads())
            step += 1
            if terms is None:
                message = f"loss or gradient not finite in epoch {epoch}, step {step}"
                seconds = time.perf_counter() - began
                return MemberResult(member.name, "diverged", message, best_epoch, epoch, seconds, curves)
            sums += terms
        logits = learner.logits(pack.validation, num_threads())
        auc = roc_auc(pack.validation.labels.numpy(), logits.numpy(), pack.validation.weights.numpy())
        means = (sums / len(batches)).tolist()
        for name, value in zip(CURVES, [*means, auc, temperature, alpha, rate], strict=True):
            curves[name].append(value)
        if auc > best_auc:
            best_epoch, best_auc, best_state = epoch, auc, learner.state()
        if on_epoch is not None:
            seconds = time.perf_counter() - epoch_began
            on_epoch(EpochReport(member.name, epoch, recipe.epochs, means[0], auc, best_auc, batches.numel(), seconds))
        if epoch - best_epoch >= recipe.patience:
            break
    learner.restore(best_state)
    return MemberResult(
        member.name,
        "done",
        "",
        best_epoch,
        len(curves["loss"]),
        time.perf_counter() - began,
        curves,
        learner.logits(pack.validation, num_threads()),
        learner.logits(pack.test, num_threads()),
        best_state,
    )
