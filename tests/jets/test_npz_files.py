"""load_jets on NumPy's .npz files in EnergyFlow's layout, good and damaged."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.errors import DataError, KdfastWarning
from kdfast.jets.kinematics import jet_p4, wrap_phi
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.synthetic import synthetic_jets

SLOTS = 20
_SOME = synthetic_jets(50, max_constituents=SLOTS - 3)
Arrays = dict[str, NDArray[Any]]


def energyflow_arrays() -> Arrays:
    """X [jets, slots, 4] = pt, y, phi, PDG id, in any order, φ within π of the jet's, zero-padded; y, 1 for quarks."""
    x, _ = _SOME.to_padded(SLOTS)
    particles = x.astype(np.float64)
    turn = np.where(_SOME.p4[:, None, 2] > 0, 0.0, 2 * np.pi)
    particles[:, :, 2] = np.where(particles[:, :, 0] > 0, particles[:, :, 2] + turn, 0)
    particles[:, :, 3] = np.where(particles[:, :, 0] > 0, 211, 0)
    for row, count in enumerate(_SOME.counts):
        particles[row, :count] = particles[row, :count][::-1]
    return {"X": particles, "y": _SOME.labels.astype(np.float64)}


def expected() -> PackedJets:
    constituents = _SOME.constituents.copy()
    constituents[:, 3] = constituents[:, 0] * np.cosh(constituents[:, 1].astype(np.float64))
    return _SOME.with_constituents(constituents, _SOME.offsets)


def assert_close(read: PackedJets, wanted: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights"):
        np.testing.assert_array_equal(getattr(read, name), getattr(wanted, name), err_msg=name)
    difference = read.constituents - wanted.constituents
    difference[:, 2] = wrap_phi(difference[:, 2])
    assert (np.abs(difference) <= 1e-5 * (1 + np.abs(wanted.constituents))).all()
    assert (np.abs(read.constituents[:, 2]) <= np.float32(np.pi)).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("block_bytes", [1, 600, 1 << 21])
def test_energyflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Callable[..., None], block_bytes: int
) -> None:
    monkeypatch.setattr("kdfast.jets.packing.BLOCK_BYTES", block_bytes)
    save(tmp_path / "QG_jets.npz", **energyflow_arrays())
    read = load_jets(tmp_path / "QG_jets.npz", columns="energyflow")
    assert_close(read, expected())
    np.testing.assert_allclose(read.p4, jet_p4(read.constituents, read.offsets))
    assert_close(load_jets(tmp_path / "QG_jets.npz", columns="energyflow", max_constituents=4), expected().hardest(4))
    assert_close(load_jets(tmp_path / "QG_jets.npz", columns="energyflow", max_jets=30), expected()[:30])


def test_several_files_and_bad_jets(tmp_path: Path) -> None:
    arrays = energyflow_arrays()
    np.savez(tmp_path / "a.npz", **arrays)
    arrays["X"][7, 0, 1] = np.nan
    arrays["X"][9, 1, 0] = -1
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(DataError, match=r"b.npz, array X/1, row 7: is not finite\non_bad='drop' leaves"):
        load_jets(tmp_path / "*.npz", columns="energyflow")
    with pytest.warns(KdfastWarning, match="2 of 100 jets dropped: 1 because X/1 is not finite"):
        read = load_jets(tmp_path / "*.npz", columns="energyflow", on_bad="drop")
    np.testing.assert_array_equal(read.index, np.delete(np.arange(100), [57, 59]))


def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        arrays = energyflow_arrays()
        np.savez(path, **arrays | {name: change(arrays[name])})

    return damage


def without_labels(path: Path) -> None:
    np.savez(path, X=energyflow_arrays()["X"])


def announcing(rows: int) -> Callable[[Path], None]:
    """A header that promises other rows than are stored."""

    def damage(path: Path) -> None:
        np.savez(path, **energyflow_arrays())
        with zipfile.ZipFile(path) as whole:
            members = {name: whole.read(name) for name in whole.namelist()}
        was = b"(50, 20, 4), }"
        now = f"({rows}, 20, 4), }}".encode()
        assert was in members["X.npy"]
        spaces = len(now) - len(was)
        members["X.npy"] = members["X.npy"].replace(was + b" " * spaces, now)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return damage


def long_rows(path: Path) -> None:
    np.savez_compressed(path, X=np.zeros((1, 20, 500_000)), y=np.zeros(1))


def cut(path: Path) -> None:
    np.savez(path, **energyflow_arrays())
    path.write_bytes(path.read_bytes()[:-500])


def flipped(path: Path) -> None:
    np.savez_compressed(path, **energyflow_arrays())
    content = bytearray(path.read_bytes())
    content[2000] ^= 0x10
    path.write_bytes(content)


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no labels": (
        without_labels,
        r"array y: is missing\nthe map asks for it as label; the file holds: X/0, X/1, X/2",
    ),
    "objects": (changed("y", lambda y: y.astype(object)), "array y: holds Python objects, which are not read"),
    "integers": (changed("X", lambda x: x.astype(int)), "array X/0: must hold floats, holds int64"),
    "too few axes": (changed("X", lambda x: x[:, :, 0]), r"array X/0: must have the shape \[jets, constituents\]"),
    "Fortran order": (changed("X", np.asfortranarray), r"array X: is stored column by column \(Fortran order\)"),
    "unequal lengths": (changed("y", lambda y: y[:40]), "array y: has 40 rows, X/0 has 50"),
    "no jets": (changed("X", lambda x: x[:0]), "array y: has 50 rows, X/0 has 0"),
    "2^31 jets": (announcing(2**31), r"array X: announces the shape \[2147483648, 20, 4\], which is not what the file"),
    "cut": (cut, r"can't be read as .npz \(File is not a zip file\)\ncopy or download it again"),
    "a flipped bit": (flipped, "is damaged"),
    "long rows": (long_rows, "array X: has rows of 80,000,000 bytes, which is too long"),
    "MeV": (
        changed("X", lambda x: x * [1000, 1, 1, 1]),
        r"the median jet pT is .* GeV if the file is in GeV\nthe file seems to be in MeV: unit='MeV' reads it so",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files(tmp_path: Path, fault: str) -> None:
    damage, message = BAD[fault]
    path = tmp_path / "jets.npz"
    damage(path)
    with pytest.raises(DataError, match=message) as error:
        load_jets(path, columns="energyflow")
    assert str(error.value).startswith(str(path))


def test_packed_jets_are_no_padded_arrays(tmp_path: Path) -> None:
    _SOME.save(tmp_path / "packed.npz")
    with pytest.raises(DataError, match="array fjet_clus_pt: is missing\nthe file holds: constituents, index, labels"):
        load_jets(tmp_path / "packed.npz")


def test_any_damaged_byte_gives_jets_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "jets.npz"
    np.savez_compressed(path, **{name: values[:10] for name, values in energyflow_arrays().items()})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for position in rng.integers(0, len(whole), 200):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert np.isfinite(load_jets(path, columns="energyflow").constituents).all()
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) for message in messages)
