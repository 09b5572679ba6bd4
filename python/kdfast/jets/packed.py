"""Packed jets: constituents of all jets end to end, and where each jet begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdfast.errors import DataError

__all__ = ["PackedJets"]


@dataclass(frozen=True, eq=False)
class PackedJets:
    """B jets with M constituents in all, without padding.

    constituents: [M, 4] float32, columns pt (GeV), eta, phi (rad), energy (GeV); a jet's constituents are neighbours.
    offsets: [B + 1] int64; jet b holds the constituents offsets[b] … offsets[b + 1] − 1 (none is possible).
    labels: [B] int64, the class (1 = signal for two classes).
    weights: [B] float32, event weights.
    p4: [B, 4] float32, the jet's own pt (GeV), eta, phi, mass (GeV), as stored by the experiment.
    index: [B] int64, a jet's identity: it survives slicing and shuffling, pairs views of the same jet, and keys its
        random numbers.
    """

    constituents: NDArray[np.float32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    p4: NDArray[np.float32]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        jets = len(self.offsets) - 1
        if jets < 0 or self.offsets[0] != 0 or self.offsets[-1] != len(self.constituents):
            total = len(self.constituents)
            raise DataError(f"must run from 0 to {total} (the number of constituents)", where="offsets")
        if np.any(np.diff(self.offsets) < 0):
            raise DataError("must not fall", where="offsets")
        if self.constituents.ndim != 2 or self.constituents.shape[1] != 4:
            shape = list(self.constituents.shape)
            raise DataError(f"must be [M, 4] (pt, eta, phi, energy), is {shape}", where="constituents")
        for name, shape in (("labels", (jets,)), ("weights", (jets,)), ("p4", (jets, 4)), ("index", (jets,))):
            if getattr(self, name).shape != shape:
                raise DataError(f"must have shape {list(shape)}, has {list(getattr(self, name).shape)}", where=name)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"PackedJets({len(self):,} jets, {len(self.constituents):,} constituents)"

    @property
    def counts(self) -> NDArray[np.int64]:
        """[B] constituents of each jet."""
        return np.diff(self.offsets)

    def __getitem__(self, which: slice | ArrayLike) -> PackedJets:
        """Some of the jets: a slice (shares memory where its step is 1), a boolean mask [B], or integer positions."""
        if isinstance(which, slice) and which.indices(len(self))[2] == 1:
            start, stop, _ = which.indices(len(self))
            stop = max(start, stop)
            first, last = self.offsets[start], self.offsets[stop]
            per_jet = slice(start, stop)
            return PackedJets(
                self.constituents[first:last],
                self.offsets[start : stop + 1] - first,
                *(a[per_jet] for a in (self.labels, self.weights, self.p4, self.index)),
            )
        rows = np.atleast_1d(np.arange(len(self))[which])
        return PackedJets(
            self.constituents[constituent_rows(self.offsets, rows)],
            offsets_of(self.counts[rows]),
            *(a[rows] for a in (self.labels, self.weights, self.p4, self.index)),
        )

    def select_constituents(self, keep: NDArray[np.bool_]) -> PackedJets:
        """The same jets with only the constituents where keep [M] is true."""
        kept_before = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
        return self.with_constituents(self.constituents[keep], kept_before[self.offsets])

    def with_constituents(self, constituents: NDArray[np.float32], offsets: NDArray[np.int64]) -> PackedJets:
        """The same jets with other constituents (another view of them)."""
        return PackedJets(constituents, offsets, self.labels, self.weights, self.p4, self.index)

    def to_padded(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(x [B, n, 4], mask [B, n]): the first n constituents of each jet, zeros and False behind them."""
        mask = np.arange(n) < self.counts[:, None]
        x = np.zeros((len(self), n, 4), np.float32)
        x[mask] = self.constituents[(np.arange(n) + self.offsets[:-1, None])[mask]]
        return x, mask

    @classmethod
    def from_padded(
        cls,
        x: ArrayLike,
        mask: ArrayLike,
        *,
        labels: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        p4: ArrayLike | None = None,
        index: ArrayLike | None = None,
    ) -> PackedJets:
        """Packs x [B, N, 4] where mask [B, N] is true; what stands in padding (NaN too) is never read.

        What is not given: labels 0, weights 1, p4 the constituents' sum, index the position.
        """
        from kdfast.jets.kinematics import jet_p4

        x, mask = np.asarray(x, np.float32), np.asarray(mask, bool)
        if x.ndim != 3 or x.shape[2] != 4 or mask.shape != x.shape[:2]:
            raise DataError(f"x must be [B, N, 4] and mask [B, N]; they are {list(x.shape)} and {list(mask.shape)}")
        constituents, offsets = x[mask], offsets_of(mask.sum(axis=1))
        jets = len(x)
        return cls(
            constituents,
            offsets,
            np.zeros(jets, np.int64) if labels is None else np.asarray(labels, np.int64),
            np.ones(jets, np.float32) if weights is None else np.asarray(weights, np.float32),
            jet_p4(constituents, offsets) if p4 is None else np.asarray(p4, np.float32),
            np.arange(jets) if index is None else np.asarray(index, np.int64),
        )

    def save(self, path: str | Path) -> None:
        """Writes all arrays to a NumPy .npz file, whole or not at all."""
        from kdfast._files import write_atomically

        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_atomically(Path(path), lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> PackedJets:
        """Reads what `save` wrote. Raises DataError for a file that is damaged or something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{name: file[name] for name in cls.__dataclass_fields__})
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DataError(f"is no file of packed jets ({error})", where=str(path)) from error


def offsets_of(counts: ArrayLike) -> NDArray[np.int64]:
    """[B + 1] offsets of jets with these counts [B]."""
    counts = np.asarray(counts, np.int64)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def constituent_rows(offsets: NDArray[np.int64], jets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the constituents of the given jets, in their order."""
    counts = np.diff(offsets)[jets]
    return np.arange(counts.sum()) + np.repeat(offsets[jets] - offsets_of(counts)[:-1], counts)
