"""Tensors on a GPU through every op: any stream, captured graphs, torch.compile; the same bits as through copies.

Accuracy is the subject of each op's own tests, which run on a GPU as well, through copies of CPU tensors
(tests/cuda_kernels.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from kdfast.ops import gpu
from kdfast.ops.adamw import adamw
from kdfast.ops.attention_pooling import attention_pooling
from kdfast.ops.attention_transfer import attention_transfer
from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.constituent_attention import constituent_attention
from kdfast.ops.distill_loss import distill_loss
from kdfast.ops.dropout_masks import MaskUse, dropout_masks
from kdfast.ops.packed_attention import attention_plan, packed_attention
from kdfast.ops.packed_rows import Dropout, PackedRows, pair_tiles
from kdfast.ops.residual_norm import residual_norm
from tests.cuda_kernels import needs_gpu
from tests.ops.backends import cuda_kernels
from tests.ops.packed import normal, rows_of, with_gradients

K, D = 3, 16
COUNTS = [5, 0, 30, 1, 11, 17]
PADDING = 6


def rows_tensors(seed: int) -> list[Tensor]:
    """Jets in an order that depends on the seed: offsets, jet and position of each row; and a seed of dropout."""
    order = torch.randperm(len(COUNTS), generator=torch.Generator().manual_seed(seed))
    rows = rows_of([COUNTS[i] for i in order], PADDING)
    return [rows.offsets, rows.jet, rows.position, torch.tensor(seed)]


def rows_from(offsets: Tensor, jet: Tensor, position: Tensor) -> PackedRows:
    return PackedRows(offsets[-1:], jet, position, offsets)


M = sum(COUNTS) + PADDING
Draw = Callable[[int], list[Tensor]]
Run = Callable[..., Sequence[Tensor]]


def on_rows(op: Callable[..., Tensor | tuple[Tensor, ...]], *shapes: tuple[int, ...]) -> tuple[Draw, Run]:
    """Of an op(*tensors, rows, dropout), its gradients by tensors of these shapes."""

    def draw(seed: int) -> list[Tensor]:
        return [*rows_tensors(seed), *(normal(*shape, seed=10 * seed + i) for i, shape in enumerate(shapes))]

    def run(offsets: Tensor, jet: Tensor, position: Tensor, seed: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        rows, dropout = rows_from(offsets, jet, position), Dropout(0.2, seed)
        outputs = op(*tensors, rows, dropout)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        grads = [torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape).to(x.dtype) for x in outputs]
        return with_gradients(lambda *x: op(*x, rows, dropout), tensors, grads)

    return draw, run


def draw_loss(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels, weights = torch.randint(0, 2, (40,), generator=generator), torch.rand(40, generator=generator)
    return [normal(K, 40, 1, seed=seed), normal(40, 1, seed=seed + 1), labels.float(), weights]


def run_loss(student: Tensor, teacher: Tensor, labels: Tensor, weights: Tensor) -> Sequence[Tensor]:
    grad = torch.ones(K, device=student.device)
    settings = {"temperature": torch.arange(1.0, K + 1, device=student.device), "alpha": grad / 2}
    return with_gradients(lambda s: distill_loss(s, teacher, labels, weights=weights, **settings), [student], [grad])


def draw_attention(seed: int) -> list[Tensor]:
    return [torch.tensor([0, 5, 5, 35, 36]), *(normal(K, 36, 2, D, seed=seed + i) for i in range(4))]


def run_attention(offsets: Tensor, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Sequence[Tensor]:
    attention = partial(constituent_attention, offsets=offsets, dropout_p=0.2, seed=7)
    return with_gradients(attention, [q, k, v], [grad])


def draw_adamw(seed: int) -> list[Tensor]:
    arrays = [normal(K, 1001, seed=seed + i) for i in range(3)]
    return [
        *arrays,
        normal(K, 1001, seed=seed + 3).square(),
        torch.tensor([1, 2, 3]),
        *normal(2, K, seed=seed + 4).abs(),
    ]


def run_adamw(*tensors: Tensor) -> Sequence[Tensor]:
    parameters, gradient, moment1, moment2, step, rate, decay = (x.clone() for x in tensors)
    rates = {"step": step, "learning_rate": rate, "weight_decay": decay}
    return [adamw(parameters, gradient, moment1, moment2, **rates, clip_norm=1.0), parameters, moment1, moment2]


def batch_norm(y: Tensor, gamma: Tensor, beta: Tensor, rows: PackedRows, dropout: Dropout) -> Tensor:
    running = torch.zeros_like(gamma.detach()), torch.ones_like(gamma.detach())
    return batch_norm_gelu(y, gamma, beta, *running, rows, dropout, training=True)


def transfer(attention: Tensor, rows: PackedRows, dropout: Dropout) -> Tensor:
    summary = torch.ones(3, len(COUNTS), device=attention.device)
    return attention_transfer(attention.abs() + 0.1, rows, *summary)


def masked_attention(qkv: Tensor, rows: PackedRows, dropout: Dropout) -> Tensor:
    rows = replace(rows, tiles=int(pair_tiles(torch.tensor(COUNTS)).sum()))
    plan = attention_plan(qkv, rows)
    (drawn,) = dropout_masks(rows, [MaskUse("pairs", qkv.shape[3])], dropout.p, dropout.seed[None], plan)
    return packed_attention(qkv, rows, drawn, plan)


def half(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *tensors: op(*(x.bfloat16() for x in tensors[:-2]), *tensors[-2:])


CASES: dict[str, tuple[Draw, Run]] = {
    "distill_loss": (draw_loss, run_loss),
    "constituent_attention": (draw_attention, run_attention),
    "adamw": (draw_adamw, run_adamw),
    "packed_attention": on_rows(packed_attention, (K, M, 3, 2, D)),
    "packed_attention, bf16": on_rows(half(packed_attention), (K, M, 3, 2, D)),
    "dropout_masks": on_rows(masked_attention, (K, M, 3, 2, D)),
    "residual_norm": on_rows(residual_norm, *[(K, M, D)] * 2, *[(K, D)] * 3),
    "bias_gelu": on_rows(bias_gelu, (K, M, D), (K, D)),
    "batch_norm_gelu": on_rows(batch_norm, (K, M, D), (K, D), (K, D)),
    "attention_pooling": on_rows(attention_pooling, (K, M, D), (K, 4, D)),
    "attention_transfer": on_rows(transfer, (K, M)),
}
every_op = pytest.mark.parametrize("name", CASES)


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.cpu(), b.cpu())


@pytest.mark.cuda_kernels
@every_op
def test_a_case_computes_what_its_reference_computes(name: str) -> None:
    """That the cases of this file are sound, without a GPU as well."""
    draw, run = CASES[name]
    inputs = draw(1)
    with cuda_kernels():
        found = run(*inputs)
    tolerance = 4 * torch.finfo(torch.bfloat16).eps if "bf16" in name else 2e-5
    for a, b in zip(found, run(*inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        assert a.any()


@needs_gpu
@every_op
def test_the_same_bits_as_through_copies(name: str) -> None:
    draw, run = CASES[name]
    with cuda_kernels():
        expected = run(*draw(1))
    assert_same(run(*(x.cuda() for x in draw(1))), expected)


@needs_gpu
@every_op
def test_on_another_stream(name: str) -> None:
    """Behind work that takes a while on that stream alone: the op waits for it, as for its inputs."""
    draw, run = CASES[name]
    inputs = [x.cuda() for x in draw(2)]
    expected = run(*inputs)
    stream, late = torch.cuda.Stream(), [torch.zeros_like(x) for x in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for to, x in zip(late, inputs, strict=True):
            to.copy_(x)
        found = run(*late)
    stream.synchronize()
    assert_same(found, expected)


@needs_gpu
@every_op
def test_a_captured_graph_follows_its_inputs(name: str) -> None:
    draw, run = CASES[name]
    static = [x.cuda() for x in draw(3)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*static)  # libraries allocate
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(*static)
    for seed in (4, 5, 4):
        inputs = [x.cuda() for x in draw(seed)]
        for to, x in zip(static, inputs, strict=True):
            to.copy_(x)
        graph.replay()
        assert_same(found, run(*inputs))


@needs_gpu
@pytest.mark.parametrize("name", ["distill_loss", "constituent_attention"])
def test_compiled(name: str) -> None:
    inputs = [x.cuda() for x in CASES[name][0](6)]

    def forward(*tensors: Tensor) -> Tensor:
        if name == "distill_loss":
            student, teacher, labels, weights = tensors
            return distill_loss(student * 1, teacher, labels, temperature=2.0, alpha=0.5, weights=weights).sum()
        offsets, q, k, v, grad = tensors
        return (constituent_attention(q * 1, k, v, offsets, dropout_p=0.2, seed=7) * grad).sum()

    leaf = inputs[0 if name == "distill_loss" else 1].requires_grad_()
    values = []
    for function in (forward, torch.compile(forward, fullgraph=True)):
        value = function(*inputs)
        values.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    for eager, compiled in zip(*values, strict=True):
        torch.testing.assert_close(eager, compiled)


@needs_gpu
def test_every_op_is_called_by_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of a GPU no op of a case falls back to its reference."""
    called: set[str] = set()
    original = gpu.call

    def call(op: str, *arguments: object) -> None:
        called.add(op)
        original(op, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu, "call", call)
    for draw, run in CASES.values():
        run(*(x.cuda() for x in draw(7)))
    assert {name.split(",")[0].replace("packed_attention", "constituent_attention") for name in CASES} <= called
