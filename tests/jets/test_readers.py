"""load_jets on good and on damaged files in the ATLAS layouts."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import CONSTITUENTS, atlas_arrays, random_jets, write_arrays, write_atlas

Arrays = dict[str, NDArray[Any]]
JETS = random_jets(60, seed=3, mean=8, most=20)
WIDTH = 20


def in_file_precision(jets: PackedJets) -> PackedJets:
    """The jets as a correct reader gives them: GeV to MeV and back, each rounded to float32."""
    mev = np.array([1000, 1, 1, 1000], np.float32)
    return PackedJets(
        jets.constituents * mev / mev, jets.offsets, jets.labels, jets.weights, jets.p4 * mev / mev, jets.index
    )


def assert_same(read: PackedJets, expected: PackedJets) -> None:
    for name in ("offsets", "index", "labels", "weights", "p4", "constituents"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name), err_msg=name)


LAYOUTS: dict[str, dict[str, Any]] = {
    "v1": {},
    "v2": {"version": 2},
    "attributes": {"attributes": True},
    "contiguous": {"compression": None, "compression_opts": None, "chunks": None},
    "shuffle and checksum": {"shuffle": True, "fletcher32": True},
    "tiny chunks": {"chunks": (7, 3)},
    "one chunk": {"chunks": (60, 20)},
    "column chunks": {"chunks": (60, 1)},
    "lzf": {"compression": "lzf", "compression_opts": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_bytes", [1, 600, 1 << 21])
def test_reads_every_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, block_bytes: int) -> None:
    monkeypatch.setattr("kdfast.jets.readers.BLOCK_BYTES", block_bytes)
    path = write_atlas(tmp_path / "jets.h5", JETS, width=WIDTH, **LAYOUTS[layout])
    assert_same(load_jets(path), in_file_precision(JETS))
