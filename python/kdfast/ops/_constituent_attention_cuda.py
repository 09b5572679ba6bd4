"""How constituent_attention calls its CUDA kernels."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kdfast.errors import DataError
from kdfast.ops import _gpu, _joined, backend
from kdfast.ops._arrays import DTYPE_CODES
from kdfast.ops.philox import dropout_threshold

__all__ = ["backward", "check_pairs", "forward", "make_plan"]


class _Plan(NamedTuple):
    """The kernels' list of work for a batch, and what they found about its offsets (None: nobody could look)."""

    memory: Tensor
    pairs: int | None
    version: int  # of the offsets
    constituents: int


# A batch's offsets pass through many layers, forward and backward: one plan, and one wait for it, serve them all.
_plans = WeakTensorKeyDictionary()


def _plan(offsets: Tensor, constituents: int) -> _Plan:
    """Raises DataError for offsets that are no rise from 0 to the number of constituents."""
    looks = _gpu.may_wait(offsets.device)
    # While a graph is captured, plans belong to it: it makes them anew at each replay.
    keeps = looks and not offsets.is_inference()
    version = offsets._version if keeps else -1
    plan: _Plan | None = _plans.get(offsets) if keeps else None
    if plan is not None and (plan.version, plan.constituents) == (version, constituents):
        return plan
    memory, report = make_plan(offsets, constituents)
    valid, last, pairs = report.tolist() if looks else (1, constituents, None)
    if not valid or last != constituents:
        raise DataError(f"must rise from 0 to {constituents}, the number of constituents", where="offsets")
    plan = _Plan(memory, pairs, version, constituents)
    if keeps:
        _plans[offsets] = plan
    return plan


def make_plan(offsets: Tensor, constituents: int) -> tuple[Tensor, Tensor]:
    """(the kernels' list of work, a report: whether the offsets can be, the last of them, Σ n²). Waits for nothing.

    The last offset may be less than constituents; the rows behind it are padding.
    """
    jets = len(offsets) - 1
    size = backend.cuda_module().constituent_attention_plan_bytes(jets, constituents)
    memory = torch.empty(size, dtype=torch.uint8, device=offsets.device)
    report = torch.empty(3, dtype=torch.int64, device=offsets.device)
    _gpu.call("constituent_attention_plan", (offsets.contiguous(),), (memory, report), jets, constituents)
    return memory, report


def check_pairs(bias: Tensor, offsets: Tensor, constituents: int) -> None:
    """Raises DataError for a bias whose last dimension is not Σ n²."""
    pairs = _plan(offsets, constituents).pairs
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


def _scalars(
    q: Tensor, offsets: Tensor, bias: Tensor | None, scale: float, dropout_p: float, seed: int | Tensor
) -> tuple[tuple[int, ...], int, float, int, int]:
    """The arguments that both directions share at their end."""
    heads, d = q.shape[-2:]
    bias_members, pairs = (1, 0) if bias is None else (bias.shape[0] if bias.dim() == 3 else 1, bias.shape[-1])
    return (
        (len(offsets) - 1, q.shape[-3], q.shape[0] if q.dim() == 4 else 1, heads, d, bias_members, pairs),
        DTYPE_CODES[q.dtype],
        scale,
        0 if isinstance(seed, Tensor) else seed & 0xFFFFFFFFFFFFFFFF,
        dropout_threshold(dropout_p),
    )


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int | Tensor,
    plan: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse). bias: float32 and contiguous. A seed that is a tensor is read by the kernels, on the device.

    plan: of make_plan, whose report nobody needs to look at; None: the offsets are checked.
    """
    plan = _plan(offsets, q.shape[-3]).memory if plan is None else plan
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if out.numel() > 0:
        _gpu.call(
            "constituent_attention",
            (q, k, v, bias, plan, seed if isinstance(seed, Tensor) else None),
            (out, lse),
            _strides(q, k, v, out),
            *_scalars(q, offsets, bias, scale, dropout_p, seed),
        )
    return out, lse


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    scale: float,
    dropout_p: float,
    seed: int | Tensor,
    joined: bool,
    plan: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, which may share memory if joined, and bias (float32; empty without one)."""
    plan = _plan(offsets, q.shape[-3]).memory if plan is None else plan
    dq, dk, dv = _joined.empty_slices(q) if joined else (q.new_empty(q.shape) for _ in range(3))
    grad_out, q, k, v = (_aligned(x) for x in (grad_out, q, k, v))
    dbias = q.new_empty(0) if bias is None else torch.empty_like(bias)
    if q.numel() > 0:
        heads, members = q.shape[-2], q.shape[0] if q.dim() == 4 else 1
        size = backend.cuda_module().constituent_attention_workspace_bytes(q.shape[-3], members, heads)
        _gpu.call(
            "constituent_attention_backward",
            (grad_out, q, k, v, bias, lse, plan, seed if isinstance(seed, Tensor) else None),
            (dq, dk, dv, None if bias is None else dbias, torch.empty(size, dtype=torch.uint8, device=q.device)),
            _strides(grad_out, q, k, v, dq, dk, dv),
            *_scalars(q, offsets, bias, scale, dropout_p, seed),
        )
    return dq, dk, dv, dbias
