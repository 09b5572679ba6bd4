"""Philox, splitmix64 and the dropout decision: published vectors, and Python and C++ alike."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast.ops.philox import (
    derive_seed,
    dropout_keep,
    dropout_scale,
    dropout_threshold,
    fold_seed,
    philox4x32,
    seed_tensor,
    splitmix64,
)
from tests.ops.probe import probe, why_no_probe

compiled = pytest.mark.skipif(why_no_probe is not None, reason=str(why_no_probe))

# Random123, tests/kat_vectors: philox4x32-10, (counter, key, expected), low word first.
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
# The first outputs of splitmix64 seeded with 1234567 (Vigna's reference implementation).
SPLITMIX = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
WORD = st.integers(0, 2**32 - 1)


def python_philox(key: int, counter: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(w) for w in philox4x32(key, *(torch.tensor(c) for c in counter)))


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert python_philox(key[0] | key[1] << 32, counter) == expected


@compiled
@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors_in_cpp(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert probe().philox4x32(key[0] | key[1] << 32, *counter) == expected


def test_splitmix64() -> None:
    assert [splitmix64(1234567 + i * 0x9E3779B97F4A7C15) for i in range(5)] == SPLITMIX


@compiled
@settings(max_examples=100, deadline=None)
@given(key=st.integers(0, 2**64 - 1), counter=st.tuples(WORD, WORD, WORD, WORD))
def test_python_and_cpp_give_the_same_bits(key: int, counter: tuple[int, int, int, int]) -> None:
    core = probe()
    assert python_philox(key, counter) == core.philox4x32(key, *counter)
    assert splitmix64(key) == core.splitmix64(key)


@compiled
@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), p=st.floats(0, 0.999), jet=WORD, head=WORD, row=WORD)
def test_the_dropout_decision_is_the_same(seed: int, p: float, jet: int, head: int, row: int) -> None:
    core = probe()
    keep = dropout_keep(seed, p, *(torch.tensor([i]) for i in (jet, head, row)), 19).flatten().tolist()
    assert keep == [core.dropout_keep(seed, p, jet, head, row, column) for column in range(19)]


def test_words_broadcast_over_counters() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(5)
    words = philox4x32(42, rows, columns, torch.tensor(7), torch.tensor(9))
    assert all(w.shape == (3, 5) for w in words)
    for i in range(3):
        for j in range(5):
            assert tuple(int(w[i, j]) for w in words) == python_philox(42, (i, j, 7, 9))


def test_derived_seeds_fit_63_bits_and_differ() -> None:
    uses = [(seed, purpose, part) for seed in (0, 1, 2**63) for purpose in ("dropout", "order") for part in range(50)]
    seeds = {derive_seed(seed, purpose, part) for seed, purpose, part in uses}
    assert len(seeds) == len(uses)
    assert all(0 <= s < 2**63 for s in seeds)
    assert derive_seed(1, "ab", 2) == derive_seed(1, "ab", 2) != derive_seed(1, "a", 2)


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, 2**63, 2**64 - 1])
def test_seeds_as_tensors_are_the_same_bits(seed: int) -> None:
    assert int(seed_tensor(seed)) & (2**64 - 1) == seed
    assert [int(fold_seed(seed_tensor(seed), part)) for part in range(4)] == [fold_seed(seed, p) for p in range(4)]


def test_opcheck_of_fold_seed() -> None:
    torch.library.opcheck(torch.ops.kdfast.fold_seed.default, (torch.tensor(7), 3))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_its_expectation(p: float) -> None:
    n = 2**17
    keep = dropout_keep(3, p, torch.arange(n // 64), torch.tensor(0), torch.tensor(0), 64).double()
    quantised = dropout_threshold(p) / 65536
    assert dropout_scale(p) * (1 - quantised) == pytest.approx(1, rel=1e-15)
    sigma = (quantised * (1 - quantised) / n) ** 0.5
    assert keep.mean().item() == pytest.approx(1 - quantised, abs=4 * sigma + 1e-12)
