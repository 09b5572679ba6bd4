"""Blocks of rows of a file: read, checked, and packed into the jets that grow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kdfast.errors import ResourceError
from kdfast.jets.checks import (
    HOLE,
    NEGATIVE_WEIGHTS,
    SORT,
    UNSORTED,
    Faults,
    Remedy,
    below_momentum,
    jets_with,
    pt_faults,
    pt_is_fine,
)
from kdfast.jets.columns import JET
from kdfast.jets.kinematics import jet_p4
from kdfast.jets.labels import read_labels
from kdfast.jets.pack_constituents import has_kernel, pack_constituents
from kdfast.jets.packed import PackedJets, offsets_of
from kdfast.jets.sources import Input, Source, open_table, opened
from kdfast.jets.splits import SplitRule, read_places, read_values
from kdfast.jets.stored_forms import StoredConstituents, as_packed
from kdfast.jets.table import RAGGED, Table
from kdfast.jets.units import PER_GEV, check_file_unit
from kdfast.process import memory

__all__ = ["Packing", "chunk_rows", "read_file"]

BLOCK_BYTES = 1 << 21  # of one padded dataset: small enough for the checks to run in cache
MOST_CONSTITUENTS = 4096  # of lists: they are padded for a block of jets, and one long list must not fill the memory
JET_BYTES = 45  # of a jet without its constituents
MARGIN = 1.2  # room at first, relative to what the first block announces: it fits most files without growing
KERNEL_BLOCK_BYTES = 1 << 22  # at most, for the kernel, for which all four columns are in memory at once
WIDEST_BLOCK_BYTES = 1 << 26  # where a single row of chunks is larger than BLOCK_BYTES


class Packing:
    """The packed jets while they grow; `wanted` bounds their number, of all `rows` of the files.

    places [jets]: of each jet's part in splits.PARTS, by the rule of a split; 0 without one. values [jets]:
    of the sources' split column where they have one and there is no rule.
    """

    def __init__(self, wanted: int, rows: int, faults: Faults, unit: str, split: SplitRule | None = None) -> None:
        self.wanted, self.rows, self.faults = wanted, rows, faults
        self.split = split
        self.seen: Callable[[Input], None] = lambda _: None  # called with the file of each block
        self._check_memory(wanted, 0)
        self.unit = unit
        self.per_gev = np.float32(PER_GEV[unit])
        self.size = 0  # jets so far
        self.filled = 0  # constituents so far
        self.rows_read = 0  # without jets that are skipped
        self.rows_passed = 0
        self.in_no_part = 0  # jets that the split leaves out
        self.constituents = np.empty((0, 4), np.float32)
        self.counts = np.empty(wanted, np.int64)
        self.labels = np.empty(wanted, np.int64)
        self.weights = np.empty(wanted, np.float32)
        self.p4 = np.empty((wanted, 4), np.float32)
        self.index = np.empty(wanted, np.int64)
        self.places = np.zeros(wanted, np.int8)
        self.values = np.empty(0, np.int64)

    def room(self, more: int, jets: int) -> NDArray[np.float32]:
        """[more, 4] behind the constituents so far, for `jets` further jets.

        Grows to what all jets will need if they are like those so far, so that it rarely grows again.
        """
        needed = self.filled + more
        if needed > len(self.constituents):
            share = max((self.size + jets) / self.wanted, (self.rows_passed + jets) / self.rows)
            expected = int(1.02 * needed / share)
            self._check_memory(self.wanted, needed)
            self._grow(max(needed, expected))
        return self.constituents[self.filled : needed]

    def _grow(self, size: int) -> None:
        """Makes room for `size` constituents in all. What is not written to takes no memory."""
        if self.filled:
            self.constituents.resize((size, 4), refcheck=False)  # in virtual memory; fills the new part with zeros
        else:
            self.constituents = np.empty((int(MARGIN * size), 4), np.float32)

    @staticmethod
    def _check_memory(jets: int, constituents: int) -> None:
        """Raises ResourceError for what this machine can't hold, before the kernel ends the process for it."""
        needed = JET_BYTES * jets + 16 * constituents
        there = memory()
        if there and needed > there:
            what = (
                f"{jets:,} jets need at least {needed / 2**30:,.1f} GiB, and this machine has {there / 2**30:,.1f} GiB"
            )
            hint = "read fewer (max_jets), or write a packed store, which is read in place: kdfast prepare"
            raise ResourceError(what, hint=hint)

    def packed(self) -> PackedJets:
        """The jets so far. Nothing can be appended afterwards."""
        self.constituents.resize((self.filled, 4), refcheck=False)
        return PackedJets(
            self.constituents,
            offsets_of(self.counts[: self.size]),
            labels=self.labels[: self.size],
            weights=self.weights[: self.size],
            p4=self.p4[: self.size],
            index=self.index[: self.size],
        )


