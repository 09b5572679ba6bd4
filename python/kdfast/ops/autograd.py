"""How ops meet autograd: calls that may skip PyTorch's dispatcher, and gradients that can be differentiated once."""

from typing import Any

import torch
from torch import Tensor

from kdfast.ops.undocumented import is_watched

__all__ = ["is_eager", "without_derivative"]


def is_eager(x: Tensor) -> bool:
    """True where nothing watches the ops on x: no tracing, tensor subclass, dispatch mode or functorch transform.

    On a small batch, a registered op with autograd costs several times what its kernel takes, an
    autograd.Function that calls the kernel itself much less. So the public functions call such a Function
    where this holds, and the registered op elsewhere. `kdfast bench -k distill_loss_autograd` needs it for
    its floor.
    """
    return type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling() and not is_watched()


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
