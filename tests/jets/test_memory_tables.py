"""load_jets and sweep on tables in memory: DataFrames, awkward arrays, structured arrays, mappings of arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import kdfast
from kdfast.errors import ConfigError, DataError
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import atlas_arrays
from tests.study.small_sweep import small_sweep
from tests.synthetic import synthetic_jets

JETS = synthetic_jets(50, max_constituents=17)
PARTS = ("pt", "eta", "phi", "energy")
X, MASK = JETS.to_padded(20)
MAP: dict[str, Any] = {
    "unit": "GeV",
    "constituents": {key: f"part/{key}" for key in PARTS},
    "label": {"column": "is_top", "signal": 1, "background": 0},
}
BY_SLOT = MAP | {"constituents": {key: f"{key}_*" for key in PARTS}}


def assert_same(read: PackedJets, expected: PackedJets = JETS) -> None:
    for name in ("offsets", "index", "labels", "weights", "constituents"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(read.p4[:, :3], expected.p4[:, :3], rtol=1e-4, atol=1e-4)


def per_jet(values: Any) -> list[Any]:
    return np.split(values, JETS.offsets[1:-1])


def mapping() -> dict[str, Any]:
    return {"part": {key: X[:, :, k] for k, key in enumerate(PARTS)}, "is_top": JETS.labels}


def flat_mapping() -> dict[str, Any]:
    return {f"part/{key}": X[:, :, k].astype(np.float64) for k, key in enumerate(PARTS)} | {"is_top": JETS.labels == 1}


def structured() -> dict[str, Any]:
    constituents = np.zeros(X.shape[:2], [(key, np.float32) for key in PARTS])
    for k, key in enumerate(PARTS):
        constituents[key] = X[:, :, k]
    return {"part": constituents, "is_top": JETS.labels}


def frame_of_lists() -> pd.DataFrame:
    lists = {key: per_jet(JETS.constituents[:, k]) for k, key in enumerate(PARTS)}
    return pd.DataFrame({"is_top": JETS.labels, **lists}, index=np.arange(50)[::-1])


def awkward_records() -> Any:
    awkward = pytest.importorskip("awkward")
    parts = awkward.zip({key: awkward.unflatten(JETS.constituents[:, k], JETS.counts) for k, key in enumerate(PARTS)})
    return awkward.Array({"part": parts, "is_top": JETS.labels})


def awkward_padded() -> Any:
    awkward = pytest.importorskip("awkward")
    return awkward.Array({key: X[:, :, k] for k, key in enumerate(PARTS)} | {"is_top": JETS.labels})


def arrow_table() -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.Table.from_pandas(frame_of_lists(), preserve_index=False)


@pytest.mark.parametrize(
    "table", [mapping, flat_mapping, structured, frame_of_lists, awkward_records, awkward_padded, arrow_table]
)
@pytest.mark.parametrize("rows", [7, 4000])
def test_tables(monkeypatch: pytest.MonkeyPatch, table: Callable[[], Any], rows: int) -> None:
    """Where a table has no entry `part`, `part/pt` is its entry `pt`."""
    monkeypatch.setattr("kdfast.jets.memory_table.ROWS", rows)
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", 100 * rows)
    assert_same(load_jets(table(), columns=MAP))
    assert_same(load_jets(table(), columns=MAP, max_jets=30, max_constituents=4), JETS[:30].hardest(4))


def test_one_column_a_slot() -> None:
    columns = {f"{key}_{slot}": X[:, slot, k] for slot in range(20) for k, key in enumerate(PARTS)}
    frame = pd.DataFrame(columns | {"is_top": JETS.labels})
    assert_same(load_jets(frame, columns=BY_SLOT))
    assert_same(load_jets(columns | {"is_top": JETS.labels}, columns=BY_SLOT))
    with pytest.raises(DataError, match=r"DataFrame, column pt_\*: pt_3 is missing among 19 columns"):
        load_jets(frame.drop(columns="pt_3"), columns=BY_SLOT)


def test_entries_on_the_last_axis() -> None:
    columns = MAP | {"constituents": {key: f"x/{k}" for k, key in enumerate(PARTS)}}
    assert_same(load_jets({"x": X, "is_top": JETS.labels}, columns=columns))
    with pytest.raises(DataError, match="dict, column x/4: is missing"):
        load_jets({"x": X, "is_top": JETS.labels}, columns=columns | {"id": "x/4"})


def test_presets_for_files() -> None:
    assert_same(load_jets(atlas_arrays(JETS, width=20), unit="MeV"), load_jets(atlas_arrays(JETS, width=20)))
    pt, eta, phi, energy = np.moveaxis(X.astype(np.float64), 2, 0)
    parts = {"E": energy, "PX": pt * np.cos(phi), "PY": pt * np.sin(phi), "PZ": pt * np.sinh(eta)}
    frame = pd.DataFrame({f"{name}_{slot}": each[:, slot] for slot in range(20) for name, each in parts.items()})
    read = load_jets(frame.assign(is_signal_new=JETS.labels), columns="top-reference")
    np.testing.assert_allclose(read.constituents, JETS.constituents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_top": JETS.labels[:40]}, "dict, column is_top: has 40 rows, part/pt has 50\nall columns must have a row"),
        ({"is_top": ["a"] * 50}, "dict, column is_top: must hold numbers, holds <U1"),
        ({"is_top": [None] * 50}, r"column is_top: must hold numbers or lists of numbers \(some rows"),
        ({"is_top": X}, r"column is_top: must have the shape \[jets\] or \[jets, constituents\], has \[50, 20, 4\]"),
        (
            {"part": X},
            "dict, column part/pt: is missing\nthe map asks for it as constituents.pt; the table holds: part",
        ),
        ({"is_top": JETS.labels + 5}, "dict, column is_top, row 0: is neither 0"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_jets(mapping() | change, columns=MAP)


def test_a_sweep_of_a_table(tmp_path: Path) -> None:
    jets = synthetic_jets(200, seed=3)
    x, _ = jets.to_padded(int(jets.counts.max()))
    table = {"part": {key: x[:, :, k] for k, key in enumerate(PARTS)}, "is_top": jets.labels}
    study = small_sweep(tmp_path / "a", table, columns=MAP, seeds=[1], epochs=1, plan_only=True, pack_size=5)
    assert study.path == tmp_path / "a"
    with pytest.raises(
        DataError, match=r"dict, column fjet_clus_pt: is missing\ncolumns=… names the columns of another layout; the"
    ):
        kdfast.sweep(table, tmp_path / "b")
    with pytest.raises(ConfigError, match="max_constituents: is 999, but only"):
        kdfast.sweep(table, tmp_path / "b", columns=MAP, max_constituents=999)
