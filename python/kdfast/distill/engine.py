"""The loop over a pack's members and their epochs, which every engine shares.

A member runs on a Python thread of its own while there are more members than threads; where fewer are left,
each may use several threads in its steps, if its engine can.
"""

from __future__ import annotations

import contextvars
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdfast.distill.batches import epoch_batches
from kdfast.distill.checkpoint import Boundary, Checkpoints, MemberCheckpoint, Stopped, copy_tensors
from kdfast.distill.optimizer import FlatAdamW, learning_rate
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, View
from kdfast.metrics import roc_auc
from kdfast.models.build import build_network
from kdfast.models.flat import flatten_running
from kdfast.ops.philox import derive_seed, fold_seed

__all__ = ["Learner", "Team", "end_epoch", "train_members"]


class Learner(ABC):
    """One member's model and optimizer, as an engine keeps them. num_threads: what a call may use."""

    def __init__(self, pack: Pack, member: Member) -> None:
        recipe = pack.recipe_of(member)
        self.model = build_network(pack.model, pack.seed).to("cpu" if pack.device == "auto" else pack.device)
        self.optimizer = FlatAdamW(self.model, recipe.weight_decay, recipe.clip_norm)
        self.buffers = {"running": flatten_running(self.model)}

    @abstractmethod
    def step(
        self, jets: Tensor, temperature: float, alpha: float, rate: float, dropout_seed: int, num_threads: int
    ) -> Tensor | None:
        """One update on a batch (positions [b] in the training view).

        Returns [4] float64: loss, KL, BCE and attention-transfer parts as weighted. None where the loss or
        the gradient is not finite; the member ends then.
        """

    @abstractmethod
    def logits(self, view: View, num_threads: int) -> Iterator[Tensor]:
        """Logits [b] of a view's jets in evaluation mode, batch after batch: between them the member can be stopped."""

    def state(self) -> dict[str, Tensor]:
        """A copy of the weights and running statistics, by name."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state` gave."""
        self.model.load_state_dict(state)

    def tensors(self) -> dict[str, Tensor]:
        """All that the next step depends on, named as in MemberCheckpoint: the tensors themselves, to read or fill."""
        return {**self.optimizer.tensors(), **self.buffers}


class Team:
    """Threads whose results one iterator yields.

    running: how many have not ended. given_up: tells them to end, as the iterator is closed or one of them
    has failed. It is this team's own: an abandoned iterator must not stop the caller's other packs.
    """

    def __init__(self) -> None:
        self.running = 0
        self.given_up = threading.Event()
        self._finished: queue.SimpleQueue[MemberResult | BaseException | None] = queue.SimpleQueue()  # None: an end

    def thread(self, name: str, job: Callable[[], Iterable[MemberResult]], *, daemon: bool = False) -> threading.Thread:
        """A thread for a job. It sees the caller's context: a backend forced by `with kdfast.backend(...)` holds."""
        context = contextvars.copy_context()
        return threading.Thread(target=context.run, args=(self._work, job), name=f"kdfast-{name}", daemon=daemon)

    def _work(self, job: Callable[[], Iterable[MemberResult]]) -> None:
        try:
            for result in job():
                self._finished.put(result)
        except Stopped:
            pass
        except BaseException as error:
            self._finished.put(error)
        finally:
            self._finished.put(None)

    def results(
        self,
        threads: Sequence[threading.Thread],
        stop: threading.Event,
        start: Callable[[Sequence[threading.Thread]], None],
    ) -> Generator[MemberResult, None, None]:
        """Starts the threads and yields their results; raises what one of them raises. stop: ends them, too."""
        self.running = len(threads)
        try:
            start(threads)
            while self.running:
                try:
                    result = self._finished.get(timeout=_POLL)  # a signal that another thread took is then handled
                except queue.Empty:
                    if stop.is_set():
                        self.given_up.set()
                    continue
                if result is None:
                    self.running -= 1
                elif isinstance(result, BaseException):
                    raise result
                else:
                    yield result
        finally:
            self.given_up.set()
            for thread in threads:
                thread.join()


