"""Views of jets for training: in memory, or, where the jets are mapped from a packed store, in files next to it.

JETS.store/views/KEY/ holds one view: features.npy, offsets.npy, labels.npy, weights.npy, and view.json with
their checksums. Every study and process with the same split, emulation and standardisation uses the same one.
A view may be deleted when nothing uses it; it is then made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdfast.distill.pack import MappedView, View
from kdfast.errors import StudyError
from kdfast.files import fsync_folder, write_content, writing_errors
from kdfast.jets.features import Standardisation, features
from kdfast.jets.jet_store import content_of, store_of, table_digest
from kdfast.jets.packed import PackedJets
from kdfast.mapped import HEADER_BYTES, map_file, release, write_header
from kdfast.models.tagger import Preparation
from kdfast.process import temporary_name
from kdfast.store.folders import hash_file
from kdfast.store.identity import training_environment

__all__ = ["LazyViews", "fit_standardisation", "view_of"]

JETS = 1 << 15  # at a time: some 40 MB of features
ARRAYS = {"features": np.float32, "offsets": np.int64, "labels": np.float32, "weights": np.float32}
CARD = "view.json"


class LazyViews(dict[str, View]):
    """Views by split, made when they are first used: the teacher's large ones often are not."""

    def __init__(self, make: Callable[[str], View]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, split: str) -> View:
        self[split] = self._make(split)
        return self[split]


def view_of(preparation: Preparation, jets: PackedJets, positions: NDArray[np.int64]) -> View:
    """The jets at these positions (rising) as a model sees them.

    Raises StudyError where a view of mapped jets can't be written.
    """
    store = store_of(jets)
    if store is None:
        return in_memory(preparation, jets[positions])
    folder = store / "views" / _key(jets, preparation, positions)
    if not _is_intact(folder):
        with writing_errors(folder):
            _write(folder, preparation, jets, positions)
    arrays = {name: map_file(folder / f"{name}.npy") for name in ARRAYS}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return MappedView(**tensors, mapped=tuple(arrays.values()))


def in_memory(preparation: Preparation, jets: PackedJets) -> View:
    inputs, offsets = preparation.inputs(preparation.view_of(jets))
    labels = torch.from_numpy(jets.labels.astype(np.float32))
    return View(inputs, offsets, labels, torch.from_numpy(jets.weights))


def _blocks(jets: PackedJets, positions: NDArray[np.int64]) -> Iterator[PackedJets]:
    for start in range(0, len(positions), JETS):
        yield jets[positions[start : start + JETS]]
        release(vars(jets).values())


# ---- the standardisation


def fit_standardisation(unit: Preparation, jets: PackedJets, positions: NDArray[np.int64]) -> Standardisation | None:
    """Of the features of the jets at these positions, by a preparation that does not standardise; None: they
    have no constituent.

    Jets in memory are taken at once. Those of a store are taken block by block, which changes at most the
    rounding of the sums in float64. Kept next to the store's views.
    """
    store = store_of(jets)
    if store is None:
        view = unit.view_of(jets[positions])
        return Standardisation.fit(features(view)) if len(view.constituents) else None
    path = store / "views" / f"standardisation-{_key(jets, unit, positions)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        if kept["sha256"] == table_digest(kept["numbers"]):  # else it is damaged
            return Standardisation.from_dict(kept["numbers"])
    moments = _moments(features(unit.view_of(block)) for block in _blocks(jets, positions))
    if moments is None:
        return None
    found = Standardisation.of_moments(*moments)
    with writing_errors(path):
        path.parent.mkdir(exist_ok=True)
        numbers = found.to_dict()
        write_content(path, json.dumps({"numbers": numbers, "sha256": table_digest(numbers)}).encode())
    return found


def _moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Mean and population standard deviation of rows in float64, of deviations from the first part's mean, so
    that no digits cancel; None without rows."""
    number = 0
    shift = total = squares = torch.zeros(0)
    for rows in parts:
        if not len(rows):
            continue
        x = rows.double()
        if not number:
            shift = x.mean(dim=0)
            total = torch.zeros_like(shift)
            squares = torch.zeros_like(shift)
        x -= shift
        number += len(x)
        total += x.sum(dim=0)
        squares += (x * x).sum(dim=0)
    if not number:
        return None
    mean = total / number
    variance = (squares / number - mean * mean).clamp(min=0)
    return shift + mean, variance.sqrt()


# ---- views in files


def _key(jets: PackedJets, preparation: Preparation, positions: NDArray[np.int64]) -> str:
    """What a view's numbers depend on: jets, preparation, and what rounds them."""
    here = training_environment("cpu")
    rounding = {name: here[name] for name in ("kdfast", "isa", "backend")}
    named = [content_of(jets), preparation.to_json(), rounding]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
    digest.update(np.ascontiguousarray(positions).data)
    return digest.hexdigest()[:32]


def _write(folder: Path, preparation: Preparation, jets: PackedJets, positions: NDArray[np.int64]) -> None:
    """Writes a view into files block by block; it appears whole or not at all."""
    folder.parent.mkdir(exist_ok=True)
    temporary = temporary_name(folder)
    temporary.mkdir()
    try:
        shapes = _write_arrays(temporary, preparation, jets, positions)
        for name, dtype in ARRAYS.items():
            write_header(temporary / f"{name}.npy", dtype, shapes[name])
        digests = {name: hash_file(temporary, f"{name}.npy") for name in ARRAYS}
        write_content(temporary / CARD, json.dumps(digests, indent=1).encode())
        fsync_folder(temporary)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        try:
            os.rename(temporary, folder)
        except OSError:
            if not _is_intact(folder):  # no other process was first
                raise
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_arrays(
    folder: Path, preparation: Preparation, jets: PackedJets, positions: NDArray[np.int64]
) -> dict[str, tuple[int, ...]]:
    rows = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.npy", "wb")) for name in ARRAYS}
        for file in files.values():
            file.write(bytes(HEADER_BYTES))
        files["offsets"].write(bytes(8))
        width = 0
        for block in _blocks(jets, positions):
            view = in_memory(preparation, block)
            width = view.features.shape[1]
            ends = view.offsets[1:] + rows
            arrays = {"features": view.features, "offsets": ends, "labels": view.labels, "weights": view.weights}
            for name, tensor in arrays.items():
                files[name].write(tensor.contiguous().numpy().data)
            rows += len(view.features)
    number = len(positions)
    return {"features": (rows, width), "offsets": (number + 1,), "labels": (number,), "weights": (number,)}


def _is_intact(folder: Path) -> bool:
    """Whether a view is there and matches its checksums."""
    try:
        digests: dict[str, Any] = json.loads((folder / CARD).read_bytes())
        return all(hash_file(folder, f"{name}.npy") == digests[name] for name in ARRAYS)
    except (StudyError, OSError, ValueError, KeyError, TypeError):
        return False
