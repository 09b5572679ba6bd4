"""Linear layers of K members: batched matrix products that write each weight's gradient where it belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops.packed_rows import gradient_place

__all__ = ["packed_linear"]


def packed_linear(
    x: Tensor, weight: Tensor, rounded_weight: Tensor, bias: Tensor | None = None, rounded_bias: Tensor | None = None
) -> Tensor:
    """x Wᵀ + b [K, M, E], differentiable by x, weight and bias, whose gradients go to their places (gradient_place).

    x: [K, M, D]. weight: [K, E, D]. bias: [K, E]. rounded_…: the same numbers in x's type, which are
    multiplied.
    """
    return _PackedLinear.apply(x, weight, bias, rounded_weight, rounded_bias)


class _PackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rounded_weight: Tensor,
        rounded_bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, rounded_weight)
        ctx.weight = weight
        ctx.bias = bias
        if rounded_bias is None:
            return torch.bmm(x, rounded_weight.transpose(1, 2))
        return torch.baddbmm(rounded_bias[:, None], x, rounded_weight.transpose(1, 2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, rounded_weight = ctx.saved_tensors
        grad_x = torch.bmm(grad, rounded_weight) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(x, grad, ctx.weight)
        grad_bias = None
        if ctx.bias is not None:
            grad_bias = torch.sum(grad, 1, dtype=ctx.bias.dtype, out=gradient_place(ctx.bias))
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """gradᵀ x, of weight's type. A product writes it in its operands' type, so one in bfloat16 is copied."""
    place = gradient_place(weight)
    if place is not None and place.dtype == x.dtype:
        torch.bmm(x.transpose(1, 2), grad, out=place.transpose(1, 2))
        return place
    product = torch.bmm(x.transpose(1, 2), grad).transpose(1, 2)
    return product.to(weight.dtype) if place is None else place.copy_(product)
