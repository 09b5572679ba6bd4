"""constituent_attention: kernel against reference and float64, masks, layouts, and what must never leak."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from kdfast.errors import ConfigError, DataError, KdfastWarning, ResourceError
from kdfast.ops import backend as backends
from kdfast.ops import constituent_attention_reference as reference_module
from kdfast.ops.constituent_attention import (
    constituent_attention,
    constituent_attention_qkvpacked,
    kernel_of,
    padded_attention,
)
from kdfast.ops.constituent_attention_reference import constituent_attention_reference
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import BACKENDS, chosen
from tests.ops.memory_limit import few_more_bytes, needs_memory_limit

SEED = 0x1234_5678_9ABC_DEF0
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ENTRANCES = [constituent_attention, constituent_attention_qkvpacked]
MIXED = [5, 0, 30, 1, 11, 17, 8, 40, 9]


@pytest.fixture(params=BACKENDS)
def each_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with chosen(request.param):
        yield request.param


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def draw(
    counts: list[int],
    heads: int,
    d: int,
    *,
    members: int = 0,
    bias: str | None = None,
    size: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """qkv [(K,) M, 3, H, d], offsets, bias, grad_out; members 0: no dimension K. bias: "shared", "own" or None."""
    generator = torch.Generator().manual_seed(seed)
    lead = [members] if members else []
    rows, pairs = sum(counts), sum(n * n for n in counts)
    qkv = torch.randn(*lead, rows, 3, heads, d, generator=generator)
    qkv[..., :2, :, :] *= size
    grad = torch.randn(*lead, rows, heads, d, generator=generator)
    shape = [*(lead if bias == "own" else []), heads, pairs]
    return qkv, offsets_of(counts), None if bias is None else torch.randn(*shape, generator=generator), grad


def results(
    attention: Callable[..., Tensor],
    dtype: torch.dtype,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor],
    storage: torch.dtype | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Output and gradients, computed in dtype from inputs rounded to storage."""
    qkv, offsets, bias, grad = inputs
    rounded = [None if x is None else x.to(storage or dtype).to(dtype) for x in (qkv, bias, grad)]
    qkv, bias, grad = rounded
    leaves = [x.requires_grad_() for x in (qkv, bias) if x is not None]
    tensors = (qkv,) if attention is constituent_attention_qkvpacked else qkv.unbind(-3)
    out = attention(*tensors, offsets, bias=bias, **options)
    grads = torch.autograd.grad(out, leaves, grad)
    return {"out": out.detach(), **dict(zip(("dqkv", "dbias"), grads, strict=False))}


def check(
    dtype: torch.dtype,
    *draws: tuple[Tensor, Tensor, Tensor | None, Tensor],
    case: str,
    attention: Callable[..., Tensor] = constituent_attention,
    **options: Any,
) -> None:
    """The accuracy rule for the output and every gradient. draws: inputs of the same shapes, judged together: of a few
    numbers alone, PyTorch's error may be small by luck."""
    actual, plain, exact = [], [], []
    for inputs in draws:
        actual.append(results(attention, dtype, inputs, **options))
        plain.append(results(constituent_attention_reference, dtype, inputs, **options))
        exact.append(results(constituent_attention_reference, torch.float64, inputs, storage=dtype, **options))
    for name in exact[0]:
        assert_accurate(*(torch.stack([x[name] for x in way]) for way in (actual, plain, exact)), f"{name}, {case}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [8, 16, 24, 32, 64])
@pytest.mark.parametrize(("members", "bias"), [(0, None), (0, "shared"), (3, None), (3, "shared"), (3, "own")])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_accuracy(each_backend: str, dtype: torch.dtype, d: int, members: int, bias: str | None, p: float) -> None:
    inputs = draw([5, 0, 30, 1, 17], 2, d, members=members, bias=bias)
    check(dtype, inputs, case=f"d={d} K={members} bias={bias} p={p}", dropout_p=p, seed=SEED)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.one_of(st.integers(0, 20), st.sampled_from([0, 1, 200])), max_size=6),
    heads=st.integers(1, 5),
    d=st.sampled_from([8, 16, 24, 32, 64]),
    members=st.integers(0, 5),
    bias=st.sampled_from([None, "shared", "own"]),
    p=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([None, 1.0, -0.3]),
    seed=st.integers(0, 2**31),
    name=st.sampled_from(BACKENDS),
    attention=st.sampled_from(ENTRANCES),
)
def test_any_shape(
    counts: list[int],
    heads: int,
    d: int,
    members: int,
    bias: str | None,
    p: float,
    dtype: torch.dtype,
    scale: float | None,
    seed: int,
    name: str,
    attention: Callable[..., Tensor],
) -> None:
    draws = [draw(counts, heads, d, members=members, bias=bias, seed=seed + i) for i in range(8)]
    with chosen(name):
        case = f"{attention.__name__} {name} seed={seed} counts={counts}"
        check(dtype, *draws, case=case, attention=attention, dropout_p=p, seed=seed, scale=scale)


