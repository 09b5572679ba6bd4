"""Column maps: what they refuse, and load_jets through them on HDF5 files of other layouts than ATLAS'."""

from __future__ import annotations

import re
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

from kdfast.cli import main
from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.columns import COLUMN_PRESETS, ColumnMap, column_map, is_default
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.kinematics import jet_p4
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import write_arrays, write_atlas
from tests.synthetic import synthetic_jets

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Arrays = dict[str, NDArray[Any]]
SLOTS = 30


def some_jets() -> PackedJets:
    """60 jets of 3 to 27 constituents, with weights."""
    jets = synthetic_jets(60, max_constituents=27)
    place = np.arange(len(jets.constituents)) - np.repeat(jets.offsets[:-1], jets.counts)
    jets = jets.select_constituents(place < np.repeat(np.arange(60) % 25 + 3, jets.counts))
    return replace(jets, weights=np.linspace(0.5, 2, 60, dtype=np.float32))


JETS = some_jets()

OWN = """
unit = "GeV"
weights = "event/w"
[constituents]
pt = "cells/pt"
eta = "cells/eta"
phi = "cells/phi"
energy = "cells/e"
[jet]
pt = "jet/pt"
eta = "jet/eta"
phi = "jet/phi"
mass = "jet/m"
[label]
column = "event/truth"
signal = 6
background = [1, 21]
"""


def own_arrays(jets: PackedJets = JETS) -> Arrays:
    """The datasets that OWN names, in GeV."""
    x, _ = jets.to_padded(SLOTS)
    arrays = {f"cells/{name}": x[:, :, k] for k, name in enumerate(("pt", "eta", "phi", "e"))}
    arrays |= {f"jet/{name}": jets.p4[:, k] for k, name in enumerate(("pt", "eta", "phi", "m"))}
    truth = np.where(jets.labels == 1, 6, np.where(np.arange(len(jets)) % 2, 1, 21))
    arrays |= {"event/w": jets.weights, "event/truth": truth}
    return {name: values.copy() for name, values in arrays.items()}


def own(**changes: Any) -> dict[str, Any]:
    """OWN as a table, changed; None removes a key."""
    table = tomllib.loads(OWN) | changes
    return {key: value for key, value in table.items() if value is not None}


