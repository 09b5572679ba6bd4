"""Reading jets from experiments' files into packed jets.

ATLAS Top Tagging Open Data, records 15013 (v1) and 80030 (v2): HDF5 with one row a jet in every dataset,
constituents padded with zeros behind the last one and sorted by falling pT, momenta in MeV (or in GeV, where the
caller says so).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.jets.checks import Faults, below_momentum, pt_faults, pt_is_fine
from kdfast.jets.packed import PackedJets, offsets_of
from kdfast.jets.sources import (
    CONSTITUENTS,
    JET,
    AnyPath,
    Source,
    check_same_weights,
    damage_in,
    expand,
    inspect,
    open_file,
)
from kdfast.jets.units import PER_GEV, check_file_unit

__all__ = ["load_jets"]

BLOCK_BYTES = 1 << 21  # of one padded dataset: small enough for the checks to run in cache
WIDEST_BLOCK_BYTES = 1 << 26  # where a single row of chunks is larger than BLOCK_BYTES


def load_jets(
    paths: AnyPath | Sequence[AnyPath],
    *,
    max_jets: int | None = None,
    max_constituents: int | None = None,
    on_bad: Literal["error", "drop"] = "error",
    unit: Literal["MeV", "GeV"] = "MeV",
    require_labels: bool = True,
) -> PackedJets:
    """Read jets from one or several files in the ATLAS Top Tagging layout (v1 or v2).

    Momenta are in `unit` in files and in GeV in the result. Files are streamed: in addition to the packed
    jets, only a few blocks of rows are in memory.

    Parameters
    ----------
    paths
        A file, a pattern with ``*``, ``?`` or ``[]`` (its files in alphabetical order), or a sequence of
        these, in its order.
    max_jets
        Number of jets to read, the first in file order (with ``on_bad="drop"``: the first good ones).
        Default: all. The published files contain their classes mixed, so the first jets are a fair sample.
        For files that do not, read all jets and choose afterwards.
    max_constituents
        Number of constituents to keep per jet, the hardest. Default: all. η, φ and energy are checked for
        these only.
    on_bad
        ``"error"`` raises at the first bad jet. ``"drop"`` leaves bad jets out and warns how many and why.
        Faults of a whole file (missing datasets, unequal lengths, a truncated file) are errors either way.
    unit
        Of momenta, energies and masses in the files: ``"MeV"`` or ``"GeV"``. A file whose median jet pT would
        be below 5 GeV or above 20 TeV is refused, with the unit that it seems to have.
    require_labels
        False for jets that are only to be scored: files without labels are read with label −1, and weights
        may all be zero.

    Returns
    -------
    PackedJets
        A jet's ``index`` is its row, counted across the files. It depends on the list of files, but not on
        ``max_jets``, dropped jets or the block size. Files without weights (the systematic variations of
        v2) get weight 1.

    Raises
    ------
    DataError
        For bad data; names file, dataset and the first bad row.
    ConfigError
        For an argument outside its range.
    """
    if on_bad not in ("error", "drop"):
        raise ConfigError(f"must be 'error' or 'drop', is {on_bad!r}", where="on_bad")
    if unit not in PER_GEV:
        raise ConfigError(f"must be 'MeV' or 'GeV', is {unit!r}", where="unit")
    limits: dict[str, Any] = {"max_jets": max_jets, "max_constituents": max_constituents}
    for name, value in limits.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise ConfigError(f"must be a whole number from 1 on, is {value!r}", where=name)
    sources = [inspect(path, max_constituents, require_labels) for path in expand(paths)]
    check_same_weights(sources)
    rows = sum(source.rows for source in sources)
    wanted = rows if max_jets is None else min(max_jets, rows)
    jets = _Packing(wanted, Faults(drop=on_bad == "drop"), unit)
    first_index = 0
    for source in sources:
        if jets.size < wanted:
            _read_file(source, first_index, jets)
        first_index += source.rows
    return _finish(jets, sources, require_labels, cut=wanted < rows)


class _Packing:
    """The packed jets while they grow; `wanted` bounds their number."""

    def __init__(self, wanted: int, faults: Faults, unit: str) -> None:
        self.wanted, self.faults = wanted, faults
        self.unit = unit
        self.per_gev = np.float32(PER_GEV[unit])
        self.size = 0  # jets so far
        self.filled = 0  # constituents so far
        self.rows_read = 0
        self.constituents = np.empty((0, 4), np.float32)
        self.counts = np.empty(wanted, np.int64)
        self.labels = np.empty(wanted, np.int64)
        self.weights = np.empty(wanted, np.float32)
        self.p4 = np.empty((wanted, 4), np.float32)
        self.index = np.empty(wanted, np.int64)

    def room(self, more: int, jets: int) -> NDArray[np.float32]:
        """[more, 4] behind the constituents so far, for `jets` further jets.

        Grows to what all jets will need if they are like those so far (a large array moves in virtual
        memory only), so that the array is never much larger than the packed jets.
        """
        needed = self.filled + more
        if needed > len(self.constituents):
            expected = int(1.02 * needed * self.wanted / (self.size + jets))
            self.constituents.resize((max(needed, expected), 4), refcheck=False)
        return self.constituents[self.filled : needed]


def _read_file(source: Source, first_index: int, jets: _Packing) -> None:
    with open_file(source.path) as file, damage_in(source.path):
        names = (*CONSTITUENTS, *JET, source.labels, source.weights)
        datasets = {name: file[name] for name in names if name}  # kept open: each has a cache of unpacked chunks
        rows_at_once = _rows_at_once(datasets[CONSTITUENTS[0]])
        scratch = np.empty(min(rows_at_once, source.rows) * source.stored, np.float32)
        before = (jets.size, jets.filled)
        start = 0
        while start < source.rows and jets.size < jets.wanted:
            block_end = start - start % rows_at_once + rows_at_once
            stop = min(block_end, source.rows, start + jets.wanted - jets.size)
            _read_block(_Block(datasets, source, start, stop, scratch, jets.faults), first_index, jets)
            start = stop
    new = slice(before[0], jets.size)
    if jets.size > before[0]:
        constituents = jets.constituents[before[1] : jets.filled]
        check_file_unit(jets.p4[new], jets.counts[new], constituents, jets.unit, str(source.path))


def _rows_at_once(pt: h5py.Dataset) -> int:
    """Rows of a block: whole rows of chunks, so that no chunk is unpacked twice."""
    row_bytes: int = 4 * pt.shape[1]
    chunk_rows: int = pt.chunks[0] if pt.chunks else 1
    rows = max(BLOCK_BYTES // (chunk_rows * row_bytes), 1) * chunk_rows
    return min(rows, max(WIDEST_BLOCK_BYTES // row_bytes, 1))


class _Block:
    """Rows start … stop of a file; `good` [rows] turns False for a jet with a fault (where such jets are dropped)."""

    def __init__(
        self,
        datasets: dict[str, h5py.Dataset],
        source: Source,
        start: int,
        stop: int,
        scratch: NDArray[np.float32],
        faults: Faults,
    ) -> None:
        self.datasets, self.source, self.start, self.stop, self.faults = datasets, source, start, stop, faults
        self.scratch = scratch
        self.good = np.ones(stop - start, np.bool_)

    def read_padded(self, name: str, columns: int) -> NDArray[np.float32]:
        """[rows, columns] of a constituent dataset in the scratch memory, valid until the next call.

        (New memory for every block costs more than the checks do.)
        """
        rows = len(self.good)
        return self._read(name, self.scratch[: rows * columns].reshape(rows, columns))

    def read(self, name: str) -> NDArray[np.float32]:
        """[rows] of a dataset with one value a jet."""
        dtype = self.datasets[name].dtype  # HDF5 brings floats to float32; it can't convert its booleans
        return self._read(name, np.empty(len(self.good), np.float32 if dtype.kind == "f" else dtype))

    def _read(self, name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fills values; with zeros in jets that are dropped."""
        try:
            self._fill(name, values, self.start, self.stop)
        except OSError:
            self._fill_by_chunks(name, values)
        if not self.good.all():
            values[~self.good] = 0
        return values

    def _fill(self, name: str, values: NDArray[np.float32], start: int, stop: int) -> None:
        # h5py's low-level calls: its slicing syntax costs as much time as a small block
        dataset = self.datasets[name].id
        stored = dataset.get_space()
        shape = (stop - start, *values.shape[1:])
        stored.select_hyperslab((start, *(0 for _ in shape[1:])), shape)
        dataset.read(h5py.h5s.create_simple(shape), stored, values[start - self.start : stop - self.start])

    def _fill_by_chunks(self, name: str, values: NDArray[np.float32]) -> None:
        """Finds the rows whose chunk can't be read (a filter or its checksum fails)."""
        chunks = self.datasets[name].chunks
        step = chunks[0] if chunks else self.stop
        for first in range(self.start - self.start % step, self.stop, step):
            start, stop = max(first, self.start), min(first + step, self.stop)
            try:
                self._fill(name, values, start, stop)
            except OSError as error:
                bad = np.zeros(len(self.good), np.bool_)
                bad[start - self.start : stop - self.start] = True
                self.reject(
                    name,
                    bad,
                    f"can't be read here, the file is damaged ({error})",
                    hint="copy or download the file again",
                )

    def reject(
        self,
        name: str,
        bad: NDArray[np.bool_],
        what: str,
        *,
        values: NDArray[np.float32] | None = None,
        hint: str | None = None,
    ) -> None:
        """Raises for the first of the bad rows [rows], or notes them and marks them as dropped."""
        rows = np.flatnonzero(bad & self.good)
        if len(rows):
            shown = what if values is None else f"{what} ({values[rows[0]]:g})"
            self.faults.add(str(self.source.path), name, self.start + rows, shown, hint)
            self.good[rows] = False


