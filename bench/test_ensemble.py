"""One batch for a pack of 8 members: ours, PyTorch's ensemble by torch.func.vmap, and a plain loop over members.

The members share the batch and differ in their weights. Both baselines are spared the teacher: its outputs are kept.

Batches are of 128 jets, not of the recipe's 512: vmap has no rule for fused attention and calls it once a member. With
512 jets a step of it on the preset `medium` computes the same but holds 10 GB, and the row takes many minutes.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from bench.compiled_step import ALPHA, RECIPE, TEMPERATURE, CompiledStep, jets, padded, random_targets
from bench.plain_trainer import Padded, PlainTagger, PlainTrainer, TeacherOutputs, distillation_loss
from bench.ratio import compare
from kdfast.models import PRESETS, ModelConfig
from kdfast.ops import backend

pytestmark = pytest.mark.skipif(backend.why_no_cpu is not None, reason=str(backend.why_no_cpu))

MEMBERS, JETS = 8, 128


class VmapEnsemble:
    """K plain students with stacked parameters [K, …]; each is clipped by its own norm, one AdamW serves all."""

    def __init__(self, students: list[PlainTagger]) -> None:
        self.parameters, self.buffers = stack_module_state(students)
        self.skeleton = students[0].to("meta")
        values = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(values, lr=RECIPE.learning_rate, weight_decay=RECIPE.weight_decay)

    def losses(
        self, hlt: Padded, teacher: TeacherOutputs, labels: Tensor, temperature: float, alpha: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients [K, …] and losses [K]."""

        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            logits, attention = functional_call(self.skeleton, (parameters, buffers), hlt)
            return distillation_loss(logits, attention, hlt[1], teacher, labels, temperature, alpha)

        return vmap(grad_and_value(loss), randomness="different")(self.parameters, self.buffers)

    def step(self, *batch: Any) -> Tensor:
        """One update of all; the arguments of `losses`."""
        gradients, losses = self.losses(*batch)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        scale = (RECIPE.clip_norm / (norms + 1e-6)).clamp(max=1.0)
        for name, parameter in self.parameters.items():
            parameter.grad = gradients[name] * scale.view(-1, *[1] * (parameter.ndim - 1))
        self.optimizer.step()
        return losses


def pack(config: ModelConfig) -> tuple[list[CompiledStep], list[PlainTagger], tuple[Any, ...]]:
    """Ours, plain students of the same weights, and the plain batch, of full jets: BatchNorm would see padding."""
    view, targets = jets(0, JETS, 40, 40), random_targets(JETS)
    ours = [CompiledStep(config, view, targets, seed=seed) for seed in range(MEMBERS)]
    students = [PlainTagger(config).train() for _ in ours]
    for student, member in zip(students, ours, strict=True):
        student.copy_weights(member.model)
    teacher = (targets.logits, targets.attention_entropy, targets.attention_max)
    return ours, students, (padded(view), teacher, view.labels, TEMPERATURE, ALPHA)


def check_same(config: ModelConfig) -> None:
    """The losses of all members, and gradients, without dropout."""
    ours, students, batch = pack(config.model_copy(update={"dropout": 0.0}))
    trainers = [PlainTrainer(s, s, RECIPE.learning_rate, RECIPE.weight_decay) for s in students]
    for trainer in trainers:
        trainer.student.train()
    plain = torch.stack([trainer.loss(*batch) for trainer in trainers])
    plain.sum().backward()
    gradients = [s.encoder.layers[0].self_attn.in_proj_weight.grad for s in students]
    stacked, losses = VmapEnsemble(students).losses(*batch)
    torch.testing.assert_close(losses, plain.detach(), rtol=1e-4, atol=1e-5)
    soft = torch.sigmoid(batch[1][0] / TEMPERATURE)
    entropy = torch.nn.functional.binary_cross_entropy(soft, soft)
    found = torch.tensor([member.gradient(2) for member in ours]) + ALPHA * TEMPERATURE**2 * entropy
    torch.testing.assert_close(found, plain.detach(), rtol=1e-4, atol=1e-5)
    vmapped = stacked["encoder.layers.0.self_attn.in_proj_weight"]
    for member, gradient, other in zip(ours, gradients, vmapped, strict=True):
        for one in (member.model.encoder[0].qkv.weight.grad, other):
            assert (one - gradient).norm() < 1e-3 * gradient.norm()


@pytest.mark.parametrize("baseline", ["vmap", "loop"])
@pytest.mark.parametrize("preset", ["small", "medium"])
def test_ensemble(benchmark: Any, threads: int, preset: str, baseline: str) -> None:
    config = PRESETS[preset]
    check_same(config)
    ours, students, batch = pack(config)
    hlt, teacher, *rest = batch
    if baseline == "vmap":
        ensemble = VmapEnsemble(students)
    else:
        trainers = [PlainTrainer(s, s, RECIPE.learning_rate, RECIPE.weight_decay) for s in students]
        for student in students:
            student.train()  # which it is not as its trainer's teacher

    def plain() -> Any:
        if baseline == "vmap":
            return ensemble.step(*batch)
        return [trainer.step(hlt, None, *rest, cached=teacher) for trainer in trainers]

    with ThreadPoolExecutor(threads) as pool:  # a member on each thread, as in the engine
        compare(
            benchmark,
            ours=lambda: list(pool.map(lambda member: member.step(1), ours)),
            plain=plain,
            check=lambda *_: None,  # done above, where dropout is off
            seconds=5.0,
            baseline={
                "vmap": "torch.func.vmap, padded, cached teacher",
                "loop": "a loop, padded, cached teacher",
            }[baseline],
        )
