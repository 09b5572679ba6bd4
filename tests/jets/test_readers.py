"""load_jets on good files in the ATLAS layouts, on parts of them, and on files with bad jets."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.packed import PackedJets
from kdfast.jets.packing import BLOCK_BYTES
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import CONSTITUENTS, atlas_arrays, write_arrays, write_atlas
from tests.synthetic import synthetic_jets

Arrays = dict[str, NDArray[Any]]
WIDTH = 20


def some_jets(n: int, seed: int = 0) -> PackedJets:
    """Jets of up to WIDTH constituents, many full, one empty, with weights."""
    jets = synthetic_jets(n, seed, max_constituents=WIDTH)
    keep = np.random.default_rng(seed).random(len(jets.constituents)) < np.repeat(np.linspace(0.2, 1.2, n), jets.counts)
    keep[jets.offsets[n // 2] : jets.offsets[n // 2 + 1]] = False
    return replace(jets.select_constituents(keep), weights=np.linspace(0.5, 2, n, dtype=np.float32))


JETS = some_jets(60)


def in_file_precision(jets: PackedJets) -> PackedJets:
    """The jets as a correct reader gives them: GeV to MeV and back, each rounded to float32."""
    mev = np.array([1000, 1, 1, 1000], np.float32)
    return PackedJets(
        jets.constituents * mev / mev, jets.offsets, jets.labels, jets.weights, jets.p4 * mev / mev, jets.index
    )


def assert_same(read: PackedJets, expected: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights", "p4", "constituents"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)


LAYOUTS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {"version": 2},
    "attributes": {"attributes": True},
    "contiguous": {"compression": None, "chunks": None},
    "shuffle and checksum": {"shuffle": True, "fletcher32": True},
    "tiny chunks": {"chunks": (7, 3)},
    "one chunk": {"chunks": (60, 20)},
    "column chunks": {"chunks": (60, 1)},
    "lzf": {"compression": "lzf"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_bytes", [1, 600, 1 << 21])
def test_reads_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, block_bytes: int) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
    path = write_atlas(tmp_path / "jets.h5", JETS, width=WIDTH, **LAYOUTS[layout])
    assert_same(load_jets(path), in_file_precision(JETS))


def test_systematic_variations_have_no_weights(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=WIDTH, version=2)
    del arrays["training_weights"]
    read = load_jets(write_arrays(tmp_path / "esup.h5", arrays))
    np.testing.assert_array_equal(read.weights, np.ones(len(JETS), np.float32))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64, np.bool_])
def test_labels_of_any_number_type(tmp_path: Path, dtype: type) -> None:
    arrays = atlas_arrays(JETS, width=WIDTH)
    arrays["labels"] = arrays["labels"].astype(dtype)
    np.testing.assert_array_equal(load_jets(write_arrays(tmp_path / "jets.h5", arrays)).labels, JETS.labels)


def test_float64_files_are_rounded_once(tmp_path: Path) -> None:
    arrays = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in atlas_arrays(JETS, width=20).items()}
    assert_same(load_jets(write_arrays(tmp_path / "jets.h5", arrays)), in_file_precision(JETS))


# ── several files, and parts of them ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def three_files(tmp_path: Path) -> list[Path]:
    parts = ((0, 25), (25, 26), (26, 60))
    return [write_atlas(tmp_path / f"part_{i}.h5", JETS[a:b], width=(20, 23, 30)[i]) for i, (a, b) in enumerate(parts)]


def test_several_files_count_rows_on(three_files: list[Path]) -> None:
    expected = in_file_precision(JETS)
    assert_same(load_jets(three_files), expected)
    assert_same(load_jets([str(path) for path in three_files]), expected)
    assert_same(load_jets(three_files[0].parent / "part_*.h5"), expected)
    assert_same(load_jets([three_files[0], str(three_files[0].parent / "part_[12].h5")]), expected)
    swapped = load_jets(three_files[::-1])
    np.testing.assert_array_equal(
        swapped.labels, np.concatenate([JETS.labels[26:], JETS.labels[25:26], JETS.labels[:25]])
    )
    np.testing.assert_array_equal(swapped.index, np.arange(60))


def test_a_name_with_brackets_is_a_file_where_it_exists(tmp_path: Path) -> None:
    path = write_atlas(tmp_path / "jets[1].h5", JETS, width=WIDTH)
    assert len(load_jets(path)) == len(JETS)


@pytest.mark.parametrize("max_jets", [1, 24, 25, 26, 27, 60, 10_000])
def test_max_jets_takes_the_first_ones(three_files: list[Path], max_jets: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KdfastWarning)  # the first jet alone is of one class
        assert_same(load_jets(three_files, max_jets=max_jets), in_file_precision(JETS[:max_jets]))


def test_max_jets_warns_when_it_cuts_a_class_off(tmp_path: Path) -> None:
    files = [write_atlas(tmp_path / f"class{c}.h5", JETS[JETS.labels == c], width=WIDTH) for c in (0, 1)]
    with pytest.warns(KdfastWarning, match="the first 10 jets of .* are all of class 0: max_jets takes jets in file"):
        load_jets(files, max_jets=10)


@pytest.mark.parametrize("chunks", [(60, 20), (7, 3), (60, 1)])
@pytest.mark.parametrize("n", [1, 5, 20])
def test_max_constituents_takes_the_hardest(tmp_path: Path, n: int, chunks: tuple[int, int]) -> None:
    path = write_atlas(tmp_path / "jets.h5", JETS, width=WIDTH, chunks=chunks)
    all_of_them = in_file_precision(JETS)
    place = np.arange(len(JETS.constituents)) - np.repeat(JETS.offsets[:-1], JETS.counts)
    assert_same(load_jets(path, max_constituents=n), all_of_them.select_constituents(place < n))


def test_jets_to_be_scored_need_no_labels(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=WIDTH)
    arrays["weights"][:] = 0
    labelled = write_arrays(tmp_path / "labelled.h5", arrays)
    del arrays["labels"]
    bare = write_arrays(tmp_path / "bare.h5", arrays)
    read = load_jets([labelled, bare], require_labels=False)
    np.testing.assert_array_equal(read.labels, np.concatenate([JETS.labels, np.full(60, -1)]))
    np.testing.assert_array_equal(
        read.constituents[: len(read.constituents) // 2], in_file_precision(JETS).constituents
    )
    with pytest.raises(
        DataError, match=r"dataset labels: is missing\n.*\nfor jets .* scored: .* load_jets\(…, require_labels=False\)"
    ):
        load_jets(bare)


def test_the_same_content_has_the_same_fingerprint(three_files: list[Path], tmp_path: Path) -> None:
    together = write_atlas(tmp_path / "all.h5", JETS, width=WIDTH, chunks=(7, 3))
    name = fingerprint(load_jets(together))
    assert name == fingerprint(load_jets(three_files)) == fingerprint(in_file_precision(JETS))
    assert name != fingerprint(load_jets(together, max_constituents=10))


# ── bad jets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def put(name: str, row: int, column: int | None, value: float) -> Callable[[Arrays], None]:
    def damage(arrays: Arrays) -> None:
        arrays[name][(row,) if column is None else (row, column)] = value

    return damage


def swap_first_two(arrays: Arrays) -> None:
    for name in CONSTITUENTS:
        arrays[name][40, :2] = arrays[name][40, 1::-1]


def hole(arrays: Arrays) -> None:
    for name in CONSTITUENTS:
        arrays[name][40, 1] = 0


def low_energy(factor: float) -> Callable[[Arrays], None]:
    def damage(arrays: Arrays) -> None:
        momentum = arrays["fjet_clus_pt"][40, 1] * np.cosh(np.float64(arrays["fjet_clus_eta"][40, 1]))
        arrays["fjet_clus_E"][40, 1] = momentum * factor

    return damage


# fault: (damage, dataset, message, hardest constituents that must be read to see it)
BAD_JETS: dict[str, tuple[Callable[[Arrays], None], str, str, int]] = {
    "NaN pT": (put("fjet_clus_pt", 40, 1, np.nan), "fjet_clus_pt", "is not finite", 1),
    "NaN first pT": (put("fjet_clus_pt", 40, 0, np.nan), "fjet_clus_pt", "is not finite", 1),
    "NaN pT in padding": (put("fjet_clus_pt", 40, 19, np.nan), "fjet_clus_pt", "is not finite", 1),
    "infinite pT": (put("fjet_clus_pt", 40, 0, np.inf), "fjet_clus_pt", "is not finite", 1),
    "negative pT": (put("fjet_clus_pt", 40, 1, -5), "fjet_clus_pt", "is negative", 1),
    "negative pT in padding": (put("fjet_clus_pt", 40, 19, -5), "fjet_clus_pt", "is negative", 1),
    "unsorted": (swap_first_two, "fjet_clus_pt", "does not fall: the constituents are not sorted", 1),
    "hole": (hole, "fjet_clus_pt", "has a hole: a zero before a filled slot", 1),
    "pT in padding": (put("fjet_clus_pt", 40, 19, 1), "fjet_clus_pt", "has a hole: a zero before a filled slot", 1),
    "NaN eta": (put("fjet_clus_eta", 40, 1, np.nan), "fjet_clus_eta", "is not finite", 2),
    "infinite phi": (put("fjet_clus_phi", 40, 1, -np.inf), "fjet_clus_phi", "is not finite", 2),
    "NaN energy": (put("fjet_clus_E", 40, 1, np.nan), "fjet_clus_E", "is not finite", 2),
    "infinite energy": (put("fjet_clus_E", 40, 1, np.inf), "fjet_clus_E", "is not finite", 2),
    "eta in padding": (
        put("fjet_clus_eta", 40, 19, 1),
        "fjet_clus_eta",
        "is not zero in padding (where pT is zero)",
        20,
    ),
    "NaN phi in padding": (put("fjet_clus_phi", 40, 19, np.nan), "fjet_clus_phi", "is not zero in padding", 20),
    "energy in padding": (put("fjet_clus_E", 40, 19, 1), "fjet_clus_E", "is not zero in padding", 20),
    "low energy": (low_energy(0.9985), "fjet_clus_E", "is smaller than the momentum pT·cosh η", 2),
    "negative energy": (low_energy(-1), "fjet_clus_E", "is smaller than the momentum pT·cosh η", 2),
    "no energy": (low_energy(0), "fjet_clus_E", "is smaller than the momentum pT·cosh η", 2),
    "huge eta": (put("fjet_clus_eta", 40, 1, 1e4), "fjet_clus_E", "is smaller than the momentum pT·cosh η", 2),
    "NaN jet pT": (put("fjet_pt", 40, None, np.nan), "fjet_pt", "is not finite (nan)", 1),
    "negative jet pT": (put("fjet_pt", 40, None, -3), "fjet_pt", "is not positive (-3)", 1),
    "no jet pT": (put("fjet_pt", 40, None, 0), "fjet_pt", "is not positive (0)", 1),
    "infinite jet mass": (put("fjet_m", 40, None, np.inf), "fjet_m", "is not finite (inf)", 1),
    "other class": (put("labels", 40, None, 2), "labels", "is neither 0 (background) nor 1 (signal) (2)", 1),
    "negative weight": (put("weights", 40, None, -0.25), "weights", "is negative (-0.25)", 1),
    "NaN weight": (put("weights", 40, None, np.nan), "weights", "is not finite (nan)", 1),
}


@pytest.mark.parametrize("fault", BAD_JETS)
@pytest.mark.parametrize("block_bytes", [600, 1 << 21])
def test_bad_jets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, block_bytes: int) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
    damage, dataset, message, needed = BAD_JETS[fault]
    assert JETS.counts[40] in range(3, 19)
    good = write_atlas(tmp_path / "good.h5", JETS[:10], width=WIDTH, chunks=(7, 20))
    arrays = atlas_arrays(JETS, width=WIDTH)
    damage(arrays)
    bad = write_arrays(tmp_path / "bad.h5", arrays, chunks=(7, 20))

    with pytest.raises(DataError) as error:
        load_jets(bad)
    assert str(error.value).startswith(f"{bad}, dataset {dataset}, row 40: {message}")
    is_order = "hole" in message or "sorted" in message
    is_weight = message.startswith("is negative") and dataset == "weights"
    hint = (
        "sort=True takes constituents in any order"
        if is_order
        else "on_bad='drop' leaves such jets out and counts them"
    )
    if is_weight:
        hint = (
            "take absolute values, leave weights out of the map (weights = []), or leave such jets out: on_bad='drop'"
        )
    assert error.value.hint == hint
    assert len(load_jets(bad, max_jets=40)) == 40  # the bad jet is not among those asked for

    with pytest.warns(KdfastWarning) as caught:
        read = load_jets([good, bad], on_bad="drop")
    reason = f"{dataset} {str(error.value.what).partition(' (')[0]}"
    first = f"(first: {bad}, dataset {dataset}, row 40)"
    assert [str(w.message) for w in caught] == [f"1 of 70 jets dropped: 1 because {reason} {first}"]
    assert caught[0].filename == __file__
    kept = np.arange(60) != 40
    expected = in_file_precision(PackedJets.concatenate([JETS[:10], JETS[kept]], renumber=True))
    assert_same(read, replace(expected, index=np.concatenate([np.arange(10), 10 + np.flatnonzero(kept)])))

    if needed > 1:  # a fault in a constituent that is not asked for is not seen
        assert len(load_jets(bad, max_constituents=needed - 1)) == len(JETS)


def test_massless_constituents_may_be_rounded(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=WIDTH)
    low_energy(0.9995)(arrays)
    assert len(load_jets(write_arrays(tmp_path / "jets.h5", arrays))) == len(JETS)


def test_drop_counts_each_jet_once_under_its_first_fault(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=WIDTH)
    for row in (0, 5, 59):
        arrays["fjet_clus_pt"][row, 0] = np.nan
        arrays["fjet_clus_E"][row, 0] = np.nan
        arrays["weights"][row] = -1
    arrays["fjet_clus_phi"][[5, 7], 0] = np.nan
    arrays["labels"][[7, 9]] = 3
    path = write_arrays(tmp_path / "jets.h5", arrays)
    with pytest.warns(KdfastWarning) as caught:
        read = load_jets(path, on_bad="drop")
    for part in ("5 of 60 jets", "3 because fjet_clus_pt is", "1 because fjet_clus_phi is", "1 because labels is"):
        assert part in str(caught[0].message)
    assert_same(read, in_file_precision(JETS[np.setdiff1d(np.arange(60), [0, 5, 7, 9, 59])]))


@pytest.mark.parametrize("max_jets", [1, 5, 30, 55])
def test_max_jets_counts_good_jets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_jets: int) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", 700)
    bad = np.isin(np.arange(60), [0, 1, 2, 3, 20, 58])
    arrays = atlas_arrays(JETS, width=WIDTH)
    arrays["fjet_clus_eta"][bad, 0] = np.nan
    arrays["fjet_clus_eta"][JETS.counts == 0, 0] = 0
    path = write_arrays(tmp_path / "jets.h5", arrays, chunks=(7, 20))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KdfastWarning)
        assert_same(load_jets(path, max_jets=max_jets, on_bad="drop"), in_file_precision(JETS[~bad][:max_jets]))


def test_unsorted_constituents(tmp_path: Path) -> None:
    """Dropping jets does not help where all are unsorted, so the hint is to sort them, in either mode."""
    arrays = atlas_arrays(JETS, width=WIDTH)
    for name in CONSTITUENTS:
        arrays[name] = arrays[name][:, ::-1]
    path = write_arrays(tmp_path / "jets.h5", arrays)
    hint = "\nsort=True takes constituents in any order"
    with pytest.raises(DataError, match=f"fjet_clus_pt, row 0: has a hole: .*{hint}"):
        load_jets(path)
    full = write_atlas(tmp_path / "full.h5", JETS[JETS.counts == WIDTH], width=WIDTH)
    with h5py.File(full, "r+") as file:
        for name in CONSTITUENTS:
            file[name][...] = file[name][:][:, ::-1]
    with pytest.raises(DataError, match=f"no good jet is left: .* does not fall: .*{hint}"):
        load_jets(full, on_bad="drop")
    assert_same(load_jets(path, sort=True), in_file_precision(JETS))
    assert_same(load_jets(path, sort=True, max_constituents=5), in_file_precision(JETS.hardest(5)))
    for name in CONSTITUENTS:
        del arrays[name]
    with pytest.raises(DataError, match="fjet_clus_pt: is missing\nthe file holds"):
        load_jets(write_arrays(tmp_path / "none.h5", arrays), sort=True)


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=WIDTH)
    arrays["weights"][:] = -1
    path = write_arrays(tmp_path / "jets.h5", arrays)
    reason = "60 because weights is negative \\(first: .*jets.h5, dataset weights, row 0\\)"
    with pytest.raises(DataError, match=f"jets.h5: no good jet is left: {reason}\n"):
        load_jets(path, on_bad="drop")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_jets": 0}, "max_jets: must be a whole number from 1 on, is 0"),
        ({"max_jets": 2.5}, "max_jets: must be a whole number from 1 on, is 2.5"),
        ({"max_constituents": -1}, "max_constituents: must be a whole number from 1 on, is -1"),
        ({"max_constituents": True}, "max_constituents: must be a whole number from 1 on, is True"),
        (
            {"max_constituents": 21},
            "max_constituents: is 21, but only 20 constituents a jet are stored in .*jets.h5\nask",
        ),
        ({"on_bad": "ignore"}, "on_bad: must be 'error' or 'drop', is 'ignore'"),
    ],
)
def test_arguments_out_of_range(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = write_atlas(tmp_path / "jets.h5", JETS, width=WIDTH)
    with pytest.raises(ConfigError, match=message):
        load_jets(path, **arguments)


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────

PEAK = """
import sys
from kdfast.jets.readers import load_jets