def _read_block(block: _Block, first_index: int, jets: _Packing) -> None:
    """Reads, checks and appends the block's jets."""
    counts = _read_constituents(block, jets)
    rows = len(counts)
    p4 = np.empty((rows, 4), np.float32)
    for k, name in enumerate(JET):
        values = block.read(name)
        block.reject(name, ~np.isfinite(values), "is not finite", values=values)
        if name == "fjet_pt":
            block.reject(name, values <= 0, "is not positive", values=values)
        p4[:, k] = values / jets.per_gev if name in ("fjet_pt", "fjet_m") else values
    labels = np.full(rows, -1, np.float32)
    if block.source.labels:
        labels = block.read(block.source.labels)
        unknown = (labels != 0) & (labels != 1)
        block.reject(block.source.labels, unknown, "is neither 0 (background) nor 1 (signal)", values=labels)
    weights = np.ones(rows, np.float32)
    if block.source.weights:
        weights = block.read(block.source.weights)
        block.reject(block.source.weights, ~np.isfinite(weights), "is not finite", values=weights)
        block.reject(block.source.weights, weights < 0, "is negative", values=weights)

    good = block.good
    if not good.all():
        here = jets.constituents[jets.filled : jets.filled + counts.sum()]
        kept = here[np.repeat(good, counts)]
        here[: len(kept)] = kept
        counts, labels, weights, p4 = counts[good], labels[good], weights[good], p4[good]
    new = slice(jets.size, jets.size + len(counts))
    jets.counts[new], jets.labels[new], jets.weights[new], jets.p4[new] = counts, labels, weights, p4
    jets.index[new] = first_index + block.start + np.flatnonzero(good)
    jets.size, jets.filled = new.stop, jets.filled + int(counts.sum())
    jets.rows_read += rows