def assert_same(read: PackedJets, expected: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights", "p4", "constituents"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)


def assert_close(read: PackedJets, expected: PackedJets, tolerance: float = 2e-5) -> None:
    """Equal but for the rounding of momenta that were computed from others."""
    for name in ("offsets", "index", "labels", "weights"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(read.constituents, expected.constituents, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(read.p4, expected.p4, rtol=1e-3, atol=1e-3)


# ── the map itself ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("atlsa", "columns: unknown column map 'atlsa'\ndid you mean 'atlas'?"),
        ("none.toml", "columns: none.toml: can't be read (No such file or directory)"),
        (3, "columns: must be a preset's name, a TOML file or a table, is int"),
        ({"preset": "alas"}, "columns: preset: unknown preset 'alas'\ndid you mean 'atlas'?"),
        (own(unit=None), "columns: unit: is missing"),
        (own(unit="TeV"), "columns: unit: must be 'MeV' or 'GeV', is 'TeV'"),
        (own(jets={}), "columns: jets: unknown key 'jets'\ndid you mean 'jet'?"),
        (own(jet={"m": "m"}), "columns: jet.m: unknown key 'm'\nknown: pt, eta, phi, mass"),
        (own(jet={"pt": 1}), "columns: jet.pt: must be text, is 1"),
        (own(constituents={"pt": "a", "px": "b"}), "columns: constituents: are given by pt, px\ngive exactly: pt, eta"),
        (
            own(constituents={"pt": "a", "rapidity": "b", "phi": "c", "mass": "m"}),
            "columns: constituents: are given by pt, rapidity, phi, mass\ngive exactly",
        ),
        (own(label={"column": "a", "signal": ["b"]}), "columns: label: signal must hold values of the column a, is"),
        (own(label={"signal": [1]}), "columns: label: signal must hold names of columns, is [1]"),
        (own(label={"column": "a", "signal": []}), "columns: label: signal is empty"),
        (own(label={"column": "a", "signal": [1.5]}), "columns: label.signal: must be a list of different whole"),
        (own(label={"column": "a", "signal": [1, 1]}), "columns: label.signal: must be a list of different whole"),
        (own(label={"column": "a", "signal": True}), "columns: label.signal: must not be true or false, is True"),
        (own(label={"column": "a", "signal": 1, "background": 1}), "columns: label: 1 is both signal and background"),
    ],
)
def test_a_wrong_map_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_jets("none.h5", columns=given)
    assert str(error.value).startswith(message)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "map.toml"
    path.write_text(OWN.replace("GeV", "TeV"))
    with pytest.raises(ConfigError, match=r"columns: .*map.toml, unit: must be 'MeV' or 'GeV', is 'TeV'"):
        load_jets("none.h5", columns=path)


def test_a_preset_with_changes() -> None:
    changed = column_map({"preset": "atlas", "unit": "GeV", "label": {"signal": [2, 3]}})
    assert changed.constituents == COLUMN_PRESETS["atlas"].constituents
    assert (changed.unit, changed.label.column, changed.label.signal) == ("GeV", "labels", (2, 3))
    assert not is_default(changed)
    assert is_default(column_map({"preset": "atlas"}))
    assert column_map(changed.model_dump(mode="json", exclude_none=True)) == changed


def test_the_documented_maps() -> None:
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "read-files.md").read_text()
    maps = [column_map(tomllib.loads(block)) for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
    assert [each.unit for each in maps] == ["GeV", "GeV", "MeV", "GeV", "GeV"]
    assert {f"`{name}`" for name in COLUMN_PRESETS} <= set(re.findall("`[a-z-]+`", text))


# ── the ATLAS layout under other names ───────────────────────────────────────────────────────────────────────────────


def test_the_preset_atlas_is_the_default(tmp_path: Path) -> None:
    path = write_atlas(tmp_path / "jets.h5", JETS, width=SLOTS)
    default = load_jets(path)
    assert fingerprint(default) == fingerprint(load_jets(path, columns="atlas", unit="MeV"))
    with pytest.raises(DataError, match=r"in MeV: unit=.MeV. reads it so"):
        load_jets(path, columns={"preset": "atlas", "unit": "GeV"})
    assert_same(load_jets(path, columns={"preset": "atlas", "unit": "GeV"}, unit="MeV"), default)


def test_a_preset_that_fits_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas = write_atlas(tmp_path / "atlas.h5", JETS, width=SLOTS)
    salt = write_arrays(tmp_path / "salt.h5", salt_arrays(), chunks=(7, 3))
    with pytest.raises(
        DataError, match="consts/pt: is missing\nthe file seems to have the layout atlas: columns='atlas' r"
    ):
        load_jets(atlas, columns="salt")
    with pytest.raises(DataError, match=r"fjet_clus_pt: is missing\n.* the layout salt: columns='salt' reads it so"):
        load_jets(salt)
    assert main(["sweep", str(salt), "--out", str(tmp_path / "study")]) == 2
    assert "\nthe file seems to have the layout salt: --map salt reads it so" in capsys.readouterr().err


def test_groups_and_other_names(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "jets.h5", own_arrays())
    (tmp_path / "map.toml").write_text(OWN)
    assert_same(load_jets(path, columns=tmp_path / "map.toml"), JETS)
    assert_same(load_jets(path, columns=own(), max_jets=7, max_constituents=5), JETS[:7].hardest(5))


def test_entries_on_the_last_axis(tmp_path: Path) -> None:
    arrays = own_arrays()
    arrays["x"] = np.stack([arrays[f"cells/{name}"] for name in ("pt", "eta", "phi", "e")], axis=2)
    arrays["y"] = np.stack([JETS.labels == 0, JETS.labels == 1], axis=1).astype(np.float32)
    path = write_arrays(tmp_path / "jets.h5", arrays, chunks=True)
    names = {key: f"x/{k}" for k, key in enumerate(("pt", "eta", "phi", "energy"))}
    table = own(constituents=names, label={"signal": "y/1", "background": "y/0"})
    assert_same(load_jets(path, columns=table), JETS)
    with pytest.raises(
        DataError, match=r"dataset x/4: is missing\nthe map asks for it as constituents.energy; the file"
    ):
        load_jets(path, columns=own(constituents=names | {"energy": "x/4"}))


def test_what_is_missing_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "jets.h5", own_arrays())
    table = own(jet={"pt": "jet/pT"})
    hint = "the map asks for it as jet.pt; the file holds: cells/e, .*; the nearest name is jet/pt"
    with pytest.raises(DataError, match=rf"jets.h5, dataset jet/pT: is missing\n{hint}"):
        load_jets(path, columns=table)
    with pytest.raises(DataError, match=r"dataset w: is missing\nthe map asks for it as weights"):
        load_jets(path, columns=own(weights="w"))
    assert load_jets(path, columns=own(weights=["w", "v"])).weights.tolist() == [1] * 60


