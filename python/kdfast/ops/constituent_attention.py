"""Attention among the constituents of a jet, on packed jets.

For a jet with n constituents, and each head:

    s_ij = scale · q_i · k_j + bias_ij,   P = softmax over j,   out_i = Σ_j P̃_ij v_j,

where P̃ is P after dropout: Philox at the counter (jet's position in the batch, head, i, j // 8), see
ops/philox.py. lse_i = log Σ_j exp(s_ij) is all that is kept of the scores; the backward pass computes them
again.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdfast.errors import ConfigError, DataError
from kdfast.ops import backend
from kdfast.ops import constituent_attention_cpu as _cpu
from kdfast.ops import constituent_attention_cuda as _cuda
from kdfast.ops.arrays import DTYPE_CODES, check_device, check_padded_bias, through_rows
from kdfast.ops.autograd import is_eager, without_derivative
from kdfast.ops.constituent_attention_reference import AttentionCall, reference_backward, reference_forward
from kdfast.ops.memory import empty
from kdfast.ops.philox import seed_tensor

__all__ = ["HEAD_DIMS", "constituent_attention", "constituent_attention_qkvpacked", "padded_attention"]

HEAD_DIMS = (8, 16, 24, 32, 64)  # of the compiled kernels


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

    Parameters
    ----------
    q, k, v : Tensor [M, H, d] or [K, M, H, d]
        M constituents, H heads, d features per head; K members that share the jets. Any strides are read in
        place if the last dimension is contiguous. float32, bfloat16, float16; float64 runs the PyTorch
        reference.
    offsets : Tensor [B + 1], int64
        Where each jet begins; the last is M. A jet may be empty.
    bias : Tensor [H, Σ n²] or [K, H, Σ n²], optional
        Added to the scores: the n × n block (query, key) of each jet, one after the other.
    scale : float, optional
        Factor of q · k; 1 / √d by default.
    dropout_p : float
        Probability in [0, 1) that an attention weight is dropped, rounded to 1/65536.
    seed : int or Tensor [], int64
        Key of the dropout, 64 bits: use one for each call (`kdfast.ops.philox.derive_seed`). All members draw
        the same mask.

    Returns
    -------
    Tensor
        Of the shape and dtype of q. It can be differentiated once.

    Raises
    ------
    DataError
        For shapes, dtypes or devices that do not fit together.
    ConfigError
        For dropout_p outside [0, 1) or a scale that is not finite.
    ResourceError
        Where there is not enough memory for the longest jet.

    See Also
    --------
    constituent_attention_qkvpacked : for q, k and v from one projection, with a faster backward pass.
    padded_attention : for padded jets.

    References
    ----------
    Vaswani et al., "Attention is all you need", arXiv:1706.03762. Dao, "FlashAttention-2",
    arXiv:2307.08691, for the backward pass from log-sum-exp.

    Examples
    --------
    Two jets, of three constituents and of two:

    >>> q, k, v = torch.randn(3, 5, 4, 16).unbind()
    >>> constituent_attention(q, k, v, torch.tensor([0, 3, 5])).shape
    torch.Size([5, 4, 16])
    """
    scale = _check(q, "q", offsets, bias, scale, dropout_p)
    _check_like(q, k, v)
    return _attend((q, k, v), AttentionCall(offsets, bias, scale, dropout_p, seed))


