"""load_jets against h5py reading the same bytes into plain arrays, without checks and without packing."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.ratio import compare
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import CONSTITUENTS, write_atlas
from tests.synthetic import synthetic_jets

JETS = 20_000
PER_JET = ("fjet_pt", "fjet_eta", "fjet_phi", "fjet_m", "labels", "weights")
STORAGE: dict[str, dict[str, Any]] = {
    "gzip": {"compression_opts": 4, "chunks": (1000, 200)},
    "gzip-h5py-chunks": {"compression_opts": 4},
    "unpacked": {"compression": None, "chunks": None},
}


@pytest.fixture(scope="module", params=STORAGE)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "jets.h5"
    return write_atlas(path, synthetic_jets(JETS, max_constituents=200), width=200, **STORAGE[request.param])


@pytest.mark.parametrize("max_constituents", [None, 40], ids=["all", "40"])
def test_load_jets(benchmark: Any, file: Path, max_constituents: int | None) -> None:
    packed = "unpacked" not in str(file)  # the published files are gzipped; without, the baseline copies memory only

    def plain() -> dict[str, NDArray[Any]]:
        with h5py.File(file) as f:
            arrays = {name: f[name][:, :max_constituents] for name in CONSTITUENTS[1:]}
            arrays["fjet_clus_pt"] = f["fjet_clus_pt"][:]  # to the end, as load_jets does to see that it is sorted
            return arrays | {name: f[name][:] for name in PER_JET}

    def check(jets: PackedJets, arrays: dict[str, NDArray[Any]]) -> None:
        x, mask = jets.to_padded(max_constituents or 200)
        assert np.array_equal(mask, arrays["fjet_clus_pt"][:, :max_constituents] > 0)
        assert np.array_equal(x[:, :, 3], arrays["fjet_clus_E"] / np.float32(1000))
        assert np.array_equal(jets.labels, arrays["labels"])

    compare(
        benchmark,
        ours=lambda: load_jets(file, max_constituents=max_constituents),
        plain=plain,
        check=check,
        floor=0.6,
        aim=0.9 if packed else None,
        seconds=4.0,
        baseline="h5py into padded arrays",
    )
