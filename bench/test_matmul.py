"""The kernels' product of small matrices against torch.nn.functional.linear, each on one thread, in cache."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bench.ratio import compare
from tests.ops.probe import probe, why_no_probe

pytestmark = pytest.mark.skipif(why_no_probe is not None, reason=str(why_no_probe))

ROWS = 288  # a slice of some jets
REPEATS = 16  # products with the same packed weights: a step's slices. PyTorch does one, and packs as it sees fit.


@pytest.fixture(autouse=True)
def one_thread(threads: int) -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """x in rows of an odd number of cache lines, as the kernels keep theirs."""
    per_line = 64 // x.element_size()
    lines = -(-x.shape[1] // per_line)
    memory = torch.zeros(x.shape[0], (lines | 1) * per_line, dtype=x.dtype)
    memory[:, : x.shape[1]] = x
    return memory


@pytest.mark.parametrize(("k", "n"), [(128, 384), (128, 512), (512, 128), (32, 96)], ids=lambda size: str(size))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_matmul(benchmark: Any, dtype: torch.dtype, k: int, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, k, generator=generator).to(dtype)
    weight = torch.randn(n, k, generator=generator)
    plain_weight, a = weight.to(dtype), in_rows(x)
    c = in_rows(torch.zeros(ROWS, n))
    rounded = torch.zeros(ROWS, c.stride(0), dtype=torch.bfloat16)
    core = probe()
    operands = (a.data_ptr(), a.stride(0), ROWS, weight.data_ptr(), 1, k)

    def ours() -> torch.Tensor:
        if dtype == torch.float32:
            core.matmul_fp32(*operands, k, n, c.data_ptr(), c.stride(0), REPEATS)
        else:  # writes the sums in both types
            core.matmul_bf16(*operands, 0, k, n, c.data_ptr(), rounded.data_ptr(), c.stride(0), REPEATS)
        return c[:, :n]

    def check(ours: torch.Tensor, plain: torch.Tensor) -> None:
        if dtype == torch.float32:  # both sums may be rounded at each of k terms
            assert ((ours - plain).abs() <= 2 * k * 2.0**-24 * (x.abs() @ weight.abs().T)).all()
        else:
            torch.testing.assert_close(ours.to(dtype), plain)

    compare(
        benchmark,
        ours,
        lambda: F.linear(x, plain_weight),
        check=check,
        plain_work=1 / REPEATS,
        seconds=1.0,
        baseline=f"F.linear {str(dtype).removeprefix('torch.')}, 1 thread",
    )
