"""Attention among the constituents of a jet, on packed jets.

For a jet with n constituents, and each head:

    s_ij = scale · q_i · k_j + bias_ij,   P = softmax over j,   out_i = Σ_j P̃_ij v_j,

where P̃ is P after dropout: Philox at the counter (jet's position in the batch, head, i, j // 8), see ops/philox.py.
lse_i = log Σ_j exp(s_ij) is all that is kept of the scores; the backward pass computes them again.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError, ResourceError
from kdfast.ops import _joined, backend
from kdfast.ops import constituent_attention_cuda as _cuda
from kdfast.ops.arrays import DTYPE_CODES, check_device, check_offsets, check_padded_bias
from kdfast.ops.eager import is_eager
from kdfast.ops.memory import empty
from kdfast.ops.once import without_derivative
from kdfast.ops.philox import dropout_keep, dropout_scale, dropout_threshold, seed_tensor

__all__ = ["constituent_attention", "constituent_attention_reference", "padded_attention"]

_HEAD_DIMS = (8, 16, 24, 32, 64)  # of the compiled kernel
_BLOCK = 2**24  # elements of a score matrix that the reference holds at a time


def constituent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Scaled dot-product attention within each jet; no constituent sees another jet's.

    q, k, v: [M, H, d], or [K, M, H, d] for K members that share the jets; M constituents, H heads, d features a head.
        Slices of one projection are taken as they are: only the last dimension must be contiguous to save a copy.
    offsets: [B + 1] int64, where each jet begins. bias: [H, Σ n_b²] or [K, H, Σ n_b²], added to the scores: each jet's
        n × n block (query, key) after the other. scale: 1 / √d where None.
    dropout_p: in [0, 1), the probability that an attention weight is dropped (rounded to 1/65536); seed: 64 bits, one
        for each use (philox.derive_seed), an int or an int64 tensor []. All members draw the same mask.
    Returns a tensor like q; it can be differentiated once. Raises ConfigError for dropout_p outside [0, 1), DataError
    for shapes and devices that don't fit, ResourceError where memory is lacking.
    """
    scale = _check(q, k, v, offsets, bias, scale, dropout_p)
    if not is_eager(q):
        key = seed_tensor(seed) if dropout_p > 0 else None
        return torch.ops.kdfast.constituent_attention.default(q, k, v, offsets, bias, scale, dropout_p, key)[0]
    kernel = kernel_of(q)
    _check_pairs(bias, offsets, q, kernel)
    if kernel != "cuda":
        seed = int(seed)
    if kernel == "reference":
        return _reference(q, k, v, offsets, bias, scale, dropout_p, int(seed))[0]
    _joined.watch(q, k, v)
    try:
        return _EagerAttention.apply(q, k, v, offsets, bias, scale, dropout_p, seed)
    except ValueError as error:
        raise DataError(str(error), where="offsets") from None


def padded_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """`constituent_attention` for padded jets: q, k, v [B, N, H, d], mask [B, N] (True: a constituent).

    bias: [B, H, N, N]. Padding gets zeros and zero gradients, so does a jet without constituents; what stands in
    padding (NaN too) is never read. Dropout counts the constituents of a jet that are there.
    """
    if q.dim() != 4 or mask.shape != q.shape[:2] or mask.dtype != torch.bool:
        shapes = f"q {list(q.shape)}, mask {mask.dtype} {list(mask.shape)}"
        raise DataError(f"q must be [B, N, H, d] and mask bool [B, N]: {shapes}", where="mask")
    _check_like(q, k, v)
    check_padded_bias(bias, mask, q.shape[2], "bias")
    check_device(q, mask=mask, bias=bias)
    rows = mask.flatten().nonzero()[:, 0]
    offsets = torch.cat([rows.new_zeros(1), mask.sum(1).cumsum(0)])
    if bias is not None:
        pairs = (mask[:, :, None] & mask[:, None, :]).flatten().nonzero()[:, 0]
        bias = bias.transpose(0, 1).flatten(1).index_select(1, pairs)
    packed_q, packed_k, packed_v = (x.flatten(0, 1).index_select(0, rows) for x in (q, k, v))
    out = constituent_attention(
        packed_q, packed_k, packed_v, offsets, bias=bias, scale=scale, dropout_p=dropout_p, seed=seed
    )
    return out.new_zeros(q.flatten(0, 1).shape).index_copy(0, rows, out).view(q.shape)


