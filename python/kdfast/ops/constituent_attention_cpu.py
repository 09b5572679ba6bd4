"""How constituent_attention calls its CPU kernels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdfast.errors import ResourceError
from kdfast.ops import backend
from kdfast.ops.arrays import DTYPE_CODES
from kdfast.ops.constituent_attention_reference import AttentionCall
from kdfast.ops.memory import empty
from kdfast.ops.philox import dropout_threshold

__all__ = ["backward", "forward"]


def forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """(out, lse). The call's bias is float32 and contiguous."""
    call = call._replace(offsets=call.offsets.contiguous())
    q, k, v = (_unit_stride(x) for x in (q, k, v))
    out = empty(q.shape, q.dtype)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    try:
        backend.cpu_module().constituent_attention_forward(
            *(_rows(x) for x in (q, k, v, out)), lse.data_ptr(), *_common(q, call)
        )
    except MemoryError:
        raise _no_memory(call.offsets) from None
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    call: AttentionCall,
    grads: Sequence[Tensor],
) -> Tensor | None:
    """Writes the gradients of q, k and v to grads; returns that of the bias, float32."""
    call = call._replace(offsets=call.offsets.contiguous())
    grad_out, q, k, v = (_unit_stride(x) for x in (grad_out, q, k, v))
    dbias = None if call.bias is None else torch.empty_like(call.bias)
    try:
        backend.cpu_module().constituent_attention_backward(
            *(_rows(x) for x in (grad_out, q, k, v, *grads)),
            0 if dbias is None else dbias.data_ptr(),
            lse.data_ptr(),
            *_common(q, call),
        )
    except MemoryError:
        raise _no_memory(call.offsets) from None
    return dbias


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """A [K, M, H, d] or [M, H, d] tensor as the binding takes it: address, and strides of member, row and head."""
    strides = x.stride()
    return (x.data_ptr(), strides[0] if len(strides) == 4 else 0, strides[-3], strides[-2])


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _common(q: Tensor, call: AttentionCall) -> tuple[Any, ...]:
    """The arguments that the two kernels share at their end, from bias on."""
    heads, d = q.shape[-2:]
    members = q.shape[0] if q.dim() == 4 else 1
    bias = call.bias
    bias_members = 0 if bias is None else bias.shape[0] if bias.dim() == 3 else 1
    return (
        0 if bias is None else bias.data_ptr(),
        call.offsets.data_ptr(),
        (len(call.offsets) - 1, q.shape[-3], members, heads, d, bias_members),
        DTYPE_CODES[q.dtype],
        call.scale,
        int(call.seed) & 0xFFFFFFFFFFFFFFFF,
        dropout_threshold(call.dropout_p),
        torch.get_num_threads(),
    )


def _no_memory(offsets: Tensor) -> ResourceError:
    longest = int(offsets.diff().max())
    hint = "use fewer threads (each has memory of its own), or keep only the hardest constituents of a jet"
    return ResourceError(f"no memory for a jet of {longest} constituents", where="constituent_attention", hint=hint)