def train_members(
    new_learner: Callable[[Pack, Member], Learner],
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
    at_once: int | None = None,
) -> Generator[MemberResult, None, None]:
    """An engine's `train`; see trainer.train_pack. at_once: members that train at the same time; None: one a thread."""
    waiting: queue.SimpleQueue[Member] = queue.SimpleQueue()
    for member in pack.members:
        waiting.put(member)
    set_up = threading.Semaphore(0)  # counts the workers that compute on one thread
    team = Team()

    def should_stop() -> bool:
        return stop.is_set() or team.given_up.is_set()

    def threads_each() -> int:
        return max(1, threads // team.running)

    def work() -> Iterator[MemberResult]:
        torch.get_num_threads()  # a thread's first look takes over what the last one anywhere has set
        torch.set_num_threads(1)
        set_up.release()
        while not should_stop():
            try:
                member = waiting.get_nowait()
            except queue.Empty:
                break
            going = _Member(pack, member, new_learner, should_stop, threads_each, checkpoints)
            yield going.train(on_epoch)

    def start(workers: Sequence[threading.Thread]) -> None:
        """Starts the workers and waits until each computes on one thread; this thread's own number stays."""
        num_threads = torch.get_num_threads()
        try:
            for worker in workers:
                worker.start()
            for _ in workers:
                set_up.acquire()
        finally:
            # A thread's setting holds for itself, and for threads that begin later: those are none of the
            # pack's.
            torch.set_num_threads(num_threads)

    number = max(1, min(at_once or threads, len(pack.members)))
    workers = [team.thread(f"member-{i}", work, daemon=True) for i in range(number)]
    yield from team.results(workers, stop, start)


def end_epoch(
    at: MemberCheckpoint,
    auc: float,
    means: list[float],
    settings: tuple[float, float, float],
    state: Callable[[], dict[str, Tensor]],
) -> str:
    """Ends a member's epoch. Returns why it has diverged, "" if it has not.

    auc: on the validation jets; NaN where logits are not finite. means: loss, KL, BCE and attention-transfer
    parts over the epoch. settings: T, α and learning rate.
    """
    if math.isnan(auc):
        return f"logits of the validation jets not finite after epoch {at.epoch}"
    at.end_epoch([*means, auc, *settings], auc, state)
    return ""


def _validation_auc(pack: Pack, logits: Tensor) -> float:
    """Of logits [b]; NaN where they are not finite."""
    if not logits.isfinite().all():
        return math.nan
    return roc_auc(pack.validation.labels.numpy(), logits.numpy(), pack.validation.weights.numpy())


_POLL = 0.1  # seconds
_RELEASED = 1 << 16  # jets: after so many, the pages of mapped views are given back


class _Member:
    """One member on its way from a checkpoint, or its start, to its end."""

    def __init__(
        self,
        pack: Pack,
        member: Member,
        new_learner: Callable[[Pack, Member], Learner],
        should_stop: Callable[[], bool],
        num_threads: Callable[[], int],
        checkpoints: Checkpoints | None,
    ) -> None:
        self.pack = pack
        self.member = member
        self.recipe = pack.recipe_of(member)
        self.learner = new_learner(pack, member)
        self.num_threads = num_threads
        self.checkpoints = checkpoints
        self.at = (checkpoints.load(member.name) if checkpoints else None) or MemberCheckpoint()
        if self.at.step:
            copy_tensors(self.learner.tensors(), self.at.learner)
        self.began = time.perf_counter()
        self.seconds_before = self.at.seconds
        self.saved = self.at.position
        self.boundary = Boundary(should_stop, checkpoints, self._save)

    def train(self, on_epoch: Callable[[EpochReport], None] | None) -> MemberResult:
        """To its end. Raises Stopped, after a checkpoint, where the pack is asked to stop."""
        try:
            while not self.at.is_finished(self.recipe.epochs, self.recipe.patience):
                diverged = self._epoch(on_epoch)
                if diverged is not None:
                    return diverged
            self.learner.restore(self.at.best_state)  # a checkpoint from here on has no use for what it overwrites
            validation = self._logits(self.pack.validation)
            test = self._logits(self.pack.test)
        except Stopped:
            self._save()
            raise
        if not test.isfinite().all():  # those of the validation jets were finite when they were the best
            return self._result(
                "diverged",
                f"logits of the test jets not finite with the weights of epoch {self.at.best_epoch}",
            )
        return self._result("done", "", validation, test, self.at.best_state)

    def _epoch(self, on_epoch: Callable[[EpochReport], None] | None) -> MemberResult | None:
        """What is left of the running epoch; a result where the member diverges."""
        pack = self.pack
        recipe = self.recipe
        at = self.at
        epoch = self.at.epoch
        began = time.perf_counter()
        rate = learning_rate(epoch, recipe.epochs, recipe.warmup_epochs, recipe.learning_rate)
        temperature, alpha = self.member.at(epoch, recipe.epochs)
        dropout_seed = derive_seed(pack.seed, "dropout")
        batches = epoch_batches(pack.seed, epoch, len(pack.train), recipe.batch_size, recipe.shuffle_window)
        release_after = max(_RELEASED // recipe.batch_size, 1)
        left = batches[at.step - epoch * len(batches) :]
        for jets in left:
            self.boundary.cross()
            seed = fold_seed(dropout_seed, at.step)
            terms = self.learner.step(jets, temperature, alpha, rate, seed, self.num_threads())
            at.step += 1
            if terms is None:
                return self._result("diverged", f"loss or gradient not finite in epoch {epoch}, step {at.step}")
            at.sums += terms
            if at.step % release_after == 0:
                pack.train.release()
        logits = self._logits(pack.validation)
        means = (at.sums / len(batches)).tolist()
        auc = _validation_auc(pack, logits)
        diverged = end_epoch(at, auc, means, (temperature, alpha, rate), self.learner.state)
        if diverged:
            return self._result("diverged", diverged)
        auc = at.curves["auc_val"][-1]
        if on_epoch is not None:
            name = self.member.name
            seconds = time.perf_counter() - began
            jets = left.numel()
            on_epoch(EpochReport(name, epoch, recipe.epochs, means[0], auc, at.best_auc, jets, seconds, pack.seed))
        return None

    def _save(self) -> None:
        if self.checkpoints is not None and self.at.position != self.saved:
            self.at.seconds = self._seconds()
            self.at.learner = self.learner.tensors()
            self.checkpoints.save(self.member.name, self.at)
            self.saved = self.at.position

    def _logits(self, view: View) -> Tensor:
        parts: list[Tensor] = []
        read = 0
        for part in self.learner.logits(view, self.num_threads()):
            if parts:
                self.boundary.stop_here()
            parts.append(part)
            read += len(part)
            if read >= _RELEASED:
                view.release()
                read = 0
        view.release()
        return torch.cat(parts)

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def _result(self, status: str, message: str, *scores_and_state: Any) -> MemberResult:
        at = self.at
        return MemberResult(
            self.member.name,
            status,
            message,
            at.best_epoch,
            at.epoch,
            self._seconds(),
            at.curves,
            *scores_and_state,
        )
