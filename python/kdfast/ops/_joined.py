"""Gradients of q, k and v that were unbound from one projection, put together again without a copy.

The backward pass of `q, k, v = qkv.unbind(1)` stacks three gradients into one, which moves as much memory as attention
itself. The op writes the three side by side in one tensor laid out like qkv, and stacking them gives that tensor. They
are ordinary tensors to everyone else (hooks on q, retain_grad(), autograd.grad(out, q)); only the node of unbind, once
all those have seen them, is handed a kind that knows its parent.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdfast.ops.memory import empty

__all__ = ["empty_slices", "watch"]

_SMALLEST = 2**18  # elements of q: below, the copy costs less than the detour around it


def empty_slices(q: Tensor) -> tuple[Tensor, ...]:
    """Three uninitialised tensors like q [(K,) M, H, d], side by side as q, k and v seem to be."""
    *lead, heads, d = q.shape
    interleaved = q.stride(-3) == 3 * heads * d
    shape = (*lead, 3, heads, d) if interleaved else (3, *lead, heads, d)
    memory = empty(shape, q.dtype) if q.is_cpu else q.new_empty(shape)
    return memory.unbind(-3 if interleaved else 0)


def watch(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Spares the backward pass of the unbind that q, k and v come from its copy; does nothing where there is none."""
    node = q.grad_fn
    if node is None or node.name() != "UnbindBackward0" or q.numel() < _SMALLEST:
        return
    if k.grad_fn is node and v.grad_fn is node and (q.output_nr, k.output_nr, v.output_nr) == (0, 1, 2):
        dim = node._saved_dim  # type: ignore[attr-defined]  # unsigned: −1 is 2^64 − 1
        node.register_prehook(partial(_join, dim if dim <= q.dim() else dim - 2**64 + q.dim() + 1))


def _join(dim: int, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...] | None:
    """Before the node of unbind runs: its gradients as slices that know their parent, where they have one."""
    parent = _parent_of(dim, grads)
    return None if parent is None else tuple(_Slice(x, parent) for x in grads if x is not None)


def _parent_of(dim: int, grads: tuple[Tensor | None, ...]) -> Tensor | None:
    """The contiguous tensor whose slices along dim the three gradients are; None where they are anything else."""
    if len(grads) != 3 or any(type(x) is not Tensor or x.requires_grad for x in grads):
        return None
    q, k, _ = slices = [x for x in grads if x is not None]
    step = int(k.storage_offset()) - int(q.storage_offset())

    def place(x: Tensor, number: int) -> tuple[Any, ...]:
        start = x.storage_offset() - number * step
        return x.untyped_storage().data_ptr(), x.dtype, x.shape, x.stride(), start

    if step < 0 or len({place(x, number) for number, x in enumerate(slices)}) != 1:
        return None
    shape, stride = list(q.shape), list(q.stride())
    shape.insert(dim, 3)
    stride.insert(dim, step)
    parent = q.as_strided(shape, stride)
    return parent if parent.is_contiguous() else None


class _Slice(Tensor):
    """One of three slices of a parent. All that it can do is to be stacked with the others, which gives the parent."""

    parent: Tensor

    @staticmethod
    def __new__(cls, x: Tensor, parent: Tensor) -> "_Slice":
        made = torch.Tensor._make_wrapper_subclass(cls, x.shape, x.stride(), dtype=x.dtype, device=x.device)
        made.parent = parent
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.stack.default:
            return args[0][0].parent
        raise NotImplementedError(f"{func} of a gradient on its way to unbind")
