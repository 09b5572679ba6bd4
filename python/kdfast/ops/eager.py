"""Whether a call may skip PyTorch's dispatcher."""

import torch
from torch import Tensor

from kdfast.ops.undocumented import is_watched

__all__ = ["is_eager"]


def is_eager(x: Tensor) -> bool:
    """True where nothing watches the ops on x: no tracing, tensor subclass, dispatch mode or functorch transform.

    On a small batch, a registered op with autograd costs several times what its kernel takes, an
    autograd.Function that calls the kernel itself much less. So the public functions call such a Function
    where this holds, and the registered op elsewhere. `kdfast bench -k distill_loss_autograd` needs it for
    its floor.
    """
    return type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling() and not is_watched()
