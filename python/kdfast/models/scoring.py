"""A tagger's scores of jets as a file."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np

from kdfast._version import __version__
from kdfast.errors import DataError
from kdfast.files import write_content, writing_errors
from kdfast.jets.packed import PackedJets
from kdfast.models.tagger import Tagger

__all__ = ["write_scores"]


def write_scores(path: str | Path, tagger: Tagger, jets: PackedJets, *, prepared: bool = False) -> Path:
    """Scores jets and writes an HDF5 file, whole or not at all; returns its path.

    Datasets: index [B] int64 (the jet's place in its files), score (logits) and probability (of signal), both
    [B], or [B, C] for C > 1 classes, float32; label [B] int64 where the jets have one. A file that is there
    is replaced. prepared: as for Tagger.predict. Raises DataError where the file can't be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError("can't be written: its folder does not exist", where=str(path))
    logits = tagger.logits(jets, prepared=prepared)
    probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["kdfast"] = __version__
        file.create_dataset("index", data=jets.index)
        for name, values in (("score", logits), ("probability", probability)):
            array = values.numpy()
            file.create_dataset(name, data=array[:, 0] if array.shape[1] == 1 else array)
        if np.any(jets.labels >= 0):  # a file without labels is read with label −1
            file.create_dataset("label", data=jets.labels)
    with writing_errors(path, DataError):
        write_content(path, buffer.getvalue())
    return path
