"""A training step of K members on a GPU: against members one by one, PyTorch's ensemble, and K = 1; the grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.compiled_step import ALPHA, TEMPERATURE
from bench.gpu.packed_step import PackedStep, PlainStep, vmap_step
from bench.gpu.timing import compare
from kdfast.models import PRESETS, ModelConfig

STUDY, TOY = PRESETS["study"], ModelConfig(width=16, layers=1, heads=2, ffn=16, pooling_heads=2)
PLAIN_MEMBERS = 2  # as many of the members one after the other are timed
GRID_MEMBERS, GRID_STEPS = 132, 50 * (21_000 // 512)  # the study: configurations; epochs and their steps


def check_same(config: ModelConfig, device: torch.device) -> None:
    """The losses of a third step or later in float32, without dropout and padding, which BatchNorm would see."""
    config = config.model_copy(update={"dropout": 0.0})
    step = PackedStep(config, 2, 32, device, "fp32", full=True)
    for _ in range(2):
        step()
    steps = int(step.trainer.updates[0])  # those before the graph was there are among them
    step.trainer.sums.zero_()
    ours = step()
    plain = PlainStep(config, 2, step, device, "fp32", lambda f: f)
    for _ in range(steps):
        plain()
    soft = torch.sigmoid(step.targets.logits / TEMPERATURE)
    entropy = torch.nn.functional.binary_cross_entropy(soft, soft)  # which plain's loss has and ours has not
    expected = plain().double().cpu() - ALPHA * TEMPERATURE**2 * entropy.double()
    torch.testing.assert_close(ours.cpu(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("baseline", "precision"), [("torch.compile", "bf16"), ("torch.compile", "fp32"), ("eager", "bf16")]
)
def test_packed_step(benchmark: Any, device: torch.device, toy: bool, baseline: str, precision: str) -> None:
    config, members, batch = (TOY, 3, 16) if toy else (STUDY, 32, 512)
    check_same(config, device)
    step = PackedStep(config, members, batch, device, precision)
    backend = "eager" if toy else "inductor"

    def compiled(function: Any) -> Any:
        return torch.compile(function, backend=backend) if baseline == "torch.compile" else function

    plain = PlainStep(config, PLAIN_MEMBERS, step, device, precision, compiled)
    goals = {"floor": 4.0, "aim": 8.0} if baseline == "torch.compile" else {}
    compare(
        device,
        benchmark,
        step,
        plain,
        check=lambda *_: None,  # done above, where both begin with the same weights
        plain_work=PLAIN_MEMBERS / step.members,
        baseline=f"{step.members} members one after the other, {baseline}, {precision}, padded, cached teacher",
        **goals,
    )


def test_ensemble(benchmark: Any, device: torch.device, toy: bool) -> None:
    """Eight small members in float32: vmap has no rule for fused attention and calls it once a member."""
    config, members, batch = (TOY, 2, 16) if toy else (PRESETS["small"], 8, 512)
    step = PackedStep(config, members, batch, device, "fp32", full=True)
    compare(
        device,
        benchmark,
        step,
        vmap_step(config, members, step, device),
        check=lambda *_: None,
        baseline="torch.func.vmap, padded, cached teacher",
    )


@pytest.mark.parametrize("members", [2, 4, 8, 16, 32, 64, GRID_MEMBERS])
def test_growth(benchmark: Any, device: torch.device, toy: bool, members: int) -> None:
    """The ratio is members per second, relative to those of one member alone."""
    config, batch = (TOY, 16) if toy else (STUDY, 512)
    step, alone = (PackedStep(config, k, batch, device, "bf16") for k in (min(members, 3) if toy else members, 1))
    compare(
        device,
        benchmark,
        step,
        alone,
        check=lambda *_: None,
        plain_work=1 / step.members,
        baseline=f"{step.members} × the step of one member",
    )


def test_grid(benchmark: Any, device: torch.device, toy: bool) -> None:
    """Ten minutes over the study's grid as its steps would take, without evaluation: seconds of the grid's steps."""
    config, members, batch = (TOY, 3, 16) if toy else (STUDY, GRID_MEMBERS, 512)
    step, steps = PackedStep(config, members, batch, device, "bf16"), 1 if toy else 5

    def run() -> None:
        for _ in range(steps):
            step()

    compare(device, benchmark, run, run, check=lambda *_: None, baseline="the same")
    info = benchmark.extra_info
    if "ours_s" not in info:  # --benchmark-disable
        return
    share = GRID_STEPS / steps * (GRID_MEMBERS / step.members)
    info["ours_s"] = [seconds * share for seconds in info["ours_s"]]
    ratios = [600.0 / seconds for seconds in reversed(info["ours_s"])]
    info.update(
        plain_s=[600.0] * 3,
        ratio=ratios[1],
        ratio_p20=ratios[0],
        ratio_p80=ratios[2],
        floor=1.0,
        aim=2.0,
        baseline=f"10 minutes; extrapolated from {steps} steps of {step.members} members",
    )
