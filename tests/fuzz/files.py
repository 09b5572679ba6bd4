"""Small valid files of every format that is read, as the public tools write them: what the fuzzer damages."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.jets import prepare
from kdfast.jets.jet_store import verify_store
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.synthetic import synthetic_jets

__all__ = ["FORMATS", "Format", "base_files"]

JETS = synthetic_jets(12, max_constituents=5)
SLOTS = 6
X, MASK = JETS.to_padded(SLOTS)
PT, ETA, PHI, ENERGY = np.moveaxis(X, 2, 0)
MOMENTA = {"px": PT * np.cos(PHI), "py": PT * np.sin(PHI), "pz": PT * np.sinh(ETA), "energy": ENERGY}
CARTESIAN = {"E": "energy", "PX": "px", "PY": "py", "PZ": "pz"}

Arrays = dict[str, NDArray[Any]]


def _atlas_arrays() -> Arrays:
    arrays = {f"fjet_clus_{name}": X[:, :, k] for k, name in enumerate(("pt", "eta", "phi", "E"))}
    arrays |= {f"fjet_{name}": JETS.p4[:, k] for k, name in enumerate(("pt", "eta", "phi", "m"))}
    return arrays | {"labels": JETS.labels.astype(np.int32), "weights": JETS.weights}


def _write_hdf5(path: Path, arrays: Arrays, *, attributes: bool = False, **storage: Any) -> None:
    with h5py.File(path, "w", libver=storage.pop("libver", None)) as file:
        for name, values in arrays.items():
            chunks = storage.get("chunks")
            here = chunks[: values.ndim] if isinstance(chunks, tuple) else chunks
            file.create_dataset(name, data=values, **storage | {"chunks": here})
        if attributes:
            file.attrs["constit"] = ["fjet_clus_pt", "fjet_clus_eta", "fjet_clus_phi", "fjet_clus_E"]
            file.attrs["num_jets"] = len(JETS)


def _write_salt(path: Path, **storage: Any) -> None:
    constituents = np.zeros(MASK.shape, [*((n, "f4") for n in ("pt", "eta", "phi", "energy")), ("valid", "?")])
    for k, name in enumerate(("pt", "eta", "phi", "energy")):
        constituents[name] = np.where(MASK, X[:, :, k], np.nan)
    constituents["valid"] = MASK
    jets = np.zeros(len(JETS), [("pt", "f4"), ("eta", "f4"), ("mass", "f4"), ("R10TruthLabel_R22v1", "i4")])
    jets["pt"], jets["eta"], jets["mass"] = JETS.p4[:, 0], JETS.p4[:, 1], JETS.p4[:, 3]
    jets["R10TruthLabel_R22v1"] = np.where(JETS.labels == 1, 1, 10)
    _write_hdf5(path, {"consts": constituents, "jets": jets}, **storage)


def _write_pandas(path: Path, **how: Any) -> None:
    import pandas as pd

    columns = {f"{name}_{slot}": MOMENTA[key][:, slot] for slot in range(SLOTS) for name, key in CARTESIAN.items()}
    pd.DataFrame(columns | {"is_signal_new": JETS.labels}).to_hdf(path, key="table", format="table", **how)


def _write_npz(path: Path, save: Callable[..., None]) -> None:
    save(path, X=np.stack([PT, ETA, PHI, 211 * MASK], axis=2).astype(np.float64), y=JETS.labels)


def _write_root(path: Path, compression: str | None) -> None:
    import awkward
    import uproot

    tree = {f"part_{key}": awkward.unflatten(values[MASK], JETS.counts) for key, values in MOMENTA.items()}
    tree |= {f"jet_{name}": JETS.p4[:, k].copy() for k, name in enumerate(("pt", "eta", "phi"))}
    tree |= {"label_Tbqq": JETS.labels == 1, "label_QCD": JETS.labels == 0}
    packing = None if compression is None else getattr(uproot, compression)(1)
    with uproot.recreate(path, compression=packing) as file:
        file.mktree("tree", {name: getattr(values, "dtype", None) or values.type for name, values in tree.items()})
        file["tree"].extend(tree)


def _write_parquet(path: Path, **how: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    offsets = pyarrow.array(JETS.offsets.astype(np.int32))
    columns = {
        key: pyarrow.ListArray.from_arrays(offsets, pyarrow.array(values[MASK])) for key, values in MOMENTA.items()
    }
    pyarrow.parquet.write_table(pyarrow.table(columns | {"is_top": JETS.labels}), path, **how)


def _root_streamers(content: bytes) -> range:
    """Where a ROOT file describes its classes: most of a small file, and not read where uproot knows them."""
    start, size = struct.unpack_from(">I", content, 37)[0], struct.unpack_from(">I", content, 41)[0]
    return range(start, start + size)


class Format:
    """One reader.

    columns: the map of its files. files: how valid ones are written. tools: the modules that read them. rare: bytes
    that are seldom damaged.
    """

    values_are_checked = True
    inside = 0.0
    """The share of damaged files of which a member of the zip archive is damaged, under right checksums."""

    def __init__(
        self,
        columns: Any,
        *files: Callable[[Path], None],
        tools: tuple[str, ...] = (),
        rare: Callable[[bytes], range] = lambda _: range(0),
    ) -> None:
        self.columns, self.files, self.tools, self.rare = columns, files, tools, rare

    def write(self, path: Path, content: bytes) -> None:
        path.unlink(missing_ok=True)  # a library may still hold the last one
        path.write_bytes(content)

    def read(self, path: Path, **how: Any) -> PackedJets:
        return load_jets(path, columns=self.columns, **how)


class NpzFormat(Format):
    inside = 0.7


class PackedFormat(NpzFormat):
    """What PackedJets.save writes. Values are checked where the jets are used."""

    values_are_checked = False

    def read(self, path: Path, **how: Any) -> PackedJets:
        return PackedJets.load(path)


class StoreFormat(Format):
    """A packed store; as one file, an archive of its folder."""

    inside = 1.0

    def write(self, path: Path, content: bytes) -> None:
        shutil.rmtree(path, ignore_errors=True)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(path)

    def read(self, path: Path, **how: Any) -> PackedJets:
        jets = load_jets(path, require_labels=how["require_labels"])
        for _ in verify_store(path):
            pass
        return jets


def _write_store(path: Path) -> None:
    """With the bytes of kdfast.prepare: parts, and a column that is kept."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "PART_JETS", 5)
        _write_hdf5(Path(folder) / "jets.h5", _atlas_arrays(), chunks=(5, 4))
        store = Path(folder) / "jets.store"
        columns = {"preset": "atlas", "unit": "GeV"}
        prepare.prepare(Path(folder) / "jets.h5", store, columns=columns, split="labels", jobs=1, progress=False)
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(store.iterdir()):
                archive.write(file, file.name)


