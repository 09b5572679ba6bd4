"""dropout: the kernel draws the reference's mask bit for bit, and the mask is what philox.h promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from kdfast import backend
from kdfast.errors import ConfigError, DataError
from kdfast.ops.dropout import dropout, dropout_reference
from kdfast.ops.philox import dropout_scale, dropout_threshold, philox4x32, seed_tensor

SEED = 0x1234_5678_9ABC_DEF0
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def offsets_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("counts", "features"),
    [
        ([3, 0, 1, 7, 40, 0], 32),
        ([200, 1], 128),
        ([5, 2], 7),
        ([0, 9, 2], 1),
        ([4], 100),
        ([2, 1], 2056),
        ([1] * 600, 64),
        ([], 16),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_equals_reference(counts: list[int], features: int, packed: bool, dtype: torch.dtype) -> None:
    offsets = offsets_of(counts)
    x = torch.randn(int(offsets[-1]), features, generator=torch.Generator().manual_seed(0)).to(dtype)
    where = offsets if packed else None
    torch.testing.assert_close(
        dropout(x, where, 0.3, SEED), dropout_reference(x, where, 0.3, SEED), rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("shape", [(3, 0), (0, 0), (0, 5)])
def test_nothing_to_drop(shape: tuple[int, int]) -> None:
    x = torch.zeros(shape)
    assert dropout(x, torch.tensor([0, shape[0]]), 0.3, SEED).shape == dropout(x, None, 0.3, SEED).shape == shape
    with pytest.raises(DataError, match="offsets: must rise from 0 to"):
        dropout(x, torch.tensor([0, shape[0] + 1]), 0.3, SEED)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 50), max_size=12),
    features=st.integers(1, 70),
    p=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63 - 1),
    packed=st.booleans(),
)
def test_any_shape(counts: list[int], features: int, p: float, seed: int, packed: bool) -> None:
    offsets = offsets_of(counts)
    x = torch.linspace(-1, 1, int(offsets[-1]) * features).reshape(-1, features)
    where = offsets if packed else None
    expected = x if p == 0 else dropout_reference(x, where, p, seed)
    torch.testing.assert_close(dropout(x, where, p, seed), expected, rtol=0, atol=0)


def test_mask_is_philox_at_the_documented_counter() -> None:
    offsets = offsets_of([2, 0, 3])
    kept = dropout(torch.ones(5, 20), offsets, 0.4, SEED) != 0
    word = philox4x32(SEED, *(torch.tensor(c) for c in (2, 0, 1, 13 // 8)))[(13 % 8) // 2]
    bits = int(word) >> 16  # feature 13 is odd: the high half; jet 2's constituent 1 is row 3
    assert bool(kept[3, 13]) == (bits >= dropout_threshold(0.4))
    rows = dropout(torch.ones(5, 20), None, 0.4, SEED) != 0
    bits = int(philox4x32(SEED, *(torch.tensor(c) for c in (4, 0, 0, 0)))[0]) & 0xFFFF
    assert bool(rows[4, 0]) == (bits >= dropout_threshold(0.4))


def test_rate_and_scale() -> None:
    x = torch.ones(4000, 64)
    y = dropout(x, None, 0.1, SEED)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(dropout_scale(0.1)).item()}
    deviation = 3 * (0.1 * 0.9 / x.numel()) ** 0.5 + 1 / 65536  # three sigma, and p's rounding
    assert abs((y == 0).double().mean().item() - 0.1) < deviation
    assert not torch.equal(y == 0, dropout(x, None, 0.1, SEED + 1) == 0)


@pytest.mark.parametrize("name", ["reference", None])
def test_gradient_has_the_same_mask(name: str | None) -> None:
    offsets = offsets_of([2, 0, 5])
    x = torch.randn(7, 24, requires_grad=True)
    with backend(name or "cpu"):
        y = dropout(x, offsets, 0.5, SEED)
        y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)
    assert torch.equal(x.grad, dropout_reference(torch.ones(7, 24), offsets, 0.5, SEED))


def test_gradcheck_and_second_derivative() -> None:
    x = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    arguments = (x, offsets_of([4, 2]), 0.3, SEED)
    assert torch.autograd.gradcheck(dropout, arguments)
    assert torch.autograd.gradgradcheck(dropout, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("offsets", [offsets_of([4, 0, 2]), None])
def test_opcheck(offsets: torch.Tensor | None, transposed: bool, dtype: torch.dtype) -> None:
    x = torch.randn(16, 6, dtype=dtype).t() if transposed else torch.randn(6, 16, dtype=dtype)
    x.requires_grad_()
    torch.library.opcheck(torch.ops.kdfast.dropout.default, (x, offsets, 0.25, torch.tensor(SEED)))


def test_compiles_without_graph_break() -> None:
    x, offsets = torch.randn(6, 16), offsets_of([4, 2])
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, seed: dropout(x * 2, offsets, 0.25, seed), backend=counter, fullgraph=True)
    for seed in (7, 8, 9, 2**64 - 1):
        assert torch.equal(compiled(x, seed_tensor(seed)), dropout(x * 2, offsets, 0.25, seed))
    assert counter.frame_count == 1  # a seed is data


def test_a_seed_may_be_a_tensor() -> None:
    x = torch.ones(6, 16)
    assert torch.equal(dropout(x, None, 0.5, torch.tensor(SEED)), dropout(x, None, 0.5, SEED))


def test_dropped_values_never_leak_and_layout_does_not_matter() -> None:
    kept = dropout(torch.ones(8, 40), None, 0.5, SEED) != 0
    x = torch.where(kept, 1.0, float("nan"))
    assert dropout(x, None, 0.5, SEED).isfinite().all()
    wide = torch.randn(8, 80)[:, ::2]
    assert torch.equal(dropout(wide, None, 0.5, SEED), dropout(wide.contiguous(), None, 0.5, SEED))


def test_threads_change_nothing() -> None:
    x, offsets = torch.randn(40 * 200, 32), offsets_of([40] * 200)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(dropout(x, offsets, 0.1, SEED))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_zero_probability_returns_x() -> None:
    x = torch.randn(3, 4)
    assert dropout(x, None, 0.0, SEED) is x


@pytest.mark.parametrize("p", [1.0, -0.1, float("nan"), 2.0])
def test_bad_probability(p: float) -> None:
    with pytest.raises(ConfigError, match="p: a dropout probability must lie in"):
        dropout(torch.ones(2, 8), None, p, 0)


@pytest.mark.parametrize("offsets", [[0, 2], [0, 4], [1, 3], [0, 3, 2, 3]])
def test_bad_offsets(offsets: list[int]) -> None:
    with pytest.raises(DataError, match="offsets: must rise from 0 to 3"):
        dropout(torch.ones(3, 8), torch.tensor(offsets), 0.5, 0)


def test_bad_shapes() -> None:
    with pytest.raises(DataError, match="x: must be a floating-point"):
        dropout(torch.ones(2, 3, 4), None, 0.5, 0)
    with pytest.raises(DataError, match="offsets: must be int64"):
        dropout(torch.ones(2, 8), torch.tensor([0, 2], dtype=torch.int32), 0.5, 0)
    with pytest.raises(DataError, match="offsets: lies on meta, other arguments on cpu"):
        dropout(torch.ones(2, 8), torch.tensor([0, 2], device="meta"), 0.5, 0)
