"""Where a training step's time goes on a GPU: `python -m bench.gpu.step_profile REPORT.json`, half a minute.

torch.profiler over steps of 1, 8 and 32 members: time, GB/s and FLOP/s of every kernel and matrix product, by the
bytes and FLOP that bench/step_model.py states and that the products' shapes give. In the same run: the bandwidth of a
copy and the rate of a large product; the step as a replayed graph; the peak of memory and the engine's own estimate;
attention with and without dropout. bench/gpu/results.py makes tables of the report.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from bench import ratio
from bench.gpu import timing
from bench.gpu.packed_step import PackedStep
from bench.gpu.test_constituent_attention import draw
from bench.gpu.trace import groups_of_trace
from bench.step_model import Batch, step_work
from kdfast.distill.devices import exact_sums
from kdfast.distill.pack import View
from kdfast.models import PRESETS, ModelConfig
from kdfast.ops import gpu
from kdfast.ops.dropout_masks import MaskUse, dropout_masks
from kdfast.ops.packed_attention import attention_plan, packed_attention
from kdfast.ops.packed_rows import Dropout, PackedRows, pair_tiles

MEMBERS = (1, 8, 32)
STEPS = 3  # in the trace
DROPOUT = 0.1


def run(device: torch.device, config: ModelConfig, members: tuple[int, ...], batch: int, scale: int) -> dict[str, Any]:
    """The report. scale: divides the sizes of what a step is compared with, to try it where there is no GPU."""
    seconds = _timer(device)
    report = bounds(device, scale, seconds)
    report["attention"] = attention_times(device, 4096 // scale, seconds)
    report["steps"] = [profile_step(device, config, k, batch, seconds) for k in members]
    return report


def bounds(device: torch.device, scale: int, seconds: Callable[[Any], float]) -> dict[str, Any]:
    """What this card does at best: a copy of 1 GiB, a product of bf16 matrices."""
    n = 8192 // scale
    source = torch.zeros(2**28 // scale, device=device)
    target = torch.empty_like(source)
    a, b = torch.randn(2, n, n, device=device).bfloat16()
    copy = seconds(lambda: target.copy_(source))
    product = seconds(lambda: a @ b)
    return {
        "copy_bytes_per_second": 2 * 4 * source.numel() / copy,
        "product_flops_per_second": 2 * n**3 / product,
        "product": f"[{n}, {n}]·[{n}, {n}] bf16",
    }


def profile_step(
    device: torch.device, config: ModelConfig, members: int, batch: int, seconds: Callable[[Any], float]
) -> dict[str, Any]:
    """Of a step of K members in bf16. The trace is of steps outside the graph: kernels of a replay name no op."""
    before = _memory(device)
    step = PackedStep(config, members, batch, device, "bf16")
    step()
    report: dict[str, Any] = {"members": step.members, "seconds": seconds(step)}
    if device.type == "cuda":
        plan = step.trainer.plan
        report["memory_estimate"] = step.members * plan.member_bytes() + plan.planning_bytes() + plan.mask_bytes()
        report["memory_peak"] = torch.cuda.max_memory_allocated(device) - before
        report["memory_reserved"] = torch.cuda.memory_reserved(device)
    works = step_work(config, step.members, batch_of(step.view, step.trainer.plan.capacity), "bf16")
    groups = groups_of_trace(traced(device, step), STEPS, works)
    report["kernels"] = [group.record() for group in groups]
    return report


def batch_of(view: View, capacity: int) -> Batch:
    counts = view.offsets.diff()
    tiles = int(pair_tiles(counts).sum())
    pieces = int(((counts + 31) // 32).sum())
    return Batch(len(view), int(counts.sum()), int((counts**2).sum()), capacity, tiles, pieces)


def traced(device: torch.device, step: PackedStep) -> list[dict[str, Any]]:
    """Events of a few steps that are launched one kernel after the other."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with exact_sums(), profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(STEPS):
            step.trainer.next.zero_()
            step.trainer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def attention_times(device: torch.device, jets: int, seconds: Callable[[Any], float]) -> list[dict[str, Any]]:
    """Seconds of the engine's attention in bf16, forward, and forward with backward, with and without dropout."""
    offsets, qkv, grad = draw(device, jets, 23, 40, torch.bfloat16)
    leaf = qkv.detach()[None].requires_grad_()
    rows = PackedRows.of_constituents(offsets)
    plan = attention_plan(leaf, rows)
    times = []
    for p in (0.0, DROPOUT):
        dropout = None
        if p:
            seeds = torch.ones(1, dtype=torch.int64, device=device)
            (dropout,) = dropout_masks(rows, [MaskUse("pairs", qkv.shape[-2])], p, seeds, plan)

        def forward(dropout: Dropout | None = dropout) -> torch.Tensor:
            return packed_attention(leaf, rows, dropout, plan)

        def both(forward: Callable[[], torch.Tensor] = forward) -> None:
            torch.autograd.grad(forward(), leaf, grad[None])

        times.append({"jets": jets, "dropout": p, "forward": seconds(forward), "forward_and_backward": seconds(both)})
    return times


def _timer(device: torch.device) -> Callable[[Any], float]:
    """Seconds of a call: the fastest of some samples of several calls, after a few that don't count."""
    sample = timing._sample if device.type == "cuda" else ratio._sample
    calls = 10 if device.type == "cuda" else 1

    def seconds(call: Callable[[], Any]) -> float:
        sample(call, max(1, calls // 3))
        return min(sample(call, calls) for _ in range(3))

    return seconds


def _memory(device: torch.device) -> int:
    """Bytes in use, of which the peak begins anew."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def main(path: Path) -> None:
    toy = os.environ.get("KDFAST_BENCH_TOY") == "1"
    if not toy and (why := gpu.why_unusable()) is not None:
        sys.exit(f"no GPU can be used: {why}")
    study = PRESETS["study"]
    assert isinstance(study, ModelConfig)
    small = ModelConfig(width=16, layers=1, heads=2, ffn=16, pooling_heads=2)
    device = torch.device("cpu" if toy else "cuda")
    report = run(device, small, (1, 2), 16, 64) if toy else run(device, study, MEMBERS, 512, 1)
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for step in report["steps"]:
        print(f"{step['members']} members: {step['seconds'] * 1e3:.2f} ms a step, {len(step['kernels'])} kernels")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
