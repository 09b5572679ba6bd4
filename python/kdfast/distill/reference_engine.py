"""The reference engine: a loop over members in PyTorch, one member a thread at a time.

A member computes on one thread alone, so its bits depend neither on the number of threads nor on its neighbours.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from kdfast.distill.attention_transfer import attention_transfer_loss
from kdfast.distill.batches import epoch_batches, gather
from kdfast.distill.optimizer import FlatAdamW, learning_rate
from kdfast.distill.targets import predict_logits
from kdfast.distill.trainer import EpochReport, Member, MemberResult, Pack
from kdfast.metrics import roc_auc
from kdfast.models.jet_transformer import JetTransformer
from kdfast.ops.distill_loss import distill_loss
from kdfast.ops.philox import derive_seed, fold_seed

__all__ = ["train"]

_CURVES = ("loss", "loss_kd", "loss_label", "loss_attention", "auc_val", "temperature", "alpha", "learning_rate")


class _Stopped(Exception):
    """The pack was asked to stop; the member is given up."""


def train(
    pack: Pack, threads: int, on_epoch: Callable[[EpochReport], None] | None, stop: threading.Event
) -> Generator[MemberResult, None, None]:
    """The engine's entrance; see trainer.train_pack."""
    waiting: queue.SimpleQueue[Member] = queue.SimpleQueue()
    for member in pack.members:
        waiting.put(member)
    finished: queue.SimpleQueue[MemberResult | BaseException] = queue.SimpleQueue()
    given_up = threading.Event()  # this pack's own: an abandoned iterator must not stop the caller's other packs

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
                finished.put(train_member(pack, member, on_epoch, should_stop))
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
        for i in range(max(1, min(threads, len(pack.members))))
    ]
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            result = finished.get()
            if result is _WORKER_DONE:
                running -= 1
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


def train_member(
    pack: Pack,
    member: Member,
    on_epoch: Callable[[EpochReport], None] | None,
    should_stop: Callable[[], bool],
) -> MemberResult:
    """Trains one member to its end on the calling thread."""
    recipe, began = pack.recipe, time.perf_counter()
    model = JetTransformer(pack.model, seed=pack.seed)
    optimizer = FlatAdamW(model, recipe.weight_decay, recipe.clip_norm)
    curves: dict[str, list[float]] = {name: [] for name in _CURVES}
    best_epoch, best_auc, best_state = -1, -1.0, {}
    dropout_seed = derive_seed(pack.seed, "dropout")
    step = 0
    for epoch in range(recipe.epochs):
        epoch_began = time.perf_counter()
        rate = learning_rate(epoch, recipe.epochs, recipe.warmup_epochs, recipe.learning_rate)
        temperature, alpha = member.config.at(epoch, recipe.epochs) if member.config else (1.0, 0.0)
        sums = torch.zeros(4, dtype=torch.float64)
        batches = epoch_batches(pack.seed, epoch, len(pack.train), recipe.batch_size)
        model.train()
        for jets in batches:
            if should_stop():
                raise _Stopped
            optimizer.zero_grad()
            loss, terms = member_loss(pack, member, model, jets, temperature, alpha, fold_seed(dropout_seed, step))
            loss.backward()
            step += 1
            if not bool(torch.isfinite(loss)) or not optimizer.step(rate):
                message = f"loss or gradient not finite in epoch {epoch}, step {step}"
                seconds = time.perf_counter() - began
                return MemberResult(member.name, "diverged", message, best_epoch, epoch, seconds, curves)
            sums += terms
        logits = predict_logits(model, pack.validation)
        auc = roc_auc(pack.validation.labels.numpy(), logits.numpy(), pack.validation.weights.numpy())
        means = (sums / len(batches)).tolist()
        for name, value in zip(_CURVES, [*means, auc, temperature, alpha, rate], strict=True):
            curves[name].append(value)
        if auc > best_auc:
            best_epoch, best_auc = epoch, auc
            best_state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if on_epoch is not None:
            seconds = time.perf_counter() - epoch_began
            on_epoch(EpochReport(member.name, epoch, recipe.epochs, means[0], auc, best_auc, batches.numel(), seconds))
        if epoch - best_epoch >= recipe.patience:
            break
    model.load_state_dict(best_state)
    return MemberResult(
        member.name,
        "done",
        "",
        best_epoch,
        len(curves["loss"]),
        time.perf_counter() - began,
        curves,
        predict_logits(model, pack.validation),
        predict_logits(model, pack.test),
        best_state,
    )


def member_loss(
    pack: Pack, member: Member, model: JetTransformer, jets: Tensor, temperature: float, alpha: float, dropout_seed: int
) -> tuple[Tensor, Tensor]:
    """The loss of one batch (jets [b], positions in the training view), and its parts for the curves.

    α · T² · KL + (1 − α) · BCE + attention_weight · A; the parts [4] are the loss, KL, BCE and A terms as weighted.
    """
    features, offsets = gather(pack.train.features, pack.train.offsets, jets)
    labels, weights = pack.train.labels[jets], pack.train.weights[jets]
    logits, attention = model(features, offsets, return_attention=True, dropout_seed=dropout_seed)
    targets = pack.targets if member.config is not None else None
    teacher = None if targets is None else targets.logits[jets]
    loss, parts = distill_loss(
        logits, teacher, labels, temperature=temperature, alpha=alpha, weights=weights, return_terms=True
    )
    kl, cross_entropy = parts.unbind(-1)
    terms = [loss.detach(), alpha * kl, (1 - alpha) * cross_entropy, torch.zeros(())]
    if targets is not None and targets.attention_entropy is not None and targets.attention_max is not None:
        transfer = pack.recipe.attention_weight * attention_transfer_loss(
            attention, offsets, targets.attention_entropy[jets], targets.attention_max[jets], weights
        )
        loss = loss + transfer
        terms[0], terms[3] = loss.detach(), transfer.detach()
    return loss, torch.stack(terms).double()