def read_file(source: Source, rows: range, first_index: int, jets: Packing, table: Table | None = None) -> None:
    """Appends the jets of some rows of a file, whose first row has the index `first_index`.

    table: the file, if it is open.
    """
    with opened(source.path, table) as table, table.reading():
        for name in source.names:  # checked again if the file was opened again
            table.column(name)
        rows_at_once = _rows_at_once(table, source)
        scratch = np.empty(min(rows_at_once, len(rows)) * _scratch_slots(source, rows_at_once), np.float32)
        before = (jets.size, jets.filled)
        start = rows.start
        while start < rows.stop and jets.size < jets.wanted:
            block_end = start - start % rows_at_once + rows_at_once
            stop = min(block_end, rows.stop, start + jets.wanted - jets.size)
            jets.seen(source.path)
            _read_block(_Block(table, source, start, stop, scratch, jets.faults), first_index, jets)
            start = stop
        del scratch  # what follows needs memory of its own
    new = slice(before[0], jets.size)
    if jets.size > before[0]:
        constituents = jets.constituents[before[1] : jets.filled]
        where = str(source.path)
        check_file_unit(jets.p4[new], jets.counts[new], constituents, jets.unit, where, source.columns)


def chunk_rows(source: Source) -> int:
    """Rows of a file that are unpacked together."""
    with open_table(source.path) as table, table.reading():
        return _chunk_rows(table, source)


def _chunk_rows(table: Table, source: Source) -> int:
    return table.chunk_rows(source.columns.constituents.names[0]) or 1


