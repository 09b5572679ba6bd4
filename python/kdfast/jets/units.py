"""Units of momenta: a file's are MeV or GeV, everything else is GeV. A wrong unit shows in the jets' pT.

The median pT of jets must lie in PLAUSIBLE_PT: reconstructed jets begin at some 20 GeV, and those of the LHC
end at 7 TeV. So a file in GeV that is read as MeV is found if its median is below 5 TeV, and one in MeV that
is read as GeV if its median is above 20 GeV.
"""

from __future__ import annotations

from statistics import median as median_of  # of few numbers faster than NumPy's

import numpy as np
from numpy.typing import NDArray

from kdfast.errors import DataError
from kdfast.jets.columns import ColumnMap
from kdfast.jets.packed import PackedJets, constituent_rows, offsets_of
from kdfast.mapped import release

__all__ = ["PER_GEV", "check_file_unit", "check_in_gev"]

IN_UNIT = ("pt", "energy", "mass", "px", "py", "pz")  # what of a constituent a unit applies to
PER_GEV = {"MeV": 1000.0, "GeV": 1.0}
PLAUSIBLE_PT = (5.0, 20_000.0)  # GeV
# Of a jet's pT, the part that its stored constituents have: 1, or less where only the hardest are kept.
PLAUSIBLE_SHARE = (0.005, 30.0)
LOOKED_AT = 1000  # jets: enough for the order of magnitude of a median


def check_file_unit(
    p4: NDArray[np.float32],
    counts: NDArray[np.int64],
    constituents: NDArray[np.float32],
    unit: str,
    where: str,
    columns: ColumnMap,
) -> None:
    """Raises DataError where a file's momenta can't have been in `unit`, from which they were brought to GeV.

    p4 [B, 4], counts [B], constituents [M, 4]: of the file's jets. columns: of the file, for messages.
    """
    form = columns.constituents.form
    momenta = [name for key, name in zip(form, columns.constituents.names, strict=True) if key in IN_UNIT]
    jet_momenta = [name for name in (columns.jet.pt, columns.jet.mass) if name]
    rows = _evenly(len(p4))
    jet_pt = p4[rows, 0]
    median = float(np.median(jet_pt))
    if not _is_plausible(median):
        what = f"the median jet pT is {median:.3g} GeV if the file is in {unit}"
        other = "GeV" if unit == "MeV" else "MeV"
        if _is_plausible(median * PER_GEV[unit] / PER_GEV[other]):
            hint = f"the file seems to be in {other}: {{unit}} reads it so"
            raise DataError(what, where=where, hint=hint, settings={"unit": other})
        hint = f"jets of {_RANGE} are expected: bring {(jet_momenta or momenta)[0]} to MeV or GeV"
        raise DataError(what, where=where, hint=hint)
    filled = counts[rows] > 0
    if not filled.any():
        return
    share = float(np.median(_constituent_pt(constituents, counts, rows)[filled] / jet_pt[filled]))
    if not PLAUSIBLE_SHARE[0] <= share <= PLAUSIBLE_SHARE[1]:
        names = [*momenta, *jet_momenta]
        what = f"the constituents' pT add up to {share:.3g} of the jets' pT (median)"
        raise DataError(what, where=where, hint=f"bring {', '.join(names[:-1])} and {names[-1]} to one unit")


def check_in_gev(jets: PackedJets, where: str, *, also_soft: bool = True) -> None:
    """Raises DataError where jets that were given in Python can't be in GeV, by the pT of their constituents.

    also_soft: whether jets that seem too soft are refused too, which a few may be, and what a trigger saw.
    Those whose own pT is not too small are not: they have lost constituents.
    """
    filled = np.flatnonzero(jets.offsets[1:] > jets.offsets[:-1])
    filled = filled[_evenly(len(filled))] if len(filled) > LOOKED_AT else filled
    pt, stored_pt = _scalar_pt(jets, filled)
    known = pt[np.isfinite(pt)]
    if not len(known):
        return
    median = median_of(known.tolist())
    if median < PLAUSIBLE_PT[0] and not (also_soft and np.median(stored_pt) < PLAUSIBLE_PT[0]):
        return
    if _is_plausible(median):
        return
    what = f"the median jet pT is {median:.3g} GeV"
    hint = f"PackedJets are in GeV, and jets of {_RANGE} are expected"
    for unit, factor, remedy in (("MeV", 1e-3, "divide"), ("TeV", 1e3, "multiply")):
        if _is_plausible(median * factor):
            hint = f"they seem to be in {unit}: {remedy} pt and energy (and p4) by 1000, as PackedJets are in GeV"
    raise DataError(what, where=where, hint=hint)


def _scalar_pt(jets: PackedJets, filled: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Of these jets, which have constituents: the scalar sum of their constituents' pT, and their own pT."""
    if len(filled) < LOOKED_AT:
        # From the start of one filled jet to that of the next one: the empty ones between them add nothing.
        return np.add.reduceat(jets.constituents[:, 0], jets.offsets[filled], dtype=np.float64), jets.p4[filled, 0]
    found = []
    for rows in np.array_split(filled, 20):  # each jet of a mapped file brings some 100 kB into memory
        some = jets[rows]
        found.append((np.add.reduceat(some.constituents[:, 0], some.offsets[:-1], dtype=np.float64), some.p4[:, 0]))
        release(vars(jets).values())
    sums, stored = zip(*found, strict=True)
    return np.concatenate(sums), np.concatenate(stored)


_RANGE = f"{PLAUSIBLE_PT[0]:g} GeV to {PLAUSIBLE_PT[1] / 1000:g} TeV"


def _is_plausible(median: float) -> bool:
    return PLAUSIBLE_PT[0] <= median <= PLAUSIBLE_PT[1]


def _evenly(number: int) -> NDArray[np.int64]:
    """At most LOOKED_AT of 0 … number − 1, evenly spaced."""
    return np.linspace(0, number - 1, min(number, LOOKED_AT)).astype(np.int64)


def _constituent_pt(
    constituents: NDArray[np.float32], counts: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The scalar sum of the constituents' pT of the jets at `rows`; 0 for an empty jet."""
    offsets = offsets_of(counts)
    pt = constituents[constituent_rows(offsets, rows), 0]
    jet = np.repeat(np.arange(len(rows)), counts[rows])
    return np.bincount(jet, pt, minlength=len(rows)).astype(np.float64)
