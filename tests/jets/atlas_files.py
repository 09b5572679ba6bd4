"""Files in the layouts of the ATLAS Top Tagging Open Data, for tests of what reads them."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdfast.jets.packed import PackedJets

CONSTITUENTS = ("fjet_clus_pt", "fjet_clus_eta", "fjet_clus_phi", "fjet_clus_E")


def atlas_arrays(jets: PackedJets, *, width: int = 200, version: int = 1) -> dict[str, NDArray[Any]]:
    """The datasets of a file (momenta in MeV); tests damage them before writing."""
    x, _ = jets.to_padded(width)
    mev = np.float32(1000)
    arrays = {name: x[:, :, k] * (mev if k in (0, 3) else 1) for k, name in enumerate(CONSTITUENTS)}
    names = ("fjet_pt", "fjet_eta", "fjet_phi", "fjet_m")
    arrays |= {name: jets.p4[:, k] * (mev if k in (0, 3) else 1) for k, name in enumerate(names)}
    arrays["fjet_Tau1_wta"] = np.zeros(len(jets), np.float32)
    arrays["labels"] = jets.labels.astype(np.int32)
    if version == 1:
        arrays["weights"] = jets.weights.copy()
    else:
        arrays["training_weights"] = jets.weights.copy()
        arrays["fjet_clus_taste"] = np.ones((len(jets), width), np.int32)
        arrays["EventInfo_mcEventNumber"] = np.arange(len(jets))
    return arrays


def write_arrays(path: Path, arrays: dict[str, NDArray[Any]], *, attributes: bool = False, **storage: Any) -> Path:
    """Writes datasets; storage: as in h5py's create_dataset (for two dimensions also chunks=(rows, columns))."""
    storage = {"compression": "gzip", "chunks": True} | storage
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            chunks = storage["chunks"]
            here = chunks[: values.ndim] if isinstance(chunks, tuple) else chunks
            file.create_dataset(name, data=values, **storage | {"chunks": here})
        if attributes:
            file.attrs["constit"] = list(CONSTITUENTS)
            file.attrs["num_jets"] = len(arrays["labels"])
    return path


def write_atlas(path: Path, jets: PackedJets, *, width: int = 200, version: int = 1, **storage: Any) -> Path:
    """A good file with these jets."""
    return write_arrays(path, atlas_arrays(jets, width=width, version=version), **storage)