PARQUET = {
    "unit": "GeV",
    "order": "sort",
    "constituents": {key: key for key in MOMENTA},
    "label": {"column": "is_top", "signal": 1, "background": 0},
}
GZIP = {"compression": "gzip", "shuffle": True, "chunks": (5, 4)}

FORMATS = {
    "atlas": Format(
        {"preset": "atlas", "unit": "GeV"},
        lambda path: _write_hdf5(path, _atlas_arrays(), attributes=True),
        lambda path: _write_hdf5(path, _atlas_arrays(), attributes=True, **GZIP, fletcher32=True),
        lambda path: _write_hdf5(path, _atlas_arrays(), attributes=True, libver="latest", chunks=(5, 4)),
    ),
    "salt": Format(
        {"preset": "salt", "unit": "GeV"},
        lambda path: _write_salt(path),
        lambda path: _write_salt(path, **GZIP),
    ),
    "pandas": Format(
        "top-reference",
        lambda path: _write_pandas(path),
        lambda path: _write_pandas(path, complib="zlib", complevel=1),
        lambda path: _write_pandas(path, complib="zlib", complevel=1, index=False),
    ),
    "npz": NpzFormat(
        "energyflow",
        lambda path: _write_npz(path, np.savez),
        lambda path: _write_npz(path, np.savez_compressed),
    ),
    "packed": PackedFormat(None, JETS.save),
    "store": StoreFormat(None, _write_store),
    "root": Format(
        "jetclass",
        lambda path: _write_root(path, None),
        lambda path: _write_root(path, "ZLIB"),
        tools=("uproot", "awkward"),
        rare=_root_streamers,
    ),
    "parquet": Format(
        PARQUET,
        lambda path: _write_parquet(path, compression="none", use_dictionary=False),
        lambda path: _write_parquet(path, compression="snappy", row_group_size=5),
        tools=("pyarrow.compute", "pyarrow.parquet"),
    ),
}


@cache
def base_files(name: str) -> tuple[bytes, ...]:
    """The valid files of a format."""
    contents = []
    with TemporaryDirectory() as folder:
        for k, write in enumerate(FORMATS[name].files):
            path = Path(folder) / f"{k}.{'npz' if name == 'npz' else 'file'}"
            write(path)
            contents.append(path.read_bytes())
    return tuple(contents)