def constituent_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """The specification of `constituent_attention`, on any device, in any dtype, differentiable more than once."""
    return _reference(q, k, v, offsets, bias, q.shape[-1] ** -0.5 if scale is None else scale, dropout_p, seed)[0]


def _reference(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, scale: float, dropout_p: float, seed: int
) -> tuple[Tensor, Tensor]:
    """(out, lse), the latter without a gradient: jets padded to the longest of a block of them that fits the memory."""
    if q.dim() == 3:
        out, lse = _reference(q[None], k[None], v[None], offsets, bias, scale, dropout_p, seed)
        return out[0], lse[0]
    parts = []
    for block in _blocks(q, offsets):
        q_block, k_block, v_block = (x[:, block.rows] for x in (q, k, v))
        scores = block.scores(q_block * scale, k_block, None if bias is None else bias[..., block.pairs])
        weights = scores.softmax(-1)
        # The largest weight is exp(largest score − lse).
        lse = (scores.detach().amax(-1) - weights.detach().amax(-1).log()).transpose(-2, -1)
        weights = block.drop(weights, dropout_p, seed).to(v.dtype)  # bias may be of a wider type
        out = torch.einsum("kbhij,kbjhd->kbihd", weights, block.pad(v_block))
        parts.append((block.unpad(out), block.unpad(lse)))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 1)


