"""The reference engine: the training step in PyTorch, which specifies what the compiled engines compute.

A member computes on one thread alone, so its bits depend neither on the number of threads nor on its
neighbours. Networks of the user's own are trained here too, one member after the other with all threads, or
on a GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from kdfast.distill.attention_transfer import attention_transfer_loss
from kdfast.distill.batches import gather
from kdfast.distill.checkpoint import Checkpoints
from kdfast.distill.engine import Learner, train_members
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, View
from kdfast.errors import ConfigError
from kdfast.models.config import OwnModel
from kdfast.models.evaluation import evaluate_model
from kdfast.models.network import Network
from kdfast.ops.distill_loss import distill_loss

__all__ = ["member_loss", "train"]


def train(
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """The engine's entrance; see trainer.train_pack. "bf16", by autocast, is for networks of the user's own.

    Raises ConfigError for it with others.
    """
    own = isinstance(pack.model, OwnModel)
    if pack.precision != "fp32" and not own:
        hint = 'use precision="fp32"'
        raise ConfigError(f"the reference engine does not train in {pack.precision!r}", where="precision", hint=hint)
    # Their dropout comes from torch's one default generator, so that two at once would wait for each other.
    return train_members(_Learner, pack, threads, on_epoch, stop, checkpoints, at_once=1 if own else threads)


class _Learner(Learner):
    """In PyTorch."""

    def __init__(self, pack: Pack, member: Member) -> None:
        super().__init__(pack, member)
        self.pack = pack
        self.member = member
        self.own = isinstance(pack.model, OwnModel)
        if self.own:
            self.buffers = {f"buffer.{name}": buffer for name, buffer in self.model.named_buffers()}

    def step(
        self, jets: Tensor, temperature: float, alpha: float, rate: float, dropout_seed: int, num_threads: int
    ) -> Tensor | None:
        self._use_threads(num_threads)
        self.model.train()
        self.optimizer.zero_grad()
        loss, terms = member_loss(self.pack, self.member, self.model, jets, temperature, alpha, dropout_seed)
        loss.backward()
        return terms if bool(torch.isfinite(loss)) and self.optimizer.step(rate) else None

    def logits(self, view: View, num_threads: int) -> Iterator[Tensor]:
        self._use_threads(num_threads)
        for logits, _, _ in evaluate_model(self.model, view.features, view.offsets, reference=True):
            yield logits[:, 0]

    def _use_threads(self, num_threads: int) -> None:
        if self.own:
            torch.set_num_threads(num_threads)


def member_loss(
    pack: Pack,
    member: Member,
    model: Network,
    jets: Tensor,
    temperature: float,
    alpha: float,
    dropout_seed: int,
) -> tuple[Tensor, Tensor]:
    """The loss of one batch (jets [b], positions in the training view), and its parts for the curves.

    α · T² · KL + (1 − α) · BCE + attention_weight · A; the parts [4] are the loss, KL, BCE and A terms, as
    weighted. A is 0 where teacher or student has no attention.
    """
    device = next(model.parameters()).device
    features, offsets = (part.to(device) for part in gather(pack.train.features, pack.train.offsets, jets))
    labels = pack.train.labels[jets].to(device)
    weights = pack.train.weights[jets].to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=pack.precision == "bf16"):
        logits, attention = model(features, offsets, return_attention=True, dropout_seed=dropout_seed)
    targets = pack.targets if member.distils else None
    teacher = None if targets is None else targets.logits[jets].to(device)
    loss, parts = distill_loss(
        logits, teacher, labels, temperature=temperature, alpha=alpha, weights=weights, return_terms=True
    )
    kl, cross_entropy = parts.unbind(-1)
    terms = [loss.detach(), alpha * kl, (1 - alpha) * cross_entropy, torch.zeros((), device=device)]
    if attention is not None and targets is not None and targets.attention_entropy is not None:
        assert targets.attention_max is not None
        entropy = targets.attention_entropy[jets].to(device)
        maximum = targets.attention_max[jets].to(device)
        transfer = attention_transfer_loss(attention, offsets, entropy, maximum, weights)
        transfer = pack.recipe_of(member).attention_weight * transfer
        loss = loss + transfer
        terms[0] = loss.detach()
        terms[3] = transfer.detach()
    return loss, torch.stack(terms).double().cpu()