@pytest.mark.parametrize("fields", [False, True])
def test_links_are_not_followed(tmp_path: Path, fields: bool) -> None:
    path = write_arrays(tmp_path / "jets.h5", own_arrays())
    with h5py.File(path, "r+") as file:
        file["linked"] = h5py.ExternalLink("/etc/passwd", "/real")
        del file["jet/m"]
        file["jet/m"] = h5py.SoftLink("/jet/pt")
    name = "linked/pt" if fields else "linked"
    with pytest.raises(DataError, match=f"dataset {name}: is an external link to /etc/passwd"):
        load_jets(path, columns=own(jet={"pt": name}))
    with pytest.raises(DataError, match="dataset jet/m: is a soft link"):
        load_jets(path, columns=own())


# ── other forms of constituents ──────────────────────────────────────────────────────────────────────────────────────


def form_arrays(form: str) -> tuple[Arrays, dict[str, str]]:
    """(datasets, [constituents]) of JETS in a form."""
    x, mask = JETS.to_padded(SLOTS)
    pt, eta, phi, energy = np.moveaxis(x.astype(np.float64), 2, 0)
    columns = {"pt": pt, "eta": eta, "phi": phi, "energy": energy}
    columns |= {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "rapidity": eta}
    columns["mass"] = np.where(mask, np.sqrt(np.maximum(energy**2 - (pt * np.cosh(eta)) ** 2, 0)), 0)
    names = {key: f"c/{key}" for key in form.split()}
    return {name: columns[key].astype(np.float32) for key, name in names.items()}, names


@pytest.mark.parametrize("order", ["sorted", "sort"])
@pytest.mark.parametrize("padding", ["zeros", "nan", "valid"])
@pytest.mark.parametrize("form", ["pt eta phi energy", "pt eta phi mass", "px py pz energy", "pt rapidity phi"])
def test_forms(tmp_path: Path, form: str, padding: str, order: str) -> None:
    arrays, names = form_arrays(form)
    _, mask = JETS.to_padded(SLOTS)
    rng = np.random.default_rng(0)
    if order == "sort":
        shuffled = rng.permuted(np.tile(np.arange(SLOTS), (60, 1)), axis=1)
        mask = np.take_along_axis(mask, shuffled, 1)
        arrays = {name: np.take_along_axis(values, shuffled, 1) for name, values in arrays.items()}
    for values in arrays.values():
        if padding != "zeros":
            values[~mask] = np.nan
    if padding == "valid":
        arrays["c/ok"] = mask
        names["valid"] = "c/ok"
    per_jet = own_arrays()
    path = write_arrays(tmp_path / "jets.h5", per_jet | arrays, compression=None)
    table = own(constituents=names, order=order, padding="nan" if padding == "nan" else "zeros")
    if form == "px py pz energy":  # pT computed from rounded momenta may rise by a rounding
        table["order"] = "sort"
    massless = form == "pt rapidity phi"
    expected = JETS
    if massless:
        constituents = JETS.constituents.copy()
        constituents[:, 3] = constituents[:, 0] * np.cosh(constituents[:, 1].astype(np.float64))
        expected = JETS.with_constituents(constituents, JETS.offsets)
    read = load_jets(path, columns=table)
    if form != "px py pz energy":
        np.testing.assert_array_equal(read.constituents[:, :3], expected.constituents[:, :3])
    np.testing.assert_array_equal(read.p4, JETS.p4)
    assert_close(read, expected)
    summed = load_jets(path, columns=table | {"jet": {}}, max_constituents=3)
    np.testing.assert_allclose(summed.p4, jet_p4(expected.constituents, expected.offsets), rtol=1e-3, atol=1e-3)
    assert_close(replace(summed, p4=JETS.p4), expected.hardest(3))


def put(name: str, row: int, slot: int | None, value: float) -> Callable[[Arrays], None]:
    def damage(arrays: Arrays) -> None:
        arrays[name][row if slot is None else (row, slot)] = value

    return damage


