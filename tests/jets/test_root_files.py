"""load_jets on ROOT files in JetClass' layout, as uproot writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.synthetic import synthetic_jets

needs_uproot = pytest.mark.skipif("not __import__('importlib').util.find_spec('uproot')", reason="needs uproot")

JETS = synthetic_jets(50, max_constituents=17)
CLASSES = ("QCD", "Hbb", "Tbqq")
# Every fifth jet is of a third class; the others are as JETS says.
IS_OTHER = np.arange(len(JETS)) % 5 == 0
Branches = dict[str, Any]


def branches() -> Branches:
    """Lists of constituents in any order, one number a jet of each class, as in JetClass."""
    import awkward

    backwards = np.concatenate([np.arange(a, b)[::-1] for a, b in zip(JETS.offsets, JETS.offsets[1:], strict=False)])
    pt, eta, phi, energy = JETS.constituents[backwards].astype(np.float64).T
    parts = {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": pt * np.sinh(eta), "energy": energy}
    found: Branches = {
        f"part_{name}": awkward.unflatten(values.astype(np.float32), JETS.counts) for name, values in parts.items()
    }
    found |= {f"jet_{name}": JETS.p4[:, k] for k, name in enumerate(("pt", "eta", "phi"))}
    truth = np.where(IS_OTHER, 1, np.where(JETS.labels == 1, 2, 0))
    return found | {f"label_{name}": truth == k for k, name in enumerate(CLASSES)}


def write(path: Path, tree: Branches | None = None) -> Path:
    import uproot

    with uproot.recreate(path) as file:
        file.mktree("tree", {k: v.type if hasattr(v, "type") else v.dtype for k, v in branches().items()})
        file["tree"].extend(branches() if tree is None else tree)
    return path


def assert_close(read: PackedJets, wanted: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(read.constituents, wanted.constituents, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(read.p4[:, :3], wanted.p4[:, :3])
    np.testing.assert_allclose(read.p4[:, 3], wanted.p4[:, 3], rtol=1e-3)


@needs_uproot
@pytest.mark.parametrize("rows", [1, 7, 4_000])
def test_jetclass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr("kdfast.jets.root_table.ROWS", rows)
    path = write(tmp_path / "jets.root")
    two = JETS[~IS_OTHER]
    assert_close(load_jets(path, columns="jetclass"), two)
    assert_close(load_jets(path, columns="jetclass", max_jets=20, max_constituents=4), two[:20].hardest(4))
    assert_close(load_jets(path, columns="jetclass", max_constituents=1000), two)


@needs_uproot
def test_one_class_against_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path / "jets.root")
    rest = {"preset": "jetclass", "label": {"signal": "tree/label_Hbb", "background": []}}
    np.testing.assert_array_equal(load_jets(path, columns=rest).labels, IS_OTHER)
    chosen = {"signal": ["tree/label_Tbqq", "tree/label_Hbb"], "background": "tree/label_QCD", "other": "error"}
    read = load_jets(path, columns={"preset": "jetclass", "label": chosen})
    np.testing.assert_array_equal(read.labels, IS_OTHER | (JETS.labels == 1))


def changed(name: str, row: int, value: float) -> Callable[[Path], None]:
    """The first constituent of a jet, or its own value."""

    def damage(path: Path) -> None:
        import awkward

        tree = branches()
        if name.startswith("part_"):
            values: NDArray[Any] = np.array(awkward.flatten(tree[name]))
            values[JETS.offsets[row]] = value
            tree[name] = awkward.unflatten(values, JETS.counts)
        else:
            tree[name] = tree[name].copy()
            tree[name][row] = value
        write(path, tree)

    return damage


BAD_JETS = {
    "NaN": (changed("part_px", 9, np.nan), "branch tree/part_px, row 9: is not finite"),
    "low energy": (changed("part_energy", 9, 1e-6), "branch tree/part_energy, row 9: is smaller than the momentum"),
    "no pT": (changed("jet_pt", 9, 0), r"branch tree/jet_pt, row 9: is not positive \(0\)"),
}


@needs_uproot
@pytest.mark.parametrize("fault", BAD_JETS)
def test_bad_jets(tmp_path: Path, fault: str) -> None:
    damage, message = BAD_JETS[fault]
    path = tmp_path / "jets.root"
    damage(path)
    with pytest.raises(DataError, match=message):
        load_jets(path, columns="jetclass")
    with pytest.warns(KdfastWarning, match="1 of 40 jets dropped"):
        read = load_jets(path, columns="jetclass", on_bad="drop")
    assert_close(read, JETS[~IS_OTHER & (np.arange(50) != 9)])


@needs_uproot
def test_a_missing_branch_and_another_kind(tmp_path: Path) -> None:
    path = write(tmp_path / "jets.root")
    for name, message in (
        (
            "tree/jet_PT",
            r"branch tree/jet_PT: is missing\nthe map asks for it as jet.pt; .*the nearest name is tree/jet_pt",
        ),
        ("tre/jet_pt", r"branch tre/jet_pt: is missing\n.*the nearest name is tree/jet_pt"),
        ("tree/part_px", r"branch tree/part_px: must have the shape \[jets\], has \[50, 'lists'\]"),
    ):
        with pytest.raises(DataError, match=message):
            load_jets(path, columns={"preset": "jetclass", "jet": {"pt": name}})


@needs_uproot
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "jets.root")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError) as error:
        load_jets(path, columns="jetclass")
    assert str(error.value).startswith(str(path))


def test_without_uproot_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "jets.root"
    path.write_bytes(b"root" + bytes(100))
    monkeypatch.setitem(sys.modules, "uproot", None)
    monkeypatch.setitem(sys.modules, "awkward", None)
    with pytest.raises(ConfigError, match=r"is a ROOT file, and .* is not installed\npip install 'kdfast\[root\]'"):
        load_jets(path, columns="jetclass")


@needs_uproot
def test_lists_of_unequal_length_and_far_too_long_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import awkward

    tree = branches()
    tree["part_py"] = awkward.concatenate([tree["part_py"][:9], tree["part_py"][9:10, 1:], tree["part_py"][10:]])
    path = write(tmp_path / "jets.root", tree)
    with pytest.raises(DataError, match="branch tree/part_py, row 9: is not as long as tree/part_px"):
        load_jets(path, columns="jetclass")
    with pytest.warns(KdfastWarning, match="1 of 40 jets dropped"):
        read = load_jets(path, columns="jetclass", on_bad="drop")
    assert_close(read, JETS[~IS_OTHER & (np.arange(50) != 9)])
    monkeypatch.setattr("kdfast.jets.packing.MOST_CONSTITUENTS", int(JETS.counts.max()) - 1)
    with pytest.raises(DataError, match=r"branch tree/part_px, row .*: has more than 16 constituents"):
        load_jets(write(path), columns="jetclass")


@needs_uproot
def test_an_ntuple_is_no_tree(tmp_path: Path) -> None:
    import uproot

    with uproot.recreate(tmp_path / "jets.root") as file:
        file.mkrntuple("tree", {"jet_pt": np.float32}).extend({"jet_pt": np.ones(3, np.float32)})
    with pytest.raises(DataError, match=r"branch tree/part_px: is of a ROOT::RNTuple, and not of a TTree\n.*mktree"):
        load_jets(tmp_path / "jets.root", columns="jetclass")
