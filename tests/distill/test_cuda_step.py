"""A whole training step of three members by the CUDA kernels, against the reference engine's and float64."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import Tensor

from kdfast import backend
from kdfast.distill.checkpoint import MemberCheckpoint
from kdfast.distill.cuda_plan import Plan
from kdfast.distill.cuda_step import LockStep
from kdfast.distill.optimizer import learning_rate
from kdfast.distill.pack import Member, Pack, Targets, View
from kdfast.distill.reference_engine import member_loss
from kdfast.models.build import build_network
from kdfast.models.config import NetworkConfig
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.ops import gpu
from kdfast.ops.adamw import adamw_reference
from kdfast.ops.philox import derive_seed, fold_seed
from tests.distill.packs import DEEP_SETS, MODEL, pack, students
from tests.ops.backends import cuda_kernels

pytestmark = pytest.mark.cuda_kernels

STATE = ("parameters", "moment1", "moment2", "running")
OPS = {"adamw", "distill_loss"}
OPS_OF_TRANSFORMERS = {"attention_transfer", "constituent_attention_plan"}
OPS_WITH_BACKWARD = {"attention_pooling", "batch_norm_gelu", "bias_gelu", "constituent_attention", "residual_norm"}


def reference_step(a_pack: Pack, state: dict[str, Tensor], number: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """What step `number` of the first epoch makes of `state`, [K, …] each, with gradient and the losses' parts."""

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype) if x.is_floating_point() else x

    def all_cast(arrays: View | Targets) -> View | Targets:
        return replace(arrays, **{name: cast(x) for name, x in vars(arrays).items() if x is not None})

    names = ("train", "validation", "test", "targets")
    a_pack = replace(a_pack, **{name: all_cast(getattr(a_pack, name)) for name in names})
    epochs, jets = a_pack.recipe.epochs, Plan(a_pack).batches(0)[number]
    seed = fold_seed(derive_seed(a_pack.seed, "dropout"), number)
    gradients, runnings, parts = [], [], []
    for k, member in enumerate(a_pack.members):
        model = build_network(a_pack.model).to(dtype).train()
        flatten_parameters(model).copy_(state["parameters"][k])
        running = flatten_running(model).to(dtype).copy_(state["running"][k])
        temperature, alpha = member.config.at(0, epochs) if member.config else (1.0, 0.0)
        loss, terms = member_loss(a_pack, member, model, jets, temperature, alpha, seed)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        runnings.append(running)
        parts.append(terms)
    after = {name: cast(state[name]).clone() for name in STATE}
    gradient, full = torch.stack(gradients), torch.full((len(a_pack.members),), 1.0, dtype=dtype)
    adamw_reference(
        after["parameters"],
        gradient,
        after["moment1"],
        after["moment2"],
        torch.full((len(full),), number + 1),
        full * learning_rate(0, epochs, a_pack.recipe.warmup_epochs, a_pack.recipe.learning_rate),
        full * a_pack.recipe.weight_decay,
        a_pack.recipe.clip_norm,
    )
    return after | {"running": torch.stack(runnings), "gradient": gradient, "sums": torch.stack(parts)}


@pytest.mark.parametrize("model", [MODEL, DEEP_SETS], ids=["transformer", "deepsets"])
def test_the_parameters_in_bfloat16_follow(model: NetworkConfig) -> None:
    """Through steps, and where a checkpoint is loaded; the rows' padding stays zero."""
    a_pack = replace(pack(students(2), model=model), precision="bf16")
    trainer = LockStep(a_pack, list(a_pack.members), Plan(a_pack))
    assert trainer.rounded is not None
    trainer.begin_epoch(0)
    before = trainer.rounded.clone()
    for number in range(2):
        with cuda_kernels(number):
            trainer.step()
        assert torch.equal(trainer.rounded, trainer.flat[0].bfloat16())
    assert not torch.equal(trainer.rounded, before)
    assert trainer.flat[0].shape[1] > trainer.parameters.shape[1]
    for buffer in trainer.flat:
        assert not buffer[:, trainer.parameters.shape[1] :].any()
    start = {name: 2 * x.clone() for name, x in trainer.tensors(1).items()}
    trainer.load(1, MemberCheckpoint(step=2, sums=torch.zeros(4, dtype=torch.float64), learner=start))
    trainer.begin_epoch(0, 2)
    assert torch.equal(trainer.parameters[1], start["parameters"])
    assert torch.equal(trainer.rounded, trainer.flat[0].bfloat16())


def assert_as_accurate(ours: Tensor, plain: Tensor, exact: Tensor, case: str) -> None:
    """The rule for the ends of some hundred roundings in a row, where a single element's error is chance in PyTorch's
    computation too (tests/models/test_encoder.py has it as well): the mean error is held to twice PyTorch's, the
    largest to four times."""
    if exact.numel() == 0:  # running statistics of a network without norms
        assert ours.shape == exact.shape, case
        return
    eps = torch.finfo(torch.float32).eps
    errors, standards = ((x.double() - exact).abs() for x in (ours, plain))
    assert errors.mean() <= 2 * standards.mean() + 2 * eps * exact.abs().mean(), case
    assert errors.max() <= 4 * standards.max() + 8 * eps * exact.abs().max(), case


@pytest.mark.parametrize(
    "model",
    [MODEL, MODEL.model_copy(update={"dropout": 0.0}), DEEP_SETS],
    ids=["transformer", "without dropout", "deepsets"],
)
def test_steps_of_three_members(model: NetworkConfig) -> None:
    """The second step reads other jets, offsets, seeds and moments from the same places."""
    a_pack = pack([Member("baseline"), *students(2)], model=model, learning_rate=1e-2, weight_decay=0.1)
    expected_ops = OPS | OPS_OF_TRANSFORMERS | OPS_WITH_BACKWARD | {f"{op}_backward" for op in OPS_WITH_BACKWARD}
    if model is DEEP_SETS:
        expected_ops = OPS
    elif model.dropout > 0:
        expected_ops |= {"dropout_masks"}
    trainer = LockStep(a_pack, list(a_pack.members), Plan(a_pack))
    generator = torch.Generator().manual_seed(3)
    for name in ("moment1", "moment2"):  # from zeros AdamW's first step is the sign of each element
        getattr(trainer, name).copy_(torch.rand(trainer.moment1.shape, generator=generator) * 1e-2)
    trainer.begin_epoch(0)
    for number in range(2):
        state = {name: getattr(trainer, name).detach().clone() for name in STATE}
        trainer.sums.zero_()
        with cuda_kernels(number), mock.patch.object(gpu, "call", wraps=gpu.call) as call:
            trainer.step()
            ran = {arguments.args[0] for arguments in call.call_args_list}
        assert ran == expected_ops
        with backend("reference"):
            plain, exact = (reference_step(a_pack, state, number, dtype) for dtype in (torch.float32, torch.float64))
        assert trainer.alive.all()
        for name, expected in exact.items():
            case = f"{name} after step {number}"
            assert_as_accurate(getattr(trainer, name).detach(), plain[name], expected, case)
