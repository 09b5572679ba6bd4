"""constituent_attention, forward and backward from one qkv projection, against masked SDPA on padded jets."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.ratio import compare
from kdfast.ops import constituent_attention_qkvpacked

JETS = 512


def counts_of(filling: str, longest: int) -> Tensor:
    """[JETS] constituents: every jet full, a trigger's view (79 % of the slots), or the demo's few (9.5 a jet)."""
    generator = torch.Generator().manual_seed(0)
    if filling == "full":
        return torch.full((JETS,), longest)
    if filling == "79 %":
        return torch.randint(int(0.58 * longest), longest + 1, (JETS,), generator=generator)
    return torch.poisson(torch.full((JETS,), 8.5), generator=generator).long() + 1


@pytest.mark.parametrize(
    ("heads", "d", "longest", "filling", "floor", "aim"),
    [
        (8, 16, 40, "full", 8.0, 12.0),
        (8, 16, 40, "79 %", 8.0, 12.0),
        (8, 16, 128, "full", 4.5, 8.0),
        (4, 8, 30, "demo", 8.0, 12.0),
    ],
    ids=["N=40", "N=40, 79 %", "N=128", "demo"],
)
def test_constituent_attention(
    benchmark: Any, heads: int, d: int, longest: int, filling: str, floor: float, aim: float
) -> None:
    counts = counts_of(filling, longest)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    mask = torch.arange(int(counts.max())) < counts[:, None]
    qkv, grad = torch.randn(int(offsets[-1]), 3, heads, d), torch.randn(int(offsets[-1]), heads, d)
    padded_qkv, padded_grad = torch.zeros(*mask.shape, 3, heads, d), torch.zeros(*mask.shape, heads, d)
    padded_qkv[mask], padded_grad[mask] = qkv, grad
    qkv.requires_grad_()
    padded_qkv.requires_grad_()

    def ours() -> tuple[Tensor, Tensor]:
        out = constituent_attention_qkvpacked(qkv, offsets)
        return out, torch.autograd.grad(out, qkv, grad)[0]

    def plain() -> tuple[Tensor, Tensor]:
        q, k, v = padded_qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :]).transpose(1, 2)
        return out, torch.autograd.grad(out, padded_qkv, padded_grad)[0]

    def check(ours: tuple[Tensor, Tensor], plain: tuple[Tensor, Tensor]) -> None:
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b[mask], rtol=1e-4, atol=1e-5)

    compare(benchmark, ours, plain, check=check, floor=floor, aim=aim, baseline="masked SDPA, fp32")
