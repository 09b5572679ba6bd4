"""jet_features: the accuracy rule against float64, and what is not finite."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast import backend
from kdfast.errors import DataError
from kdfast.ops.backend import why_no_cpu
from kdfast.ops.jet_features import jet_features, jet_features_reference
from tests.ops.accuracy import assert_accurate
from tests.ops.test_hlt_emulation import EDGE_CASES, packed, synthetic

needs_kernel = pytest.mark.skipif(why_no_cpu is not None, reason=str(why_no_cpu))


def one_jet(x: Tensor) -> list[list[float]]:
    """The specification once more, in scalars."""
    rows = x.double().tolist()
    px = math.fsum(pt * math.cos(phi) for pt, _, phi, _ in rows)
    py = math.fsum(pt * math.sin(phi) for pt, _, phi, _ in rows)
    pz = math.fsum(pt * math.sinh(eta) for pt, eta, _, _ in rows)
    jet_energy, jet_pt = math.fsum(row[3] for row in rows), math.hypot(px, py)
    jet_eta, jet_phi = math.asinh(pz / jet_pt), math.atan2(py, px)
    return [
        [
            eta - jet_eta,
            math.remainder(phi - jet_phi, 2 * math.pi),
            math.log(pt),
            math.log(energy),
            math.log(pt / jet_pt),
            math.log(energy / jet_energy),
            math.hypot(eta - jet_eta, math.remainder(phi - jet_phi, 2 * math.pi)),
        ]
        for pt, eta, phi, energy in rows
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_a_plain_loop(dtype: torch.dtype) -> None:
    x, offsets, _ = synthetic(20, seed=1)
    expected = [row for b in range(20) for row in one_jet(x[offsets[b] : offsets[b + 1]])]
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12  # float32 sums in the reference, if that runs
    actual = jet_features(x.to(dtype), offsets)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), torch.tensor(expected).double(), rtol=1e-6, atol=tolerance)


def results(x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the kernel, of PyTorch in float32, and in float64."""
    with backend("cpu"):
        actual = jet_features(x, offsets)
    return actual, jet_features_reference(x, offsets), jet_features_reference(x.double(), offsets)


@needs_kernel
@pytest.mark.parametrize(("jets", "max_constituents"), [(500, 100), (60, 200), (100, 1), (1, 15), (1, 16), (1, 17)])
def test_accuracy(jets: int, max_constituents: int) -> None:
    x, offsets, _ = synthetic(jets, seed=2, max_constituents=max_constituents)
    actual, plain, exact = results(x, offsets)
    for f in range(7):  # each for itself, so that large ones don't cover for small ones
        case = f"feature {f} of {jets} jets of up to {max_constituents}"
        assert_accurate(actual[:, f], plain[:, f], exact[:, f], case)


@needs_kernel
@pytest.mark.parametrize("case", EDGE_CASES)
def test_edge_cases(case: str) -> None:
    x, offsets, _ = EDGE_CASES[case]
    assert_accurate(*results(x, offsets), case)  # together: one that is 0 throughout has no scale for a rounding


@needs_kernel
@settings(max_examples=100, deadline=None)
@given(
    jets=st.lists(
        st.lists(
            st.tuples(st.floats(2**-10, 2**14, width=32), st.floats(-8, 8, width=32), st.floats(-7, 7, width=32)),
            max_size=40,
        ),
        max_size=5,
    )
)
def test_any_jets(jets: list[list[tuple[float, float, float]]]) -> None:
    x, offsets, _ = packed(*jets)
    with backend("cpu"):
        actual = jet_features(x, offsets).double()
    exact = jet_features_reference(x.double(), offsets)
    # Float64 inside, rounded once: an absolute bound even where transverse momenta almost cancel.
    torch.testing.assert_close(actual, exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["reference", pytest.param("cpu", marks=needs_kernel)])
def test_what_is_not_finite_becomes_0(name: str) -> None:
    inf, nan = math.inf, math.nan
    x = torch.tensor(
        [
            [0.0, 0.1, 0.2, 0.0],  # jet 0: nothing but zeros
            [5.0, 0.1, 0.2, 6.0],  # jet 1: no momentum in one constituent
            [0.0, 0.3, 0.2, 0.0],
            [5.0, nan, 0.2, 6.0],  # jet 2: values that no reader lets through
            [inf, 0.1, 0.2, -1.0],
            [5.0, 0.0, 0.0, 5.0],  # jet 3: transverse momenta cancel
            [5.0, 0.0, math.pi, 5.0],
            [1e-30, 0.0, 0.0, 1e-30],  # jet 4: clipped
        ]
    )
    offsets = torch.tensor([0, 1, 3, 5, 7, 8])
    with backend(name):
        y = jet_features(x, offsets)
    assert y.isfinite().all()
    assert y.abs().max() <= 20
    assert torch.equal(y[0], torch.zeros(7))
    torch.testing.assert_close(y[1], torch.tensor([0, 0, math.log(5), math.log(6), 0, 0, 0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(y[2], torch.tensor([0.2, 0, 0, 0, 0, 0, 0.2]), rtol=1e-6, atol=1e-6)
    half = math.log(0.5)
    expected = torch.tensor([0, 0, math.log(5), math.log(5), 0, half, 0])
    torch.testing.assert_close(y[5:7], expected.expand(2, 7), rtol=1e-6, atol=0)
    torch.testing.assert_close(y[7], torch.tensor([0, 0, -20.0, -20.0, 0, 0, 0]))


@needs_kernel
def test_threads_do_not_matter() -> None:
    x, offsets, _ = synthetic(700, seed=3)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(jet_features(x, offsets))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("x", "offsets", "message"),
    [
        (torch.zeros(3, 5), torch.tensor([0, 3]), "constituents: must be floating-point"),
        (torch.zeros(3, 4, dtype=torch.int64), torch.tensor([0, 3]), "constituents: must be floating-point"),
        (torch.zeros(3, 4), torch.tensor([0, 4]), "offsets: must rise from 0 to 3"),
        (torch.zeros(3, 4), torch.tensor([0, 3], dtype=torch.int32), "offsets: must be int64"),
    ],
)
def test_bad_input(x: Tensor, offsets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        jet_features(x, offsets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    x, offsets, _ = synthetic(5, seed=5)
    torch.library.opcheck(torch.ops.kdfast.jet_features.default, (x.to(dtype), offsets))
