"""Each recipe of docs/how-to/read-files.md, run on small files that the public tools have written."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

import kdfast
from kdfast.jets.columns import column_map
from kdfast.jets.packed import PackedJets
from tests.jets.atlas_files import atlas_arrays, write_arrays
from tests.study.small_sweep import small_sweep
from tests.synthetic import synthetic_jets

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "read-files.md"
SLOTS = 90
JETS = synthetic_jets(300, max_constituents=20)
X, MASK = JETS.to_padded(SLOTS)
PT, ETA, PHI, ENERGY = np.moveaxis(X, 2, 0)
MOMENTA = {"px": PT * np.cos(PHI), "py": PT * np.sin(PHI), "pz": PT * np.sinh(ETA), "energy": ENERGY}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def write_hdf5() -> None:
    arrays = atlas_arrays(replace(JETS, weights=np.ones(300, np.float32)), width=SLOTS)
    for k, rows in enumerate((slice(0, 100), slice(100, 300))):
        write_arrays(Path(f"train_{k}.h5"), {name: values[rows] for name, values in arrays.items()})
    momenta = ("fjet_clus_pt", "fjet_clus_E", "fjet_pt", "fjet_m")
    gev = {name: values / np.float32(1000) if name in momenta else values for name, values in arrays.items()}
    gev["fjet_clus_E"] *= np.float32(1.0001)
    write_arrays(Path("gev.h5"), gev)
    with h5py.File("mine.h5", "w") as file:
        for name, values in MOMENTA.items():
            file[f"cells/{'e' if name == 'energy' else name}"] = values
        file["cells/valid"] = MASK
        for k, name in enumerate(("pt", "eta", "phi", "m")):
            file[f"jet/{name}"] = JETS.p4[:, k]
        file["event/truth"] = np.where(JETS.labels == 1, 6, 21)
        file["event/weight"], file["event/number"] = JETS.weights, np.arange(300) + 10**12
    with h5py.File("output.h5", "w") as file:
        fields = {"pt": PT * 1000, "eta": ETA, "phi": PHI, "mass": 0 * PT}
        constituents = np.zeros(X.shape[:2], [*((name, "f4") for name in fields), ("valid", "?")])
        for name, values in fields.items():
            constituents[name] = np.where(MASK, values, np.nan)
        constituents["valid"] = MASK
        jets = np.zeros(300, [("pt", "f4"), ("eta", "f4"), ("mass", "f4"), ("R10TruthLabel_R22v1", "i4")])
        jets["pt"], jets["eta"], jets["mass"] = JETS.p4[:, 0] * 1000, JETS.p4[:, 1], JETS.p4[:, 3] * 1000
        jets["R10TruthLabel_R22v1"] = np.where(JETS.labels == 1, 1, 10)
        file["constituents"], file["jets"] = constituents, jets
    with h5py.File("particles.h5", "w") as file:
        file["particles"], file["is_top"] = X[:, ::-1, :3], JETS.labels


def write_other_formats() -> None:
    awkward, uproot = pytest.importorskip("awkward"), pytest.importorskip("uproot")
    np.savez("QG_jets.npz", X=np.stack([PT, ETA, PHI, 211 * MASK], axis=2).astype(np.float64), y=JETS.labels)
    names = {"E": "energy", "PX": "px", "PY": "py", "PZ": "pz"}
    columns = {f"{name}_{slot}": MOMENTA[key][:, slot] for slot in range(SLOTS) for name, key in names.items()}
    frame = pd.DataFrame(columns | {"is_signal_new": JETS.labels})
    frame.to_hdf("test.h5", key="table", format="table")
    parts = {key: awkward.unflatten(values[MASK], JETS.counts) for key, values in MOMENTA.items()}
    tree = {f"part_{key}": values for key, values in parts.items()}
    tree |= {f"jet_{name}": JETS.p4[:, k].copy() for k, name in enumerate(("pt", "eta", "phi"))}
    tree |= {"label_Tbqq": JETS.labels == 1, "label_Tbl": JETS.labels > 1, "label_QCD": JETS.labels == 0}
    with uproot.recreate("JetClass_0.root") as file:
        file.mktree("tree", {name: getattr(values, "dtype", None) or values.type for name, values in tree.items()})
        file["tree"].extend(tree)
    fields = zip(("pt", "eta", "phi", "energy"), JETS.constituents.T, strict=True)
    records = awkward.zip({key: awkward.unflatten(values.copy(), JETS.counts) for key, values in fields})
    awkward.to_parquet(awkward.Array({"part": records, "is_top": JETS.labels}), "jets.parquet")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for tool in ("tables", "pyarrow"):
        pytest.importorskip(tool)
    monkeypatch.chdir(tmp_path)
    write_hdf5()
    write_other_formats()
    for block in blocks("toml"):
        named = re.match(r"# (\S+\.toml)\n", block)
        assert named, "the first line of a TOML block names its file"
        Path(named[1]).write_text(block, encoding="utf-8")
        column_map(named[1])
    # Its settings, without the hours of its training.
    monkeypatch.setattr(kdfast, "sweep", lambda data, **how: small_sweep(data=data, plan_only=True, pack_size=5, **how))


@pytest.mark.usefixtures("files")
def test_each_recipe_reads_its_file() -> None:
    recipes = blocks("python")
    assert len(recipes) == 12
    for recipe in recipes:
        names: dict[str, Any] = {"kdfast": kdfast, "x": X, "mask": MASK, "labels": JETS.labels}
        exec(compile(recipe, str(PAGE), "exec"), names)
        jets = names["jets"]
        assert isinstance(jets, PackedJets), recipe
        np.testing.assert_array_equal(jets.labels, JETS.labels, err_msg=recipe)
        np.testing.assert_array_equal(jets.counts, JETS.counts, err_msg=recipe)
        np.testing.assert_allclose(jets.constituents[:, 0], JETS.constituents[:, 0], rtol=1e-5, err_msg=recipe)
        if "sweep" in recipe:
            assert (names["study"].path / "study.toml").exists()