def _rows_at_once(table: Table, source: Source) -> int:
    """Rows of a block: whole rows of chunks, so that no chunk is unpacked twice."""
    unpacked = _chunk_rows(table, source)
    if source.stored == RAGGED:
        return unpacked
    row_bytes = 4 * source.stored
    rows = max(BLOCK_BYTES // (unpacked * row_bytes), 1) * unpacked
    return min(rows, max(WIDEST_BLOCK_BYTES // row_bytes, 1))


def _scratch_slots(source: Source, rows_at_once: int) -> int:
    """Of a row: of all columns if the kernel packs them, otherwise of one."""
    if not source.columns.is_packed_form or source.stored == RAGGED:
        return 0
    for_kernel = has_kernel() and 4 * source.stored * rows_at_once <= KERNEL_BLOCK_BYTES
    return source.stored + (3 * source.width if for_kernel else 0)


def _as_stored() -> np.errstate:
    """Lets numbers be brought to float32 in silence: what it can't hold is not finite, and so a fault."""
    return np.errstate(over="ignore", invalid="ignore")


class _Block:
    """Rows start … stop of a file; `good` [rows] turns False for a jet with a fault (where such jets are dropped)."""

    def __init__(
        self, table: Table, source: Source, start: int, stop: int, scratch: NDArray[np.float32], faults: Faults
    ) -> None:
        self.table, self.source, self.start, self.stop, self.faults = table, source, start, stop, faults
        self.scratch = scratch
        self.slots = source.stored
        self.good = np.ones(stop - start, np.bool_)
        self.are_loaded = False  # the padded columns are in the scratch memory

    @property
    def all_fit(self) -> bool:
        """Whether the scratch memory has room for all padded columns."""
        return len(self.scratch) >= len(self.good) * (self.source.stored + 3 * self.source.width)

    def _padded(self, k: int) -> NDArray[np.float32]:
        """The place in the scratch memory of pt [rows, stored] (k = 0), or of eta, phi or energy [rows, width].

        (New memory for every block costs more than the checks do.)
        """
        rows, stored, width = len(self.good), self.source.stored, self.source.width
        first = rows * (stored + (k - 1) * width) if k and self.all_fit else 0
        slots = width if k else stored
        return self.scratch[first : first + rows * slots].reshape(rows, slots)

    def load_padded(self) -> bool:
        """Reads all padded columns. Whether that went well: otherwise `read_padded` finds what is damaged."""
        try:
            with _as_stored():
                for k, name in enumerate(self.source.columns.constituents.names):
                    self.table.fill(name, self.start, self.stop, self._padded(k))
        except self.table.damage:
            return False
        self.are_loaded = True
        return True

    def read_padded(self, k: int) -> NDArray[np.float32]:
        """pt [rows, stored] (k = 0), or eta, phi or energy [rows, width], with zeros in jets that are dropped.

        In the scratch memory, valid until the next call unless all columns fit.
        """
        values = self._padded(k)
        if self.are_loaded:
            return self._without_dropped(values)
        return self._read(self.source.columns.constituents.names[k], values)

    def read_slots(self, name: str, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """[rows, slots] of a constituent column, in memory of its own."""
        return self._read(name, np.empty((len(self.good), self.slots), dtype))

    def read_counts(self) -> NDArray[np.int64]:
        """[rows] constituents, where columns are lists. All of a jet's lists must be as long."""
        first, *others = self.source.columns.constituents.names
        counts = self.table.counts(first, self.start, self.stop)
        for name in others:
            same = self.table.counts(name, self.start, self.stop) == counts
            self.reject(name, ~same, f"is not as long as {first}")
        self.reject(first, counts > MOST_CONSTITUENTS, f"has more than {MOST_CONSTITUENTS:,} constituents")
        counts = np.where(self.good, counts, 0)
        self.slots = int(np.max(counts, initial=1))
        return counts

    def read(self, name: str) -> NDArray[Any]:
        """[rows] of a column with one value a jet."""
        dtype = self.table.column(name).dtype  # HDF5 brings floats to float32; it can't convert its booleans
        return self._read(name, np.empty(len(self.good), np.float32 if dtype.kind == "f" else dtype))

    def _read(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Fills values; with zeros in jets that are dropped."""
        with _as_stored():
            try:
                self.table.fill(name, self.start, self.stop, values)
            except OSError:
                self._fill_by_chunks(name, values)
        return self._without_dropped(values)

    def _without_dropped(self, values: NDArray[Any]) -> NDArray[Any]:
        if not self.good.all():
            values[~self.good] = 0
        return values

    def _fill_by_chunks(self, name: str, values: NDArray[Any]) -> None:
        """Finds the rows whose chunk can't be read (a filter or its checksum fails)."""
        step = self.table.chunk_rows(name) or self.stop
        for first in range(self.start - self.start % step, self.stop, step):
            start, stop = max(first, self.start), min(first + step, self.stop)
            try:
                self.table.fill(name, start, stop, values[start - self.start : stop - self.start])
            except OSError as error:
                bad = np.zeros(len(self.good), np.bool_)
                bad[start - self.start : stop - self.start] = True
                what = f"can't be read here, the file is damaged ({error})"
                self.reject(name, bad, what, remedy=Remedy("copy or download the file again"))

    def reject(
        self,
        name: str,
        bad: NDArray[np.bool_],
        what: str,
        *,
        values: NDArray[np.float32] | None = None,
        remedy: Remedy | None = None,
    ) -> None:
        """Raises for the first of the bad rows [rows], or notes them and marks them as dropped."""
        rows = np.flatnonzero(bad & self.good)
        if len(rows):
            shown = what if values is None else f"{what} ({values[rows[0]]:g})"
            self.faults.add(self.source.where(name), name, self.start + rows, shown, remedy)
            self.good[rows] = False


def _read_block(block: _Block, first_index: int, jets: Packing) -> None:
    """Reads, checks and appends the block's jets."""
    source = block.source
    rule = source.columns.label
    chosen = np.ones(len(block.good), np.bool_)
    labels = np.full(len(block.good), -1, np.int64)
    if source.labels and rule is not None and rule.other == "skip":  # first: others' faults do not matter
        labels = read_labels(block, rule)
        chosen = labels >= 0
        block.good &= chosen
    places = np.zeros(len(block.good), np.int8)
    values = np.empty(0, np.int64)
    if jets.split is not None:
        places = read_places(block, jets.split)
        left_out = chosen & (places < 0) if jets.split.other == "skip" else np.zeros(len(places), np.bool_)
        jets.in_no_part += int(left_out.sum())
        chosen &= ~left_out
        block.good &= chosen
    elif source.split:
        values = read_values(block, source.split)
        jets.values.resize(jets.wanted, refcheck=False)
    if source.columns.is_packed_form and source.stored != RAGGED:
        counts = _copy_constituents(block, jets)
        sums = np.empty((len(counts), 0), np.float32)
    else:
        counts, sums = _convert_constituents(block, jets)
    p4 = _read_jets(block, sums, jets)
    if source.labels and rule is not None and rule.other == "error":
        labels = read_labels(block, rule)
    weights = np.ones(len(counts), np.float32)
    if source.weights:
        weights = block.read(source.weights)
        block.reject(source.weights, ~np.isfinite(weights), "is not finite", values=weights)
        block.reject(source.weights, weights < 0, "is negative", values=weights, remedy=NEGATIVE_WEIGHTS)
    index = first_index + np.arange(block.start, block.stop)
    if source.columns.id:
        index = block.read(source.columns.id)
        block.reject(source.columns.id, index > np.iinfo(np.int64).max, "does not fit into 64 bits with a sign")
        index = index.astype(np.int64)

    good = block.good
    if not good.all():
        here = jets.constituents[jets.filled : jets.filled + counts.sum()]
        kept = here[np.repeat(good, counts)]
        here[: len(kept)] = kept
        counts, labels, weights, p4 = counts[good], labels[good], weights[good], p4[good]
    new = slice(jets.size, jets.size + len(counts))
    jets.counts[new], jets.labels[new], jets.weights[new], jets.p4[new] = counts, labels, weights, p4
    jets.index[new] = index[good]
    jets.places[new] = places[good]
    if len(jets.values):
        jets.values[new] = values[good]
    jets.size, jets.filled = new.stop, jets.filled + int(counts.sum())
    jets.rows_read += int(chosen.sum())
    jets.rows_passed += len(good)


def _read_jets(block: _Block, sums: NDArray[np.float32], jets: Packing) -> NDArray[np.float32]:
    """[rows, 4] pt, eta, phi, mass of the jets, in GeV: as stored, otherwise the sums of their constituents."""
    p4 = np.empty((len(block.good), 4), np.float32)
    for k, key in enumerate(JET):
        name = getattr(block.source.columns.jet, key)
        if name is None:
            p4[:, k] = sums[:, k]
            continue
        values = block.read(name)
        block.reject(name, ~np.isfinite(values), "is not finite", values=values)
        if key == "pt":
            block.reject(name, values <= 0, "is not positive", values=values)
        p4[:, k] = values / jets.per_gev if key in ("pt", "mass") else values
    if block.source.columns.jet.pt is None:
        first = block.source.columns.constituents.names[0]
        block.reject(first, p4[:, 0] <= 0, "has no constituent with pT > 0, so that the jet has no momentum")
    return p4


def _convert_constituents(block: _Block, jets: Packing) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Appends the block's constituents, brought to the packed form; the number of each jet [rows], and the
    sums [rows, 4] of all that are stored, in GeV."""
    columns = block.source.columns.constituents
    valid = None
    if block.source.stored == RAGGED:
        counts = block.read_counts()
        valid = np.arange(block.slots) < counts[:, None]
    elif columns.valid is not None:
        valid = block.read_slots(columns.valid, np.uint8) != 0
    stored = StoredConstituents(
        block.source.columns, {key: block.read_slots(getattr(columns, key)) for key in columns.form}, valid
    )
    packed, counts = as_packed(stored, block)
    packed[:, [0, 3]] /= jets.per_gev
    sums = jet_p4(packed, offsets_of(counts))
    if block.source.width < block.slots:
        place = np.arange(len(packed)) - np.repeat(offsets_of(counts)[:-1], counts)
        packed = packed[place < block.source.width]
        counts = np.minimum(counts, block.source.width)
    jets.room(len(packed), len(counts))[:] = packed
    return counts, sums


def _copy_constituents(block: _Block, jets: Packing) -> NDArray[np.int64]:
    """Appends the block's constituents to jets.constituents; the number of each jet [rows].

    pT is read and checked to the end: the first `width` constituents are the hardest only if all are sorted.
    """
    if has_kernel() and block.all_fit and block.load_padded():
        counts = _pack_quickly(block, jets)
        if counts is not None:
            return counts
    width = block.source.width
    pt_name, *others = block.source.columns.constituents.names
    pt = block.read_padded(0)
    if not pt_is_fine(pt):
        for what, bad in pt_faults(pt).items():
            block.reject(pt_name, bad, what, remedy=SORT if what in (HOLE, UNSORTED) else None)
        pt[~block.good] = 0
    filled = pt[:, :width] > 0
    counts = np.where(filled[:, -1], width, filled.argmin(axis=1))
    offsets = offsets_of(counts)
    packed = jets.room(int(offsets[-1]), len(counts))
    columns = [pt[:, :width][filled]]
    for k, name in enumerate(others, start=1):
        padded = block.read_padded(k)
        values = padded[filled]
        columns.append(values)
        # the bits show quickly whether the padding holds anything (or −0, which counts as nothing)
        if np.count_nonzero(padded.view(np.int32)) != np.count_nonzero(values.view(np.int32)):
            block.reject(name, ((padded != 0) & ~filled).any(axis=1), "is not zero in padding (where pT is zero)")
        finite = np.isfinite(values)
        if not finite.all():
            block.reject(name, jets_with(~finite, offsets), "is not finite")
    below = below_momentum(columns[0], columns[1], columns[3])
    if below.any():
        block.reject(others[-1], jets_with(below, offsets), "is smaller than the momentum pT·cosh η")
    for k, values in enumerate(columns):
        if k in (0, 3):
            with np.errstate(invalid="ignore"):  # a signalling NaN, of a jet that is dropped
                np.divide(values, jets.per_gev, out=packed[:, k])
        else:
            packed[:, k] = values
    return counts


def _pack_quickly(block: _Block, jets: Packing) -> NDArray[np.int64] | None:
    """`_copy_constituents` by the compiled kernel; None where a jet has a fault, or may have one."""
    padded = [block.read_padded(k) for k in range(4)]
    counts = np.empty(len(block.good), np.int64)
    needed = pack_constituents(padded, jets.per_gev, counts, jets.constituents[jets.filled :])
    if needed is not None and needed > len(jets.constituents) - jets.filled:
        needed = pack_constituents(padded, jets.per_gev, counts, jets.room(needed, len(counts)))
    return None if needed is None else counts
