"""The shared core of the kernels, in the instruction set in use: elementary functions, 16-bit floats, threads."""

import itertools
import multiprocessing
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from kdfast.ops.arrays import DTYPE_CODES
from tests.ops.accuracy import assert_accurate
from tests.ops.probe import probe, why_no_probe

pytestmark = pytest.mark.skipif(why_no_probe is not None, reason=str(why_no_probe))

# Probe in csrc/core_probe/core_probe.h
EXP, EXP_NONPOSITIVE, EXPM1, LOG, LOG1P, LOG1P_UNIT, LOAD_BF16, LOAD_F16, STORE_BF16, STORE_F16, NORMAL = range(11)
ALL_16_BITS = torch.arange(65536, dtype=torch.int32).to(torch.int16)  # each bit pattern once


def apply(function: int, x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """(value, rest) of a function of the core."""
    x = x.contiguous()
    y, rest = torch.empty(x.shape, dtype=dtype), torch.zeros(x.shape)
    probe().apply(function, x.data_ptr(), y.data_ptr(), rest.data_ptr(), x.numel())
    return y, rest


def logarithmic(low: float, high: float, n: int = 20_000) -> Tensor:
    """n positive floats, spread evenly over their exponents."""
    rng = np.random.default_rng(0)
    return torch.tensor(np.exp(rng.uniform(np.log(low), np.log(high), n)), dtype=torch.float32)


def signed(x: Tensor) -> Tensor:
    return torch.cat([x, -x])


def worst_ulps(actual: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of the exact value (float64)."""
    unit = 2.0 ** (torch.floor(torch.log2(exact.abs().clamp_min(2.0**-126))) - 23)
    return ((actual.double() - exact).abs() / unit).max().item()


def exact_rest(function: str, x: Tensor) -> Tensor:
    """e^x − 1 − x or x − ln(1 + x), which float64 loses digits of."""
    with mpmath.workdps(50):
        values = (mpmath.mpf(v) for v in x.tolist())
        if function == "expm1":
            return torch.tensor([float(mpmath.expm1(v) - v) for v in values], dtype=torch.float64)
        return torch.tensor([float(v - mpmath.log1p(v)) for v in values], dtype=torch.float64)


SMALL = signed(logarithmic(1e-18, 0.4))


@pytest.mark.parametrize(
    ("function", "x", "exact", "ulps"),
    [
        (EXP, torch.cat([torch.linspace(-87.3, 88.7, 40_001), SMALL]), torch.exp, 2),
        (EXP_NONPOSITIVE, torch.cat([torch.linspace(-87, 0, 40_001), -SMALL.abs()]), torch.exp, 2),
        (EXPM1, torch.cat([torch.linspace(-87, 88, 40_001), SMALL]), torch.expm1, 4),
        (LOG, torch.cat([logarithmic(1e-45, 3e38), torch.linspace(0.5, 2, 20_001)]), torch.log, 2),
        (LOG1P, torch.cat([logarithmic(1e-18, 1.7e38), torch.linspace(-0.999, 3, 20_001), SMALL]), torch.log1p, 3),
        (LOG1P_UNIT, torch.cat([torch.linspace(0, 1, 40_001), logarithmic(1e-18, 1)]), torch.log1p, 3),
    ],
    ids=["exp", "exp_nonpositive", "expm1", "log", "log1p", "log1p_unit"],
)
def test_elementary_functions(function: int, x: Tensor, exact: object, ulps: float) -> None:
    assert callable(exact)
    assert worst_ulps(apply(function, x)[0], exact(x.double())) <= ulps


@pytest.mark.parametrize(("function", "name", "high"), [(EXPM1, "expm1", 20.0), (LOG1P, "log1p", 0.999)])
def test_what_is_left_beyond_first_order_keeps_its_digits(function: int, name: str, high: float) -> None:
    x = signed(logarithmic(1e-15, high, 1500))
    assert worst_ulps(apply(function, x)[1], exact_rest(name, x)) <= 12


def test_special_values() -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([-inf, -1e30, -100.0, -0.0, 0.0, 100.0, 1e30, inf, nan])
    torch.testing.assert_close(apply(EXP, x)[0], torch.tensor([0, 0, 0, 1, 1, inf, inf, inf, nan]), equal_nan=True)
    x = torch.tensor([-inf, -1.0, -1e-45, -0.0, 0.0, 1.0, inf, nan])
    expected = torch.tensor([nan, nan, nan, -inf, -inf, 0, inf, nan])
    torch.testing.assert_close(apply(LOG, x)[0], expected, equal_nan=True)
    for function in (EXP_NONPOSITIVE, EXPM1, LOG1P):
        value, rest = apply(function, torch.tensor([0.0, -0.0, nan]))
        assert value.tolist()[:2] == [float(function == EXP_NONPOSITIVE)] * 2
        assert rest.tolist()[:2] == [0.0, 0.0]
        assert value[2].isnan()
    payloads = torch.from_numpy(np.array([0x7FC00001, 0x7FC00155, 0xFFC00001, 0xFFFFFFFF], np.uint32).view(np.float32))
    for function in (EXP, EXP_NONPOSITIVE, EXPM1, LOG, LOG1P):
        assert apply(function, payloads)[0].isnan().all()
    value, rest = apply(EXPM1, torch.tensor([-1e30, -100.0]))
    assert value.tolist() == [-1.0, -1.0]
    assert rest.tolist() == [torch.tensor(1e30).item(), 99.0]
    assert (apply(EXP_NONPOSITIVE, torch.tensor([-1e30, -inf, -88.0]))[0] < 2e-38).all()


def exact_normal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Φ and φ in float64, with relative accuracy on the negative side."""
    x = x.double()
    return torch.special.erfc(-x / 2**0.5) / 2, torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5


NORMAL_GRID = torch.cat([torch.linspace(-16, 16, 640_001), signed(logarithmic(1e-30, 1e-2))]).sort().values


def test_normal_distribution() -> None:
    cdf, density = apply(NORMAL, NORMAL_GRID)
    exact_cdf, exact_density = exact_normal(NORMAL_GRID)
    assert (cdf.double() - exact_cdf).abs().max() < 9e-8
    assert (density.double() - exact_density).abs().max() < 8e-8
    near, far = NORMAL_GRID.abs() <= 2.6, NORMAL_GRID.abs() <= 5.6  # the negative side keeps its digits
    for actual, exact, few, more in ((cdf, exact_cdf, 1e-6, 2e-5), (density, exact_density, 1e-6, 6e-5)):
        relative = (actual.double() / exact - 1).abs()
        assert relative[near].max() < few
        assert relative[far].max() < more


def test_gelu_and_its_derivative_are_as_accurate_as_torch_in_every_interval() -> None:
    cdf, density = apply(NORMAL, NORMAL_GRID)
    exact_cdf, exact_density = exact_normal(NORMAL_GRID)
    wide, leaf = NORMAL_GRID.double(), NORMAL_GRID.clone().requires_grad_()
    plain = torch.nn.functional.gelu(leaf)
    plain_slope = torch.autograd.grad(plain.sum(), leaf)[0]
    cases = {
        "gelu": (NORMAL_GRID * cdf, plain.detach(), wide * exact_cdf),
        "its derivative": (cdf + NORMAL_GRID * density, plain_slope, exact_cdf + wide * exact_density),
    }
    edges = torch.searchsorted(NORMAL_GRID, torch.arange(-16, 16.5, 0.5)).tolist()
    for name, case in cases.items():
        for low, high in itertools.pairwise(edges):
            actual, torchs, exact = (values[low:high] for values in case)
            assert_accurate(actual, torchs, exact, f"{name} from {NORMAL_GRID[low]:g} to {NORMAL_GRID[high - 1]:g}")


def test_normal_distribution_far_out() -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([-inf, -3e38, -20.0, -8.1, -0.0, 0.0, 1e-45, 8.1, 20.0, 3e38, inf, nan])
    cdf, density = apply(NORMAL, x)
    assert cdf[:-1].tolist() == [0, 0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1, 1]
    assert density[[0, 1, 2, 3, 7, 8, 9, 10]].tolist() == [0] * 8
    assert (x * cdf)[-1].isnan()
    assert (x * density)[-1].isnan()


@pytest.mark.parametrize("n", [0, 1, 3, 15, 17, 33])
def test_lanes_left_over(n: int) -> None:
    x = torch.linspace(-3, 3, 64)
    torch.testing.assert_close(apply(EXP, x[:n].clone())[0], apply(EXP, x)[0][:n], rtol=0, atol=0)


def same_bits(a: Tensor, b: Tensor) -> None:
    """Equal, counting any NaN as equal to any other."""
    both_nan = a.isnan() & b.isnan()
    bits = torch.int16 if a.element_size() == 2 else torch.int32
    assert bool(((a.view(bits) == b.view(bits)) | both_nan).all())


@pytest.mark.parametrize(
    ("dtype", "load", "store"),
    [(torch.bfloat16, LOAD_BF16, STORE_BF16), (torch.float16, LOAD_F16, STORE_F16)],
    ids=["bfloat16", "float16"],
)
class TestSixteenBits:
    def test_every_value_is_read_exactly(self, dtype: torch.dtype, load: int, store: int) -> None:
        halves = ALL_16_BITS.view(dtype)
        same_bits(apply(load, halves)[0], halves.float())
        to_float, code = probe().to_float, DTYPE_CODES[dtype]
        scalars = torch.tensor([to_float(code, i) for i in range(65536)], dtype=torch.float32)
        same_bits(scalars, torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype).float())

    def test_floats_are_rounded_as_torch_rounds_them(self, dtype: torch.dtype, load: int, store: int) -> None:
        random_bits = torch.randint(-(2**31), 2**31, (2**18,), generator=torch.Generator().manual_seed(0))
        values = ALL_16_BITS.view(dtype).float()
        values = values[values.isfinite()]
        up, down = torch.nextafter(values, torch.tensor(torch.inf)), torch.nextafter(values, torch.tensor(-torch.inf))
        halfway = (values.double() + torch.roll(values, 1).double()).div(2).float()  # ties
        special = torch.tensor([torch.inf, -torch.inf, torch.nan, 65504.0, 65519.996, 65520.0, 3.4e38, 1e-45, -0.0])
        x = torch.cat([random_bits.to(torch.int32).view(torch.float32), values, up, down, halfway, special])
        x = torch.cat([x, torch.zeros(-len(x) % 16)])
        same_bits(apply(store, x, dtype)[0], x.to(dtype))
        from_float, code = probe().from_float, DTYPE_CODES[dtype]
        part = torch.cat([x[:: len(x) // 20_000], halfway[::7], special])
        scalars = np.array([from_float(code, v) for v in part.tolist()], dtype=np.uint16).view(np.int16)
        same_bits(torch.from_numpy(scalars).view(dtype), part.to(dtype))


def parallel_for(tasks: int, threads: int, inner: int = 0) -> bytes:
    """How often each task ran."""
    return probe().parallel_for(tasks, threads, inner)


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
@pytest.mark.parametrize("tasks", [0, 1, 2, 3, 1000])
@pytest.mark.parametrize("inner", [0, 5])
def test_each_task_runs_once(tasks: int, threads: int, inner: int) -> None:
    for _ in range(20):
        assert parallel_for(tasks, threads, inner) == b"\1" * tasks


def in_threads(*tasks: Callable[[], bool]) -> None:
    """Runs each in a Python thread of its own, all at once, and asserts that they return True."""
    with ThreadPoolExecutor(len(tasks)) as executor:
        futures = [executor.submit(task) for task in tasks]
    assert [future.result() for future in futures] == [True] * len(tasks)


def random_jobs(seed: int, number: int) -> bool:
    """Whether in each of so many calls of random sizes, some of them nested, each task ran once."""
    rng = random.Random(seed)
    sizes = ((rng.choice((0, 1, 2, 5, 30, 200)), rng.randint(0, 5), rng.choice((0, 0, 3))) for _ in range(number))
    return all(parallel_for(tasks, threads, inner) == b"\1" * tasks for tasks, threads, inner in sizes)


def test_many_random_jobs_from_several_python_threads() -> None:
    in_threads(*(partial(random_jobs, seed, 400) for seed in range(5)))


def test_several_calls_are_helped_at_once() -> None:
    """Two calls of two tasks each, none of which ends before all four run."""
    parallel_for(100, 4)  # three threads in the pool
    present = torch.zeros((), dtype=torch.int32)
    in_threads(*[lambda: probe().meet(present.data_ptr(), 2, 4, 60.0)] * 2)


def test_a_call_without_free_threads_is_done_by_its_caller() -> None:
    """While one call holds the only thread that is asked for, others go on; it ends when they are done."""
    core = probe()
    present = torch.zeros((), dtype=torch.int32)

    def others() -> bool:
        while present.item() < 2:
            time.sleep(0.001)
        fine = random_jobs(0, 50)
        present.add_(1)
        return fine

    in_threads(lambda: core.meet(present.data_ptr(), 2, 3, 60.0), others)


def _in_child(result: "multiprocessing.SimpleQueue[bool]") -> None:
    result.put(random_jobs(0, 50))


forking = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def children_can_use_the_pool(number: int) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(number):
        result = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(result,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert result.get()


@forking
def test_after_fork() -> None:
    parallel_for(100, 4)  # the parent has workers, which the child does not inherit
    children_can_use_the_pool(1)
    assert parallel_for(100, 4) == b"\1" * 100


@forking
def test_fork_while_the_pool_is_busy() -> None:
    stop = threading.Event()

    def keep_busy() -> bool:
        fine = True
        while not stop.is_set():
            fine = fine and parallel_for(200, 3, 2) == b"\1" * 200
        return fine

    with ThreadPoolExecutor(2) as executor:
        busy = [executor.submit(keep_busy) for _ in range(2)]
        try:
            children_can_use_the_pool(8)
        finally:
            stop.set()
    assert [future.result() for future in busy] == [True, True]