@pytest.mark.parametrize("size", [10.0, 60.0])
@pytest.mark.parametrize("d", [8, 16, 24, 32, 64])
def test_extreme_logits(each_backend: str, d: int, size: float) -> None:
    """Scores up to some 1e4: softmax is all but one-hot, and no rounding of scores or of lse must show.

    Errors are those of the few queries of which two keys have almost the same score: draws are judged together.
    """
    check(torch.float32, *(draw([40, 13, 3], 2, d, size=size, seed=i) for i in range(10)), case=f"d={d} size={size}")


def test_bias_of_another_dtype(each_backend: str) -> None:
    qkv, offsets, bias, _ = draw([4, 3], 2, 8, bias="shared")
    bias.requires_grad_()
    out = constituent_attention(*qkv.bfloat16().unbind(-3), offsets, bias=bias)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert bias.grad.dtype == torch.float32
    exact = results(
        constituent_attention_reference, torch.float64, (qkv.bfloat16(), offsets, bias.detach(), out.double() * 2)
    )
    torch.testing.assert_close(out.double(), exact["out"], rtol=0.02, atol=0.02)
    torch.testing.assert_close(bias.grad.double(), exact["dbias"], rtol=0.02, atol=0.02)


def test_reference_is_a_loop_over_jets() -> None:
    qkv, offsets, bias, _ = draw(MIXED, 3, 16, members=2, bias="shared")
    q, k, v = qkv.double().unbind(-3)
    bias = bias.double()
    expected, at = torch.empty_like(q), 0
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        n = end - begin
        scores = torch.einsum("kihd,kjhd->khij", q[:, begin:end], k[:, begin:end]) / 4
        weights = (scores + bias[:, at : at + n * n].view(3, n, n)).softmax(-1)
        expected[:, begin:end] = torch.einsum("khij,kjhd->kihd", weights, v[:, begin:end])
        at += n * n
    torch.testing.assert_close(constituent_attention_reference(q, k, v, offsets, bias=bias), expected)


def test_reference_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(MIXED, 2, 8, members=2, bias="own")
    whole = results(constituent_attention_reference, torch.float64, inputs, dropout_p=0.4, seed=SEED)
    monkeypatch.setattr(reference_module, "_BLOCK", 2 * 2 * 40 * 40 * 2)
    blocks = results(constituent_attention_reference, torch.float64, inputs, dropout_p=0.4, seed=SEED)
    for name in whole:
        torch.testing.assert_close(blocks[name], whole[name])


def test_gradcheck() -> None:
    qkv, offsets, bias, _ = draw([4, 0, 2], 2, 4, bias="shared")
    leaves = [x.double().requires_grad_() for x in (*qkv.unbind(-3), bias)]

    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return constituent_attention(q, k, v, offsets, bias=bias, dropout_p=0.3, seed=SEED)

    assert torch.autograd.gradcheck(attention, leaves)
    assert torch.autograd.gradgradcheck(attention, leaves)

    def packed(qkv: Tensor, bias: Tensor) -> Tensor:
        return constituent_attention_qkvpacked(qkv, offsets, bias=bias, dropout_p=0.3, seed=SEED)

    assert torch.autograd.gradcheck(packed, (qkv.double().requires_grad_(), leaves[-1]))


