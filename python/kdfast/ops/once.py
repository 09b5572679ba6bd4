"""Gradients of ops that can be differentiated once only."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["without_derivative"]


def without_derivative(op: str, *grads: Tensor) -> tuple[Tensor, ...]:
    """Gradients as they are; where a graph of them is made, asking for their derivative fails instead of giving 0."""
    if not torch.is_grad_enabled():  # no create_graph=True
        return grads
    return _Once.apply(op, torch.zeros((), device=grads[0].device, requires_grad=True), *grads)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, anchor: Tensor, *grads: Tensor) -> tuple[Tensor, ...]:
        ctx.op = op
        return tuple(grad.view_as(grad) for grad in grads)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(f"{ctx.op} can be differentiated once only")
