"""A pack of 16 students of the preset `deepsets`, one step each on the same batch, and a plain loop over them.

The batch is the recipe's: 512 jets of up to 40 constituents, 79 % of the slots filled. The loop is what a competent
user would write: padded tensors, torch.nn layers, the teacher's logits kept, AdamW in one fused call; all threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.compiled_step import ALPHA, RECIPE, TEMPERATURE, CompiledStep, jets, padded, random_targets
from bench.ratio import compare
from kdfast.models import PRESETS, DeepSetsConfig
from kdfast.ops import backend

pytestmark = pytest.mark.skipif(backend.why_no_cpu is not None, reason=str(backend.why_no_cpu))

CONFIG, MEMBERS, JETS = PRESETS["deepsets"], 16, 512


class PlainDeepSets(nn.Module):
    """The network of kdfast.models.DeepSets on x [B, N, F] with mask [B, N] (true: a constituent)."""

    def __init__(self, config: DeepSetsConfig) -> None:
        super().__init__()
        widths = [config.num_features, *[config.width] * config.layers]
        self.constituent = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        widths = [2 * config.width, *[config.head_width] * config.head_layers]
        self.jet = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.classify = nn.Linear(config.head_width, 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.constituent:
            x = F.relu(layer(x))
        x = x.masked_fill(~mask[:, :, None], 0.0)
        h = torch.cat([x.sum(1) / mask.sum(1, keepdim=True), x.amax(1)], dim=1)
        for layer in self.jet:
            h = F.relu(layer(h))
        return self.classify(h)[:, 0]


class PlainTraining:
    """One student with its optimizer."""

    def __init__(self, student: PlainDeepSets) -> None:
        self.student = student
        rates = {"lr": RECIPE.learning_rate, "weight_decay": RECIPE.weight_decay}
        self.optimizer = torch.optim.AdamW(student.parameters(), **rates, fused=True)

    def loss(self, x: Tensor, mask: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """α T² BCE(σ(s/T), σ(t/T)) + (1 − α) BCE(s, y)."""
        logits = self.student(x, mask)
        soft = F.binary_cross_entropy_with_logits(logits / TEMPERATURE, torch.sigmoid(teacher / TEMPERATURE))
        hard = F.binary_cross_entropy_with_logits(logits, labels)
        return ALPHA * TEMPERATURE**2 * soft + (1 - ALPHA) * hard

    def step(self, *batch: Tensor) -> float:
        """One update; the loss before it."""
        self.optimizer.zero_grad()
        loss = self.loss(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), RECIPE.clip_norm)
        self.optimizer.step()
        return loss.item()


def both() -> tuple[list[CompiledStep], list[PlainTraining], tuple[Tensor, ...]]:
    """Ours and the plain students from the same weights, and the latter's batch."""
    view, targets = jets(0, JETS), random_targets(JETS)
    ours = [CompiledStep(CONFIG, view, targets, seed=seed) for seed in range(MEMBERS)]
    plain = []
    for member in ours:
        student = PlainDeepSets(CONFIG)
        student.load_state_dict(member.model.state_dict())
        plain.append(PlainTraining(student))
    return ours, plain, (*padded(view), targets.logits[:, 0], view.labels)


def check_same() -> None:
    """Losses and gradients of all members."""
    ours, plain, batch = both()
    soft = torch.sigmoid(batch[2] / TEMPERATURE)
    entropy = F.binary_cross_entropy(soft, soft)  # BCE of soft targets is the KL plus the teacher's entropy
    for member, other in zip(ours, plain, strict=True):
        expected = other.loss(*batch)
        expected.backward()
        found = torch.tensor(member.gradient(2)) + ALPHA * TEMPERATURE**2 * entropy
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-6)
        gradient = torch.cat([p.grad.flatten() for p in other.student.parameters()])
        assert (member.optimizer.gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_deep_sets_pack(benchmark: Any, threads: int) -> None:
    check_same()
    ours, plain, batch = both()
    with ThreadPoolExecutor(threads) as pool:  # a member on each thread, as in the engine
        compare(
            benchmark,
            ours=lambda: list(pool.map(lambda member: member.step(1), ours)),
            plain=lambda: [member.step(*batch) for member in plain],
            check=lambda *_: None,  # done above
            floor=5.0,
            aim=8.0,
            seconds=10.0,
            baseline="a loop: eager, padded, cached teacher, fused AdamW",
        )