def memory():                                             # (peak, now) of this process in bytes
    status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Vm"))
    return [1024 * int(status[name].split()[0]) for name in ("VmHWM", "VmRSS")]

load_jets(sys.argv[1])                                    # imports, HDF5's own memory
before = memory()[1]
jets = load_jets(sys.argv[2])
print(memory()[0] - before, jets.constituents.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("chunks", [(1000, 200), (20_000, 5)])
def test_memory_stays_at_the_packed_size(tmp_path: Path, chunks: tuple[int, int]) -> None:
    """Peak memory while 384 MB of padded arrays are read, above what a small file takes."""
    jets = synthetic_jets(2_000, max_constituents=200)
    jets = PackedJets.concatenate([jets] * 60, renumber=True)
    small = write_atlas(tmp_path / "small.h5", jets[:100], width=200)
    large = write_atlas(tmp_path / "large.h5", jets, width=200, compression_opts=1, chunks=chunks)
    run = subprocess.run([sys.executable, "-c", PEAK, small, large], capture_output=True, text=True, check=True)
    peak, packed = map(int, run.stdout.split())
    assert packed == jets.constituents.nbytes
    block = max(BLOCK_BYTES, 4 * chunks[0] * 200)
    # room for 2 % more constituents than the first blocks announce; what is kept of each jet; a few blocks; HDF5
    assert packed < peak < 1.02 * packed + 48 * len(jets) + 4 * block + 10e6


BOMB = """
import sys, time
from kdfast.errors import DataError
from kdfast.jets.readers import load_jets

try:
    load_jets(sys.argv[1])
except DataError as error:
    print(error)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Vm"))
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_small_file_that_expands_does_not_fill_the_memory(tmp_path: Path) -> None:
    """3.2 GB of zeros in a file of 6 MB: jets without constituents."""
    path, rows = tmp_path / "bomb.h5", 1_000_000
    with h5py.File(path, "w") as file:
        zeros = np.zeros((10_000, 200), np.float32)
        how = {"chunks": zeros.shape, "compression": "gzip", "compression_opts": 1, "shuffle": True}
        dataset = file.create_dataset(CONSTITUENTS[0], (rows, 200), np.float32, **how)
        for start in range(0, rows, len(zeros)):
            dataset[start : start + len(zeros)] = zeros
        for name in CONSTITUENTS[1:]:
            file[name] = dataset
        for name in ("fjet_pt", "fjet_eta", "fjet_phi", "fjet_m"):
            file.create_dataset(name, data=np.full(rows, 5e5, np.float32), compression="gzip")
        file.create_dataset("labels", data=np.arange(rows) % 2, compression="gzip")
    assert path.stat().st_size < 1e7
    run = subprocess.run([sys.executable, "-c", BOMB, path], capture_output=True, text=True, check=True)
    message, peak = run.stdout.splitlines()
    assert message.endswith("every jet is empty: no constituent has pT > 0")
    assert int(peak) < 3e8


def test_a_signalling_nan_is_a_bad_jet_without_a_warning_of_numpy(tmp_path):
    arrays = atlas_arrays(JETS, width=200)
    arrays["fjet_clus_E"].view(np.uint32)[3, 0] = 0x7F800001
    path = write_arrays(tmp_path / "a.h5", arrays)
    with pytest.warns(KdfastWarning, match="fjet_clus_E is not finite") as caught:
        jets = load_jets(path, on_bad="drop")
    assert len(jets) == len(JETS) - 1
    assert all(issubclass(each.category, KdfastWarning) for each in caught)
