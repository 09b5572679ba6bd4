"""PackedJets: choosing jets, padding, joining, saving; and what it refuses."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kdfast.errors import ConfigError, DataError
from kdfast.jets.fingerprint import fingerprint, jet_hashes, sampled, share_among
from kdfast.jets.packed import DTYPES, PackedJets, offsets_of
from tests.synthetic import synthetic_jets


def numbered(counts: list[int]) -> PackedJets:
    """Jets of these sizes whose every value tells where it came from."""
    jets, total = len(counts), sum(counts)
    return PackedJets(
        np.arange(4 * total, dtype=np.float32).reshape(total, 4),
        offsets_of(counts),
        labels=np.arange(jets) % 2,
        weights=np.arange(jets, dtype=np.float32) + 0.5,
        p4=np.arange(4 * jets, dtype=np.float32).reshape(jets, 4),
        index=np.arange(jets) * 3 + 7,
    )


def assert_same(one: PackedJets, other: PackedJets) -> None:
    for name, dtype in DTYPES.items():
        assert getattr(one, name).dtype == dtype
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def assert_jets(chosen: PackedJets, jets: PackedJets, positions: list[int]) -> None:
    """That chosen are the jets at these positions, told one by one."""
    assert len(chosen) == len(positions)
    for place, b in enumerate(positions):
        x = chosen.constituents[chosen.offsets[place] : chosen.offsets[place + 1]]
        np.testing.assert_array_equal(x, jets.constituents[jets.offsets[b] : jets.offsets[b + 1]])
        for name in ("labels", "weights", "p4", "index"):
            np.testing.assert_array_equal(getattr(chosen, name)[place], getattr(jets, name)[b])
    assert len(chosen.constituents) == sum(int(jets.counts[b]) for b in positions)


counts = st.lists(st.integers(0, 6), max_size=12)
ends = st.none() | st.integers(-15, 15)
slices = st.builds(slice, ends, ends, st.none() | st.integers(-4, 4).filter(bool))


@given(counts, slices)
def test_slices(counts: list[int], which: slice) -> None:
    jets = numbered(counts)
    positions = list(range(len(jets)))[which]
    assert_jets(jets[which], jets, positions)
    assert_same(jets[which], jets[np.array(positions, int)])


@given(counts, st.data())
def test_positions_and_masks(counts: list[int], data: st.DataObject) -> None:
    jets = numbered(counts)
    n = len(jets)
    positions = data.draw(st.lists(st.integers(-n, n - 1), max_size=8)) if n else []
    expected = [p % n for p in positions]
    for dtype in (np.int64, np.int32, np.int8):
        assert_jets(jets[np.array(positions, dtype)], jets, expected)
    assert_jets(jets[positions], jets, expected)
    assert_jets(jets[torch.tensor(positions, dtype=torch.int64)], jets, expected)
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assert_jets(jets[np.array(mask, bool)], jets, np.flatnonzero(mask).tolist())


def test_one_position_is_one_jet_and_iteration_gives_each() -> None:
    jets = numbered([2, 0, 3])
    assert_jets(jets[-1], jets, [2])
    assert_jets(jets[np.int32(1)], jets, [1])
    for b, jet in enumerate(jets):
        assert_jets(jet, jets, [b])
    unsigned = jets[np.array([2, 0], np.uint8)]
    assert_jets(unsigned, jets, [2, 0])


def test_slices_share_memory() -> None:
    jets = numbered([2, 0, 3, 1])
    part = jets[1:3]
    for name in ("constituents", "labels", "weights", "p4", "index"):
        assert np.shares_memory(getattr(part, name), getattr(jets, name))


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (np.array([True, False]), "index: the mask has 2 entries for 3 jets"),
        (np.ones(4, bool), "index: the mask has 4 entries for 3 jets"),
        (np.zeros(0, bool), "index: the mask has 0 entries for 3 jets"),
        ([0, 3], "index: there is no jet 3 among 3"),
        (-4, "index: there is no jet -4 among 3"),
        (np.array([255], np.uint8), "index: there is no jet 255 among 3"),
        ([0.0, 1.0], "index: must be booleans or whole numbers, is float64"),
        (["a"], "index: must be booleans or whole numbers, is <U1"),
        (np.zeros((2, 2), int), r"index: jets are chosen by one dimension, not by \[2, 2\]"),
        (None, "index: must be booleans or whole numbers, is object"),
    ],
)
def test_wrong_choices(which: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        numbered([2, 0, 3])[which]


@given(counts, st.integers(0, 8))
def test_padding_round_trip(counts: list[int], more: int) -> None:
    jets = numbered(counts)
    width = max(counts, default=0) + more
    x, mask = jets.to_padded(width)
    assert x.shape == (len(jets), width, 4)
    np.testing.assert_array_equal(mask.sum(axis=1), jets.counts)
    assert not x[~mask].any()
    same = {"labels": jets.labels, "weights": jets.weights, "p4": jets.p4, "index": jets.index}
    assert_same(PackedJets.from_padded(x, mask, **same), jets)


@given(counts, st.integers(0, 6))
def test_padding_cuts_to_the_first(counts: list[int], n: int) -> None:
    jets = numbered(counts)
    place = np.arange(len(jets.constituents)) - np.repeat(jets.offsets[:-1], jets.counts)
    kept = jets.select_constituents(place < n)
    for got, expected in zip(jets.to_padded(n), kept.to_padded(n), strict=True):
        np.testing.assert_array_equal(got, expected)


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(0, 5), st.integers(0, 6))),
    st.sampled_from([np.nan, np.inf, -np.inf, 3e38]),
)
def test_padding_is_never_read(mask: np.ndarray, junk: float) -> None:
    """Whatever the mask (holes too) and whatever is in the padding."""
    clean = np.random.default_rng(0).uniform(0.1, 2, (*mask.shape, 4)).astype(np.float32)
    dirty = np.where(mask[..., None], clean, np.float32(junk))
    with np.errstate(all="raise"):
        jets = PackedJets.from_padded(dirty, mask)
    assert_same(jets, PackedJets.from_padded(np.where(mask[..., None], clean, 0), mask))
    assert all(np.isfinite(getattr(jets, name)).all() for name in DTYPES)
    np.testing.assert_array_equal(jets.index, np.arange(len(mask)))
    np.testing.assert_array_equal(jets.weights, np.ones(len(mask)))


@given(counts, st.data())
def test_select_constituents(counts: list[int], data: st.DataObject) -> None:
    jets = numbered(counts)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=sum(counts), max_size=sum(counts))), bool)
    kept = jets.select_constituents(keep)
    np.testing.assert_array_equal(kept.constituents, jets.constituents[keep])
    np.testing.assert_array_equal(kept.counts, [keep[a:b].sum() for a, b in pairwise(jets.offsets)])
    np.testing.assert_array_equal(kept.index, jets.index)


@given(st.lists(counts, min_size=1, max_size=4))
def test_concatenate_undoes_slicing(parts: list[list[int]]) -> None:
    jets = numbered([count for part in parts for count in part])
    cuts = np.cumsum([0, *map(len, parts)])
    pieces = [jets[a:b] for a, b in pairwise(cuts)]
    assert_same(PackedJets.concatenate(pieces), jets)


def test_concatenate_keeps_identities_apart() -> None:
    jets = numbered([1, 2])
    with pytest.raises(
        DataError, match="two jets have the same index\nread the files in one call, or pass renumber=True"
    ):
        PackedJets.concatenate([jets, jets])
    np.testing.assert_array_equal(PackedJets.concatenate([jets, jets], renumber=True).index, np.arange(4))
    with pytest.raises(DataError, match="no jets to concatenate"):
        PackedJets.concatenate([])


GOOD = {name: getattr(numbered([2, 0, 3]), name) for name in DTYPES}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"offsets": np.array([0, 2, 2, 4])}, r"offsets: must run from 0 to 5 \(the number of constituents\)"),
        ({"offsets": np.array([1, 2, 2, 5])}, "offsets: must run from 0 to 5"),
        ({"offsets": np.array([0, 3, 2, 5])}, "offsets: must not fall"),
        ({"offsets": np.zeros(0, np.int64)}, r"offsets: must be \[B \+ 1\], is \[0\]"),
        ({"offsets": np.array([0, 2, 2, 5], np.int32)}, "offsets: must be int64, is int32"),
        ({"constituents": np.zeros((5, 3), np.float32)}, r"constituents: must be \[M, 4\] .*, is \[5, 3\]"),
        ({"constituents": np.zeros((5, 4))}, "constituents: must be float32, is float64"),
        ({"labels": np.zeros(4, np.int64)}, r"labels: must have shape \[3\], has \[4\]"),
        ({"labels": np.zeros((3, 1), np.int64)}, r"labels: must have shape \[3\], has \[3, 1\]"),
        ({"weights": np.zeros(2, np.float32)}, r"weights: must have shape \[3\], has \[2\]"),
        ({"p4": np.zeros((3, 3), np.float32)}, r"p4: must have shape \[3, 4\], has \[3, 3\]"),
        ({"index": np.zeros(3, np.int32)}, "index: must be int64, is int32"),
    ],
)
def test_wrong_arrays(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        PackedJets(**GOOD | wrong)


def test_wrong_arguments() -> None:
    jets = numbered([2, 0, 3])
    x, mask = jets.to_padded(3)
    with pytest.raises(ConfigError, match="n: must not be negative, is -1"):
        jets.to_padded(-1)
    with pytest.raises(DataError, match=r"keep: must be bool \[5\], is bool \[4\]"):
        jets.select_constituents(np.ones(4, bool))
    with pytest.raises(DataError, match=r"keep: must be bool \[5\], is int64 \[5\]"):
        jets.select_constituents(np.arange(5))
    with pytest.raises(DataError, match=r"they are \[3, 3, 4\] and \[3, 2\]"):
        PackedJets.from_padded(x, mask[:, :2])
    with pytest.raises(DataError, match="labels: must hold whole numbers"):
        PackedJets.from_padded(x, mask, labels=[0, 1, 0.5])
    with pytest.raises(DataError, match="labels: must hold whole numbers"):
        PackedJets.from_padded(x, mask, labels=[0, 1, np.nan])
    with pytest.raises(DataError, match="index: must hold whole numbers"):
        PackedJets.from_padded(x, mask, index=[0, 1, 1e30])


@pytest.mark.parametrize("counts", [[], [0], [2, 0, 3]])
def test_save_and_load(tmp_path: Path, counts: list[int]) -> None:
    jets = numbered(counts)
    jets.save(tmp_path / "jets.packed")
    assert [path.name for path in tmp_path.iterdir()] == ["jets.packed"]
    assert_same(PackedJets.load(tmp_path / "jets.packed"), jets)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jets.npz"
    numbered([2, 0, 3]).save(path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(OSError, match="no space left"):
        numbered([1]).save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["jets.npz"]
    assert_same(PackedJets.load(path), numbered([2, 0, 3]))


def test_load_refuses_what_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("pt eta phi")
    np.savez(tmp_path / "other.npz", a=np.arange(3))
    np.savez(tmp_path / "inconsistent.npz", **GOOD | {"labels": np.zeros(2, np.int64)})
    cases = (
        ("none", "there is no such file"),
        ("text", "is not a file of packed jets, or is damaged"),
        ("other.npz", r"is not a file of packed jets, or is damaged \(.*constituents"),
        ("inconsistent.npz", r"is not a file of packed jets, or is damaged \(labels: must have shape \[3\]"),
        (".", "is not a file of packed jets, or is damaged"),
    )
    for name, message in cases:
        with pytest.raises(DataError, match=message) as error:
            PackedJets.load(tmp_path / name)
        assert str(tmp_path) in str(error.value)


def test_load_notices_every_damaged_byte(tmp_path: Path) -> None:
    """The same jets or an error, for a bit flipped anywhere and for a file cut anywhere."""
    jets, path = numbered([2, 0, 3]), tmp_path / "jets.npz"
    jets.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    flips = [(p, 1 << rng.integers(8)) for p in range(0, len(whole), 3)]
    damaged = [whole[:p] + bytes([whole[p] ^ bit]) + whole[p + 1 :] for p, bit in flips]
    damaged += [whole[:p] for p in range(0, len(whole), 50)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert_same(PackedJets.load(path), jets)
        except DataError:
            refused += 1
    assert refused > len(damaged) / 2


@settings(max_examples=30)
@given(counts.filter(lambda c: sum(c) > 0), st.data())
def test_fingerprint(counts: list[int], data: st.DataObject) -> None:
    jets = numbered(counts)
    name = fingerprint(jets)
    assert len(name) == 64
    assert name == fingerprint(PackedJets.concatenate([jets[: len(jets) // 2], jets[len(jets) // 2 :]]))
    array = data.draw(st.sampled_from([n for n in DTYPES if n != "offsets"]))
    changed = {n: getattr(jets, n).copy() for n in DTYPES}
    changed[array].reshape(-1)[-1] += 1
    assert fingerprint(PackedJets(**changed)) != name


def test_fingerprint_is_stable() -> None:
    """Results carry it, so it must not change from version to version."""
    known = "647d201a470fb6ea170ef22c6c8c6d338f69f0eab565f42fd22840d20ec6c4ff"
    assert fingerprint(numbered([2, 0, 3])) == known
    assert fingerprint(numbered([2, 3, 0])) != known


def test_hashes_know_a_jet_again() -> None:
    jets = synthetic_jets(2000, seed=8)
    hashes = jet_hashes(jets)
    assert len(np.unique(hashes)) == 2000
    order = np.random.default_rng(0).permutation(2000)
    np.testing.assert_array_equal(jet_hashes(jets[order].hardest(3)), hashes[order])
    mev = np.array([1000, 1, 1, 1000], np.float32)
    rounded = replace(jets.with_constituents(jets.constituents * mev / mev, jets.offsets), p4=jets.p4 * mev / mev)
    assert np.mean(jet_hashes(rounded) == hashes) > 0.7
    sample = sampled(hashes[:1000])
    assert len(sample) == 256
    assert sample == sampled(hashes[np.random.default_rng(1).permutation(1000)])
    assert [share_among(sample, some) for some in (hashes, hashes[1000:], hashes[:0])] == [1, 0, 0]
    assert 0.3 < share_among(sample, hashes[500:]) < 0.7
    assert share_among(sampled(hashes[:0]), hashes) == 0
    assert len(jet_hashes(jets.select_constituents(np.zeros(len(jets.constituents), bool)))) == 2000


def test_hashes_are_stable() -> None:
    """Model files hold them, so they must not change from version to version."""
    assert sampled(jet_hashes(numbered([2, 0, 3]))) == ["92dc90215a5e3c97", "9570b5118e110dea", "dbfe372f303f5f2b"]
