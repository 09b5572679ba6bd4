"""load_jets on good and on damaged files in the ATLAS layouts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import load_jets
from tests.jets.atlas_files import write_atlas
from tests.synthetic import synthetic_jets

Arrays = dict[str, NDArray[Any]]
WIDTH = 20


def some_jets(n: int, seed: int = 0) -> PackedJets:
    """Jets of up to WIDTH constituents, many full, one empty, with weights."""
    jets = synthetic_jets(n, seed, max_constituents=WIDTH)
    keep = np.random.default_rng(seed).random(len(jets.constituents)) < np.repeat(np.linspace(0.2, 1.5, n), jets.counts)
    keep[jets.offsets[n // 2] : jets.offsets[n // 2 + 1]] = False
    return replace(jets.select_constituents(keep), weights=np.linspace(0.5, 2, n, dtype=np.float32))


JETS = some_jets(60)


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
