"""Packed jets: constituents of all jets end to end, and where each jet begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from kdfast.errors import ConfigError, DataError
from kdfast.files import write_atomically
from kdfast.jets.kinematics import jet_p4

__all__ = ["PackedJets"]

DTYPES: dict[str, DTypeLike] = {
    "constituents": np.float32,
    "offsets": np.int64,
    "labels": np.int64,
    "weights": np.float32,
    "p4": np.float32,
    "index": np.int64,
}


@dataclass(frozen=True, eq=False)
class PackedJets:
    """B jets with M constituents in total, without padding.

    Parameters
    ----------
    constituents
        [M, 4] float32, columns pt (GeV), eta, phi (rad), energy (GeV). The constituents of a jet are
        neighbours.
    offsets
        [B + 1] int64. Jet b has the constituents ``offsets[b]`` to ``offsets[b + 1] - 1``; it may have none.
    labels
        [B] int64, the class (1 = signal for two classes).
    weights
        [B] float32, event weights.
    p4
        [B, 4] float32, the jet's own pt (GeV), eta, phi, mass (GeV), as stored by the experiment.
    index
        [B] int64, a jet's identity: it survives slicing and shuffling, pairs views of the same jet, and
        keys its random numbers.

    Raises
    ------
    DataError
        For a wrong dtype or shape, or offsets that do not run from 0 to M without falling.

    Notes
    -----
    ``jets[a:b]``, ``jets[mask]`` and ``jets[positions]`` choose jets; a slice with step 1 shares memory. A
    single position gives a PackedJets of length 1. ``len``, iteration (jet by jet) and ``repr`` work as
    expected.

    Examples
    --------
    >>> import numpy as np
    >>> from kdfast import PackedJets
    >>> x = np.ones((3, 5, 4), np.float32)
    >>> mask = np.arange(5) < np.array([[2], [5], [0]])
    >>> jets = PackedJets.from_padded(x, mask, labels=[1, 0, 0])
    >>> jets
    PackedJets(3 jets, 7 constituents)
    >>> jets.counts
    array([2, 5, 0])
    >>> jets[jets.labels == 1]
    PackedJets(1 jets, 2 constituents)
    """

    constituents: NDArray[np.float32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    p4: NDArray[np.float32]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, dtype in DTYPES.items():
            if getattr(self, name).dtype != dtype:
                raise DataError(f"must be {np.dtype(dtype)}, is {getattr(self, name).dtype}", where=name)
        if self.constituents.ndim != 2 or self.constituents.shape[1] != 4:
            shape = list(self.constituents.shape)
            raise DataError(f"must be [M, 4] (pt, eta, phi, energy), is {shape}", where="constituents")
        if self.offsets.ndim != 1 or len(self.offsets) == 0:
            raise DataError(f"must be [B + 1], is {list(self.offsets.shape)}", where="offsets")
        jets, total = len(self.offsets) - 1, len(self.constituents)
        if self.offsets[0] != 0 or self.offsets[-1] != total:
            raise DataError(f"must run from 0 to {total} (the number of constituents)", where="offsets")
        if np.any(self.offsets[1:] < self.offsets[:-1]):
            raise DataError("must not fall", where="offsets")
        for name in ("labels", "weights", "p4", "index"):
            needed = [jets, 4] if name == "p4" else [jets]
            if list(getattr(self, name).shape) != needed:
                raise DataError(f"must have shape {needed}, has {list(getattr(self, name).shape)}", where=name)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __repr__(self) -> str:
        return f"PackedJets({len(self):,} jets, {len(self.constituents):,} constituents)"

    def __iter__(self) -> Iterator[PackedJets]:
        """One jet after the other, each as a PackedJets of length 1."""
        return (self[b : b + 1] for b in range(len(self)))

    @property
    def counts(self) -> NDArray[np.int64]:
        """[B] constituents of each jet."""
        return np.diff(self.offsets)

    def __getitem__(self, which: slice | ArrayLike) -> PackedJets:
        """Some of the jets: a slice (shares memory where its step is 1), a boolean mask [B], or integer positions.

        A single position gives a PackedJets of length 1; negative positions count from the end.
        """
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            if step == 1:
                return self._span(start, max(start, stop))
            rows = np.arange(start, stop, step)
        else:
            rows = self._positions(np.atleast_1d(np.asarray(which)))
        return PackedJets(
            constituents=self.constituents[constituent_rows(self.offsets, rows)],
            offsets=offsets_of(self.counts[rows]),
            labels=self.labels[rows],
            weights=self.weights[rows],
            p4=self.p4[rows],
            index=self.index[rows],
        )

    def _span(self, start: int, stop: int) -> PackedJets:
        if start == 0 and stop == len(self):
            return self
        first, last = self.offsets[start], self.offsets[stop]
        return PackedJets(
            constituents=self.constituents[first:last],
            offsets=self.offsets[start : stop + 1] - first,
            labels=self.labels[start:stop],
            weights=self.weights[start:stop],
            p4=self.p4[start:stop],
            index=self.index[start:stop],
        )

    def _positions(self, which: NDArray[Any]) -> NDArray[np.int64]:
        """The positions 0 … B − 1 that a mask or an array of positions selects."""
        if which.ndim != 1:
            raise DataError(f"jets are chosen by one dimension, not by {list(which.shape)}", where="index")
        if which.dtype == np.bool_:
            if len(which) != len(self):
                raise DataError(f"the mask has {len(which)} entries for {len(self)} jets", where="index")
            return np.flatnonzero(which)
        if which.size == 0:
            return np.zeros(0, np.int64)
        if which.dtype.kind not in "iu":
            raise DataError(f"must be booleans or whole numbers, is {which.dtype}", where="index")
        outside = (which < -len(self)) | (which >= len(self))
        if outside.any():
            raise DataError(f"there is no jet {which[outside][0]} among {len(self)}", where="index")
        rows = which.astype(np.int64)
        return np.where(rows < 0, rows + len(self), rows)

    @classmethod
    def concatenate(cls, parts: Sequence[PackedJets], *, renumber: bool = False) -> PackedJets:
        """Join the jets of all parts, one part after the other.

        Raises DataError if two jets have the same ``index``, unless ``renumber`` gives new ones (0 … B − 1).
        """
        if not parts:
            raise DataError("there are no jets to concatenate", where="parts")
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in DTYPES if name != "offsets"}
        offsets = offsets_of(np.concatenate([part.counts for part in parts]))
        if renumber:
            joined["index"] = np.arange(len(offsets) - 1)
        elif len(np.unique(joined["index"])) < len(joined["index"]):
            hint = "read the files in one call, or pass renumber=True where the parts hold different jets"
            raise DataError("two jets have the same index", where="parts", hint=hint)
        return cls(offsets=offsets, **joined)

    def hardest(self, n: int | None) -> PackedJets:
        """Return the same jets with their first n constituents, the hardest if pT falls; None: all of them."""
        if n is None or not len(self) or np.max(self.counts) <= n:
            return self
        place = np.arange(len(self.constituents)) - np.repeat(self.offsets[:-1], self.counts)
        return self.select_constituents(place < n)

    def select_constituents(self, keep: NDArray[np.bool_]) -> PackedJets:
        """Return the same jets with only the constituents for which ``keep`` [M] is true."""
        keep = np.asarray(keep)
        if keep.dtype != np.bool_ or keep.shape != (len(self.constituents),):
            what = f"must be bool [{len(self.constituents)}], is {keep.dtype} {list(keep.shape)}"
            raise DataError(what, where="keep")
        kept_before = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
        return self.with_constituents(self.constituents[keep], kept_before[self.offsets])

    def with_constituents(self, constituents: NDArray[np.float32], offsets: NDArray[np.int64]) -> PackedJets:
        """Return the same jets with other constituents (another view of them)."""
        return PackedJets(constituents, offsets, self.labels, self.weights, self.p4, self.index)

    def to_padded(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return (x [B, n, 4], mask [B, n]): the first n constituents of each jet, then zeros and False."""
        if n < 0:
            raise ConfigError(f"must not be negative, is {n}", where="n")
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
        """Pack padded jets.

        Parameters
        ----------
        x
            [B, N, 4]: pt (GeV), eta, phi, energy (GeV). Padding may contain anything, even NaN: it is never
            read.
        mask
            [B, N], true for constituents.
        labels, weights, p4, index
            As in PackedJets. Defaults: labels 0, weights 1, p4 the sum of the constituents, index the
            position.
        """
        x, mask = np.asarray(x, np.float32), np.asarray(mask, np.bool_)
        if x.ndim != 3 or x.shape[2] != 4 or mask.shape != x.shape[:2]:
            raise DataError(f"x must be [B, N, 4] and mask [B, N]; they are {list(x.shape)} and {list(mask.shape)}")
        constituents, offsets = x[mask], offsets_of(mask.sum(axis=1))
        jets = len(x)
        return cls(
            constituents,
            offsets,
            labels=np.zeros(jets, np.int64) if labels is None else _whole(labels, "labels"),
            weights=np.ones(jets, np.float32) if weights is None else np.asarray(weights, np.float32),
            p4=jet_p4(constituents, offsets) if p4 is None else np.asarray(p4, np.float32),
            index=np.arange(jets) if index is None else _whole(index, "index"),
        )

    def save(self, path: str | Path) -> None:
        """Write all arrays to a NumPy .npz file, completely or not at all."""
        arrays = {name: getattr(self, name) for name in DTYPES}
        write_atomically(Path(path), lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | Path) -> PackedJets:
        """Read what `save` wrote. Raises DataError for a file that is missing, damaged or something else."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(**{name: arrays[name] for name in DTYPES})
        except FileNotFoundError as error:
            raise DataError("there is no such file", where=str(path)) from error
        except Exception as error:  # NumPy and zipfile raise whatever a broken structure leads to
            raise DataError(f"is not a file of packed jets, or is damaged ({error})", where=str(path)) from error


def _whole(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Whole numbers as int64; never rounds."""
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):  # NaN becomes some number, which differs from NaN
        whole = given.astype(np.int64)
    if not np.array_equal(whole, given):
        raise DataError("must hold whole numbers", where=name)
    return whole


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
