"""Training steps of K members on a GPU: the lock-step engine's, and what one writes in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.compiled_step import ALPHA, RECIPE, TEMPERATURE, jets, padded, random_targets
from bench.plain_trainer import PlainTagger, distillation_loss
from bench.test_ensemble import VmapEnsemble
from kdfast.distill.cuda_plan import Plan
from kdfast.distill.cuda_step import LockStep
from kdfast.distill.devices import exact_sums
from kdfast.distill.pack import Member, Pack
from kdfast.distill.schedules import RunConfig
from kdfast.models import JetTransformer, ModelConfig

FEWEST, MOST = 23, 40  # constituents of a jet: 79 % of a trigger's 40 slots


class PackedStep:
    """K members on one batch, again and again: on a GPU a replay of the engine's graph."""

    def __init__(
        self, config: ModelConfig, members: int, batch: int, device: torch.device, precision: str, full: bool = False
    ) -> None:
        """full: jets of the greatest length, of which padded models see no padding."""
        self.view, self.targets = jets(0, batch, MOST if full else FEWEST, MOST), random_targets(batch)
        settings = RunConfig(TEMPERATURE, ALPHA)
        recipe = RECIPE.model_copy(update={"batch_size": batch, "warmup_epochs": 0})
        pack = Pack(
            config,
            tuple(Member(f"{k}", settings) for k in range(members)),
            1,
            recipe,
            *[self.view] * 3,
            self.targets,
            precision,
            "cuda:0" if device.type == "cuda" else "cpu",
        )
        plan = Plan(pack)
        self.members = min(members, plan.members_at_once())
        self.trainer = LockStep(pack, list(pack.members[: self.members]), plan)
        self.trainer.begin_epoch(0)
        with exact_sums():  # as packs are trained
            while device.type == "cuda" and self.trainer.graph is None:
                self.trainer.next.zero_()
                self.trainer._step_and_capture()

    def __call__(self) -> Tensor:
        """One step of all members; the sum of their losses so far [K]."""
        self.trainer.next.zero_()  # the first and only step of the epoch's plan
        if self.trainer.graph is None:
            self.trainer.step()
        else:
            self.trainer.graph.replay()
        return self.trainer.sums[:, 0]


class PlainStep:
    """Members one after the other, on padded jets, with cached teacher outputs; compiled where compile is set."""

    def __init__(
        self,
        config: ModelConfig,
        members: int,
        step: PackedStep,
        device: torch.device,
        precision: str,
        compile: Callable[[Any], Any],
    ) -> None:
        self.precision, self.device = precision, device
        self.batch, self.students = plain_batch(step, device), plain_students(config, members, device)
        settings = {"lr": RECIPE.learning_rate, "weight_decay": RECIPE.weight_decay, "fused": device.type == "cuda"}
        self.optimizers = [torch.optim.AdamW(student.parameters(), **settings) for student in self.students]
        self.loss = compile(self._loss)

    def _loss(self, student: PlainTagger) -> Tensor:
        (x, mask), teacher, labels, *settings = self.batch
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits, attention = student(x, mask)
        return distillation_loss(logits.float(), attention.float(), mask, teacher, labels, *settings)

    def __call__(self) -> Tensor:
        losses = []
        for student, optimizer in zip(self.students, self.optimizers, strict=True):
            optimizer.zero_grad()
            loss = self.loss(student)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), RECIPE.clip_norm)
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses)


def plain_students(config: ModelConfig, members: int, device: torch.device) -> list[PlainTagger]:
    """With the weights that a pack's members begin with."""
    initial = JetTransformer(config, seed=1)
    students = [PlainTagger(config).train() for _ in range(members)]
    for student in students:
        student.copy_weights(initial)
    return [student.to(device) for student in students]


def plain_batch(step: PackedStep, device: torch.device) -> tuple[Any, ...]:
    x, mask = (part.to(device) for part in padded(step.view, MOST))
    targets = step.targets
    assert targets.attention_entropy is not None
    assert targets.attention_max is not None
    teacher = tuple(part.to(device) for part in (targets.logits, targets.attention_entropy, targets.attention_max))
    return (x, mask), teacher, step.view.labels.to(device), TEMPERATURE, ALPHA


def vmap_step(config: ModelConfig, members: int, step: PackedStep, device: torch.device) -> Callable[[], Tensor]:
    """PyTorch's own ensemble, on the same batch."""
    ensemble, batch = VmapEnsemble(plain_students(config, members, device)), plain_batch(step, device)
    return lambda: ensemble.step(*batch)
