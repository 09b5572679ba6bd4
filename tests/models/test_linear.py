"""Linear layers of several members: the same products as PyTorch's, with gradients at their places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kdfast.models.linear import packed_linear

MEMBERS, ROWS, INNER, COLUMNS = 3, 37, 16, 24


def places() -> tuple[Tensor, Tensor, Tensor]:
    """A flat gradient [K, P] of NaN whose rows are longer than what is in them, and its parts for weight and bias."""
    flat = torch.full((MEMBERS, 8 + COLUMNS * INNER + COLUMNS + 5), torch.nan)
    weight, bias = flat[:, 8:-5].split([COLUMNS * INNER, COLUMNS], 1)
    return flat, weight.view(MEMBERS, COLUMNS, INNER), bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_places", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["own inputs", "inputs that members share"])
def test_gradients_are_pytorchs(dtype: torch.dtype, has_bias: bool, has_places: bool, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1 if shared else MEMBERS, ROWS, INNER, generator=generator).to(dtype).expand(MEMBERS, -1, -1)
    weight = torch.randn(MEMBERS, COLUMNS, INNER, generator=generator).requires_grad_()
    bias = torch.randn(MEMBERS, COLUMNS, generator=generator).requires_grad_()
    wanted = torch.randn(MEMBERS, ROWS, COLUMNS, generator=generator).to(dtype)
    x = x if shared else x.requires_grad_()
    leaves = [weight, *([bias] if has_bias else []), *([] if shared else [x])]

    expected = torch.bmm(x, weight.to(dtype).transpose(1, 2))
    if has_bias:
        expected = torch.baddbmm(bias.to(dtype)[:, None], x, weight.to(dtype).transpose(1, 2))
    expected_grads = torch.autograd.grad(expected, leaves, wanted)

    flat, weight_place, bias_place = places()
    if has_places:
        weight.grad = weight_place
        bias.grad = bias_place
    rounded = [v.detach().to(dtype) for v in (weight, bias)]
    y = packed_linear(x, weight, rounded[0], *((bias, rounded[1]) if has_bias else ()))
    assert torch.equal(y, expected)
    found = torch.autograd.grad(y, leaves, wanted)
    for name, a, b in zip(("weight", "bias or x", "x"), found, expected_grads, strict=False):
        assert a.dtype == b.dtype
        # A bias's is rounded once here, to float32, and there to the products' type before.
        torch.testing.assert_close(a, b, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4, msg=name)
    if has_places:
        assert found[0].data_ptr() == weight_place.data_ptr()
        assert not has_bias or found[1].data_ptr() == bias_place.data_ptr()
        written = torch.zeros_like(flat, dtype=torch.bool)
        written[:, 8 : -5 if has_bias else 8 + COLUMNS * INNER] = True
        assert torch.equal(flat.isfinite(), written)
