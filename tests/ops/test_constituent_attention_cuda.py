"""The CUDA kernels of constituent_attention: every tail, order of threads, layout; what graphs need.

The cases of test_constituent_attention.py run over them as well; these are about how work is cut into warps and tiles.
"""

from unittest import mock

import pytest
import torch
from torch import Tensor

from kdfast.errors import DataError
from kdfast.ops import constituent_attention_cuda as attention_on_gpus
from kdfast.ops import gpu
from kdfast.ops.constituent_attention import constituent_attention
from kdfast.ops.constituent_attention_reference import constituent_attention_reference
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import cuda_kernels
from tests.ops.test_constituent_attention import DTYPES, SEED, draw, results

pytestmark = pytest.mark.cuda_kernels

PLAIN = 75  # the compute capability whose kernels do without tensor cores
Inputs = tuple[Tensor, Tensor, Tensor | None, Tensor]


def check(
    dtype: torch.dtype, inputs: Inputs, case: str, seed: int = 0, capability: int = 90, dropout_p: float = 0.0
) -> None:
    options = {"dropout_p": dropout_p, "seed": SEED}
    with cuda_kernels(seed, capability):
        actual = results(constituent_attention, dtype, inputs, **options)
    plain = results(constituent_attention_reference, dtype, inputs, **options)
    exact = results(constituent_attention_reference, torch.float64, inputs, storage=dtype, **options)
    for name in exact:
        assert_accurate(actual[name], plain[name], exact[name], f"{name}, {case}")


@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [8, 16, 24, 32, 64])
def test_every_tail(d: int, dtype: torch.dtype, extras: bool) -> None:
    """Jets of 0 … 50 constituents: every n mod 16 of one tile, of two that a warp takes at once, of a second warp."""
    for first in range(0, 51, 17):
        counts = list(range(first, first + 17))
        inputs = draw(counts, 1, d, bias="shared" if extras else None, seed=first)
        case = f"n={first}…{first + 16} d={d} {dtype} extras={extras}"
        check(dtype, inputs, case, seed=first, dropout_p=0.3 if extras else 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [8, 16, 24, 32, 64])
