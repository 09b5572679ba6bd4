"""hlt_emulation: the kernel equals the reference, and both equal a plain loop over one jet."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast import backend
from kdfast.errors import DataError
from kdfast.ops.backend import why_no_cpu
from kdfast.ops.hlt_emulation import hlt_emulation, hlt_emulation_reference
from kdfast.ops.philox import normal_pair, philox4x32, uniform_open
from tests.synthetic import synthetic_jets

needs_kernel = pytest.mark.skipif(why_no_cpu is not None, reason=str(why_no_cpu))

NOTHING = {"pt_threshold": 0.0, "merge_radius": 0.0, "pt_resolution": 0.0, "angular_resolution": 0.0, "loss": 0.0}
SEED = 0x1234_5678_9ABC_DEF


def packed(*jets: list[tuple[float, float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """(constituents, offsets, index) of jets of massless (pt, eta, phi); an absurd η gets a finite energy."""
    rows = [(pt, eta, phi, pt * math.cosh(min(abs(eta), 80.0))) for jet in jets for pt, eta, phi in jet]
    offsets = torch.tensor([0, *(len(jet) for jet in jets)]).cumsum(0)
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4), offsets, torch.arange(len(jets)) * 10**12


def synthetic(n: int, seed: int, max_constituents: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    jets = synthetic_jets(n, seed, max_constituents)
    return torch.from_numpy(jets.constituents), torch.from_numpy(jets.offsets), torch.from_numpy(jets.index)


def assert_same(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """The same decisions; values that differ by no more than a rounding (and then by one unit in the last place)."""
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=0)
    torch.testing.assert_close(actual[2], expected[2], rtol=0, atol=0)
    eps = torch.finfo(expected[0].dtype).eps
    torch.testing.assert_close(actual[0], expected[0], rtol=eps, atol=eps)
    assert actual[0].isfinite().all()


def one_jet(x: Tensor, index: int, config: dict[str, float], seed: int) -> list[list[float]]:
    """The specification once more, for one jet, in scalars."""
    wrap = lambda angle: math.remainder(angle, 2 * math.pi)  # noqa: E731
    threshold = float(torch.tensor(config["pt_threshold"], dtype=x.dtype))
    standing: list[list[float]] = []
    for place, (pt, eta, phi, energy) in enumerate(x.double().tolist()):
        if pt < threshold:
            continue
        for kept in standing:
            d_phi = wrap(phi - kept[2])
            if math.hypot(eta - kept[1], d_phi) < config["merge_radius"]:
                w = pt / (kept[0] + pt)
                kept[0] += pt
                kept[1] += w * (eta - kept[1])
                kept[2] = wrap(kept[2] + math.atan2(w * math.sin(d_phi), 1 - w + w * math.cos(d_phi)))
                kept[3] += energy
                break
        else:
            standing.append([pt, eta, wrap(phi), energy, place])
    seen = []
    for pt, eta, phi, energy, place in standing:
        counter = [torch.tensor(c) for c in (index & 0xFFFFFFFF, index >> 32 & 0xFFFFFFFF, int(place))]
        words = philox4x32(seed, *counter, torch.tensor(0))
        if config["pt_resolution"] > 0 or config["angular_resolution"] > 0:
            z_eta, z_phi = normal_pair(words[0], words[1])
            z_pt, _ = normal_pair(words[2], words[3])
            pt *= min(max(1 + config["pt_resolution"] * z_pt.item(), 0.5), 1.5)
            eta += config["angular_resolution"] * z_eta.item()
            phi = wrap(phi + config["angular_resolution"] * z_phi.item())
            energy = pt * math.cosh(eta)
        if uniform_open(philox4x32(seed, *counter, torch.tensor(1))[0]) >= config["loss"]:
            seen.append([pt, eta, phi, energy])
    return sorted(seen, key=lambda c: -torch.tensor(c[0], dtype=x.dtype).item())


CONFIGS = [
    NOTHING,
    {**NOTHING, "pt_threshold": 1.0},
    {**NOTHING, "merge_radius": 0.05},
    {**NOTHING, "merge_radius": 0.3},
    {**NOTHING, "merge_radius": 2.0},  # beyond the series for small angles
    {**NOTHING, "merge_radius": 10.0},
    {**NOTHING, "pt_resolution": 0.2},
    {**NOTHING, "angular_resolution": 0.05},
    {**NOTHING, "loss": 0.2},
    {**NOTHING, "loss": 1.0},
    {"pt_threshold": 0.5, "merge_radius": 0.1, "pt_resolution": 0.3, "angular_resolution": 0.1, "loss": 0.1},
]


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_plain_loop(config: dict[str, float], dtype: torch.dtype) -> None:
    x, offsets, index = synthetic(12, seed=1)
    x, index = x.to(dtype), index + 7 * 10**11
    rows, edges, removed = hlt_emulation(x, offsets, index, **config, seed=SEED)
    expected = [one_jet(x[offsets[b] : offsets[b + 1]], int(index[b]), config, SEED) for b in range(len(index))]
    assert edges.diff().tolist() == [len(jet) for jet in expected]
    flat = torch.tensor([c for jet in expected for c in jet], dtype=torch.float64).reshape(-1, 4).to(dtype)
    torch.testing.assert_close(rows, flat, rtol=2e-7, atol=1e-7)
    assert rows.dtype == dtype
    assert int(removed.sum()) + len(rows) == len(x)


@needs_kernel
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("jets", "max_constituents"), [(300, 100), (40, 200), (5, 1), (1, 17)])
def test_kernel_equals_reference(config: dict[str, float], jets: int, max_constituents: int) -> None:
    inputs = synthetic(jets, seed=2, max_constituents=max_constituents)
    with backend("cpu"):
        actual = hlt_emulation(*inputs, **config, seed=SEED)
    assert_same(actual, hlt_emulation_reference(*inputs, **config, seed=SEED))


EDGE_CASES = {
    "no jets": packed(),
    "empty jets": packed([], [], []),
    "empty between others": packed([], [(5.0, 0.1, 0.2)], [], [(3.0, 0.0, 0.0), (2.0, 0.0, 0.0)], []),
    "pt 0": packed([(0.0, 0.1, 0.2)] * 5),
    "pt 0 behind": packed([(2.0, 0.1, 0.2), (0.0, 0.1, 0.2), (0.0, 1.0, 0.2)]),
    "all equal": packed([(3.0, 0.5, -0.5)] * 40),
    "across the seam": packed([(9.0, 0.0, math.pi), (8.0, 0.0, -math.pi), (7.0, 0.01, 3.13), (6.0, -0.01, -3.13)]),
    "phi outside [-pi, pi]": packed(
        [(9.0, 0.0, 3.5), (8.0, 0.0, 3.5 - 2 * math.pi), (7.0, 0.3, 9.0), (1.0, 0.0, 90.0)]
    ),
    "opposite": packed([(5.0, 0.0, 0.0), (5.0, 0.0, math.pi), (4.0, 0.0, math.pi / 2)]),
    "huge eta": packed([(5.0, 50.0, 0.0), (4.0, -300.0, 0.0), (3.0, 1e30, 0.0), (0.0, 1e5, 0.0)]),
    "huge pt": packed([(3e38, 0.0, 0.0), (3e38, 0.0, 0.01), (1e38, 0.5, 0.0)]),
    "tiny pt": packed([(1e-30, 0.0, 0.0), (1e-40, 0.0, 0.001), (1e-44, 0.02, 0.0)]),
    "falling into 200": packed([(200.0 - i, 0.02 * (i % 14), 0.03 * (i % 11)) for i in range(200)]),
    "negative index": (*packed([(3.0, 0.1, 0.2), (2.0, 0.4, 0.2)])[:2], torch.tensor([-1])),
}


@needs_kernel
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("case", EDGE_CASES)
def test_edge_cases(case: str, config: dict[str, float]) -> None:
    inputs = EDGE_CASES[case]
    expected = hlt_emulation_reference(*inputs, **config, seed=SEED)
    with backend("cpu"):
        assert_same(hlt_emulation(*inputs, **config, seed=SEED), expected)
    if expected[0].numel():
        assert expected[0][:, 2].abs().max() <= torch.tensor(math.pi)


@needs_kernel
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_jets(data: st.DataObject) -> None:
    # Positions on a coarse grid: equal positions, distances and momenta are common, but none falls on the radius.
    place = st.integers(-60, 60).map(lambda i: i / 16)
    constituent = st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.5, 40.0, 1e4]), place, place)
    jets = data.draw(st.lists(st.lists(constituent, max_size=24), max_size=6))
    inputs = packed(*(sorted(jet, reverse=True) for jet in jets))
    config = {
        "pt_threshold": data.draw(st.sampled_from([0.0, 0.5, 0.7, 3.0])),
        "merge_radius": data.draw(st.sampled_from([0.0, 0.03, 0.1, 0.4, 1.3, 7.0])),
        "pt_resolution": data.draw(st.floats(0, 2)),
        "angular_resolution": data.draw(st.floats(0, 5)),
        "loss": data.draw(st.floats(0, 1)),
    }
    seed = data.draw(st.integers(0, 2**63 - 1))
    with backend("cpu"):
        actual = hlt_emulation(*inputs, **config, seed=seed)
    assert_same(actual, hlt_emulation_reference(*inputs, **config, seed=seed))


def test_merging_into_the_hardest_and_not_the_nearest() -> None:
    config = {**NOTHING, "merge_radius": 0.11}
    inputs = packed([(10.0, 0.0, 0.0), (9.0, 0.2, 0.0), (1.0, 0.101, 0.0)])
    rows, _, removed = hlt_emulation(*inputs, **config, seed=0)
    torch.testing.assert_close(rows[:, 0], torch.tensor([11.0, 9.0]))
    torch.testing.assert_close(rows[0, 1], torch.tensor(0.101 / 11))
    assert removed.tolist() == [0, 1, 0]


def test_merging_follows_the_running_position() -> None:
    # 3 is too far from where 1 stood, but not from where 1 and 2 stand.
    inputs = packed([(10.0, 0.0, 0.0), (10.0, 0.09, 0.0), (1.0, 0.13, 0.0)])
    rows, _, _ = hlt_emulation(*inputs, **{**NOTHING, "merge_radius": 0.1}, seed=0)
    torch.testing.assert_close(rows[:, 0], torch.tensor([21.0]))


def test_merging_across_the_seam_takes_the_circular_mean() -> None:
    inputs = packed([(3.0, 0.0, math.pi - 0.02), (1.0, 0.0, -math.pi + 0.02)])
    rows, _, _ = hlt_emulation(*inputs, **{**NOTHING, "merge_radius": 0.1}, seed=0)
    expected = math.atan2(2 * math.sin(0.02), -4 * math.cos(0.02))
    torch.testing.assert_close(rows[0, 2], torch.tensor(expected), rtol=0, atol=3e-7)


def test_distance_equal_to_the_radius_does_not_merge() -> None:
    inputs = packed([(2.0, 0.0, 0.0), (1.0, 0.25, 0.0)])
    assert len(hlt_emulation(*inputs, **{**NOTHING, "merge_radius": 0.25}, seed=0)[0]) == 2
    assert len(hlt_emulation(*inputs, **{**NOTHING, "merge_radius": 0.2500001}, seed=0)[0]) == 1


@needs_kernel
def test_threads_do_not_matter() -> None:
    inputs, config = synthetic(700, seed=3), CONFIGS[-1]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(hlt_emulation(*inputs, **config, seed=SEED))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


BAD: dict[str, tuple[Any, str]] = {
    "not sorted": (packed([(3.0, 0, 0)], [(1.0, 0, 0), (2.0, 0, 0)]), "constituent 1 of jet 1: is not in falling pt"),
    "negative": (packed([(3.0, 0, 0), (-1.0, 0, 0)]), "constituent 1 of jet 0: has a negative pt"),
    "nan": (packed([], [(3.0, math.nan, 0)]), "constituent 0 of jet 1: has a value that is not finite"),
    "infinite": (packed([(math.inf, 0, 0)]), "constituent 0 of jet 0: has a value that is not finite"),
    "shape": (
        (torch.zeros(3, 3), torch.tensor([0, 3]), torch.tensor([0])),
        r"constituents: must be floating-point \[M",
    ),
    "offsets": ((torch.zeros(3, 4), torch.tensor([0, 2]), torch.tensor([0])), "offsets: must rise from 0 to 3"),
    "falling": ((torch.zeros(3, 4), torch.tensor([0, 4, 3]), torch.tensor([0, 1])), "offsets: must rise from 0 to 3"),
    "index": ((torch.zeros(3, 4), torch.tensor([0, 3]), torch.tensor([0, 1])), r"index: must be int64 \[1\]"),
}


@pytest.mark.parametrize("name", ["reference", pytest.param("cpu", marks=needs_kernel)])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, name: str) -> None:
    inputs, message = BAD[case]
    with backend(name), pytest.raises(DataError, match=message):
        hlt_emulation(*inputs, **CONFIGS[-1], seed=0)


def test_not_contiguous() -> None:
    x, offsets, index = synthetic(10, seed=4)
    turned = x.t().contiguous().t()
    doubled = torch.stack([index, index], dim=1)[:, 0]
    expected = hlt_emulation(x, offsets, index, **CONFIGS[-1], seed=SEED)
    actual = hlt_emulation(turned, offsets, doubled, **CONFIGS[-1], seed=SEED)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    x, offsets, index = synthetic(5, seed=5)
    arguments = (x.to(dtype), offsets, index, *CONFIGS[-1].values(), SEED)
    torch.library.opcheck(torch.ops.kdfast.hlt_emulation.default, arguments)
