"""dropout, forward and backward, against torch's own (which draws another mask every time)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ratio import compare
from kdfast.ops import dropout

P = 0.1


@pytest.mark.parametrize(
    ("constituents", "features"), [(9, 32), (32, 128), (32, 512)], ids=["N=9, 32", "N=32, 128", "N=32, 512"]
)
def test_dropout(benchmark: Any, constituents: int, features: int) -> None:
    offsets = torch.arange(513) * constituents
    x = torch.randn(int(offsets[-1]), features, requires_grad=True)
    grad = torch.ones_like(x)

    def ours() -> Tensor:
        return torch.autograd.grad(dropout(x, offsets, P, 7), x, grad)[0]

    def plain() -> Tensor:
        return torch.autograd.grad(F.dropout(x, P), x, grad)[0]

    def check(ours: Tensor, plain: Tensor) -> None:
        for y in (ours, plain):  # the same scale, and the same rate within five standard deviations
            torch.testing.assert_close(y.max().item(), 1 / (1 - P), rtol=1e-4, atol=0)
            assert abs((y == 0).double().mean().item() - P) < 5 * (P / y.numel()) ** 0.5

    compare(benchmark, ours, plain, check=check, floor=1.0, aim=8.0, baseline="F.dropout")
