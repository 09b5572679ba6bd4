"""load_jets on Parquet files, as pyarrow, pandas and awkward write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.synthetic import synthetic_jets

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (the extra `parquet`)")
parquet = pytest.importorskip("pyarrow.parquet")

JETS = synthetic_jets(50, max_constituents=17)
PARTS = ("pt", "eta", "phi", "energy")
MAP: dict[str, Any] = {
    "unit": "GeV",
    "constituents": {key: f"part_{key}" for key in PARTS},
    "jet": {key: f"jet_{key}" for key in ("pt", "eta", "phi", "mass")},
    "label": {"column": "is_top", "signal": 1, "background": 0},
}


def lists(values: Any) -> Any:
    return pyarrow.ListArray.from_arrays(pyarrow.array(JETS.offsets.astype(np.int32)), pyarrow.array(values))


def columns() -> dict[str, Any]:
    found = {f"part_{key}": lists(JETS.constituents[:, k]) for k, key in enumerate(PARTS)}
    found |= {f"jet_{key}": pyarrow.array(JETS.p4[:, k]) for k, key in enumerate(("pt", "eta", "phi", "mass"))}
    return found | {"is_top": pyarrow.array(JETS.labels)}


def write(path: Path, table: dict[str, Any] | None = None, **how: Any) -> Path:
    parquet.write_table(pyarrow.table(columns() if table is None else table), path, **how)
    return path


def assert_same(read: PackedJets, expected: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights", "p4", "constituents"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("how", [{}, {"row_group_size": 7}, {"compression": "zstd", "data_page_size": 100}])
@pytest.mark.parametrize("rows", [3, 16, 4000])
def test_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], rows: int) -> None:
    monkeypatch.setattr("kdfast.jets.parquet_table.ROWS", rows)
    path = write(tmp_path / "jets.parquet", **how)
    assert_same(load_jets(path, columns=MAP), JETS)
    assert_same(load_jets(path, columns=MAP, max_jets=20, max_constituents=4), JETS[:20].hardest(4))
    assert_same(load_jets([path, write(tmp_path / "more.parquet")], columns=MAP)[50:], again())


def again() -> PackedJets:
    from dataclasses import replace

    return replace(JETS, index=JETS.index + 50)


def test_lists_of_fixed_length_are_padded(tmp_path: Path) -> None:
    x, _ = JETS.to_padded(20)
    padded = {
        f"part_{key}": pyarrow.FixedSizeListArray.from_arrays(x[:, :, k].ravel(), 20) for k, key in enumerate(PARTS)
    }
    assert_same(load_jets(write(tmp_path / "jets.parquet", columns() | padded), columns=MAP), JETS)


def test_records_that_awkward_writes(tmp_path: Path) -> None:
    awkward = pytest.importorskip("awkward")
    backwards = JETS.constituents.copy()
    for start, stop in zip(JETS.offsets, JETS.offsets[1:], strict=False):
        backwards[start:stop] = backwards[start:stop][::-1]
    records = awkward.zip({key: awkward.unflatten(backwards[:, k].copy(), JETS.counts) for k, key in enumerate(PARTS)})
    jet = awkward.zip({key: JETS.p4[:, k].copy() for k, key in enumerate(("pt", "eta", "phi", "mass"))})
    awkward.to_parquet(
        awkward.Array({"part": records, "jet": jet, "is_top": JETS.labels == 1}),
        tmp_path / "jets.parquet",
        row_group_size=7,
    )
    nested = MAP | {
        "constituents": {key: f"part/{key}" for key in PARTS},
        "jet": {key: f"jet/{key}" for key in ("pt", "eta", "phi", "mass")},
    }
    assert_same(load_jets(tmp_path / "jets.parquet", columns=nested, sort=True), JETS)
    with pytest.raises(DataError, match=r"column part: holds several fields\n.*name a field: part/pt, part/eta"):
        load_jets(tmp_path / "jets.parquet", columns=nested | {"label": {"column": "part", "signal": 1}})


def nulls(name: str, row: int) -> dict[str, Any]:
    table = columns()
    values = table[name].to_pylist()
    values[row] = None
    return table | {name: pyarrow.array(values, table[name].type)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {k: v for k, v in columns().items() if k != "jet_eta"}, "column jet_eta: is missing\nthe map asks"),
        (lambda: columns() | {"jet_eta": pyarrow.array(["a"] * 50)}, "column jet_eta: must hold numbers or lists"),
        (lambda: columns() | {"jet_eta": columns()["part_eta"]}, r"column jet_eta: must have the shape \[jets\], has"),
        (lambda: nulls("jet_eta", 7), "column jet_eta, row 7: is not finite"),
        (lambda: nulls("is_top", 7), r"column is_top: has 1 missing values \(null\)"),
        (lambda: nulls("part_eta", 7), r"column part_eta: has 1 missing lists \(null\)"),
        (lambda: {k: v[:0] for k, v in columns().items()}, "jets.parquet: holds no jets"),
    ],
)
def test_bad_files(tmp_path: Path, change: Any, message: str) -> None:
    path = write(tmp_path / "jets.parquet", change())
    with pytest.raises(DataError, match=message) as error:
        load_jets(path, columns=MAP)
    assert str(error.value).startswith(str(path))


def test_lists_of_unequal_length(tmp_path: Path) -> None:
    table = columns()
    shorter = table["part_eta"].to_pylist()
    shorter[9] = shorter[9][1:]
    path = write(tmp_path / "jets.parquet", table | {"part_eta": pyarrow.array(shorter, table["part_eta"].type)})
    with pytest.raises(DataError, match="column part_eta, row 9: is not as long as part_pt"):
        load_jets(path, columns=MAP)
    with pytest.warns(KdfastWarning, match="1 of 50 jets dropped"):
        assert len(load_jets(path, columns=MAP, on_bad="drop")) == 49


def test_far_too_long_lists(tmp_path: Path) -> None:
    """Two lists of a million zeros are packed into some kilobytes."""
    zeros = pyarrow.ListArray.from_arrays([0, 1_000_000, 2_000_000], pyarrow.array(np.zeros(2_000_000, np.float32)))
    table = {key: zeros if key.startswith("part_") else value[:2] for key, value in columns().items()}
    path = write(tmp_path / "jets.parquet", table)
    assert path.stat().st_size < 1e5
    with pytest.raises(DataError, match="column part_pt, row 0: has more than 4,096 constituents"):
        load_jets(path, columns=MAP)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "jets.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="can't be read as Parquet") as error:
        load_jets(path, columns=MAP)
    assert str(error.value).startswith(str(path))


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "jets.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ConfigError, match=r"is a Parquet file, and .* is not installed\npip install 'kdfast\[parquet\]'"
    ):
        load_jets(path, columns=MAP)


def test_rows_that_are_too_long(tmp_path: Path) -> None:
    """A file of 20 KB that announces 20 MB."""
    zeros = parquet_zeros(tmp_path / "jets.parquet", rows=4, size=5 << 20)
    with pytest.raises(DataError, match=r"announces 20,\d\d\d,\d\d\d bytes in 4 rows, which is too much"):
        load_jets(zeros, columns=MAP)


def test_pages_for_which_there_is_no_memory(tmp_path: Path) -> None:
    """pyarrow takes what a page announces; the process that reads has a limit, here 400 MiB."""
    path = parquet_zeros(tmp_path / "jets.parquet", rows=50, size=1 << 20)
    code = f"""if True:
        import resource, sys
        from pathlib import Path
        from kdfast.jets.readers import load_jets
        resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))
        load_jets({str(path)!r}, columns={MAP!r}, isolate=True)"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert f"ResourceError: {path}: reading needs more memory than there is" in found.stderr


def parquet_zeros(path: Path, rows: int, size: int) -> Path:
    """A small file, each of whose rows has a list of this many bytes."""
    numbers = rows * size // 4
    offsets = pyarrow.array(np.linspace(0, numbers, rows + 1).astype(np.int32))
    wide = pyarrow.ListArray.from_arrays(offsets, pyarrow.array(np.zeros(numbers, np.float32)))
    table = {name: values[:rows] for name, values in columns().items()} | {"part_pt": wide}
    return write(path, table, compression="gzip", use_dictionary=False, data_page_size=1 << 30)