def test_without_tensor_cores(d: int, dtype: torch.dtype) -> None:
    inputs = draw([0, 1, 7, 16, 33], 2, d, members=2, bias="own")
    check(dtype, inputs, f"d={d} {dtype}", capability=PLAIN, dropout_p=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_longest_jets(dtype: torch.dtype) -> None:
    check(dtype, draw([200, 3, 199, 0, 193], 1, 16, bias="shared"), f"{dtype}", dropout_p=0.1)


@pytest.mark.parametrize("capability", [90, PLAIN])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_on_every_schedule_and_for_any_members(dtype: torch.dtype, capability: int) -> None:
    inputs = draw([5, 40, 0, 17, 64, 1], 3, 16, members=3, bias="shared")
    runs = []
    for seed in range(5):
        with cuda_kernels(seed, capability):
            runs.append(results(constituent_attention, dtype, inputs, dropout_p=0.2, seed=SEED))
    for run in runs[1:]:
        assert all(torch.equal(runs[0][name], run[name]) for name in run)
    qkv, offsets, bias, grad = inputs
    with cuda_kernels(0, capability):
        alone = results(constituent_attention, dtype, (qkv[1], offsets, bias, grad[1]), dropout_p=0.2, seed=SEED)
    assert torch.equal(alone["out"], runs[0]["out"][1])
    assert torch.equal(alone["dqkv"], runs[0]["dqkv"][1])


def test_more_jets_than_the_plan_takes_at_once() -> None:
    """Each thread of the plan's block then has several jets, and the places of biases follow from several rounds."""
    counts = [n % 4 for n in range(1100)]
    check(torch.bfloat16, draw(counts, 1, 8, bias="shared"), "1100 jets")


def test_weights_of_bias_minus_infinity_are_zero() -> None:
    """Also where the first tile has no other."""
    n = 40
    qkv, offsets, _, grad = draw([n], 1, 16)
    bias = torch.zeros(1, n * n)
    bias.view(n, n)[:, :20] = -torch.inf
    kept = qkv[20:].double()
    q, k, v = qkv[:, 0].double(), kept[:, 1], kept[:, 2]
    expected = torch.einsum("hij,jhd->ihd", (torch.einsum("ihd,jhd->hij", q, k) / 4).softmax(-1), v)
    for dtype in DTYPES:
        with cuda_kernels():
            found = results(constituent_attention, dtype, (qkv, offsets, bias, grad))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(found["out"].double(), expected, rtol=8 * eps, atol=8 * eps)
        assert found["dqkv"].isfinite().all()
        assert not found["dbias"].view(n, n)[:, :20].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_anywhere_in_memory(dtype: torch.dtype) -> None:
    """Rows that the kernels read where they are, and such as have to be copied, give the same bits."""
    qkv, offsets, _, grad = draw([20, 0, 33], 2, 16)
    contiguous = [x.to(dtype).contiguous() for x in qkv.unbind(-3)]
    odd = []
    for x in contiguous:
        memory = x.new_empty(x.numel() + 1)[1:]  # begins at no multiple of 16 bytes
        odd.append(memory.view(x.shape).copy_(x))
    padded = [torch.nn.functional.pad(x, (0, 4))[..., :16] for x in contiguous]  # nor do these heads
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in contiguous]
    found = []
    for q, k, v in (contiguous, odd, padded, transposed):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        with cuda_kernels():
            out = constituent_attention(*leaves, offsets)
            found.append((out, *torch.autograd.grad(out, leaves, grad.to(dtype))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_host_looks_at_a_batch_once() -> None:
    qkv, offsets, bias, _ = draw([5, 3], 2, 8, bias="shared")
    qkv.requires_grad_()
    with cuda_kernels():
        with mock.patch.object(attention_on_gpus, "make_plan", wraps=attention_on_gpus.make_plan) as plan:
            for _ in range(2):
                constituent_attention(*qkv.unbind(-3), offsets, bias=bias).sum().backward()
            assert len(plan.call_args_list) == 1 + 4  # the look; forward and backward make their own
            offsets[1] = 4  # another batch in the same memory
            with pytest.raises(DataError, match="Σ n² = 32"):
                constituent_attention(*qkv.unbind(-3), offsets, bias=bias)
            constituent_attention(*qkv.unbind(-3), offsets)
        assert len(plan.call_args_list) == 1 + 4 + 1 + 1


def test_offsets_that_change_without_a_trace() -> None:
    """As where a replayed graph writes them: nobody looks, but results are those of the offsets as they are."""
    qkv, offsets, _, grad = draw([5, 3, 9], 2, 8)
    with cuda_kernels():
        before = results(constituent_attention, torch.float32, (qkv, offsets, None, grad))
        version = offsets._version
        offsets.numpy()[1:3] = [12, 12]
        assert offsets._version == version
        after = results(constituent_attention, torch.float32, (qkv, offsets, None, grad))
        expected = results(constituent_attention, torch.float32, (qkv, torch.tensor([0, 12, 12, 17]), None, grad))
        for name, x in after.items():
            assert torch.equal(x, expected[name])
            assert not torch.equal(x, before[name])
        offsets.numpy()[1] = 99
        broken = results(constituent_attention, torch.float32, (qkv, offsets, None, grad))
        assert all(x.isnan().all() for x in broken.values())


def test_more_pairs_than_the_bias_has_are_nan_within_a_graph() -> None:
    qkv, offsets, bias, grad = draw([5, 3], 2, 8, bias="shared")
    with cuda_kernels(), mock.patch.object(gpu, "may_wait", return_value=False):
        offsets[1] = 7
        q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(-3))
        out = constituent_attention(q, k, v, offsets, bias=bias)
        assert out.isnan().all()
        assert all(x.isnan().all() for x in torch.autograd.grad(out, (q, k, v), grad))


@pytest.mark.parametrize("d", [16, 64])
def test_within_a_graph(d: int) -> None:
    """Nobody looks at offsets: rows behind the last one are padding; offsets that can't be make NaN of everything."""
    qkv, offsets, _, grad = draw([6, 20], 2, d, members=2)
    padding = torch.full((2, 40, 3, 2, d), torch.nan)
    padded, padded_grad = torch.cat([qkv, padding], 1), torch.cat([grad, padding[:, :, 0]], 1)
    with cuda_kernels():
        expected = results(constituent_attention, torch.float32, (qkv, offsets, None, grad))
        with mock.patch.object(gpu, "may_wait", return_value=False):
            found = results(constituent_attention, torch.float32, (padded, offsets, None, padded_grad))
            for name, x in found.items():
                assert torch.equal(x[:, :26], expected[name])
                assert not x[:, 26:].any()
            for wrong in ([0, 30, 26], [0, 6, 99], [1, 6, 26]):
                broken = results(constituent_attention, torch.float32, (padded, torch.tensor(wrong), None, padded_grad))
                assert all(x.isnan().all() for x in broken.values())