def _reference_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias (empty without one), written out: where ops run, autograd records nothing.

    dS = P ∘ (dP − Σ_j P dP), and P's own gradient dP is that of P̃ after dropout's mask once more.
    """
    if q.dim() == 3:
        *grads, dbias = _reference_backward(
            grad_out[None], q[None], k[None], v[None], offsets, bias, scale, dropout_p, seed
        )
        return grads[0][0], grads[1][0], grads[2][0], dbias
    parts = []
    for block in _blocks(q, offsets):
        grad, q_block, k_block, v_block = (x[:, block.rows] for x in (grad_out, q, k, v))
        block_bias = None if bias is None else bias[..., block.pairs]
        weights = block.scores(q_block * scale, k_block, block_bias).softmax(-1)
        dropped = block.drop(weights, dropout_p, seed).to(v.dtype)
        grad = block.pad(grad)
        dv = torch.einsum("kbhij,kbihd->kbjhd", dropped, grad)
        dweights = torch.einsum("kbihd,kbjhd->kbhij", grad, block.pad(v_block)).to(weights.dtype)
        dweights = block.drop(dweights, dropout_p, seed)
        dscores = weights * (dweights - (weights * dweights).sum(-1, keepdim=True))
        narrow = dscores.to(q.dtype)
        dq = torch.einsum("kbhij,kbjhd->kbihd", narrow, block.pad(k_block)) * scale
        dk = torch.einsum("kbhij,kbihd->kbjhd", narrow, block.pad(q_block * scale))
        parts.append(
            (*(block.unpad(x) for x in (dq, dk, dv)), q.new_empty(0) if bias is None else block.unpair(dscores))
        )
    dq, dk, dv, dbias = (torch.cat(x, -1 if i == 3 else 1) for i, x in enumerate(zip(*parts, strict=True)))
    if bias is not None:
        dbias = (dbias if bias.dim() == 3 else dbias.sum(0)).to(bias.dtype)
    return dq, dk, dv, dbias


def _blocks(q: Tensor, offsets: Tensor) -> Iterator["_Block"]:
    """Jets that are padded together, to the longest of all; one block at least."""
    members, constituents, heads, _ = q.shape
    check_offsets(offsets, constituents)
    longest = max([1, *offsets.diff().tolist()])
    step = max(1, _BLOCK // max(1, members * heads * longest**2))
    pair_offsets = torch.cat([offsets.new_zeros(1), offsets.diff().square().cumsum(0)])
    for first in range(0, max(1, len(offsets) - 1), step):
        yield _Block(first, offsets[first : first + step + 1], pair_offsets[first : first + step + 1])


class _Block:
    """Some jets of a batch, and how they are padded: to n constituents, b jets.

    rows, pairs: where their constituents, and the pairs of these, are among all.
    """

    def __init__(self, first_jet: int, offsets: Tensor, pair_offsets: Tensor) -> None:
        counts = offsets.diff()
        self.first_jet, self.jets = first_jet, len(counts)
        self.rows = slice(int(offsets[0]), int(offsets[-1]))
        self.pairs = slice(int(pair_offsets[0]), int(pair_offsets[-1]))
        self.n = max([1, *counts.tolist()])  # an empty jet has one slot of padding
        self.position = torch.arange(self.n, device=offsets.device)
        valid = self.position < counts[:, None]
        # An empty jet sees one key of zeros, so that no row is without a number; its rows are not taken.
        self.no_key = ~(self.position < counts.clamp(min=1)[:, None])[:, None, None, :]
        self.slots = valid.flatten().nonzero()[:, 0]
        self.pair_slots = (valid[:, :, None] & valid[:, None, :]).flatten().nonzero()[:, 0]

    def pad(self, x: Tensor) -> Tensor:
        """[K, m, H, d] → [K, b, n, H, d]."""
        members, _, *each = x.shape
        padded = x.new_zeros(members, self.jets * self.n, *each).index_copy(1, self.slots, x)
        return padded.view(members, self.jets, self.n, *each)

    def unpad(self, x: Tensor) -> Tensor:
        """[K, b, n, H, …] → [K, m, H, …]."""
        return x.flatten(1, 2).index_select(1, self.slots)

    def unpair(self, scores: Tensor) -> Tensor:
        """[K, b, H, n, n] → [K, H, pairs]."""
        return scores.transpose(1, 2).flatten(2).index_select(2, self.pair_slots)

    def scores(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        """[K, b, H, n, n], −inf where there is no key."""
        found = torch.einsum("kbihd,kbjhd->kbhij", self.pad(q), self.pad(k))
        if bias is not None:
            n, lead = self.n, bias.shape[:-1]
            padded = bias.new_zeros(*lead, self.jets * n * n).index_copy(-1, self.pair_slots, bias)
            found = found + padded.view(*lead, self.jets, n, n).transpose(-4, -3)
        return found.masked_fill(self.no_key, -torch.inf)

    def drop(self, weights: Tensor, p: float, seed: int) -> Tensor:
        """Dropout of [K, b, H, n, n]."""
        if p == 0:
            return weights
        heads = weights.shape[2]
        jet = torch.arange(self.first_jet, self.first_jet + self.jets, device=weights.device)[:, None, None]
        head = torch.arange(heads, device=weights.device)[:, None]
        keep = dropout_keep(seed, p, jet, head, self.position, self.n)
        return torch.where(keep, weights * dropout_scale(p), 0.0)


def _check_like(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises DataError unless k and v are as q is."""
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype:
            raise DataError(f"is {x.dtype} {list(x.shape)}, but q is {q.dtype} {list(q.shape)}", where=name)
    check_device(q, k=k, v=v)


def _check(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, scale: float | None, dropout_p: float
) -> float:
    """Raises for arguments that don't fit; returns the scale."""
    if q.dim() not in (3, 4) or not q.is_floating_point():
        raise DataError(f"must be floating-point [M, H, d] or [K, M, H, d], is {q.dtype} {list(q.shape)}", where="q")
    _check_like(q, k, v)
    if offsets.dim() != 1 or offsets.dtype != torch.int64 or offsets.numel() == 0:
        raise DataError(f"must be int64 [B + 1], is {offsets.dtype} {list(offsets.shape)}", where="offsets")
    if bias is not None and tuple(bias.shape[:-1]) not in (q.shape[-2:-1], (*q.shape[:-3], q.shape[-2])):
        what = f"must be [H, Σ n²] or [K, H, Σ n²] with H = {q.shape[-2]}, is {list(bias.shape)}"
        raise DataError(what, where="bias")
    check_device(q, offsets=offsets, bias=bias)
    if not 0 <= dropout_p < 1:  # NaN fails too
        raise ConfigError(f"a dropout probability must lie in [0, 1), is {dropout_p}", where="dropout_p")
    if scale is None:
        return 1.0 / math.sqrt(q.shape[-1])
    if not math.isfinite(scale):
        raise ConfigError(f"must be finite, is {scale}", where="scale")
    return float(scale)


