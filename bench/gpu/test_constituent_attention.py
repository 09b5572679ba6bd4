"""constituent_attention on a GPU, forward and backward from one qkv projection, against PyTorch on ragged jets.

Masked scaled_dot_product_attention by each of its backends that takes a mask, on padded jets; the same on jagged nested
tensors; flex_attention, compiled, on packed rows with a block mask of jets; varlen_attn, FlashAttention on packed rows.
Baselines get their layout for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.timing import compare
from kdfast.ops import constituent_attention_qkvpacked

HEADS, WIDTH = 8, 16
SDPA = {
    "masked SDPA, efficient": SDPBackend.EFFICIENT_ATTENTION,
    "masked SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "masked SDPA, math": SDPBackend.MATH,
}
BASELINES = [*SDPA, "nested tensors", "flex_attention", "varlen_attn"]
Results = tuple[Tensor, Tensor]  # output and gradient of qkv
Plain = tuple[Callable[[], Results], Any]  # a baseline, and which of its rows are constituents


def draw(device: torch.device, jets: int, fewest: int, most: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """offsets, qkv [M, 3, H, d], grad [M, H, d]."""
    generator = torch.Generator(device).manual_seed(0)
    counts = torch.randint(fewest, most + 1, (jets,), generator=generator, device=device)
    offsets = F.pad(counts.cumsum(0), (1, 0))
    shape = (int(offsets[-1]), 3, HEADS, WIDTH)
    qkv = torch.randn(shape, generator=generator, device=device).to(dtype)
    return offsets, qkv.requires_grad_(), torch.randn_like(qkv[:, 0]).detach()


def padded_sdpa(offsets: Tensor, qkv: Tensor, grad: Tensor, which: SDPBackend) -> Plain:
    counts = offsets.diff()
    slots = -(-int(counts.max()) // 8) * 8  # backends want strides in multiples of 8
    mask = torch.arange(slots, device=qkv.device) < counts[:, None]
    leaf, padded_grad = qkv.new_zeros(*mask.shape, *qkv.shape[1:]), grad.new_zeros(*mask.shape, *grad.shape[1:])
    leaf[mask], padded_grad[mask] = qkv.detach(), grad
    leaf.requires_grad_()
    keys = mask[:, None, None, :].expand(-1, HEADS, slots, -1)

    def call() -> Results:
        q, k, v = leaf.permute(2, 0, 3, 1, 4)
        with sdpa_kernel(which):
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys).transpose(1, 2)
        return out.detach(), torch.autograd.grad(out, leaf, padded_grad)[0]

    return call, mask


def nested(offsets: Tensor, qkv: Tensor, grad: Tensor) -> Plain:
    longest = int(offsets.diff().max())
    leaf = qkv.detach().clone().requires_grad_()

    def jagged(x: Tensor) -> Tensor:
        return torch.nested.nested_tensor_from_jagged(x, offsets, max_seqlen=longest).transpose(1, 2)

    def call() -> Results:
        out = F.scaled_dot_product_attention(*map(jagged, leaf.unbind(1))).transpose(1, 2).values()
        return out.detach(), torch.autograd.grad(out, leaf, grad)[0]

    return call, slice(None)


def flex(offsets: Tensor, qkv: Tensor, grad: Tensor, toy: bool) -> Plain:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    rows = -(-len(qkv) // 128) * 128
    jet = F.pad(torch.repeat_interleave(offsets.diff()), (0, rows - len(qkv)), value=-1)

    def same_jet(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return jet[query] == jet[key]

    create = create_block_mask if toy else torch.compile(create_block_mask)  # eager makes a mask of rows × rows
    block_mask = create(same_jet, None, None, rows, rows, device=qkv.device)
    attention = flex_attention if toy else torch.compile(flex_attention)
    leaf = F.pad(qkv.detach(), (0, 0, 0, 0, 0, 0, 0, rows - len(qkv))).requires_grad_()
    padded_grad = F.pad(grad, (0, 0, 0, 0, 0, rows - len(grad)))

    def call() -> Results:
        q, k, v = leaf.permute(1, 2, 0, 3)[:, None]
        out = attention(q, k, v, block_mask=block_mask)[0].transpose(0, 1)
        return out.detach(), torch.autograd.grad(out, leaf, padded_grad)[0]

    return call, slice(len(qkv))


def varlen(offsets: Tensor, qkv: Tensor, grad: Tensor) -> Plain:
    module = pytest.importorskip("torch.nn.attention.varlen", reason="needs PyTorch ≥ 2.10")
    longest = int(offsets.diff().max())
    begins = offsets.int()
    leaf = qkv.detach().clone().requires_grad_()

    def call() -> Results:
        out = module.varlen_attn(*leaf.unbind(1), begins, begins, longest, longest)
        return out.detach(), torch.autograd.grad(out, leaf, grad)[0]

    return call, slice(None)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("longest", [40, 128], ids=["N=40", "N=128"])
def test_constituent_attention(
    benchmark: Any, device: torch.device, toy: bool, longest: int, dtype: torch.dtype, baseline: str
) -> None:
    """79 % of the slots filled."""
    if baseline == "flex_attention" and dtype == torch.float32:
        pytest.skip("flex_attention is compiled for bf16 alone, to save time")
    jets = 8 if toy else 1024
    offsets, qkv, grad = draw(device, jets, int(0.58 * longest), longest, dtype)

    def ours() -> Results:
        out = constituent_attention_qkvpacked(qkv, offsets)
        return out.detach(), torch.autograd.grad(out, qkv, grad)[0]

    if baseline in SDPA:
        plain, rows = padded_sdpa(offsets, qkv, grad, SDPA[baseline])
    elif baseline == "varlen_attn":
        plain, rows = varlen(offsets, qkv, grad)
    else:
        plain, rows = nested(offsets, qkv, grad) if baseline == "nested tensors" else flex(offsets, qkv, grad, toy)
    try:
        plain()
    except RuntimeError as error:  # e.g. cuDNN takes no float32
        pytest.skip(f"{baseline} doesn't take these: {str(error).splitlines()[0]}")

    def check(ours: Results, plain: Results) -> None:
        tolerance = 3e-2 if dtype == torch.bfloat16 else 2e-3  # baselines may use tf32
        for a, b in zip(ours, plain, strict=True):
            torch.testing.assert_close(a, b[rows], rtol=tolerance, atol=tolerance)

    goals = {"floor": 2.0, "aim": 3.0} if baseline in SDPA else {}
    compare(device, benchmark, ours, plain, check=check, baseline=baseline, **goals)
