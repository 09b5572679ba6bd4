"""A compiled network on a batch of jets, against the model and loss that specify it, in float64."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from kdfast import backend
from kdfast.distill.pack import Member, Pack, Targets, View
from kdfast.distill.recipe import Recipe
from kdfast.distill.reference_engine import member_loss
from kdfast.distill.schedules import RunConfig
from kdfast.models.build import build_network
from kdfast.models.compiled import CompiledModel, StepInputs
from kdfast.models.config import NetworkConfig
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.models.network import Network
from tests.ops.accuracy import assert_accurate

TEMPERATURE, ALPHA, ATTENTION_WEIGHT, DROPOUT_SEED = 3.0, 0.6, 0.2, 0x1234_5678_9ABC


class Case:
    """A model away from its initial weights, jets, teacher targets, and the order of a batch."""

    def __init__(self, config: NetworkConfig, counts: list[int], seed: int = 0, teacher: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.config, self.seed, jets = config, seed, len(counts)
        offsets = torch.tensor([0, *counts]).cumsum(0)
        features = torch.randn(int(offsets[-1]), config.num_features, generator=generator) + 0.3
        weights = torch.rand(jets, generator=generator) + 0.5
        self.view = View(features, offsets, (torch.arange(jets) % 2).float(), weights)
        self.targets = Targets(
            torch.randn(jets, 1, generator=generator),
            torch.rand(jets, generator=generator),
            torch.rand(jets, generator=generator),
        )
        self.teacher = teacher
        self.temperature, self.alpha = TEMPERATURE, ALPHA
        self.order = torch.randperm(jets, generator=generator)
        self.model = build_network(config, seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            for name, buffer in self.model.named_buffers():
                if "running" in name:
                    buffer.add_(0.2 * torch.rand(buffer.shape, generator=generator))

    def __repr__(self) -> str:
        counts = self.view.offsets.diff().tolist()
        return f"{self.config}, seed {self.seed}, teacher {self.teacher}, jets of {counts}"

    def rounded_otherwise(self, seed: int) -> Case:
        """This case with the last bit of a third of its weights and features up, of another third down."""
        case, generator = deepcopy(self), torch.Generator().manual_seed(seed)
        eps = torch.finfo(torch.float32).eps
        with torch.no_grad():
            for x in (*case.model.parameters(), case.view.features):
                x.mul_(1 + eps * torch.randint(-1, 2, x.shape, generator=generator))
        return case

    def copy(self, dtype: torch.dtype) -> Network:
        model = build_network(self.config).to(dtype)
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in self.model.state_dict().items()})
        return model

    def specified(self, dtype: torch.dtype, precision: str = "fp32") -> tuple[Tensor, Tensor, Tensor]:
        """(loss and its parts [4], gradient [P], running statistics) by PyTorch in dtype; "bf16": with autocast."""
        model = self.copy(dtype).train()
        view = View(*(x.to(dtype) if x.is_floating_point() else x for x in vars(self.view).values()))
        targets = Targets(*(x.to(dtype) for x in vars(self.targets).values())) if self.teacher else None
        member = Member("member", RunConfig(self.temperature, self.alpha) if self.teacher else None)
        recipe = Recipe(batch_size=len(view), attention_weight=ATTENTION_WEIGHT)
        pack = Pack(self.config, (member,), 0, recipe, view, view, view, targets, precision)
        alpha = self.alpha if self.teacher else 0.0
        with backend("reference"):
            loss, terms = member_loss(pack, member, model, self.order, self.temperature, alpha, DROPOUT_SEED)
            loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return terms, gradient, flatten_running(model).to(dtype)

    def kernels(self, precision: str = "fp32") -> CompiledModel:
        model = self.copy(torch.float32)
        return CompiledModel(self.config, flatten_parameters(model), flatten_running(model), precision)

    def inputs(self) -> StepInputs:
        view, targets = self.view, self.targets
        teacher = (targets.logits[:, 0].contiguous(), targets.attention_entropy, targets.attention_max)
        return StepInputs(view.features, view.offsets, view.labels, view.weights, *(teacher if self.teacher else ()))

    def compiled(self, num_threads: int = 1, precision: str = "fp32") -> tuple[Tensor, Tensor, Tensor]:
        """The same by the compiled step."""
        kernels = self.kernels(precision)
        gradient = torch.full_like(kernels.parameters, torch.nan)
        return self.step(kernels, gradient, num_threads), gradient, kernels.running

    def step(
        self, kernels: CompiledModel, gradient: Tensor, num_threads: int = 1, seconds: Tensor | None = None
    ) -> Tensor:
        return kernels.gradient(
            gradient,
            self.inputs(),
            self.order,
            temperature=self.temperature,
            alpha=self.alpha if self.teacher else 0.0,
            attention_weight=ATTENTION_WEIGHT,
            dropout_seed=DROPOUT_SEED,
            num_threads=num_threads,
            seconds=seconds,
        )


def check_step(case: Case, num_threads: int) -> None:
    compiled = case.compiled(num_threads)
    plain, exact = case.specified(torch.float32), case.specified(torch.float64)
    torch.testing.assert_close(compiled[0], exact[0], rtol=2e-5, atol=1e-6)
    assert_accurate(compiled[2], plain[2], exact[2], "running statistics")
    # The gradient is the end of some hundred roundings in a row, so how far a single computation is off is chance, in
    # PyTorch too: where two terms cancel (with one feature, BatchNorm undoes the scale of `embed.linear.weight`), it
    # may be off by little once and by ten times that where a weight's last bit differs. The standard is thus the
    # largest of four computations by PyTorch. The mean is held to the rule, the largest of each parameter to twice
    # its bound.
    plains = [plain, *(case.rounded_otherwise(seed).specified(torch.float32) for seed in range(3))]
    ours = (compiled[1].double() - exact[1]).abs()
    theirs = torch.stack([(x[1].double() - exact[1]).abs() for x in plains])
    eps = torch.finfo(torch.float32).eps
    assert ours.mean() <= 2 * theirs.mean(1).max() + 2 * eps * exact[1].abs().mean(), case
    floor = 8 * eps * exact[1].abs().max()
    parts = [p.numel() for p in case.model.parameters()]
    for (name, _), our, their in zip(
        case.model.named_parameters(), ours.split(parts), theirs.split(parts, 1), strict=True
    ):
        assert our.max() <= 4 * their.max() + floor, f"{name}, {case}"
