"""The compiled training step on one batch, as distill/cpu_engine.py takes it, and the batches that benchmarks use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdfast.distill.cpu_engine import step_inputs
from kdfast.distill.optimizer import FlatAdamW
from kdfast.distill.pack import Member, Pack, View
from kdfast.distill.recipe import Recipe
from kdfast.distill.schedules import RunConfig
from kdfast.distill.targets import Targets
from kdfast.models.build import build_network
from kdfast.models.compiled import CompiledModel
from kdfast.models.config import NetworkConfig
from kdfast.models.flat import flatten_running

TEMPERATURE, ALPHA = 5.0, 0.7
RECIPE = Recipe()


def jets(seed: int, number: int = 512, fewest: int = 23, most: int = 40) -> View:
    """Random jets of `fewest` to `most` constituents: by default 31.5 on average, 79 % of a trigger's 40 slots."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(fewest, most + 1, (number,), generator=generator)
    offsets = torch.zeros(number + 1, dtype=torch.int64)
    offsets[1:] = counts.cumsum(0)
    labels = (torch.arange(number) % 2).float()
    return View(torch.randn(int(offsets[-1]), 7, generator=generator), offsets, labels, torch.ones(number))


def padded(view: View, slots: int = 40) -> tuple[Tensor, Tensor]:
    """x [B, slots, F] and mask [B, slots] of a view."""
    mask = torch.arange(slots) < view.offsets.diff()[:, None]
    x = torch.zeros(*mask.shape, view.features.shape[1])
    x[mask] = view.features
    return x, mask


def random_targets(number: int) -> Targets:
    """Teacher outputs for `number` jets, where it does not matter which."""
    generator = torch.Generator().manual_seed(7)
    logits = 2 * torch.randn(number, 1, generator=generator)
    return Targets(logits, *torch.rand(2, number, generator=generator).unbind())


class CompiledStep:
    """One student with its optimizer and its batch, which is the whole view."""

    def __init__(
        self, config: NetworkConfig, view: View, targets: Targets, precision: str = "fp32", seed: int = 1
    ) -> None:
        member = Member("student", RunConfig(TEMPERATURE, ALPHA))
        pack = Pack(
            config, (member,), 0, RECIPE.model_copy(update={"batch_size": len(view)}), view, view, view, targets
        )
        self.order = torch.arange(len(view))
        self.model = build_network(config, seed)
        self.optimizer = FlatAdamW(self.model, RECIPE.weight_decay, RECIPE.clip_norm)
        running = flatten_running(self.model)
        self.compiled = CompiledModel(config, self.optimizer.parameters, running, precision)
        self.inputs = step_inputs(pack, member)

    def gradient(self, num_threads: int, seconds: Tensor | None = None) -> float:
        """The loss; the gradient goes to the parameters' .grad. seconds: see CompiledModel.gradient."""
        terms = self.compiled.gradient(
            self.optimizer.gradient,
            self.inputs,
            self.order,
            temperature=TEMPERATURE,
            alpha=ALPHA,
            attention_weight=RECIPE.attention_weight,
            dropout_seed=0,
            num_threads=num_threads,
            seconds=seconds,
        )
        return float(terms[0])

    def step(self, num_threads: int) -> float:
        """One update; the loss before it."""
        loss = self.gradient(num_threads)
        assert math.isfinite(loss)
        assert self.optimizer.step(RECIPE.learning_rate, num_threads)
        return loss