def constituent_attention_qkvpacked(
    qkv: Tensor,
    offsets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """`constituent_attention` of q, k and v that lie side by side in one tensor, as one projection gives them.

    Its result has the bits of `constituent_attention(*qkv.unbind(-3), ...)`. The backward pass writes one
    gradient of qkv, where autograd would copy three into one, which moves as much memory as attention itself.

    Parameters
    ----------
    qkv : Tensor [M, 3, H, d] or [K, M, 3, H, d]
        q, k and v of M constituents.
    offsets, bias, scale, dropout_p, seed
        As for `constituent_attention`.

    Returns
    -------
    Tensor [M, H, d] or [K, M, H, d]
        It can be differentiated once.

    Raises
    ------
    DataError, ConfigError, ResourceError
        As `constituent_attention` does.

    Examples
    --------
    >>> qkv = torch.nn.Linear(64, 3 * 64)(torch.randn(5, 64))
    >>> out = constituent_attention_qkvpacked(qkv.view(5, 3, 4, 16), torch.tensor([0, 3, 5]))
    >>> out.shape
    torch.Size([5, 4, 16])
    """
    if qkv.dim() not in (4, 5) or qkv.shape[-3] != 3 or not qkv.is_floating_point():
        what = f"must be floating-point [M, 3, H, d] or [K, M, 3, H, d], is {qkv.dtype} {list(qkv.shape)}"
        raise DataError(what, where="qkv")
    scale = _check(qkv.detach().select(-3, 0), "qkv", offsets, bias, scale, dropout_p)
    return _attend((qkv,), AttentionCall(offsets, bias, scale, dropout_p, seed))


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
    """`constituent_attention` for padded jets.

    Padding gets zeros and zero gradients, and so does a jet without constituents. The values in padding, NaN
    included, are never read. Dropout counts only the constituents that exist.

    Parameters
    ----------
    q, k, v : Tensor [B, N, H, d]
        N slots for the constituents of each of B jets.
    mask : Tensor [B, N], bool
        True for a constituent, False for padding.
    bias : Tensor [B, H, N, N], optional
        Added to the scores.
    scale, dropout_p, seed
        As for `constituent_attention`.

    Returns
    -------
    Tensor [B, N, H, d]

    Raises
    ------
    DataError, ConfigError, ResourceError
        As `constituent_attention` does.

    Examples
    --------
    >>> q, k, v = torch.randn(3, 2, 3, 4, 16).unbind()
    >>> mask = torch.tensor([[True, True, True], [True, True, False]])
    >>> padded_attention(q, k, v, mask)[1, 2].count_nonzero()
    tensor(0)
    """
    if q.dim() != 4 or mask.shape != q.shape[:2] or mask.dtype != torch.bool:
        shapes = f"q {list(q.shape)}, mask {mask.dtype} {list(mask.shape)}"
        raise DataError(f"q must be [B, N, H, d] and mask bool [B, N]: {shapes}", where="mask")
    _check_like(q, k, v)
    check_padded_bias(bias, mask, q.shape[2], "bias")
    check_device(q, mask=mask, bias=bias)

    def packed(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, bias: Tensor | None) -> Tensor:
        return constituent_attention(q, k, v, offsets, bias=bias, scale=scale, dropout_p=dropout_p, seed=seed)

    return through_rows(packed, (q, k, v), mask, bias)


def _attend(inputs: tuple[Tensor, ...], call: AttentionCall) -> Tensor:
    """Attention of checked arguments. inputs: (q, k, v) or (qkv,)."""
    if not is_eager(inputs[0]):
        key = seed_tensor(call.seed) if call.dropout_p > 0 else None
        op = torch.ops.kdfast.constituent_attention.default
        return op(*_unpacked(inputs), call.offsets, call.bias, call.scale, call.dropout_p, key)[0]
    kernel = kernel_of(inputs[0])
    _check_pairs(call, inputs[0].shape[-3 if len(inputs) == 3 else -4], kernel)
    if kernel != "cuda":
        call = call._replace(seed=int(call.seed))
    if kernel == "reference":
        q, k, v = _unpacked(inputs)
        return reference_forward(q, k, v, call)[0]
    try:
        return _EagerAttention.apply(*call, *inputs)
    except ValueError as error:
        raise DataError(str(error), where="offsets") from None


def _unpacked(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """[q, k, v] of themselves, or of [qkv]."""
    return tensors[0].unbind(-3) if len(tensors) == 1 else tensors


def _check_like(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises DataError unless k and v are as q is."""
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape or x.dtype != q.dtype:
            raise DataError(f"is {x.dtype} {list(x.shape)}, but q is {q.dtype} {list(q.shape)}", where=name)
    check_device(q, k=k, v=v)


def _check(q: Tensor, name: str, offsets: Tensor, bias: Tensor | None, scale: float | None, dropout_p: float) -> float:
    """Raises for arguments that don't fit; returns the scale. name: of the argument that q is from."""
    if q.dim() not in (3, 4) or not q.is_floating_point():
        raise DataError(f"must be floating-point [M, H, d] or [K, M, H, d], is {q.dtype} {list(q.shape)}", where=name)
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


def _check_pairs(call: AttentionCall, constituents: int, kernel: str) -> None:
    """The part of `_check` that reads data, which tracing can't."""
    bias = call.bias
    if bias is None:
        return
    if kernel == "cuda":
        _cuda.check_pairs(bias, call.offsets, constituents)
        return
    pairs = int(call.offsets.diff().square().sum())
    if bias.shape[-1] != pairs:
        raise DataError(f"must be [H, Σ n²] with Σ n² = {pairs}, is {list(bias.shape)}", where="bias")


def kernel_of(q: Tensor) -> str:
    """What runs: "cpu", "cuda" or "reference": float64 without a warning, head dimensions without a kernel with one."""
    if q.dtype not in DTYPE_CODES:
        return "reference"
    d = q.shape[-1]
    unsupported = None if d in HEAD_DIMS else f"head_dim {d} is none of {', '.join(map(str, HEAD_DIMS))}"
    return backend.choose("constituent_attention", q.device.type, unsupported, q.device.index)


def _forward(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> tuple[Tensor, Tensor]:
    """(out, lse), by a kernel or the reference."""
    kernel = kernel_of(q)
    if kernel == "reference":
        out, lse = reference_forward(q, k, v, call)
        return out, lse if q.dtype == torch.float64 else lse.float()
    run = _cuda.forward if kernel == "cuda" else _cpu.forward
    return run(q, k, v, _with_float_bias(call))


def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    call: AttentionCall,
    grads: Sequence[Tensor],
) -> Tensor | None:
    """Writes the gradients of q, k and v to grads, by a kernel or the reference; returns that of the bias."""
    kernel = kernel_of(q)
    if kernel == "reference":
        *found, dbias = reference_backward(grad_out, q, k, v, call)
        for grad, x in zip(grads, found, strict=True):
            grad.copy_(x)
        return dbias
    run = _cuda.backward if kernel == "cuda" else _cpu.backward
    dbias = run(grad_out, q, k, v, lse, _with_float_bias(call), grads)
    return None if dbias is None or call.bias is None else dbias.to(call.bias.dtype)


def _with_float_bias(call: AttentionCall) -> AttentionCall:
    """The call as kernels take it, its bias float32 and contiguous."""
    return call if call.bias is None else call._replace(bias=call.bias.to(torch.float32).contiguous())


def _empty_like(x: Tensor) -> Tensor:
    return empty(x.shape, x.dtype) if x.is_cpu else x.new_empty(x.shape)


class _EagerAttention(torch.autograd.Function):
    """What calls on tensors that nothing watches go through. inputs: q, k, v, or qkv."""

    @staticmethod
    def forward(
        ctx: Any,
        offsets: Tensor,
        bias: Tensor | None,
        scale: float,
        dropout_p: float,
        seed: int | Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        q, k, v = _unpacked(inputs)
        out, lse = _forward(q, k, v, AttentionCall(offsets, bias, scale, dropout_p, seed))
        ctx.forced = backend.forced_here()
        ctx.scale = scale
        ctx.dropout_p = dropout_p
        ctx.seed = None if isinstance(seed, Tensor) else seed
        ctx.save_for_backward(offsets, bias, seed if ctx.seed is None else None, lse, *inputs)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        offsets, bias, seed, lse, *inputs = ctx.saved_tensors
        call = AttentionCall(offsets, bias, ctx.scale, ctx.dropout_p, ctx.seed if seed is None else seed)
        grads = [_empty_like(x) for x in inputs]
        q, k, v = _unpacked(inputs)
        dbias = backend.as_forced(ctx.forced, _backward, grad_out, q, k, v, lse, call, _unpacked(grads))
        return None, dbias, None, None, None, *grads


# The seed of the registered ops is a tensor (none without dropout), so that compiled code takes another one
# every step.


def _run_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    q, k, v, offsets, bias, scale, dropout_p, seed = arguments
    _check(q, "q", offsets, bias, scale, dropout_p)
    _check_like(q, k, v)
    call = AttentionCall(offsets, bias, scale, dropout_p, 0 if seed is None else seed)
    _check_pairs(call, q.shape[-3], kernel_of(q))
    return _forward(q, k, v, call)


def _run_backward(*arguments: Any) -> tuple[Tensor, ...]:
    grad_out, q, k, v, offsets, bias, lse, scale, dropout_p, seed = arguments
    call = AttentionCall(offsets, bias, scale, dropout_p, 0 if seed is None else seed)
    grads = [_empty_like(x) for x in (q, k, v)]
    dbias = _backward(grad_out, q, k, v, lse, call, grads)
    return *grads, q.new_empty(0) if dbias is None else dbias


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, offsets, bias, ctx.scale, ctx.dropout_p, seed = inputs
    ctx.forced = backend.forced_here()
    ctx.save_for_backward(q, k, v, offsets, bias, output[1], seed)


def _registered_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    """As _EagerAttention.backward, through the op; lse is a by-product that is not differentiated."""
    q, k, v, offsets, bias, lse, seed = ctx.saved_tensors
    op = torch.ops.kdfast.constituent_attention_backward.default
    arguments = (grad_out, q, k, v, offsets, bias, lse, ctx.scale, ctx.dropout_p, seed)
    grads = backend.as_forced(ctx.forced, op, *arguments)
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