@pytest.mark.parametrize("bias", [None, "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(each_backend: str, bias: str | None, dtype: torch.dtype) -> None:
    qkv, offsets, pair_bias, _ = draw([4, 0, 3], 2, 8, members=2, bias=bias)
    q, k, v = (x.to(dtype).requires_grad_() for x in qkv.unbind(-3))
    if pair_bias is not None:
        pair_bias = pair_bias.to(dtype).requires_grad_()
    arguments = (q, k, v, offsets, pair_bias, 0.3, 0.2, torch.tensor(SEED))
    torch.library.opcheck(torch.ops.kdfast.constituent_attention.default, arguments)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_compiles_without_graph_break(each_backend: str, entrance: Callable[..., Tensor]) -> None:
    qkv, offsets, _, _ = draw([4, 3], 2, 8)
    qkv.requires_grad_()

    bias = torch.randn(2, 25)

    def attention(x: Tensor, seed: Tensor) -> Tensor:
        tensors = (x * 2,) if entrance is constituent_attention_qkvpacked else (x * 2).unbind(-3)
        return entrance(*tensors, offsets, bias=bias, dropout_p=0.2, seed=seed)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attention, backend=counter, fullgraph=True)
    for seed in torch.tensor([7, 8, 9]):
        torch.testing.assert_close(compiled(qkv, seed), attention(qkv, seed))
        grads = [torch.autograd.grad(f(qkv, seed).sum(), qkv)[0] for f in (compiled, attention)]
        torch.testing.assert_close(*grads)
    assert counter.frame_count == 1  # a seed is data


def test_compiled_code_checks_the_bias(each_backend: str) -> None:
    qkv, offsets, _, _ = draw([4, 3], 2, 8)
    compiled = torch.compile(constituent_attention, backend="aot_eager", fullgraph=True)
    with pytest.raises(DataError, match="Σ n² = 25"):
        compiled(*qkv.unbind(-3), offsets, bias=torch.zeros(2, 24))


def test_a_seed_may_be_a_tensor(each_backend: str) -> None:
    qkv, offsets, _, _ = draw([4, 3], 2, 8)
    outs = [constituent_attention(*qkv.unbind(-3), offsets, dropout_p=0.5, seed=s) for s in (SEED, torch.tensor(SEED))]
    assert torch.equal(*outs)


def test_dropout_mask_is_the_reference_mask(each_backend: str) -> None:
    """With values one-hot in the key, the output shows the weights themselves: the same ones are dropped."""
    counts, heads, d = [40, 3, 64], 2, 64
    qkv, offsets, _, _ = draw(counts, heads, d)
    q, k, _ = qkv.unbind(-3)
    eye = torch.cat([torch.eye(n, d) for n in counts])[:, None].expand(-1, heads, -1)
    weights = constituent_attention(q, k, eye, offsets, dropout_p=0.5, seed=SEED)
    expected = constituent_attention_reference(q, k, eye, offsets, dropout_p=0.5, seed=SEED)
    assert torch.equal(weights == 0, expected == 0)
    assert 0.4 < (weights[:40, :, :40] == 0).double().mean() < 0.6
    # dv_j = Σ_i P̃_ij g_i, with g one-hot in the query, shows the mask that the backward pass used.
    v = torch.randn_like(q).requires_grad_()
    constituent_attention(q, k, v, offsets, dropout_p=0.5, seed=SEED).backward(eye)
    first_jet = slice(0, 40)
    assert torch.equal(
        v.grad[first_jet, :, :40].permute(1, 2, 0) == 0, weights[first_jet, :, :40].permute(1, 0, 2) == 0
    )


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]])
@pytest.mark.parametrize("members", [0, 2])
def test_nothing_in_nothing_out(each_backend: str, counts: list[int], members: int, dtype: torch.dtype) -> None:
    inputs = draw(counts, 2, 8, members=members, bias="shared")
    for entrance in ENTRANCES:
        for x in results(entrance, dtype, inputs, dropout_p=0.1).values():
            assert x.numel() == 0
        assert results(entrance, dtype, inputs)["dqkv"].shape == inputs[0].shape


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize(("members", "bias"), [(0, None), (0, "shared"), (3, "own")])
def test_qkv_in_one_tensor_gives_the_same_bits(
    each_backend: str, dtype: torch.dtype, members: int, bias: str | None
) -> None:
    """And one gradient, which reaches qkv from the op itself. Separate q, k and v are copied out of it."""
    inputs = draw(MIXED, 4, 16, members=members, bias=bias)

    def separate(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> Tensor:
        return constituent_attention(q.clone(), k.clone(), v.clone(), *rest, **options)

    options = {"dropout_p": 0.2, "seed": SEED, "scale": 0.3}
    expected = results(separate, dtype, inputs, **options)
    actual = results(constituent_attention_qkvpacked, dtype, inputs, **options)
    assert actual["dqkv"].is_contiguous()
    for name, x in expected.items():
        assert torch.equal(actual[name], x), name


def test_the_gradient_of_qkv_is_written_by_the_op(each_backend: str) -> None:
    qkv, offsets, _, grad = draw(MIXED, 2, 8)
    out = constituent_attention_qkvpacked(qkv.requires_grad_(), offsets)
    if kernel_of(qkv) != "reference":
        assert next(node for node, _ in out.grad_fn.next_functions if node is not None).variable is qkv
    out.backward(grad)
    assert qkv.grad.is_contiguous()


def test_layouts_of_qkv_give_the_same_bits(each_backend: str) -> None:
    qkv, offsets, _, grad = draw(MIXED, 4, 16, members=2)
    by_part = qkv.movedim(-3, 0).contiguous().movedim(0, -3)
    by_head = qkv.movedim(-2, 0).contiguous().movedim(0, -2)
    strided = torch.stack([qkv, qkv], -1)[..., 0]  # the last dimension has a stride: copied
    found = []
    for x in (qkv, by_part, by_head, strided):
        leaf = x.detach().requires_grad_()
        out = constituent_attention_qkvpacked(leaf, offsets)
        found.append((out, *torch.autograd.grad(out, leaf, grad)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_layouts_give_the_same_bits(each_backend: str) -> None:
    qkv, offsets, _, grad = draw(MIXED, 4, 16)
    contiguous = [x.contiguous() for x in qkv.unbind(-3)]
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in contiguous]
    strided = [torch.stack([x, x], -1)[..., 0] for x in contiguous]  # the last dimension has a stride: copied
    outputs = []
    for q, k, v in (qkv.unbind(-3), contiguous, transposed, strided):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = constituent_attention(*leaves, offsets)
        expanded = grad[:, :, :1].expand_as(grad)  # what sum().backward() gives: stride 0
        outputs.append((out, *torch.autograd.grad(out, leaves, expanded)))
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


@pytest.mark.parametrize("d", [16, 24])
def test_large_batches_give_the_same_bits(d: int) -> None:
    """From 2^19 elements on, results go past the caches where rows are whole cache lines (d = 16)."""
    counts, heads = [40, 0, 33, 70] * 40, 6
    qkv, offsets, _, grad = draw(counts, heads, d)
    assert grad.numel() > 2**19
    whole = results(constituent_attention, torch.float32, (qkv, offsets, None, grad))
    half = offsets[80]
    parts = [
        results(constituent_attention, torch.float32, (qkv[rows], offsets_of(some), None, grad[rows]))
        for rows, some in ((slice(None, half), counts[:80]), (slice(half, None), counts[80:]))
    ]
    for name, x in whole.items():
        assert torch.equal(x, torch.cat([part[name] for part in parts]))


def test_threads_and_members_change_nothing() -> None:
    inputs = draw([40, 0, 7, 25] * 12, 4, 16, members=3, bias="shared")
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            runs.append(results(constituent_attention, torch.float32, inputs, dropout_p=0.1, seed=SEED))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(runs[0][name], run[name]) for name in run)
    qkv, offsets, bias, grad = inputs
    alone = results(constituent_attention, torch.float32, (qkv[1], offsets, bias, grad[1]), dropout_p=0.1, seed=SEED)
    assert torch.equal(alone["out"], runs[0]["out"][1])
    assert torch.equal(alone["dqkv"], runs[0]["dqkv"][1])


def test_jets_do_not_see_each_other(each_backend: str) -> None:
    qkv, offsets, _, grad = draw([6, 9, 3], 2, 8)
    clean = results(constituent_attention, torch.float32, (qkv, offsets, None, grad))
    spoilt = qkv.clone()
    spoilt[6:15] = float("nan")
    dirty = results(constituent_attention, torch.float32, (spoilt, offsets, None, grad))
    others = torch.tensor([*range(6), *range(15, 18)])
    for name in clean:
        assert torch.equal(dirty[name][others], clean[name][others])
        assert dirty[name][6:15].isnan().any()


def test_padding_never_leaks(each_backend: str) -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1]]).bool()
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(3, 4, 4, 2, 8, generator=generator)
    grad, bias = (torch.randn(*shape, generator=generator) for shape in ((4, 4, 2, 8), (4, 2, 4, 4)))
    spoilt, spoilt_grad, spoilt_bias = qkv.clone(), grad.clone(), bias.clone()
    spoilt[:, ~mask] = float("nan")
    spoilt[1][~mask] = float("inf")
    spoilt_grad[~mask] = float("nan")
    spoilt_bias.permute(0, 2, 3, 1)[~(mask[:, :, None] & mask[:, None, :])] = float("nan")
    outputs = []
    for x, g, b in ((qkv, grad, bias), (spoilt, spoilt_grad, spoilt_bias)):
        leaves = [*(part.clone().requires_grad_() for part in x), b.clone().requires_grad_()]
        out = padded_attention(*leaves[:3], mask, bias=leaves[3])
        outputs.append((out, *torch.autograd.grad(out, leaves, g)))
    for clean, dirty in zip(*outputs, strict=True):
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()
    for x in outputs[0][:4]:
        assert not x[~mask].any()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x[2:].transpose(1, 2) for x in qkv), attn_mask=mask[2:, None, None].logical_not() * -1e30 + bias[2:]
    ).transpose(1, 2)
    torch.testing.assert_close(outputs[0][0][2:][mask[2:]], expected[mask[2:]])