def _read_constituents(block: _Block, jets: _Packing) -> NDArray[np.int64]:
    """Appends the block's constituents to jets.constituents; the number of each jet [rows]."""
    width = block.source.width
    # pT is read and checked to the end: the first `width` constituents are the hardest only if all are sorted
    pt = block.read_padded("fjet_clus_pt", block.source.stored)
    if not pt_is_fine(pt):
        for what, bad in pt_faults(pt).items():
            block.reject("fjet_clus_pt", bad, what)
        pt[~block.good] = 0
    filled = pt[:, :width] > 0
    counts = np.where(filled[:, -1], width, filled.argmin(axis=1))
    offsets = offsets_of(counts)
    packed = jets.room(int(offsets[-1]), len(counts))
    columns = [pt[:, :width][filled]]
    for name in CONSTITUENTS[1:]:
        padded = block.read_padded(name, width)
        values = padded[filled]
        columns.append(values)
        # the bits show quickly whether the padding holds anything (or −0, which counts as nothing)
        if np.count_nonzero(padded.view(np.int32)) != np.count_nonzero(values.view(np.int32)):
            block.reject(name, ((padded != 0) & ~filled).any(axis=1), "is not zero in padding (where pT is zero)")
        finite = np.isfinite(values)
        if not finite.all():
            block.reject(name, _jets_with(~finite, offsets), "is not finite")
    below = below_momentum(columns[0], columns[1], columns[3])
    if below.any():
        block.reject("fjet_clus_E", _jets_with(below, offsets), "is smaller than the momentum pT·cosh η")
    for k, values in enumerate(columns):
        if k in (0, 3):
            np.divide(values, jets.per_gev, out=packed[:, k])
        else:
            packed[:, k] = values
    return counts


def _jets_with(constituents: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[B] whether any constituent of a jet is marked in [M]."""
    before = np.concatenate([[0], np.cumsum(constituents)])
    return before[offsets[1:]] > before[offsets[:-1]]


def _finish(jets: _Packing, sources: list[Source], require_labels: bool, cut: bool) -> PackedJets:
    """The packed jets, after the checks that concern all of them."""
    where = str(sources[0].path) if len(sources) == 1 else f"{sources[0].path} … {sources[-1].path}"
    jets.faults.warn(jets.rows_read)
    if jets.size == 0:
        hint = "{on_bad} shows the first fault"
        raise DataError("no good jet is left", where=where, hint=hint, settings={"on_bad": "error"})
    if not jets.filled:
        raise DataError("every jet is empty: no constituent has pT > 0", where=f"{where}, dataset fjet_clus_pt")
    jets.constituents.resize((jets.filled, 4), refcheck=False)
    packed = PackedJets(
        jets.constituents,
        offsets_of(jets.counts[: jets.size]),
        labels=jets.labels[: jets.size],
        weights=jets.weights[: jets.size],
        p4=jets.p4[: jets.size],
        index=jets.index[: jets.size],
    )
    if require_labels and not packed.weights.any():
        raise DataError("all weights are zero", where=f"{where}, dataset {sources[0].weights}")
    if cut and require_labels and np.min(packed.labels) == np.max(packed.labels):
        what = f"the first {len(packed):,} jets of {where} are all of class {packed.labels[0]}"
        warnings.warn(
            f"{what}: max_jets takes jets in file order, and these are not mixed", KdfastWarning, stacklevel=3
        )
    return packed
