"""How constituent_attention calls its CUDA kernels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kdfast.errors import DataError
from kdfast.ops import backend, gpu
from kdfast.ops.arrays import DTYPE_CODES
from kdfast.ops.constituent_attention_reference import AttentionCall
from kdfast.ops.philox import dropout_threshold
from kdfast.ops.undocumented import version_of

__all__ = ["adds_projection_bias", "backward", "check_pairs", "forward", "look", "make_plan"]


class _Seen(NamedTuple):
    """What a look at a batch's offsets has found."""

    version: int | None  # of the offsets
    constituents: int
    pairs: int  # Σ n²


# A batch's offsets pass through many layers, forward and backward: the host waits for one look at them. The
# kernels' list of work is made at each call: a replayed graph may have written other offsets, of which no
# version tells.
_seen = WeakTensorKeyDictionary()


def look(offsets: Tensor, constituents: int) -> int | None:
    """Σ n²; None where the host can't look. Raises DataError for offsets that don't rise from 0 to constituents."""
    if not gpu.may_wait(offsets.device):
        return None
    version = version_of(offsets)
    seen: _Seen | None = _seen.get(offsets)
    if seen is None or version is None or seen[:2] != (version, constituents):
        _, report = make_plan(offsets, constituents)
        valid, last, pairs = report.tolist()
        if not valid or last != constituents:
            raise DataError(f"must rise from 0 to {constituents}, the number of constituents", where="offsets")
        _seen[offsets] = seen = _Seen(version, constituents, pairs)
    return seen.pairs


def make_plan(
    offsets: Tensor, constituents: int, bias: Tensor | None = None, tiles: int | None = None
) -> tuple[Tensor, Tensor]:
    """(the kernels' list of work, a report: whether it can be, the last offset, Σ n²). Waits for nothing.

    The last offset may be less than constituents; the rows behind it are padding. Offsets that can't be, or
    that want more of the bias than there is, or more than `tiles` of masks, make NaN of all results.
    """
    jets = len(offsets) - 1
    size = backend.cuda_module().constituent_attention_plan_bytes(jets, constituents)
    memory = torch.empty(size, dtype=torch.uint8, device=offsets.device)
    report = torch.empty(3, dtype=torch.int64, device=offsets.device)
    scalars = (jets, constituents, -1 if bias is None else bias.shape[-1], -1 if tiles is None else tiles)
    gpu.call("constituent_attention_plan", (offsets.contiguous(),), (memory, report), *scalars)
    return memory, report


def check_pairs(bias: Tensor, offsets: Tensor, constituents: int) -> None:
    """Raises DataError for a bias whose last dimension is not Σ n²."""
    pairs = look(offsets, constituents)
    if pairs is not None and bias.shape[-1] != pairs:
        raise DataError(f"must be [H, Σ n²] with Σ n² = {pairs}, is {list(bias.shape)}", where="bias")


def _aligned(x: Tensor) -> Tensor:
    """x, or a copy of it whose rows lie as the kernels read them: without gaps, from multiples of 16 bytes on."""
    strides = [x.stride(i) for i in range(x.dim() - 1) if x.shape[i] > 1]
    places = [x.data_ptr(), *(stride * x.element_size() for stride in strides)]
    if x.stride(-1) == 1 and all(place % 16 == 0 for place in places):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    """Of member, row and head, for one tensor after the other; 0 where there is one only."""
    return tuple(0 if i >= x.dim() or x.shape[-1 - i] == 1 else x.stride(-1 - i) for x in tensors for i in (3, 2, 1))


def _scalars(q: Tensor, call: AttentionCall) -> tuple[tuple[int, ...], int, float, int, int]:
    """The arguments that both directions share at their end."""
    heads, d = q.shape[-2:]
    bias = call.bias
    bias_members, pairs = (1, 0) if bias is None else (bias.shape[0] if bias.dim() == 3 else 1, bias.shape[-1])
    return (
        (
            len(call.offsets) - 1,
            q.shape[-3],
            q.shape[0] if q.dim() == 4 else 1,
            heads,
            d,
            bias_members,
            pairs,
        ),
        DTYPE_CODES[q.dtype],
        call.scale,
        0 if isinstance(call.seed, Tensor) else call.seed & 0xFFFFFFFFFFFFFFFF,
        dropout_threshold(call.dropout_p),
    )


