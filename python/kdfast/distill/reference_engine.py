"""The reference engine: the training step in PyTorch, which specifies what the compiled engines compute.

A member computes on one thread alone, so its bits depend neither on the number of threads nor on its
neighbours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from kdfast.distill.attention_transfer import attention_transfer_loss
from kdfast.distill.batches import gather
from kdfast.distill.checkpoint import Checkpoints
from kdfast.distill.engine import train_members
from kdfast.distill.optimizer import FlatAdamW
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, View
from kdfast.errors import ConfigError
from kdfast.models.evaluation import evaluate_model
from kdfast.models.flat import flatten_running
from kdfast.models.jet_transformer import JetTransformer
from kdfast.ops.distill_loss import distill_loss

__all__ = ["member_loss", "train"]


def train(
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """The engine's entrance; see trainer.train_pack. Raises ConfigError for a precision other than "fp32"."""
    if pack.precision != "fp32":
        hint = 'use precision="fp32"'
        raise ConfigError(f"the reference engine does not train in {pack.precision!r}", where="precision", hint=hint)
    return train_members(pack, threads, on_epoch, stop, _Learner, checkpoints)


class _Learner:
    """distill.engine.Learner in PyTorch."""

    def __init__(self, pack: Pack, member: Member) -> None:
        self.pack = pack
        self.member = member
        self.model = JetTransformer(pack.model, seed=pack.seed)
        self.optimizer = FlatAdamW(self.model, pack.recipe.weight_decay, pack.recipe.clip_norm)
        self.running = flatten_running(self.model)

    def step(
        self, jets: Tensor, temperature: float, alpha: float, rate: float, dropout_seed: int, num_threads: int
    ) -> Tensor | None:
        self.model.train()
        self.optimizer.zero_grad()
        loss, terms = member_loss(self.pack, self.member, self.model, jets, temperature, alpha, dropout_seed)
        loss.backward()
        return terms if bool(torch.isfinite(loss)) and self.optimizer.step(rate) else None

    def logits(self, view: View, num_threads: int) -> Iterator[Tensor]:
        for logits, _, _ in evaluate_model(self.model, view.features, view.offsets, reference=True):
            yield logits[:, 0]

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.optimizer.tensors(), "running": self.running}


def member_loss(
    pack: Pack,
    member: Member,
    model: JetTransformer,
    jets: Tensor,
    temperature: float,
    alpha: float,
    dropout_seed: int,
) -> tuple[Tensor, Tensor]:
    """The loss of one batch (jets [b], positions in the training view), and its parts for the curves.

    α · T² · KL + (1 − α) · BCE + attention_weight · A; the parts [4] are the loss, KL, BCE and A terms, as
    weighted.
    """
    features, offsets = gather(pack.train.features, pack.train.offsets, jets)
    labels = pack.train.labels[jets]
    weights = pack.train.weights[jets]
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
        terms[0] = loss.detach()
        terms[3] = transfer.detach()
    return loss, torch.stack(terms).double()
