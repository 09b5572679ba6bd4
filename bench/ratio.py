"""How many times faster ours is than a plain baseline, measured in one run.

A benchmark:

    def test_distill_loss(benchmark):                      # pytest-benchmark's fixture
        ...                                                # same inputs for both
        compare(
            benchmark,
            ours=lambda: distill_loss(student, teacher, ...),
            plain=lambda: eager_loss(student, teacher, ...),   # what a competent user would write without kdfast
            check=lambda ours, plain: torch.testing.assert_close(ours, plain),   # both compute the same
            floor=5.0, aim=10.0,                           # the ratio to reach; the benchmark reports, it does not fail
        )

`kdfast bench` runs the benchmarks and prints the ratios.
"""

import platform
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import kdfast
from kdfast.ops import backend

Sample = Callable[[Callable[[], Any], int], float]  # seconds of one call, as the mean of so many

SAMPLE_SECONDS = 0.004  # one timing covers as many calls as fill this
MIN_ROUNDS, MAX_ROUNDS = 5, 101


def compare(
    benchmark: Any,
    ours: Callable[[], Any],
    plain: Callable[[], Any],
    *,
    check: Callable[[Any, Any], None],
    floor: float | None = None,
    aim: float | None = None,
    plain_work: float = 1.0,
    seconds: float = 2.0,
    baseline: str = "plain PyTorch",
    sample: Sample | None = None,
) -> float:
    """Measures `ours` and `plain` in turns (A B A B …), records the result in benchmark.extra_info, returns the ratio.

    The ratio is median(plain) / plain_work / median(ours).
    check: called once, before any timing, with the results of both; raises where they differ.
    floor, aim: the ratio that must and that should be reached; reported beside it.
    plain_work: how much of ours' work plain does, e.g. 0.1 where it sees a tenth of the jets because it is slow.
    seconds: the time to spend on the pairs, of which there are at least MIN_ROUNDS however long they take.
    baseline: what plain is, in a few words.
    sample: how a call is timed; None: by the host's clock.

    extra_info: ratio, ratio_p20, ratio_p80 (of the pairs), ours_s and plain_s (p20, p50, p80 of one call in seconds),
    floor, aim, baseline, plain_work, rounds, threads, isa, cpu, versions.
    """
    check(ours(), plain())
    if benchmark.disabled:  # --benchmark-disable: only the check
        benchmark(lambda: None)
        return float("nan")
    sample = sample or _sample
    ours_calls, plain_calls = _calls_per_sample(ours, sample), _calls_per_sample(plain, sample)
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < MIN_ROUNDS or (time.perf_counter() < end and len(pairs) < MAX_ROUNDS):
        pairs.append((sample(ours, ours_calls), sample(plain, plain_calls)))
    ours_s, plain_s = np.array(pairs).T
    ratio = float(np.median(plain_s) / plain_work / np.median(ours_s))
    ratio_p20, ratio_p80 = np.percentile(plain_s / plain_work / ours_s, [20, 80])
    benchmark.extra_info.update(
        ratio=ratio,
        ratio_p20=float(ratio_p20),
        ratio_p80=float(ratio_p80),
        ours_s=np.percentile(ours_s, [20, 50, 80]).tolist(),
        plain_s=np.percentile(plain_s, [20, 50, 80]).tolist(),
        floor=floor,
        aim=aim,
        baseline=baseline,
        plain_work=plain_work,
        rounds=len(pairs),
        **environment(),
    )
    # pytest-benchmark's own table, which knows nothing of pairs: ours alone, briefly.
    benchmark.pedantic(ours, rounds=3 if np.median(ours_s) < 0.5 else 1, iterations=ours_calls)
    return ratio


def environment() -> dict[str, Any]:
    """What a timing depends on: threads, isa (of the compiled kernels), cpu, versions."""
    module = backend.cpu_module() if backend.why_no_cpu is None else None
    return {
        "threads": torch.get_num_threads(),
        "isa": module.isa if module is not None and backend.forced() != "reference" else "reference",
        "cpu": _cpu_name(),
        "versions": {
            "kdfast": kdfast.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _sample(call: Callable[[], Any], calls: int) -> float:
    """Seconds of one call, as the mean of `calls`."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _calls_per_sample(call: Callable[[], Any], sample: Sample) -> int:
    """How many calls fill SAMPLE_SECONDS; warms up on the way."""
    calls = 1
    while (elapsed := sample(call, calls) * calls) < SAMPLE_SECONDS / 2:
        calls *= 2
    return max(1, round(calls * SAMPLE_SECONDS / elapsed))


@cache
def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
