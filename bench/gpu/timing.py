"""compare of bench/ratio.py on a GPU: CUDA events, and the card beside each result."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from bench import ratio
from kdfast.ops import backend

SECONDS = 0.5  # for the pairs of a benchmark
_FLUSH_BYTES = 512 * 2**20  # more than any second-level cache


def compare(
    device: torch.device,
    benchmark: Any,
    ours: Callable[[], Any],
    plain: Callable[[], Any],
    *,
    flush: bool = False,
    **options: Any,
) -> float:
    """ratio.compare with times from CUDA events, around several calls; or around each, with cold caches, if flush."""
    if device.type != "cuda":
        return ratio.compare(benchmark, ours, plain, seconds=0.0, **options)
    sample = _flushed() if flush else _sample
    found = ratio.compare(benchmark, ours, plain, sample=sample, **{"seconds": SECONDS} | options)
    benchmark.extra_info["gpu"] = gpu_environment()
    return found


def captured(device: torch.device, call: Callable[[], Any]) -> Callable[[], Any]:
    """The same as replays of a CUDA graph: kernels alone, without the host's part."""
    if device.type != "cuda":
        return call
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Any:
        graph.replay()
        return results

    return replay


@cache
def gpu_environment() -> dict[str, str]:
    """The card, its driver, and the versions of CUDA."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader", "-i", "0"]
    said = subprocess.run(query, capture_output=True, text=True).stdout.strip().split(", ")
    driver, clock, power = said if len(said) == 3 else ["unknown"] * 3
    return {
        "name": torch.cuda.get_device_name(),
        "driver": driver,
        "highest clock": clock,
        "power limit": power,
        "torch": f"{torch.__version__} with CUDA {torch.version.cuda}",
        "kdfast built by CUDA": "not built" if backend.why_no_cuda else backend.cuda_module().cuda_version,
    }


def _sample(call: Callable[[], Any], calls: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def _flushed() -> ratio.Sample:
    memory = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def sample(call: Callable[[], Any], calls: int) -> float:
        pairs = []
        for _ in range(calls):
            memory.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3 / calls

    return sample