def test_other_head_dims_run_the_reference_with_a_warning() -> None:
    qkv, offsets, _, _ = draw([3, 2], 2, 12)
    with pytest.warns(KdfastWarning, match="constituent_attention runs its PyTorch reference.*head_dim 12"):
        out = constituent_attention(*qkv.unbind(-3), offsets)
    assert torch.equal(out, constituent_attention_reference(*qkv.unbind(-3), offsets))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dropout_p": 1.0}, ConfigError, r"dropout_p: a dropout probability must lie in \[0, 1\)"),
        ({"scale": float("nan")}, ConfigError, "scale: must be finite"),
        ({"offsets": torch.tensor([0, 3, 4])}, DataError, "offsets: must rise from 0 to 5"),
        ({"offsets": torch.tensor([0, 6, 5])}, DataError, "offsets: must rise from 0 to 5"),
        ({"offsets": torch.tensor([0, 5], dtype=torch.int32)}, DataError, "offsets: must be int64"),
        ({"bias": torch.zeros(2, 12)}, DataError, r"bias: must be \[H, Σ n²\] with Σ n² = 13, is \[2, 12\]"),
        ({"bias": torch.zeros(3, 13)}, DataError, r"bias: must be .* with H = 2, is \[3, 13\]"),
        ({"k": torch.zeros(5, 2, 16)}, DataError, "k: is torch.float32"),
        ({"v": torch.zeros(5, 2, 8).half()}, DataError, "v: is torch.float16"),
        ({"q": torch.zeros(5, 8)}, DataError, "q: must be floating-point"),
        (
            {"k": torch.zeros(5, 2, 8, device="meta")},
            DataError,
            "k: lies on meta, other arguments on cpu\nmove it with",
        ),
        ({"offsets": torch.tensor([0, 3, 5], device="meta")}, DataError, "offsets: lies on meta"),
        ({"bias": torch.zeros(2, 13, device="meta")}, DataError, "bias: lies on meta"),
    ],
)
def test_bad_arguments(each_backend: str, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {name: torch.zeros(5, 2, 8) for name in ("q", "k", "v")}
    with pytest.raises(error, match=message):
        constituent_attention(**(arguments | {"offsets": torch.tensor([0, 3, 5])} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(5, 2, 2, 8)}, r"qkv: must be floating-point \[M, 3, H, d\] or \[K, M, 3, H, d\], is"),
        ({"qkv": torch.zeros(5, 3, 8)}, r"qkv: must be .*, is torch.float32 \[5, 3, 8\]"),
        ({"qkv": torch.zeros(5, 3, 2, 8, dtype=torch.int64)}, "qkv: must be .*, is torch.int64"),
        ({"offsets": torch.tensor([0, 3, 4])}, "offsets: must rise from 0 to 5"),
        ({"bias": torch.zeros(2, 12)}, r"bias: must be \[H, Σ n²\] with Σ n² = 13, is \[2, 12\]"),
        ({"bias": torch.zeros(2, 13, device="meta")}, "bias: lies on meta"),
    ],
)
def test_bad_qkv(each_backend: str, change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"qkv": torch.zeros(5, 3, 2, 8), "offsets": torch.tensor([0, 3, 5])}
    with pytest.raises(DataError, match=message):
        constituent_attention_qkvpacked(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 5, 1, 8), "v": torch.zeros(2, 5, 1, 8)}, r"k: is torch.float32 \[2, 5, 1, 8\], but q is"),
        ({"v": torch.zeros(2, 5, 1, 8)}, r"v: is torch.float32 \[2, 5, 1, 8\], but q is"),
        ({"bias": torch.zeros(2, 1, 5, 5)}, r"bias: must be \[B, heads, N, N\] = \[2, 1, 3, 3\], is \[2, 1, 5, 5\]"),
        ({"bias": torch.zeros(1, 1, 3, 3)}, r"bias: must be .*, is \[1, 1, 3, 3\]"),
        ({"bias": torch.zeros(2, 3, 3)}, r"bias: must be .*, is \[2, 3, 3\]"),
        ({"mask": torch.ones(2, 3)}, r"mask: q must be \[B, N, H, d\] and mask bool"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool, device="meta")}, "mask: lies on meta"),
    ],
)
def test_bad_padded_arguments(change: dict[str, Any], message: str) -> None:
    """Rows are picked from k, v and bias by their places in q: of another N they would be other jets' rows."""
    arguments: dict[str, Any] = {name: torch.zeros(2, 3, 1, 8) for name in ("q", "k", "v")}
    arguments["mask"] = torch.tensor([[True, True, False], [True, True, True]])
    with pytest.raises(DataError, match=message):
        padded_attention(**(arguments | change))


