"""What two studies share: runs of the same kind, name and seed, and test jets of the same index and data.

Scores of the same jets fluctuate together, so a difference of two networks is known better than either
number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.store.key import KINDS, RunKey
from kdfast.store.store import StoredResult, StudyStore

__all__ = ["PairedRun", "Pairing", "fault_of_scores", "pair_studies"]


@dataclass(frozen=True)
class PairedRun:
    """A run of both studies: its logits on the shared test jets, in the order of Pairing.index ([B] each)."""

    key: RunKey
    first: NDArray[Any]
    second: NDArray[Any]


@dataclass(frozen=True)
class Pairing:
    """What two studies share.

    Attributes
    ----------
    index, labels, weights : arrays [B]
        The shared test jets, by rising index.
    runs : tuple of PairedRun
        Runs with usable scores on these jets in both studies.
    shared, only_first, only_second : tuple of RunKey
        Runs that are done in both studies, or in one alone.
    reasons : tuple of str
        Why something can't be paired; empty where every shared run is.
    """

    index: NDArray[np.int64]
    labels: NDArray[Any]
    weights: NDArray[Any]
    runs: tuple[PairedRun, ...]
    shared: tuple[RunKey, ...]
    only_first: tuple[RunKey, ...]
    only_second: tuple[RunKey, ...]
    reasons: tuple[str, ...]


def pair_studies(first: StudyStore, second: StudyStore) -> Pairing:
    """Pair two studies by their runs and test jets.

    Raises
    ------
    StudyError
        For a damaged study. What can't be paired is no error but one of the `reasons`.
    """
    stores = (first, second)
    done = []
    for store in stores:
        results = sorted(store.results(), key=lambda result: KINDS.index(result.kind))
        done.append({r.key: r for r in results if r.status == "done"})
    shared = [key for key in done[0] if key in done[1]]
    scored = [key for key in shared if all(runs[key].has_scores for runs in done)]
    reasons = [] if shared else ["The studies have no run of the same kind, name and seed."]
    if len(scored) < len(shared):
        which = f"{len(shared) - len(scored)} of {len(shared)} shared runs have"
        if not scored:
            which = "The shared runs have"
        reasons.append(f"{which} no scores per jet in both studies: a run imported from a log has none.")
    for store, runs in zip(stores, done, strict=True):
        number = len(store.shared("test")["labels"]) if scored else 0
        faults = {key: fault_of_scores(runs[key], number) for key in scored}
        reasons += [f"{store.path}: {k.name}, seed {k.seed}, is left out: {why}." for k, why in faults.items() if why]
        scored = [key for key in scored if not faults[key]]
    index = np.zeros(0, np.int64)
    labels = index
    weights = np.zeros(0, np.float32)
    paired: list[PairedRun] = []
    if scored:
        jets, others = (store.shared("test") for store in stores)
        common, here, there = np.intersect1d(jets["index"], others["index"], return_indices=True)
        same = all(np.array_equal(jets[name][here], others[name][there]) for name in ("labels", "weights"))
        both = (others["labels"][there], others["weights"][there])
        obstacle = _different_data(stores) or _different_jets(same, *both)
        if obstacle:
            reasons.append(obstacle)
        else:
            index = common
            labels, weights = both
            for key in scored:
                one, other = (runs[key].arrays["scores_test"] for runs in done)
                paired.append(PairedRun(key, one[here], other[there]))
    return Pairing(
        index=index,
        labels=labels,
        weights=weights,
        runs=tuple(paired),
        shared=tuple(shared),
        only_first=tuple(key for key in done[0] if key not in done[1]),
        only_second=tuple(key for key in done[1] if key not in done[0]),
        reasons=tuple(reasons),
    )


def fault_of_scores(result: StoredResult, jets: int) -> str:
    """Why a result's scores can't be used on a number of test jets; empty where they can."""
    scores = result.arrays["scores_test"]
    if scores.shape != (jets,):
        return f"it has {len(scores)} scores for {jets} test jets"
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        return f"{bad} of its {len(scores)} test scores are not finite"
    return "all its test scores are equal" if np.ptp(scores) == 0 else ""


def _different_data(stores: Iterable[StudyStore]) -> str:
    """Why the jets that the test jets come from are not known to be the same; empty where they are.

    These are the study's jets, or its test jets where they were given apart.
    """
    prints = []
    for store in stores:
        data = store.provenance.get("decisive", {}).get("data", {})
        name = data.get("test_fingerprint") or data.get("fingerprint")
        if not isinstance(name, str):
            return f"{store.path} does not record which jets it was made with, so none can be paired."
        prints.append(name)
    if prints[0] == prints[1]:
        return ""
    return (
        f"The studies were made of different data (fingerprints {prints[0][:8]}… and {prints[1][:8]}…): equal indices "
        "mean different jets, so none can be paired."
    )


def _different_jets(same: bool, labels: NDArray[Any], weights: NDArray[Any]) -> str:
    """Why jets of equal index (labels and weights are the second study's) can't be paired; empty where they
    can."""
    if not same:
        return "Test jets of equal index have different labels or weights, so none can be paired."
    if len(np.unique(labels[weights > 0])) == 2:
        return ""
    of = " of one class" if len(labels) else ""
    return (
        f"The studies share {len(labels):,} test jets{of}: their splits differ, so no "
        "difference can be measured jet by jet."
    )
