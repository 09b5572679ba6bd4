"""Constituents in the forms of files, brought to the packed one: pt, eta, phi, energy by falling pT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kdfast.jets.checks import HOLE, SORT, UNSORTED, Remedy, below_momentum, jets_with
from kdfast.jets.columns import ColumnMap
from kdfast.jets.kinematics import wrap_phi
from kdfast.jets.packed import offsets_of

__all__ = ["StoredConstituents", "as_packed"]


@dataclass(frozen=True)
class StoredConstituents:
    """A block of jets as its file has them.

    values: by key of the map's form, [rows, slots], in the file's unit. valid [rows, slots]: where a slot
    holds a constituent; None: as the map's padding says.
    """

    columns: ColumnMap
    values: Mapping[str, NDArray[np.float32]]
    valid: NDArray[np.bool_] | None

    def name(self, key: str) -> str:
        """The column of a key."""
        return str(getattr(self.columns.constituents, key))


class _Faults(Protocol):
    """Where bad rows go: an error, or noted as not good."""

    good: NDArray[np.bool_]

    def reject(self, name: str, bad: NDArray[np.bool_], what: str, *, remedy: Remedy | None = None) -> Any: ...


def as_packed(stored: StoredConstituents, faults: _Faults) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(constituents [M, 4], counts [rows]) in the file's unit. Rows that are not good have none."""
    filled = _filled(stored, faults)
    for key, values in stored.values.items():
        faults.reject(stored.name(key), _rows(~np.isfinite(values) & filled), "is not finite")
    filled &= faults.good[:, None]
    counts = filled.sum(axis=1)
    offsets = offsets_of(counts)
    # One column after the other of [M], in double precision: px and py of a soft constituent cancel in its pT
    parts = {key: values[filled].astype(np.float64) for key, values in stored.values.items()}
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        packed = _momenta(stored, parts, offsets, faults).astype(np.float32)
    _check(stored, packed, offsets, faults)
    if not faults.good.all():  # their numbers may be anything
        packed = packed[np.repeat(faults.good, counts)]
        counts[~faults.good] = 0
    if stored.columns.order == "sort":
        jet = np.repeat(np.arange(len(counts)), counts)
        packed = packed[np.lexsort((-packed[:, 0], jet))]  # stable
    return packed, counts


def _rows(slots: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[rows] whether any slot of a jet is marked."""
    return np.logical_or.reduce(slots, axis=1)


def _filled(stored: StoredConstituents, faults: _Faults) -> NDArray[np.bool_]:
    """[rows, slots] which slots hold a constituent, after checks of the others."""
    first, *others = stored.values
    filled: NDArray[np.bool_]
    if stored.valid is not None:
        return stored.valid.copy()
    if stored.columns.padding == "nan":
        missing: dict[str, NDArray[np.bool_]] = {key: np.isnan(values) for key, values in stored.values.items()}
        filled = ~missing[first]
        for key in others:
            bad = _rows(~missing[key] & ~filled)
            faults.reject(stored.name(key), bad & faults.good, f"is not NaN in padding (where {stored.name(first)} is)")
        return filled
    if first == "px":
        filled = np.zeros(stored.values[first].shape, np.bool_)
        for values in stored.values.values():
            filled |= values != 0
    else:
        filled = stored.values[first] != 0
        for key in others:
            bad = _rows((stored.values[key] != 0) & ~filled)
            faults.reject(stored.name(key), bad, "is not zero in padding (where pT is zero)")
    if stored.columns.order == "sorted":
        holes = _rows(filled[:, 1:] & ~filled[:, :-1])
        faults.reject(stored.name(first), holes, HOLE, remedy=SORT)
    return filled


def _momenta(
    stored: StoredConstituents, parts: Mapping[str, NDArray[np.float64]], offsets: NDArray[np.int64], faults: _Faults
) -> NDArray[np.float64]:
    """[M, 4] pt, eta, phi, energy of the constituents."""
    if "px" in parts:
        pt = np.hypot(parts["px"], parts["py"])
        still = jets_with(pt == 0, offsets)
        faults.reject(stored.name("px"), still, "has no transverse momentum in a slot that is filled")
        return np.stack([pt, np.arcsinh(parts["pz"] / pt), np.arctan2(parts["py"], parts["px"]), parts["energy"]], 1)
    pt, phi = parts["pt"], wrap_phi(parts["phi"])
    eta = parts["eta"] if "eta" in parts else parts["rapidity"]
    if "energy" in parts:
        return np.stack([pt, eta, phi, parts["energy"]], 1)
    mass = parts.get("mass", np.zeros(len(pt)))
    if "mass" in parts:
        faults.reject(stored.name("mass"), jets_with(mass < 0, offsets), "is negative")
    energy = np.hypot(pt * np.cosh(eta), mass)
    name = stored.name("eta" if "eta" in parts else "rapidity")
    faults.reject(name, jets_with(~(energy < np.finfo(np.float32).max), offsets), "is too large for a finite energy")
    return np.stack([pt, eta, phi, energy], 1)


def _check(
    stored: StoredConstituents, packed: NDArray[np.float32], offsets: NDArray[np.int64], faults: _Faults
) -> None:
    """What jets of every format must be: pt not negative and not rising, energies not below momenta."""
    first = stored.name(next(iter(stored.values)))
    pt = packed[:, 0]
    faults.reject(first, jets_with(pt < 0, offsets), "is negative")
    if stored.valid is not None or stored.columns.padding == "nan":
        faults.reject(first, jets_with(pt == 0, offsets), "is zero in a slot that is filled")
    if stored.columns.order == "sorted":
        rises = np.zeros(len(pt), np.bool_)
        rises[1:] = pt[1:] > pt[:-1]
        rises[offsets[:-1][np.diff(offsets) > 0]] = False
        faults.reject(first, jets_with(rises, offsets), UNSORTED, remedy=SORT)
    if "energy" in stored.values:
        below = below_momentum(pt, packed[:, 1], packed[:, 3])
        faults.reject(stored.name("energy"), jets_with(below, offsets), "is smaller than the momentum pT·cosh η")