def _check_pairs(bias: Tensor | None, offsets: Tensor, q: Tensor, kernel: str) -> None:
    """The part of `_check` that reads data, which tracing can't."""
    if bias is None:
        return
    if kernel == "cuda":
        _cuda.check_pairs(bias, offsets, q.shape[-3])
    elif bias.shape[-1] != (pairs := int(offsets.diff().square().sum())):
        raise DataError(f"must be [H, Σ n²] with Σ n² = {pairs}, is {list(bias.shape)}", where="bias")


def kernel_of(q: Tensor) -> str:
    """What runs: "cpu", "cuda" or "reference": float64 without a warning, head dimensions without a kernel with one."""
    if q.dtype not in DTYPE_CODES:
        return "reference"
    d = q.shape[-1]
    unsupported = None if d in _HEAD_DIMS else f"head_dim {d} is none of {', '.join(map(str, _HEAD_DIMS))}"
    return backend.choose("constituent_attention", q.device.type, unsupported, q.device.index)


def _rows(x: Tensor) -> tuple[int, int, int, int]:
    """A [K, M, H, d] or [M, H, d] tensor as the CPU's binding takes it: address and strides of member, row and head."""
    strides = x.stride()
    return (x.data_ptr(), strides[0] if len(strides) == 4 else 0, strides[-3], strides[-2])


def _unit_stride(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _common(
    q: Tensor, offsets: Tensor, bias: Tensor | None, scale: float, dropout_p: float, seed: int
) -> tuple[Any, ...]:
    """The arguments that the CPU's two kernels share at their end, from bias on; bias float32 and contiguous."""
    heads, d = q.shape[-2:]
    members = q.shape[0] if q.dim() == 4 else 1
    bias_members = 0 if bias is None else bias.shape[0] if bias.dim() == 3 else 1
    return (
        0 if bias is None else bias.data_ptr(),
        offsets.data_ptr(),
        (len(offsets) - 1, q.shape[-3], members, heads, d, bias_members),
        DTYPE_CODES[q.dtype],
        scale,
        seed & 0xFFFFFFFFFFFFFFFF,
        dropout_threshold(dropout_p),
        torch.get_num_threads(),
    )


def _float_bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32).contiguous()


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    scale: float,
    dropout_p: float,
    seed: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """(out, lse), by a kernel or the reference."""
    kernel = kernel_of(q)
    if kernel == "reference":
        out, lse = _reference(q, k, v, offsets, bias, scale, dropout_p, int(seed))
        return out, lse if q.dtype == torch.float64 else lse.float()
    bias = _float_bias(bias)
    if kernel == "cuda":
        return _cuda.forward(q, k, v, offsets, bias, scale, dropout_p, seed)
    q, k, v, offsets = _unit_stride(q), _unit_stride(k), _unit_stride(v), offsets.contiguous()
    out = empty(q.shape, q.dtype)
    lse = q.new_empty(q.shape[:-1], dtype=torch.float32)
    common = _common(q, offsets, bias, scale, dropout_p, int(seed))
    try:
        backend.cpu_module().constituent_attention_forward(
            _rows(q), _rows(k), _rows(v), _rows(out), lse.data_ptr(), *common
        )
    except MemoryError:
        raise _no_memory(offsets) from None
    return out, lse


def _no_memory(offsets: Tensor) -> ResourceError:
    longest = int(offsets.diff().max())
    hint = "use fewer threads (each has memory of its own), or keep the hardest constituents of a jet only"
    return ResourceError(f"no memory for a jet of {longest} constituents", where="constituent_attention", hint=hint)


