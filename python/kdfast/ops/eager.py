"""Whether a call may skip PyTorch's dispatcher."""

import torch
from torch import Tensor


def is_eager(x: Tensor) -> bool:
    """True where nothing watches the ops on x: no tracing, tensor subclass, dispatch mode or functorch transform.

    A registered op with autograd costs some 40 µs more per forward and backward than an autograd.Function that calls
    the kernel itself, as much as a kernel takes on a small batch. So the public functions call such a Function where
    this holds, and the registered op elsewhere.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._are_functorch_transforms_active()
    )
