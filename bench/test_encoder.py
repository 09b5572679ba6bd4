"""The compiled step of the study's model against what the processor can do: its peak of FMAs, and a second core."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bench.compiled_step import CompiledStep, jets, random_targets
from bench.ratio import compare
from kdfast.models import PRESETS, ModelConfig
from kdfast.ops import backend
from tests.ops.probe import probe, why_no_probe

pytestmark = pytest.mark.skipif(backend.why_no_cpu is not None, reason=str(backend.why_no_cpu))

CONFIG, JETS = PRESETS["study"], 512


def student(precision: str = "fp32", config: ModelConfig = CONFIG) -> CompiledStep:
    return CompiledStep(config, jets(0, JETS), random_targets(JETS), precision)


def layer_operations(config: ModelConfig, rows: int) -> int:
    """Floating-point operations of the encoder layers' matrices on `rows` constituents.

    Two for each weight and row forward, and twice as many backward: for the gradient of x and that of W.
    """
    weights = 4 * config.width**2 + 2 * config.width * config.ffn  # q, k, v, out; in and out of the FFN
    return 6 * rows * config.layers * weights


def attention_operations(config: ModelConfig, counts: torch.Tensor) -> int:
    """The same of attention: two products of n² · width forward, four backward."""
    return 12 * int((counts**2).sum()) * config.width * config.layers


@pytest.mark.skipif(why_no_probe is not None, reason=str(why_no_probe))
def test_share_of_peak(benchmark: Any, threads: int) -> None:
    """A whole step, gradient and AdamW, beside as many FMAs in registers as its layers' matrices need, nothing else.

    Attention, pooling and the head cost time and count for nothing here.
    """
    ours = student()
    operations = layer_operations(CONFIG, len(ours.inputs.features))
    attention = attention_operations(CONFIG, ours.inputs.offsets.diff())
    compare(
        benchmark,
        ours=lambda: ours.step(threads),
        plain=lambda: probe().fma(operations // threads, threads),
        check=lambda loss, finite: None if finite and loss > 0 else pytest.fail(f"{loss=} {finite=}"),
        floor=0.60,
        aim=0.78,
        seconds=6.0,
        baseline=f"{operations / 1e9:.1f} GFLOP of FMAs in registers (attention's {attention / 1e9:.1f} not counted)",
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_threads_one_member(benchmark: Any, precision: str) -> None:
    ours = student(precision)

    def gradient(num_threads: int) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            ours.gradient(num_threads)
            return ours.optimizer.gradient.clone()

        return call

    compare(
        benchmark,
        ours=gradient(2),
        plain=gradient(1),
        check=lambda two, one: torch.testing.assert_close(two, one, rtol=0, atol=0),  # the same bits
        floor=1.8,
        aim=1.95,
        seconds=6.0,
        baseline="one thread",
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_threads_two_members(benchmark: Any, precision: str) -> None:
    members = [student(precision), student(precision)]

    def gradient(member: CompiledStep) -> torch.Tensor:
        member.gradient(1)
        return member.optimizer.gradient.clone()

    with ThreadPoolExecutor(2) as pool:
        compare(
            benchmark,
            ours=lambda: torch.stack(list(pool.map(gradient, members))),
            plain=lambda: torch.stack([gradient(member) for member in members]),
            check=lambda two, one: torch.testing.assert_close(two, one, rtol=0, atol=0),
            floor=1.8,
            aim=1.95,
            seconds=6.0,
            baseline="one after the other",
        )


def test_beside_torch(benchmark: Any, threads: int) -> None:
    """Steps of a small model with PyTorch's own work in between: do two pools of threads get in each other's way?

    1 means that they don't; the baseline does the steps first, then PyTorch's products.
    """
    ours = student("fp32", PRESETS["small"])
    x, weight = torch.randn(4096, 128), torch.randn(512, 128)
    rounds = 8

    def mixed() -> float:
        for _ in range(rounds):
            loss = ours.gradient(threads)
            torch.nn.functional.linear(x, weight)
        return loss

    def apart() -> float:
        for _ in range(rounds):
            loss = ours.gradient(threads)
        for _ in range(rounds):
            torch.nn.functional.linear(x, weight)
        return loss

    def check(mixed: float, apart: float) -> None:
        assert mixed == apart

    compare(benchmark, mixed, apart, check=check, seconds=4.0, baseline="the same work, one kind after the other")