def _backward(
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
    joined: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias (empty without one), by a kernel or the reference.

    joined: the first three may share memory, as slices of one tensor.
    """
    kernel = kernel_of(q)
    if kernel == "reference":
        return _reference_backward(grad_out, q, k, v, offsets, bias, scale, dropout_p, int(seed))
    wide_bias = _float_bias(bias)
    if kernel == "cuda":
        arguments = (grad_out, q, k, v, offsets, wide_bias, lse, scale, dropout_p, seed, joined)
        dq, dk, dv, wide_dbias = _cuda.backward(*arguments)
        return dq, dk, dv, wide_dbias if bias is None else wide_dbias.to(bias.dtype)
    q, k, v, grad_out = _unit_stride(q), _unit_stride(k), _unit_stride(v), _unit_stride(grad_out)
    offsets = offsets.contiguous()
    dq, dk, dv = _joined.empty_slices(q) if joined else (empty(q.shape, q.dtype) for _ in range(3))
    dbias = q.new_empty(0) if bias is None else bias.new_empty(bias.shape, dtype=torch.float32)
    try:
        backend.cpu_module().constituent_attention_backward(
            _rows(grad_out),
            _rows(q),
            _rows(k),
            _rows(v),
            _rows(dq),
            _rows(dk),
            _rows(dv),
            0 if bias is None else dbias.data_ptr(),
            lse.data_ptr(),
            *_common(q, offsets, wide_bias, scale, dropout_p, int(seed)),
        )
    except MemoryError:
        raise _no_memory(offsets) from None
    return dq, dk, dv, dbias if bias is None else dbias.to(bias.dtype)


class _EagerAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        out, lse = _forward(*arguments)
        q, k, v, offsets, bias, ctx.scale, ctx.dropout_p, seed = arguments
        ctx.seed = None if isinstance(seed, Tensor) else seed
        ctx.save_for_backward(q, k, v, offsets, bias, lse, seed if ctx.seed is None else None)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, offsets, bias, lse, seed = ctx.saved_tensors
        seed = ctx.seed if seed is None else seed
        grads = _backward(grad_out, q, k, v, offsets, bias, lse, ctx.scale, ctx.dropout_p, seed, True)
        return (*grads[:3], None, None if bias is None else grads[3], None, None, None)


# The seed of the registered ops is a tensor (none without dropout), so that compiled code takes another one every step.


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    q, k, v, offsets, bias, scale, dropout_p, seed = arguments
    _check(q, k, v, offsets, bias, scale, dropout_p)
    _check_pairs(bias, offsets, q, kernel_of(q))
    return _forward(q, k, v, offsets, bias, scale, dropout_p, 0 if seed is None else seed)


def _run_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_out, q, k, v, offsets, bias, lse, scale, dropout_p, seed = arguments
    return _backward(grad_out, q, k, v, offsets, bias, lse, scale, dropout_p, 0 if seed is None else seed)


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, bias, ctx.scale, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, offsets, bias, output[1], seed)


def _registered_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    """As _EagerAttention.backward, through the op; lse is a by-product that is not differentiated."""
    q, k, v, offsets, bias, lse, seed = ctx.saved_tensors
    grads = torch.ops.kdfast.constituent_attention_backward.default(
        grad_out, q, k, v, offsets, bias, lse, ctx.scale, ctx.dropout_p, seed
    )
    grads = without_derivative("constituent_attention", *grads)
    return (*grads[:3], None, None if bias is None else grads[3], None, None, None)


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1], dtype=lse_dtype)


def _fake_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None, *_: Any
) -> tuple[Tensor, ...]:
    grads = (q.new_empty(q.shape) for _ in range(3))
    return (*grads, q.new_empty(0) if bias is None else bias.new_empty(bias.shape))


_library = torch.library.Library("kdfast", "FRAGMENT")
_library.define(
    "constituent_attention(Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? bias, float scale, float dropout_p, "
    "Tensor? seed) -> (Tensor, Tensor)"
)
_library.define(
    "constituent_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor offsets, Tensor? bias, "
    "Tensor lse, float scale, float dropout_p, Tensor? seed) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("constituent_attention", _run_forward, "CompositeExplicitAutograd")
_library.impl("constituent_attention_backward", _run_backward, "CompositeExplicitAutograd")
torch.library.register_fake("kdfast::constituent_attention", _fake_forward, lib=_library)
torch.library.register_fake("kdfast::constituent_attention_backward", _fake_backward, lib=_library)
torch.library.register_autograd(
    "kdfast::constituent_attention", _registered_backward, setup_context=_keep_arguments, lib=_library
)