def swapped(arrays: Arrays) -> None:
    for name in ("c/pt", "c/eta", "c/phi", "c/mass"):
        arrays[name][40, [0, 1]] = arrays[name][40, [1, 0]]


MASS = "pt eta phi mass"
BAD: dict[str, tuple[str, dict[str, Any], Callable[[Arrays], None], str]] = {
    "NaN": (MASS, {}, put("c/pt", 40, 0, np.nan), "dataset c/pt, row 40: is not finite"),
    "infinite mass": (MASS, {}, put("c/mass", 40, 0, np.inf), "dataset c/mass, row 40: is not finite"),
    "negative mass": (MASS, {}, put("c/mass", 40, 0, -1), "dataset c/mass, row 40: is negative"),
    "negative pT": (MASS, {"order": "sort"}, put("c/pt", 40, 0, -1), "dataset c/pt, row 40: is negative"),
    "huge η": (MASS, {}, put("c/eta", 40, 0, 200), "dataset c/eta, row 40: is too large for a finite energy"),
    "unsorted": (MASS, {}, swapped, "c/pt, row 40: does not fall: .*\nsort=True takes constituents in any order"),
    "hole": (MASS, {}, put("c/pt", 40, 29, 1), "dataset c/pt, row 40: has a hole"),
    "padding": (MASS, {}, put("c/eta", 40, 29, 1), "dataset c/eta, row 40: is not zero in padding"),
    "NaN in zeros": (MASS, {}, put("c/eta", 40, 29, np.nan), "dataset c/eta, row 40: is not zero in padding"),
    "at rest": ("px py pz energy", {"order": "sort"}, put("c/pz", 40, 29, 1), "c/px, row 40: has no transverse mom"),
    "low energy": (
        "px py pz energy",
        {"order": "sort"},
        put("c/energy", 40, 0, 1),
        "c/energy, row 40: is smaller than",
    ),
    "label": (
        MASS,
        {},
        put("event/truth", 40, None, 5),
        r"event/truth, row 40: is neither 1 or 21 \(background\) nor 6",
    ),
    "jet": (MASS, {}, put("jet/pt", 40, None, 0), "dataset jet/pt, row 40: is not positive"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_jets(tmp_path: Path, fault: str) -> None:
    form, changes, damage, message = BAD[fault]
    assert JETS.counts[40] in range(3, 28)
    arrays, names = form_arrays(form)
    arrays |= own_arrays()
    damage(arrays)
    path = write_arrays(tmp_path / "jets.h5", arrays)
    table = own(constituents=names, order="sort" if form != MASS else "sorted") | changes
    with pytest.raises(DataError, match=message):
        load_jets(path, columns=table)
    with pytest.warns(KdfastWarning, match="1 of 60 jets dropped: 1 because"):
        read = load_jets(path, columns=table, on_bad="drop")
    kept = JETS[np.arange(60) != 40]
    np.testing.assert_array_equal(read.index, kept.index)
    np.testing.assert_array_equal(read.offsets, kept.offsets)
    np.testing.assert_allclose(read.constituents, kept.constituents, rtol=2e-5, atol=2e-5)


def test_an_empty_jet_without_momentum_of_its_own(tmp_path: Path) -> None:
    arrays = own_arrays()
    for name in ("pt", "eta", "phi", "e"):
        arrays[f"cells/{name}"][5] = 0
    path = write_arrays(tmp_path / "jets.h5", arrays)
    assert load_jets(path, columns=own()).counts[5] == 0
    with pytest.raises(DataError, match="cells/pt, row 5: has no constituent with pT > 0, so that the jet has no mom"):
        load_jets(path, columns=own(jet={"eta": "jet/eta"}))


def test_another_unit_than_the_map_says(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "jets.h5", own_arrays())
    with pytest.raises(
        DataError, match=r"the median jet pT is .* GeV if the file is in MeV\n.*: unit='GeV' reads it so"
    ):
        load_jets(path, columns=own(unit="MeV"))
    arrays = own_arrays()
    arrays["jet/pt"] *= 1000
    path = write_arrays(tmp_path / "mixed.h5", arrays)
    with pytest.raises(DataError, match="\nbring cells/pt, cells/e, jet/pt and jet/m to one unit"):
        load_jets(path, columns=own(unit="MeV"))


# ── classes and identity ─────────────────────────────────────────────────────────────────────────────────────────────


def test_one_against_the_rest(tmp_path: Path) -> None:
    arrays = own_arrays()
    arrays["event/truth"][:10] = 99
    path = write_arrays(tmp_path / "jets.h5", arrays)
    rest = own(label={"column": "event/truth", "signal": [6]})
    expected = JETS.labels.copy()
    expected[:10] = 0
    np.testing.assert_array_equal(load_jets(path, columns=rest).labels, expected)
    two = own(label={"column": "event/truth", "signal": [6], "background": [21], "other": "skip"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is not asked for is no bad jet
        read = load_jets(path, columns=two)
    kept = np.isin(arrays["event/truth"], [6, 21])
    assert_same(read, JETS[kept])
    assert_same(load_jets(path, columns=two, max_jets=20), JETS[kept][:20])
    none = own(label={"column": "event/truth", "signal": [7], "background": [8], "other": "skip"})
    with pytest.raises(DataError, match=r"jets.h5: no jet belongs to a class in the column map"):
        load_jets(path, columns=none)


def test_faults_of_skipped_jets_do_not_matter(tmp_path: Path) -> None:
    arrays = own_arrays()
    arrays["event/truth"][3] = 99
    arrays["cells/pt"][3, 0] = np.nan
    path = write_arrays(tmp_path / "jets.h5", arrays)
    label = {"column": "event/truth", "signal": [6], "background": [1, 21], "other": "skip"}
    assert_same(load_jets(path, columns=own(label=label)), JETS[np.arange(60) != 3])


def test_a_label_that_is_no_number_is_no_other_class(tmp_path: Path) -> None:
    arrays = own_arrays()
    arrays["event/truth"] = arrays["event/truth"].astype(np.float32)
    arrays["event/truth"][3] = np.nan
    path = write_arrays(tmp_path / "jets.h5", arrays)
    for label in ({"background": []}, {"background": [1, 21], "other": "skip"}):
        table = own(label={"column": "event/truth", "signal": [6]} | label)
        with pytest.raises(DataError, match=r"event/truth, row 3: is not a whole number \(nan\)"):
            load_jets(path, columns=table)
        with pytest.warns(KdfastWarning, match="1 of .* jets dropped: 1 because event/truth is not a whole number"):
            assert_same(load_jets(path, columns=table, on_bad="drop"), JETS[np.arange(60) != 3])


def test_columns_of_zeros_and_ones(tmp_path: Path) -> None:
    arrays = own_arrays()
    for value, name in ((6, "is_top"), (1, "is_u"), (21, "is_g")):
        arrays[name] = (arrays["event/truth"] == value).astype(np.int8)
    path = write_arrays(tmp_path / "jets.h5", arrays)
    label: dict[str, Any] = {"signal": ["is_top"], "background": ["is_u", "is_g"]}
    assert_same(load_jets(path, columns=own(label=label)), JETS)
    assert_same(load_jets(path, columns=own(label={"signal": "is_top"})), JETS)
    with pytest.raises(DataError, match=r"dataset is_top, row .*: is of a jet that is neither signal nor background"):
        load_jets(path, columns=own(label=label | {"background": ["is_u"]}))
    kept = arrays["is_g"] == 0
    assert_same(load_jets(path, columns=own(label=label | {"background": ["is_u"], "other": "skip"})), JETS[kept])
    with h5py.File(path, "r+") as file:
        file["is_u"][np.argmax(arrays["is_top"])] = 1
    with pytest.raises(DataError, match=r"dataset is_top, row .*: is of a jet that is both signal and background"):
        load_jets(path, columns=own(label=label))
    with h5py.File(path, "r+") as file:
        file["is_u"][0] = 2
    with pytest.raises(DataError, match=r"dataset is_u, row 0: is neither 0 nor 1 \(2\)"):
        load_jets(path, columns=own(label=label))


def test_jets_without_labels_are_scored_only(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "jets.h5", own_arrays())
    with pytest.raises(ConfigError, match=r"columns: has no table \[label\], which training needs\nadd a table"):
        load_jets(path, columns=own(label=None))
    read = load_jets(path, columns=own(label=None), require_labels=False)
    assert_same(read, replace(JETS, labels=np.full(60, -1)))


def test_ids_are_the_index(tmp_path: Path) -> None:
    arrays = own_arrays()
    arrays["event/number"] = np.arange(60, dtype=np.uint64)[::-1] * 10**10
    path = write_arrays(tmp_path / "jets.h5", arrays)
    read = load_jets(path, columns=own(id="event/number"))
    assert_same(read, replace(JETS, index=np.arange(60)[::-1] * 10**10))
    for row, value, message in (
        (3, 10**10, "event/number: 10000000000 is the id of several jets\nleave `id` out"),
        (4, 2**63, "event/number, row 4: does not fit into 64 bits with a sign"),
    ):
        with h5py.File(path, "r+") as file:
            file["event/number"][row] = value
        with pytest.raises(DataError, match=message):
            load_jets(path, columns=own(id="event/number"))


# ── structured datasets ──────────────────────────────────────────────────────────────────────────────────────────────


def salt_arrays() -> Arrays:
    """`jets` and `consts` in MeV; padding is NaN and not valid, and some jets are of other classes."""
    x, mask = JETS.to_padded(SLOTS)
    fields = ("pt", "eta", "phi", "energy")
    consts = np.zeros(mask.shape, [(name, "f4") for name in fields] + [("d0", "f2"), ("valid", "?")])
    for k, name in enumerate(fields):
        consts[name] = np.where(mask, x[:, :, k] * (1000 if k in (0, 3) else 1), np.nan)
    consts["valid"] = mask
    jets = np.zeros(60, [("pt", "f4"), ("eta", "f4"), ("mass", "f4"), ("R10TruthLabel_R22v1", "i4")])
    jets["pt"], jets["eta"], jets["mass"] = JETS.p4[:, 0] * 1000, JETS.p4[:, 1], JETS.p4[:, 3] * 1000
    jets["R10TruthLabel_R22v1"] = np.where(JETS.labels == 1, 1, 10)
    jets["R10TruthLabel_R22v1"][:5] = 11
    return {"jets": jets, "consts": consts}


def expected_of_salt() -> PackedJets:
    p4 = JETS.p4.copy()
    p4[:, 2] = jet_p4(JETS.constituents, JETS.offsets)[:, 2]  # there is no φ of jets
    return replace(JETS, weights=np.ones(60, np.float32), p4=p4)[5:]


@pytest.mark.parametrize("block_bytes", [1, 600, 1 << 21])
def test_structured_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
    path = write_arrays(tmp_path / "jets.h5", salt_arrays(), chunks=(7, 3))
    assert_close(load_jets(path, columns="salt"), expected_of_salt(), 1e-6)


def test_a_file_of_the_atlas_ftag_tools(tmp_path: Path) -> None:
    hdf5 = pytest.importorskip("ftag.hdf5", reason="needs atlas-ftag-tools, which write such files")
    arrays = salt_arrays()
    dtypes = {name: values.dtype for name, values in arrays.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    writer = hdf5.H5Writer(tmp_path / "jets.h5", dtypes, shapes, compression="gzip", shuffle=False)
    writer.write(arrays)
    writer.close()
    assert_close(load_jets(tmp_path / "jets.h5", columns="salt"), expected_of_salt(), 1e-6)


def test_a_missing_field_is_named_with_the_nearest(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "jets.h5", salt_arrays(), chunks=(7, 3))
    table = {"preset": "salt", "jet": {"pt": "jets/pT"}}
    with pytest.raises(DataError, match=r"jets/pT: is missing\nthe map asks for it as jet.pt; .* name is jets/pt"):
        load_jets(path, columns=table)
    with pytest.raises(DataError, match=r"dataset consts: holds several fields\n.*name a field: consts/pt, consts/eta"):
        load_jets(path, columns={"preset": "salt", "jet": {"pt": "consts"}})


# ── studies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_line_reads_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "map.toml").write_text(OWN.replace("jet/m", "jet/M"))
    path = write_arrays(tmp_path / "jets.h5", own_arrays())
    out = tmp_path / "study"
    arguments = ["sweep", str(path), "--out", str(out), "--map", str(tmp_path / "map.toml"), "--max-constituents", "9"]
    assert main(arguments) == 2
    hint = "the map asks for it as jet.mass; the file holds: "
    assert f"jets.h5, dataset jet/M: is missing\n{hint}" in capsys.readouterr().err
    assert main(["sweep", str(path), "--out", str(out), "--map", "atlsa"]) == 2
    assert "--map: unknown column map 'atlsa'\ndid you mean 'atlas'?" in capsys.readouterr().err


def test_maps_are_frozen_and_equal_by_content() -> None:
    assert ColumnMap.model_validate(own()) == column_map(own())
    assert len({column_map(own()), column_map(own())}) == 1
