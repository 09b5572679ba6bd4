"""The sets of jets that a study was given, joined, and which of the jets are for training, validation and testing.

Jets come as `data`, which fractions or a column of its files split, and as `validation_data` and `test_data`,
which are for validation and testing as a whole. All of them are one PackedJets, one set after the other.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError, KdfastWarning
from kdfast.jets.fingerprint import jet_hashes, kept_fingerprint
from kdfast.jets.packed import PackedJets
from kdfast.jets.splits import PARTS, SETS, raised_by
from kdfast.store.settings import DataSettings

__all__ = ["CLASSES", "SETS", "SET_PATHS", "SPLITS", "Sets", "check_apart", "join", "split"]

# The splits, in the order of splits.PARTS; the keys of files in the settings, by set.
SPLITS = ("train", "validation", "test")
SET_PATHS = dict(zip(SETS, ("paths", "validation_paths", "test_paths"), strict=True))

CLASSES = {0: "background", 1: "signal"}

# Of the jets of a set or part, as a share: if more are in another one as well, that is an error.
MOST_IN_COMMON = 1e-3


@dataclass(frozen=True)
class Sets:
    """rows: of each set that was given, by name. places: [B] of each jet's part in splits.PARTS; those of
    training jets are shared by all parts without jets of their own. by_column: the places come from a
    column."""

    rows: Mapping[str, slice]
    places: NDArray[np.int8]
    by_column: bool = False

    @classmethod
    def of(cls, sizes: Mapping[str, int], places: NDArray[np.int8] | None = None) -> Sets:
        """Sets of these sizes. places: of the jets of `data`, by a column."""
        ends = np.cumsum([0, *sizes.values()]).tolist()
        rows = {name: slice(*ends[k : k + 2]) for k, name in enumerate(sizes)}
        by_set = [np.full(size, SETS.index(name), np.int8) for name, size in sizes.items()]
        return cls(rows, np.concatenate(by_set) if places is None else places, places is not None)

    def fingerprints(self, jets: PackedJets, max_constituents: int | None) -> dict[str, str]:
        """What identifies the jets and their split, but for what settings say of it."""
        found = {
            name.replace("data", "fingerprint"): kept_fingerprint(jets[rows], max_constituents)
            for name, rows in self.rows.items()
        }
        if self.by_column:
            found["split_fingerprint"] = hashlib.sha256(self.places.tobytes()).hexdigest()
        return found


def join(sets: Mapping[str, PackedJets]) -> PackedJets:
    """All jets, each with an index of its own.

    Where two sets have jets of equal index, those of some sets are raised (see splits.raised_by). Raises
    DataError for two jets of equal index within a set.
    """
    first, *others = sets.values()
    if not others:
        return first
    indices = np.concatenate([jets.index for jets in sets.values()])
    if len(np.unique(indices)) < len(indices):
        sets = {name: replace(jets, index=jets.index + raised_by(name, sets)) for name, jets in sets.items()}
        for name, jets in sets.items():
            if len(np.unique(jets.index)) < len(jets):
                hint = "give each jet an index of its own"
                raise DataError("two jets have the same index", where=name, hint=hint)
    return PackedJets.concatenate(list(sets.values()))


def split(jets: PackedJets, settings: DataSettings, sets: Sets) -> dict[str, NDArray[np.int64]]:
    """Positions of the jets of each split, rising. Raises DataError for a split without jets of one class."""
    positions = {name: np.flatnonzero(sets.places == place) for place, name in enumerate(SPLITS)}
    whole = {SPLITS[SETS.index(name)] for name in sets.rows if name != "data"}
    shared = [name for part, name in zip(PARTS, SPLITS, strict=True) if part in settings.shared and name not in whole]
    data = f"data, split by {settings.split.column}" if settings.split else "data"
    own = [name for name in positions if name not in shared[1:]]
    for name in own:
        if not len(positions[name]):
            hint = "check the values of the split; max_jets takes jets in file order"
            raise DataError(f"there is no {name} jet", where=data, hint=hint)
    if len(shared) > 1:
        positions |= _by_fractions(jets, settings, positions["train"], shared)
    for name, part in positions.items():
        set_name = SETS[SPLITS.index(name)]
        where = set_name if set_name in sets.rows else data
        for label, kind in CLASSES.items():
            if not (jets.weights[part][jets.labels[part] == label] > 0).any():
                raise DataError(
                    f"the {name} jets hold one class only: no {kind} jet of weight above 0 ({_found(jets)} in all)",
                    where=where,
                    hint="give more jets or other fractions" if name in shared else "give jets of both classes",
                )
    return positions


def _by_fractions(
    jets: PackedJets, settings: DataSettings, rows: NDArray[np.int64], names: Sequence[str]
) -> dict[str, NDArray[np.int64]]:
    """Shares these rows out by the fractions of these splits, stratified by label."""
    from sklearn.model_selection import train_test_split  # takes a second to import

    labels = jets.labels[rows]
    found = _found(jets, rows)
    if len(np.unique(labels)) < 2:
        hint = "training needs jets of both classes"
        raise DataError(f"holds one class only ({found})", where="data", hint=hint)
    shares = [settings.fractions[SPLITS.index(name)] for name in names]
    parts = {}
    rest = rows
    try:
        for k, name in enumerate(names[:-1]):
            share = shares[k] / sum(shares[k:])
            if len(names) < len(SPLITS):
                share = round(share, 12)  # 0.6 / 0.8 is 0.75
            elif k == 0:
                share = shares[0]  # their sum may not be 1 in the last bit
            parts[name], rest = train_test_split(
                rest, train_size=share, random_state=settings.seed, stratify=jets.labels[rest]
            )
    except ValueError:
        hint = f"each of {', '.join(names)} needs jets of both classes: give more jets or other fractions"
        raise DataError(f"too few jets to split ({found})", where="data", hint=hint) from None
    parts[names[-1]] = rest
    return {name: np.sort(part) for name, part in parts.items()}


def check_apart(jets: PackedJets, sets: Sets) -> None:
    """Raises DataError where jets of one set or, by a column, of one part are in another as well; warns of few."""
    if len(sets.rows) == 1 and not sets.by_column:
        return
    groups = {place: np.flatnonzero((sets.places == place) & (jets.counts > 0)) for place in np.unique(sets.places)}
    hashes = jet_hashes(jets)
    for first, second in combinations(groups, 2):
        rows = groups[second]
        common = rows[np.isin(hashes[rows], hashes[groups[first]])]
        if not len(common):
            continue
        here, there = (_named(sets, place) for place in (second, first))
        where = "data" if sets.by_column else SETS[second]
        row = int(common[0]) - sets.rows[where].start
        what = f"{len(common):,} of {len(rows):,} {here} are among the {there} as well"
        if len(common) > MOST_IN_COMMON * min(len(rows), len(groups[first])):
            raise DataError(what, where=f"{where}, row {row}", hint="leave them out of one of the two")
        warnings.warn(f"{where}, row {row}: {what}", KdfastWarning, stacklevel=4)


def _named(sets: Sets, place: int) -> str:
    return f"{PARTS[place]} jets" if sets.by_column else f"jets of {SETS[place]}"


def _found(jets: PackedJets, rows: NDArray[np.int64] | None = None) -> str:
    labels = jets.labels if rows is None else jets.labels[rows]
    counts = [f"{np.count_nonzero(labels == label)} {name}" for label, name in CLASSES.items()]
    return f"{' and '.join(counts)} jets"
