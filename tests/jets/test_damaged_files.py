"""load_jets on files whose structure or bytes are wrong; the damage is done to real files."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kdfast.errors import DataError, KdfastWarning
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import CONSTITUENTS, atlas_arrays, write_arrays, write_atlas
from tests.synthetic import synthetic_jets

JETS = synthetic_jets(100, max_constituents=20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_atlas(tmp_path / "jets.h5", JETS, width=20, chunks=(30, 20))


@contextmanager
def replacing(file: h5py.File, name: str) -> Iterator[str]:
    """Moves a dataset away so that something else can take its name."""
    file.move(name, "real")
    yield name
    assert file.get(name, getlink=True)


def external_link(file: h5py.File) -> None:
    with replacing(file, "fjet_clus_pt") as name:
        file[name] = h5py.ExternalLink("/etc/passwd", "/real")


def soft_link(file: h5py.File) -> None:
    with replacing(file, "labels") as name:
        file[name] = h5py.SoftLink("/real")


def external_storage(file: h5py.File) -> None:
    with replacing(file, "fjet_clus_E") as name:
        file.create_dataset(name, (100, 20), np.float32, external=[("/etc/passwd", 0, 8000)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((100, 20), np.float32)
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", (100, 20))
    with replacing(file, "fjet_clus_phi") as name:
        file.create_virtual_dataset(name, layout)


def unknown_filter(file: h5py.File) -> None:
    with replacing(file, "fjet_clus_E") as name:
        file.create_dataset(name, (100, 20), np.float32, compression=305, allow_unknown_filter=True)


def group(file: h5py.File) -> None:
    with replacing(file, "fjet_m") as name:
        file.create_group(name)


def of_other(name: str, values: np.ndarray) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = values

    return change


def without(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def no_rows(file: h5py.File) -> None:
    for name, dataset in list(file.items()):
        empty = np.zeros((0, *dataset.shape[1:]), dataset.dtype)
        del file[name]
        file[name] = empty


def half_written(name: str, rows: int = 60) -> Callable[[h5py.File], None]:
    """As a writer leaves it that made the dataset for all jets and died after some."""

    def change(file: h5py.File) -> None:
        values = file[name][:]
        del file[name]
        dataset = file.create_dataset(name, values.shape, values.dtype, chunks=(30, *values.shape[1:]))
        dataset[:rows] = values[:rows]

    return change


def far_too_long(file: h5py.File) -> None:
    for name, dataset in list(file.items()):
        dtype, columns = dataset.dtype, dataset.shape[1:]
        del file[name]
        file.create_dataset(name, (2**44, *columns), dtype, chunks=(30, *columns))


FLOATS = np.zeros((100, 20), np.float32)
STRUCTURE: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external link": (external_link, "dataset fjet_clus_pt: is an external link to /etc/passwd\ngive that file itself"),
    "soft link": (soft_link, "dataset labels: is a soft link, not a dataset\nlinks are not followed; copy the dataset"),
    "external storage": (external_storage, "dataset fjet_clus_E: has its bytes in another file\ncopy it into one file"),
    "virtual": (virtual, "dataset fjet_clus_phi: has its bytes in another file\ncopy it into one file"),
    "unknown filter": (
        unknown_filter,
        r"dataset fjet_clus_E: is packed by a filter that is not installed \(number 305.*\npip install 'kdfast",
    ),
    "group": (group, "dataset fjet_m: is a group, not a dataset"),
    "integers": (of_other("fjet_clus_pt", FLOATS.astype(int)), "dataset fjet_clus_pt: must hold floats, holds int64"),
    "strings": (of_other("labels", np.full(100, b"top")), r"dataset labels: must hold numbers, holds \|S3"),
    "one dimension": (
        of_other("fjet_clus_pt", FLOATS[:, 0]),
        r"must have the shape \[jets, cons.*\], has \[100\]",
    ),
    "one-hot labels": (
        of_other("labels", np.eye(2)[JETS.labels]),
        r"labels: must have the shape \[jets\], has \[100, 2\]",
    ),
    "unequal lengths": (
        of_other("labels", JETS.labels[:99]),
        "dataset labels: has 99 rows, fjet_clus_pt has 100\nthe file was not written completely",
    ),
    "unequal widths": (
        of_other("fjet_clus_eta", FLOATS[:, :19]),
        "dataset fjet_clus_eta: has 19 columns, fjet_clus_pt has 20\nthe constituent datasets must be alike",
    ),
    "no constituents": (without("fjet_clus_E"), "dataset fjet_clus_E: is missing\nthe file holds: fjet_Tau1_wta, "),
    "no jet pT": (without("fjet_pt"), "dataset fjet_pt: is missing\nthe file holds: fjet_Tau1_wta, "),
    "no rows": (no_rows, "jets.h5: holds no jets"),
    "half of the labels": (
        half_written("labels"),
        "dataset labels: was not written completely: parts of it have no bytes",
    ),
    "half of φ": (half_written("fjet_clus_phi"), "dataset fjet_clus_phi: was not written completely"),
    "no energies": (half_written("fjet_clus_E", 0), "dataset fjet_clus_E: was not written completely"),
    "2^44 rows": (far_too_long, "was not written completely"),
    "zero weights": (of_other("weights", FLOATS[:, 0]), "dataset weights: all weights are zero"),
}


@pytest.mark.parametrize("on_bad", ["error", "drop"])
@pytest.mark.parametrize("fault", STRUCTURE)
def test_wrong_structure(path: Path, fault: str, on_bad: str) -> None:
    change, message = STRUCTURE[fault]
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message) as error:
        load_jets(path, on_bad=on_bad)
    assert str(error.value).startswith(str(path))


def test_files_with_and_without_weights_are_not_mixed(path: Path, tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=20)
    del arrays["weights"]
    other = write_arrays(tmp_path / "esup.h5", arrays)
    with pytest.raises(
        DataError, match=r"esup.h5: has neither weights nor training_weights, while .*jets.h5 has weights"
    ):
        load_jets([path, other])


def test_what_is_no_readable_file(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "jets.txt"
    text.write_text("pt eta phi")
    (tmp_path / "empty.h5").touch()
    cases = (
        (tmp_path / "none.h5", "none.h5: there is no such file\ncheck the path"),
        (tmp_path, r"is a folder, not a file\nname its files, for example .*\*\.h5"),
        (path / "below.h5", r"can't be opened \(Not a directory\)"),
        (text, "jets.txt: is not an HDF5 file"),
        (tmp_path / "empty.h5", "empty.h5: is not an HDF5 file"),
        (str(tmp_path / "n*.h5"), r"n\*.h5: no file matches this pattern\ncheck the folder"),
        ([], "paths: no file given"),
        ([path, tmp_path / "." / "jets.h5"], "jets.h5: is given twice\nits jets would count twice"),
    )
    for paths, message in cases:
        with pytest.raises(DataError, match=message):
            load_jets(paths)


def test_a_file_without_permission(path: Path) -> None:
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: ask as somebody else
        code = f"import os\nfrom kdfast import load_jets\nos.seteuid(65534)\nload_jets({str(path)!r})"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert "kdfast.errors.DataError" in run.stderr
        assert "can't be opened (Permission denied)\ncheck its permissions" in run.stderr
    else:
        with pytest.raises(DataError, match=r"can't be opened \(Permission denied\)\ncheck its permissions"):
            load_jets(path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file(path: Path, share: float) -> None:
    kept = int(path.stat().st_size * share)
    os.truncate(path, kept)
    with pytest.raises(DataError, match=f"jets.h5: is truncated: only {kept:,} bytes are there\ncopy or download"):
        load_jets(path, on_bad="drop")


def flip_in_chunk(path: Path, name: str, row: int) -> None:
    """Flips one byte in the middle of the stored chunk that holds this row."""
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info_by_coord((row, 0)[: file[name].ndim])
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("name", [*CONSTITUENTS, "fjet_m", "labels", "weights"])
def test_a_failed_checksum(tmp_path: Path, name: str) -> None:
    path = write_atlas(tmp_path / "jets.h5", JETS, width=20, chunks=(30, 20), fletcher32=True, compression=None)
    flip_in_chunk(path, name, 65)
    where = rf"jets.h5, dataset {name}, row 60: can't be read here, the file is damaged \(.*filter.*\)\ncopy or"
    with pytest.raises(DataError, match=where):
        load_jets(path)
    with pytest.warns(KdfastWarning, match=f"30 of 100 jets dropped: 30 because {name} can't be read here"):
        read = load_jets(path, on_bad="drop")
    np.testing.assert_array_equal(read.index, np.delete(np.arange(100), slice(60, 90)))
    assert len(load_jets(path, max_jets=60)) == 60


def test_a_failed_filter(path: Path) -> None:
    with h5py.File(path) as file:
        chunk = file["fjet_clus_eta"].id.get_chunk_info_by_coord((30, 0))
    with open(path, "r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(b"\xff" * chunk.size)
    message = r"dataset fjet_clus_eta, row 30: can't be read here, the file is damaged \(.*filter.*\)\ncopy or"
    with pytest.raises(DataError, match=message):
        load_jets(path)
    with pytest.warns(KdfastWarning, match="30 of 100 jets dropped: 30 because fjet_clus_eta can't be read here"):
        assert len(load_jets(path, on_bad="drop")) == 70


def test_any_damaged_byte_gives_jets_or_an_error(tmp_path: Path) -> None:
    """Bits flipped anywhere in the file: never another exception, never a number that is not finite."""
    path = write_atlas(tmp_path / "jets.h5", JETS[:20], width=20, fletcher32=True)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for position in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert np.isfinite(load_jets(path).constituents).all()
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(str(path)) for message in messages)


@pytest.mark.parametrize("given", [[1.0], 3, np.zeros((2, 4)), None])
def test_what_is_no_path(given: Any) -> None:
    with pytest.raises(DataError) as error:
        load_jets(given)
    what = f"paths: must be paths of files, is {type(given).__name__}\nkdfast.PackedJets.from_padded(x, mask, labels=…)"
    assert str(error.value).startswith(what)
