"""Damaged files that once led to a crash, a hang or another exception: they give jets or an error of kdfast."""

from __future__ import annotations

import json
import lzma
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from kdfast.errors import DataError, KdfastError
from kdfast.jets.readers import load_jets
from kdfast.jets.table import pad_lists
from tests.fuzz.files import FORMATS, base_files
from tests.fuzz.mutations import mutant
from tests.fuzz.run import options
from tests.study.processes import wait_until

FINDS = sorted((Path(__file__).parent / "finds").glob("*.xz"))  # by format and seed
#   atlas-5332    HDF5 crashes while it reads rows
#   npz-488       NumPy's header is parsed as Python's text: TokenError
#   npz-3437      a float64 beyond float32: a RuntimeWarning of the conversion
#   packed-11     as npz-488
#   store-3       the same
#   parquet-597   pyarrow ends the process where it describes a damaged column
#   parquet-5779  the same
#   root-6707     a list announces 536,870,917 numbers: a minute, and three arrays of 4 GiB, until it was refused


def needs(name: str) -> None:
    for tool in {"root": ["uproot", "awkward"], "parquet": ["pyarrow"], "pandas": ["tables"]}.get(name, []):
        pytest.importorskip(tool)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kdfast.errors.KdfastWarning")
@pytest.mark.parametrize("find", FINDS, ids=lambda find: find.stem)
def test_finds(tmp_path: Path, find: Path) -> None:
    name, _, seed = find.stem.partition("-")
    needs(name)
    path = tmp_path / "damaged.file"
    FORMATS[name].write(path, lzma.decompress(find.read_bytes()))
    try:
        jets = FORMATS[name].read(path, isolate=True, **options(int(seed)))
    except KdfastError as error:
        named = path.name in str(error)
    else:
        named = bool(np.isfinite(jets.constituents).all())
    assert named


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_undamaged_files_are_read(tmp_path: Path, name: str) -> None:
    needs(name)
    for content in base_files(name):
        FORMATS[name].write(tmp_path / "good.file", content)
        jets = FORMATS[name].read(tmp_path / "good.file", isolate=True, require_labels=True)  # with fresh imports
        assert len(jets) == 12
    assert mutant(name, base_files(name), 7) == mutant(name, base_files(name), 7)


@pytest.mark.slow
def test_some_seconds_of_fuzzing(tmp_path: Path) -> None:
    """In a second run, files that were not read before."""
    state = tmp_path / "counts.json"
    command = [sys.executable, "-m", "tests.fuzz.run", "--formats", "npz", "--first", "0", "--state", str(state)]
    for files in (100, 1500):
        subprocess.run([*command, "--files", str(files)], check=True, timeout=300)
        counts = json.loads(state.read_text())["npz"]
        assert counts.pop("next") == sum(counts.values()) == files
    process = subprocess.Popen([*command, "--files", "100000"], stderr=subprocess.DEVNULL)
    wait_until(lambda: json.loads(state.read_text())["npz"]["next"] > 1500, "files of the third run are counted")
    process.terminate()
    assert process.wait(300) == 128 + signal.SIGTERM
    counts = json.loads(state.read_text())["npz"]
    assert counts.pop("next") >= sum(counts.values()) > 1500


def test_of_long_lists_only_what_is_taken_is_looked_at() -> None:
    flat = np.broadcast_to(np.float32(7), 2**40)
    values = np.ones((3, 4))
    pad_lists(flat, np.array([2**39, 0, 2]), values)
    np.testing.assert_array_equal(values, [[7, 7, 7, 7], [0, 0, 0, 0], [7, 7, 0, 0]])


def test_variable_length_attributes_are_not_read(tmp_path: Path) -> None:
    """HDF5 may never return from reading a damaged one; pandas' own have a fixed length."""
    path = tmp_path / "jets.h5"
    with h5py.File(path, "w") as file:
        file.create_group("table").attrs["pandas_type"] = "frame_table"
        file["table/table"] = np.zeros(3, [("index", "i8"), ("values", "f4")])
    with pytest.raises(DataError, match=r"dataset table/PX_\*: is missing"):
        load_jets(path, columns="top-reference")


def atlas_with(**datasets: Any) -> Any:
    def write(file: h5py.File) -> None:
        for name, how in datasets.items():
            del file[name]
            file.create_dataset(name, **how)

    return write


CHUNKED = {"compression": "gzip", "dtype": "f4", "fillvalue": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            atlas_with(fjet_clus_pt={"shape": (2**31, 6), "chunks": (2**20, 6), **CHUNKED}),
            "fjet_clus_pt: was not written completely",
        ),
        (
            atlas_with(fjet_clus_pt={"shape": (2**30, 6), "chunks": (2**27, 6), **CHUNKED}),
            "fjet_clus_pt: is stored in chunks of 3,221,225,472 bytes, which is too much",
        ),
        (
            atlas_with(fjet_clus_pt={"data": np.zeros((12, 2**17), np.float32), **CHUNKED}),
            "fjet_clus_pt: has 131,072 constituents a jet, more than 65,536",
        ),
    ],
)
def test_sizes_that_would_fill_the_memory(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "jets.h5"
    path.write_bytes(base_files("atlas")[0])
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        load_jets(path, columns=FORMATS["atlas"].columns)
