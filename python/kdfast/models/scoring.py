"""A tagger's scores of jets as a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.errors import DataError
from kdfast.files import write_content, writing_errors
from kdfast.jets.packed import PackedJets
from kdfast.models.tagger import Tagger

__all__ = ["write_scores"]


def write_scores(path: str | Path, tagger: Tagger, jets: PackedJets, *, prepared: bool = False) -> Path:
    """Scores jets and writes an HDF5 file, or CSV where it ends in .csv, whole or not at all; returns its path.

    Datasets: index [B] int64 (the jet's place in its files), score (logits) and probability (of signal), both
    [B], or [B, C] for C > 1 classes, float32; label [B] int64 where the jets have one. CSV has the columns
    index, label, score and probability, or score_0, …, probability_0, … of C classes. A file that is there is
    replaced. prepared: as for Tagger.predict. Raises DataError where the file can't be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise DataError("can't be written: its folder does not exist", where=str(path))
    logits = tagger.logits(jets, prepared=prepared)
    probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
    columns: dict[str, NDArray[Any]] = {"index": jets.index}
    if np.any(jets.labels >= 0):  # a file without labels is read with label −1
        columns["label"] = jets.labels
    for name, values in (("score", logits), ("probability", probability)):
        array = values.numpy()
        columns[name] = array[:, 0] if array.shape[1] == 1 else array
    content = _csv(columns) if path.suffix.lower() == ".csv" else _hdf5(columns)
    with writing_errors(path, DataError):
        write_content(path, content)
    return path


def _hdf5(columns: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["kdfast"] = __version__
        for name, values in columns.items():
            file.create_dataset(name, data=values)
    return buffer.getvalue()


def _csv(columns: Mapping[str, NDArray[Any]]) -> bytes:
    import pandas as pd

    flat: dict[str, NDArray[Any]] = {}
    for name, values in columns.items():
        several = {f"{name}_{k}": values[:, k] for k in range(values.shape[1])} if values.ndim == 2 else {}
        flat |= several or {name: values}
    return pd.DataFrame(flat).to_csv(index=False, float_format="%.9g").encode()  # nine digits tell all float32 apart