def _seed_on_device(call: AttentionCall, q: Tensor) -> Tensor | None:
    """A seed that is a tensor, where the kernels read it; compiled code makes its own on the CPU."""
    return call.seed.to(q.device) if isinstance(call.seed, Tensor) else None


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: AttentionCall,
    plan: Tensor | None = None,
    masks: Tensor | None = None,
    projection_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse). The call's bias is float32 and contiguous; a seed that is a tensor is read on the device.

    plan: of make_plan, whose report nobody needs to look at; None: the offsets are checked. masks: what
    dropout keeps, of ops/dropout_masks.py; None: the kernels draw it. projection_bias: [K, 3 H d] of q's type
    (see adds_projection_bias), where it has not been added to q, k and v.
    """
    if plan is None:
        look(call.offsets, q.shape[-3])
        plan, _ = make_plan(call.offsets, q.shape[-3], call.bias)
    q, k, v = (_aligned(x) for x in (q, k, v))
    bias, stride = _projection_bias(projection_bias)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if out.numel() > 0:
        gpu.call(
            "constituent_attention",
            (q, k, v, call.bias, plan, _seed_on_device(call, q), masks, bias),
            (out, lse),
            _strides(q, k, v, out),
            *_scalars(q, call),
            stride,
        )
    return out, lse


def adds_projection_bias(like: Tensor) -> bool:
    """Whether the kernels add the bias of the layer that q, k and v of this type come from as they load them."""
    return like.element_size() == 2 and bool(backend.cuda_module().attention_adds_projection_bias())


def _projection_bias(bias: Tensor | None) -> tuple[Tensor | None, int]:
    """As kernels read it, and its members' stride."""
    bias = None if bias is None else _aligned(bias)
    return bias, 0 if bias is None or len(bias) == 1 else bias.stride(0)


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    call: AttentionCall,
    grads: Sequence[Tensor],
    plan: Tensor | None = None,
    masks: Tensor | None = None,
    projection_bias: Tensor | None = None,
    projection_bias_grad: Tensor | None = None,
) -> Tensor | None:
    """Writes the gradients of q, k and v to grads; returns that of the bias, float32. plan, masks,
    projection_bias: as forward's. projection_bias_grad: where the gradient of that goes, float32."""
    if plan is None:
        plan, _ = make_plan(call.offsets, q.shape[-3], call.bias)
    grad_out, q, k, v = (_aligned(x) for x in (grad_out, q, k, v))
    dbias = None if call.bias is None else torch.empty_like(call.bias)
    if q.numel() > 0:
        heads = q.shape[-2]
        members = q.shape[0] if q.dim() == 4 else 1
        size = backend.cuda_module().constituent_attention_workspace_bytes(q.shape[-3], members, heads)
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
        bias, stride = _projection_bias(projection_bias)
        sums = None
        grad_stride = 0
        if bias is not None and projection_bias_grad is not None:
            features = heads * q.shape[-1]
            jets = len(call.offsets) - 1
            size = backend.cuda_module().projection_bias_workspace_bytes(jets, q.shape[-3], members, features)
            sums = torch.empty(size, dtype=torch.uint8, device=q.device)
            grad_stride = projection_bias_grad.stride(0)
        gpu.call(
            "constituent_attention_backward",
            (grad_out, q, k, v, call.bias, lse, plan, _seed_on_device(call, q), masks, bias, call.offsets),
            (*grads, dbias, workspace, projection_bias_grad, sums),
            _strides(grad_out, q, k, v, *grads),
            *_scalars(q, call),
            stride,
            grad_stride,
        )
    return dbias