@needs_memory_limit
@pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))
def test_lack_of_memory_is_an_error() -> None:
    """And the same call works once there is memory. A thread's scratch grows with the longest jet."""
    q = torch.zeros(1_000_000, 1, 8)  # whose scratch takes 300 MB
    message = "constituent_attention: no memory for a jet of 1000000 constituents"
    with few_more_bytes(2**27), pytest.raises(ResourceError, match=message):
        constituent_attention(q, q, q, torch.tensor([0, len(q)]))
    assert constituent_attention(q, q, q, torch.arange(0, len(q) + 1, 10)).isfinite().all()


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bias", [None, "shared", "members"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_the_references_written_gradient_is_that_of_autograd(
    dropout_p: float, bias: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registered op's, where a mode watches, in blocks of a jet or two."""
    monkeypatch.setattr(reference_module, "_BLOCK", 100)
    qkv, offsets, pair_bias, _ = draw([4, 0, 3, 5, 1], 2, 8, members=2, bias=bias)
    inputs = [x.double().requires_grad_() for x in qkv.unbind(-3)]
    biases = [] if pair_bias is None else [pair_bias.double().requires_grad_()]
    keywords = {"scale": 0.4, "dropout_p": dropout_p, "seed": SEED}

    def gradients(attention: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        out = attention(*inputs, offsets, bias=biases[0] if biases else None, **keywords)
        return torch.autograd.grad(out.pow(3).sum(), inputs + biases)

    expected = gradients(constituent_attention_reference)
    with Watch():
        torch.testing.assert_close(gradients(constituent_attention), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:kdfast.ops.constituent_attention runs its PyTorch reference")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("head_dim", [8, 5])
@pytest.mark.parametrize("watched", [False, True])
def test_there_is_no_second_derivative(watched: bool, head_dim: int, dtype: torch.dtype) -> None:
    """Of a kernel and of the registered op, which runs where a mode watches: it is refused, never left out."""
    q, offsets = torch.randn(5, 1, head_dim, dtype=dtype, requires_grad=True), torch.tensor([0, 3, 5])
    if not watched and kernel_of(q) == "reference":
        pytest.skip("the reference itself has one")
    with Watch() if watched else nullcontext():
        loss = constituent_attention(q, q, q, offsets).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, q, create_graph=True)
        with pytest.raises(RuntimeError, match="once"):
            gradient.square().sum().backward()
        qkv = torch.stack([q.detach()] * 3, 1).requires_grad_()
        loss = constituent_attention_qkvpacked(qkv, offsets).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, qkv, create_graph=True)
        with pytest.raises(RuntimeError, match="once"):
            gradient.square().sum().backward()


@pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))
@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0xFFC00155, 0x7F800001])
def test_nan_reaches_the_result_whatever_its_bits(payload: int) -> None:
    q, offsets = torch.randn(20, 1, 8), torch.tensor([0, 20])
    k, v = q.clone(), torch.ones(20, 1, 8)
    q.numpy().view(np.uint32)[3, 0, 0] = payload
    out = constituent_attention(q, k, v, offsets)[:, 0]
    assert out[3].isnan().all()
    assert out[[0, 1, 2, *range(4, 20)]].isfinite().all()
    k.numpy().view(np.uint32)[3, 0, 0] = payload
    assert constituent_attention(q, k, v, offsets).isnan().all()
