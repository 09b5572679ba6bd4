"""pack_constituents: the bits and messages of packing.py's numpy code, which it must not need for ordinary jets."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdfast.errors import DataError, KdfastWarning
from kdfast.jets.pack_constituents import has_kernel, pack_constituents
from kdfast.jets.packed import DTYPES
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import CONSTITUENTS, atlas_arrays
from tests.synthetic import synthetic_jets

pytestmark = pytest.mark.skipif(not has_kernel(), reason="there is no compiled kernel, or the references are asked for")

Columns = list[NDArray[np.float32]]

PER_GEV = np.float32(1000)
GUARD = np.float32(-7)


def made(rows: int, stored: int, seed: int, *, filled: float = 0.5, eta: float = 3.0) -> Columns:
    """pt, eta, phi, energy [rows, stored] in MeV, of massless constituents; jets from empty to full ones."""
    rng = np.random.default_rng(seed)
    counts = rng.binomial(stored, filled, rows)
    counts[rng.random(rows) < 0.1] = 0
    counts[rng.random(rows) < 0.1] = stored
    mask = np.arange(stored) < counts[:, None]
    pt = -np.sort(-rng.exponential(2e4, (rows, stored)), axis=1)
    columns = [pt, rng.uniform(-eta, eta, pt.shape), rng.uniform(-np.pi, np.pi, pt.shape)]
    columns = [np.where(mask, values, 0).astype(np.float32) for values in columns]
    energy = columns[0].astype(np.float64) * np.cosh(columns[1].astype(np.float64))
    return [*columns, energy.astype(np.float32)]


def half_filled() -> Columns:
    """One jet."""
    columns = made(1, 37, 3)
    assert 10 < np.count_nonzero(columns[0]) < 28
    return columns


def pack(columns: Columns, width: int | None = None, room: int | None = None) -> tuple[int | None, Any, Any]:
    """(constituents, their number for each jet, memory with guards behind `room`)."""
    pt, *others = columns
    rows, stored = pt.shape
    width = width or stored
    padded = [pt.copy(), *(np.ascontiguousarray(each[:, :width]) for each in others)]
    counts = np.full(rows, -1, np.int64)
    if room is None:
        room = int((pt[:, :width] > 0).sum())
    memory = np.full((room + 64, 4), GUARD)
    total = pack_constituents(padded, PER_GEV, counts, memory[:room])
    assert (memory[room:] == GUARD).all()
    return total, counts, memory[:room]


@pytest.mark.parametrize(("stored", "width"), [(1, 1), (7, 3), (8, 8), (17, 16), (40, 40), (64, 33), (200, 200)])
def test_packs_what_is_fine(stored: int, width: int) -> None:
    for seed in range(5):
        columns = made(60, stored, seed)
        total, counts, packed = pack(columns, width)
        filled = columns[0][:, :width] > 0
        expected = np.stack([values[:, :width][filled] for values in columns], axis=1)
        expected[:, [0, 3]] /= PER_GEV
        assert total == len(expected)
        np.testing.assert_array_equal(counts, filled.sum(axis=1))
        assert packed.tobytes() == expected.tobytes()


def test_jets_with_masses_are_fine() -> None:
    arrays = atlas_arrays(synthetic_jets(500), width=120)
    assert pack([arrays[name] for name in CONSTITUENTS])[0] == (arrays["fjet_clus_pt"] > 0).sum()


def test_a_room_that_is_too_small_is_not_left() -> None:
    columns = made(60, 40, 1)
    needed, counts, packed = pack(columns)
    assert needed is not None
    for room in (0, 1, 15, needed // 2, needed - 1):
        total, same, _ = pack(columns, room=room)
        assert total == needed
        np.testing.assert_array_equal(same, counts)
    np.testing.assert_array_equal(pack(columns, room=needed + 100)[2][:needed], packed)


def test_negative_zeros_are_padding() -> None:
    columns = made(60, 40, 2)
    signed = [np.where(values == 0, np.float32(-0.0), values) for values in columns]
    assert pack(signed)[2].tobytes() == pack(columns)[2].tobytes()


FAULTS: dict[str, tuple[int, Callable[[np.float32], float]]] = {
    "NaN pT": (0, lambda _: np.nan),
    "infinite pT": (0, lambda _: np.inf),
    "negative pT": (0, lambda _: -1.0),
    "larger pT": (0, lambda _: 1e9),  # a rise; in the first slot a momentum above the energy
    "NaN eta": (1, lambda _: np.nan),
    "infinite eta": (1, lambda _: -np.inf),
    "NaN phi": (2, lambda _: np.nan),
    "infinite phi": (2, lambda _: np.inf),
    "NaN energy": (3, lambda _: np.nan),
    "infinite energy": (3, lambda _: np.inf),
    "negative energy": (3, lambda x: -x if x else -1.0),
    "low energy": (3, lambda x: x * 0.9988 if x else 1e-45),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_is_missed_in_any_slot(fault: str) -> None:
    k, damage = FAULTS[fault]
    columns = half_filled()
    for slot in range(37):
        bad = [values.copy() for values in columns]
        bad[k][0, slot] = damage(bad[k][0, slot])
        assert pack(bad)[0] is None, slot


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("value", [1e-45, -1e-45, 1.0, np.nan, np.inf])
def test_nothing_in_padding_is_missed(k: int, value: float) -> None:
    columns = half_filled()
    for slot in range(np.count_nonzero(columns[0]), 37):
        bad = [values.copy() for values in columns]
        bad[k][0, slot] = value
        assert pack(bad)[0] is None, slot


def test_rounded_energies_are_fine() -> None:
    columns = made(60, 40, 4)
    assert pack([*columns[:3], columns[3] * np.float32(0.9996)])[0] is not None
    assert pack([*columns[:3], columns[3] * np.float32(0.9988)])[0] is None


# ── whole reads: with the kernel, and without ────────────────────────────────────────────────────────────────────────

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0, 1e-45, -1e-45, 1e-40, 1e-31, 1e-29, 0.5, 3.0, 19.9, 20.1, 88.0]
SPECIAL += [1e4, 2e24, 2e25, 1e30, 3e38]
FACTORS = [0.998, 0.99895, 0.998999, 0.999, 0.999001, 0.9991, 0.9994, 0.9995, 0.9996, 1.5]


@st.composite
def files(draw: st.DrawFn) -> dict[str, NDArray[Any]]:
    """Columns of a file in the ATLAS layout, most with a few faults or oddities."""
    rows, stored = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    columns = made(rows, stored, draw(st.integers(0, 1000)), filled=draw(st.sampled_from([0.1, 0.5, 0.9])))
    if draw(st.booleans()):
        columns[3] *= np.float32(draw(st.sampled_from(FACTORS)))
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, rows - 1)), draw(st.integers(0, stored - 1))
        columns[draw(st.integers(0, 3))][place] = draw(st.sampled_from(SPECIAL))
    if draw(st.integers(0, 4)) == 0:  # tiny momenta: subnormal products
        with np.errstate(all="ignore"):
            columns[0] *= np.float32(draw(st.sampled_from([1e-45, 1e-40, 1e-34])))
            columns[3] = (columns[0] * np.cosh(columns[1].clip(-80, 80))).astype(np.float32)
    arrays = dict(zip(CONSTITUENTS, columns, strict=True))
    arrays |= {name: np.full(rows, 5e5, np.float32) for name in ("fjet_pt", "fjet_m")}
    arrays |= {name: np.zeros(rows, np.float32) for name in ("fjet_eta", "fjet_phi")}
    return arrays | {"labels": np.arange(rows) % 2, "weights": np.ones(rows, np.float32)}


def outcome(arrays: dict[str, NDArray[Any]], kernel: bool, block_bytes: int, **how: Any) -> Any:
    """What a read gives: the bytes of all arrays, or the error; and the warnings."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", KdfastWarning)
        patch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
        if not kernel:
            patch.setattr("kdfast.jets.packing.has_kernel", lambda: False)
        try:
            jets = load_jets(arrays, **how)
            found: Any = [getattr(jets, name).tobytes() for name in DTYPES]
        except DataError as error:
            found = [str(error), error.hint]
    return found, [str(each.message) for each in caught]


@settings(max_examples=300, deadline=None)
@given(
    files(),
    st.sampled_from([1, 300, 1 << 21]),
    st.sampled_from(["error", "drop"]),
    st.sampled_from([None, 1, 5, 17]),
)
def test_no_read_depends_on_the_kernel(
    arrays: dict[str, NDArray[Any]], block_bytes: int, on_bad: str, width: int | None
) -> None:
    stored = arrays["fjet_clus_pt"].shape[1]
    how = {"on_bad": on_bad, "max_constituents": None if width is None else min(width, stored)}
    expected = outcome(arrays, False, block_bytes, **how)
    assert outcome(arrays, True, block_bytes, **how) == expected
