"""load_jets on DataFrames in HDF5, as pandas and PyTables write them, in the layout of the top tagging reference."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from kdfast.errors import DataError
from kdfast.jets.kinematics import jet_p4
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.synthetic import synthetic_jets

pytest.importorskip("tables", reason="needs PyTables, by which pandas writes HDF5")

SLOTS = 20
JETS = synthetic_jets(50, max_constituents=SLOTS - 3)


def reference_frame() -> pd.DataFrame:
    """E_0, PX_0, PY_0, PZ_0, E_1, … of constituents by falling pT, zero-padded; the true top; ttv and the label."""
    x, _ = JETS.to_padded(SLOTS)
    pt, eta, phi, energy = np.moveaxis(x.astype(np.float64), 2, 0)
    parts = {"E": energy, "PX": pt * np.cos(phi), "PY": pt * np.sin(phi), "PZ": pt * np.sinh(eta)}
    columns: dict[str, Any] = {
        f"{name}_{slot}": values[:, slot].astype(np.float32) for slot in range(SLOTS) for name, values in parts.items()
    }
    columns |= {f"truth{name}": np.zeros(len(JETS), np.float32) for name in parts}
    columns |= {"ttv": np.zeros(len(JETS), np.int64), "is_signal_new": JETS.labels}
    return pd.DataFrame(columns, index=np.arange(375, 375 + len(JETS)))


def write(path: Path, frame: pd.DataFrame | None = None, **how: Any) -> Path:
    frame = reference_frame() if frame is None else frame
    frame.to_hdf(path, key="table", **{"format": "table", "complib": "zlib", "complevel": 5} | how)
    return path


def assert_close(read: PackedJets, wanted: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(read.constituents, wanted.constituents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block_bytes", [1, 600, 1 << 21])
def test_the_reference_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
    path = write(tmp_path / "train.h5")
    read = load_jets(path, columns="top-reference")
    assert_close(read, JETS)
    np.testing.assert_allclose(read.p4, jet_p4(read.constituents, read.offsets), rtol=1e-6)
    assert_close(load_jets(path, columns="top-reference", max_jets=30, max_constituents=4), JETS[:30].hardest(4))


def test_packed_by_blosc(tmp_path: Path) -> None:
    """As PyTables packs by default where a level is asked for."""
    path = write(tmp_path / "train.h5", complib="blosc")
    try:
        import hdf5plugin  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"a filter that is not installed \(number 32001.*\n.*kdfast\[filters\]"):
            load_jets(path, columns="top-reference")
        pytest.skip("needs hdf5plugin (the extra `filters`)")
    assert_close(load_jets(path, columns="top-reference"), JETS)


def test_columns_that_pandas_stores_on_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "train.h5", data_columns=["ttv", "is_signal_new"])
    assert_close(load_jets(path, columns="top-reference"), JETS)


def without(*names: str) -> Callable[[Path], None]:
    return lambda path: write(path, reference_frame().drop(columns=[*names])) and None


def with_unpickling(path: Path) -> None:
    """Whoever unpickles the attribute creates a file."""
    write(path)

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (path.with_suffix(".attacked"),))

    with h5py.File(path, "r+") as file:
        for place in (file["table"], file["table/table"]):
            for name in list(place.attrs):
                if name.endswith(("_kind", "info", "axes")):
                    place.attrs[name] = np.bytes_(pickle.dumps(Attack(), 0))


def of_two_types(path: Path) -> None:
    frame = reference_frame()
    write(path, frame.astype({"PX_3": np.float64}))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no labels": (
        without("is_signal_new"),
        r"dataset table/is_signal_new: is missing\nthe map asks for it as label; the file holds: table/E_0, table/PX_0",
    ),
    "a slot left out": (without("PX_3"), r"dataset table/PX_\*: PX_3 is missing among 19 columns"),
    "fewer energies": (without("E_19"), r"dataset table/E_\*: has 19 columns, table/PX_\* has 20"),
    "none": (
        without(*(f"PZ_{k}" for k in range(SLOTS))),
        r"dataset table/PZ_\*: is missing\nthe map asks for it as",
    ),
    "two types": (of_two_types, r"dataset table/PX_\*: these columns are of different types"),
    "fixed format": (
        lambda path: write(path, format="fixed"),
        r"table/PX_\*: is of a DataFrame in pandas' format .fixed.\n.*; write it with",
    ),
    "code": (with_unpickling, r"dataset table/PX_\*: column names are not plain text \(GLOBAL\)"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files(tmp_path: Path, fault: str) -> None:
    damage, message = BAD[fault]
    path = tmp_path / "train.h5"
    damage(path)
    with pytest.raises(DataError, match=message) as error:
        load_jets(path, columns="top-reference")
    assert str(error.value).startswith(str(path))
    assert not path.with_suffix(".attacked").exists()
