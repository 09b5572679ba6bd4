import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast.errors import DataError
from kdfast.ops.adamw import adamw, adamw_reference
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import BACKENDS, chosen, cuda_kernels


def state(members, parameters, seed=0, dtype=torch.float32, gradient_scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(members, parameters, generator=generator).to(dtype)

    arrays = {
        "parameters": normal(),
        "gradient": normal() * gradient_scale,
        "moment1": normal() * 0.1,
        "moment2": normal().square() * 0.01,
    }
    rates = {
        "step": torch.arange(1, members + 1),
        "learning_rate": torch.logspace(-5, -1, members, dtype=dtype),
        "weight_decay": torch.linspace(0, 0.3, members, dtype=dtype),
    }
    return arrays, rates


def run(function, arrays, rates, clip_norm):
    out = {name: x.clone() for name, x in arrays.items()}
    norm = function(*out.values(), **rates, clip_norm=clip_norm)
    return out | {"norm": norm}


# A chunk of the CPU kernel is 16,384 parameters, with vectors of 4, 8 or 16 lanes; a slice of the CUDA kernel is 8,192.
@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(
    members=st.integers(1, 4),
    parameters=st.sampled_from([1, 3, 15, 16, 17, 63, 64, 1000, 8191, 8192, 8193, 16383, 16384, 16385, 40000]),
    seed=st.integers(0, 1000),
    gradient_scale=st.sampled_from([0.0, 1e-12, 1.0, 1e6]),
    clip_norm=st.sampled_from([1e-3, 1.0, 1e9]),
)
def test_is_as_accurate_as_pytorch(name, members, parameters, seed, gradient_scale, clip_norm):
    arrays, rates = state(members, parameters, seed, gradient_scale=gradient_scale)
    with chosen(name):
        ours = run(adamw, arrays, rates, clip_norm)
    plain = run(adamw_reference, arrays, rates, clip_norm)
    double = [{name: x.double() if x.is_floating_point() else x for name, x in d.items()} for d in (arrays, rates)]
    exact = run(adamw_reference, *double, clip_norm)
    for key in ours:
        case = f"{key}: K={members} P={parameters} seed={seed} gradient × {gradient_scale}, clip {clip_norm}"
        assert_accurate(ours[key], plain[key], exact[key], case)
    assert torch.equal(ours["gradient"], arrays["gradient"])


def test_the_reference_is_torchs_adamw_with_clipping():
    arrays, rates = state(1, 500, dtype=torch.float64)
    parameter = torch.nn.Parameter(arrays["parameters"][0].clone())
    optimizer = torch.optim.AdamW([parameter], lr=rates["learning_rate"].item(), weight_decay=0.2)
    ours = {name: torch.zeros_like(x) if "moment" in name else x.clone() for name, x in arrays.items()}
    for step in range(1, 6):
        ours["gradient"] = torch.randn(1, 500, dtype=torch.float64)
        parameter.grad = ours["gradient"][0].clone()
        norm = torch.nn.utils.clip_grad_norm_([parameter], 0.5)
        optimizer.step()
        rates |= {"step": torch.tensor([step]), "weight_decay": torch.tensor([0.2], dtype=torch.float64)}
        assert adamw(*ours.values(), **rates, clip_norm=0.5).item() == pytest.approx(norm.item(), rel=1e-12)
        torch.testing.assert_close(ours["parameters"][0], parameter.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_member_with_a_bad_gradient_is_left_alone(name, bad):
    arrays, rates = state(3, 100)
    arrays["gradient"][1, 7] = bad
    with chosen(name):
        after = run(adamw, arrays, rates, 1.0)
        arrays["gradient"][1] = 0.5
        good = run(adamw, arrays, rates, 1.0)
    assert after["norm"].isfinite().tolist() == [True, False, True]
    for key in ("parameters", "moment1", "moment2"):
        assert torch.equal(after[key][1], arrays[key][1])
        assert torch.equal(after[key][[0, 2]], good[key][[0, 2]])
        assert not torch.equal(good[key][1], arrays[key][1])


def test_bits_depend_neither_on_threads_nor_on_neighbours():
    arrays, rates = state(5, 50_000)
    before = torch.get_num_threads()
    try:
        outcomes = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outcomes.append(run(adamw, arrays, rates, 1.0))
    finally:
        torch.set_num_threads(before)
    alone = run(adamw, *({name: x[2:3] for name, x in d.items()} for d in (arrays, rates)), 1.0)
    for name in outcomes[0]:
        assert torch.equal(outcomes[0][name], outcomes[1][name])
        assert torch.equal(outcomes[0][name], outcomes[2][name])
        assert torch.equal(outcomes[0][name][2:3], alone[name])


@pytest.mark.cuda_kernels
def test_cuda_bits_depend_neither_on_the_schedule_nor_on_neighbours():
    arrays, rates = state(3, 20_001)
    outcomes = []
    for seed in range(4):
        with cuda_kernels(seed):
            outcomes.append(run(adamw, arrays, rates, 1.0))
    with cuda_kernels():
        alone = run(adamw, *({name: x[2:] for name, x in d.items()} for d in (arrays, rates)), 1.0)
    for name, expected in outcomes[0].items():
        assert all(torch.equal(expected, other[name]) for other in outcomes)
        assert torch.equal(expected[2:], alone[name])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_copy_of_the_parameters_stays_one(name, dtype):
    """Also of a member that is left alone, and of those before and behind it."""
    arrays, rates = state(3, 8195)
    expected = run(adamw_reference, arrays, rates, 1.0)
    arrays["gradient"][1, 7] = math.nan
    rounded = arrays["parameters"].to(dtype)
    before = rounded.clone()
    with chosen(name):
        after = run(partial(adamw, rounded=rounded), arrays, rates, 1.0)
    assert torch.equal(rounded, after["parameters"].to(dtype))
    assert torch.equal(rounded[1], before[1])
    torch.testing.assert_close(rounded[[0, 2]].float(), expected["parameters"][[0, 2]], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_opcheck(dtype):
    arrays, rates = state(2, 20)
    rounded = None if dtype is None else arrays["parameters"].to(dtype)
    torch.library.opcheck(torch.ops.kdfast.adamw.default, (*arrays.values(), *rates.values(), 1.0, rounded, 0))


@pytest.mark.parametrize("name", BACKENDS)
def test_no_members_and_no_parameters(name):
    for shape in ((0, 5), (2, 0)):
        arrays, rates = state(*shape)
        with chosen(name):
            assert adamw(*arrays.values(), **rates, clip_norm=1.0).tolist() == [0.0] * shape[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moment1": torch.zeros(2, 3)}, r"must share one shape \[K, P\]"),
        ({"rounded": torch.zeros(2, 19, dtype=torch.bfloat16)}, r"must share one shape \[K, P\]"),
        ({"step": torch.ones(1, dtype=torch.int64)}, r"must be \[2\]"),
        ({"step": torch.ones(2)}, "int64"),
        ({"gradient": torch.zeros(2, 20, device="meta")}, "gradient: lies on meta"),
        ({"weight_decay": torch.zeros(2, device="meta")}, "weight_decay: lies on meta"),
    ],
)
def test_bad_input(change, message):
    arrays, rates = state(2, 20)
    with pytest.raises(DataError, match=message):
        adamw(**(arrays | rates | change), clip_norm=1.0)
