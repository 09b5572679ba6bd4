"""Two studies side by side: the runs that both have, on the test jets that both have.

A jet is the same in both where the studies were made of the same data (equal fingerprints) and its index is the same.
Scores of the same jets fluctuate together, so that a difference of two networks is known better than either number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdfast.store.store import KINDS, StoredResult, StudyStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["PairedRun", "Pairing", "RunKey", "fault_of_scores", "pair_studies"]


class RunKey(NamedTuple):
    """What makes two runs the same run. kind: "teacher", "baseline" or "student"."""

    kind: str
    name: str
    seed: int


@dataclass(frozen=True)
class PairedRun:
    """A run of both studies: its logits on the shared test jets, in the order of Pairing.index ([B] each)."""

    key: RunKey
    first: NDArray[Any]
    second: NDArray[Any]


@dataclass(frozen=True)
class Pairing:
    """What two studies share.

    index, labels, weights [B]: the shared test jets, by rising index. positions: of these jets among the test jets of
    the first and of the second study ([B] each), so that any array of either can be brought into this order.
    runs: those with scores of these jets in both. shared, only_first, only_second: all runs that are done in both
    studies, or in one alone. scored: the shared ones with scores that can be used in both, of the same jets or not.
    reasons: sentences on what can't be paired, and why; empty where every shared run is.
    """

    index: NDArray[np.int64]
    labels: NDArray[Any]
    weights: NDArray[Any]
    positions: tuple[NDArray[np.int64], NDArray[np.int64]]
    runs: tuple[PairedRun, ...]
    shared: tuple[RunKey, ...]
    scored: tuple[RunKey, ...]
    only_first: tuple[RunKey, ...]
    only_second: tuple[RunKey, ...]
    reasons: tuple[str, ...]


def pair_studies(first: StudyStore, second: StudyStore) -> Pairing:
    """Pairs two studies by their runs and test jets. Raises StudyError for a damaged one; what can't be paired is no
    error but one of the `reasons`."""
    done_first, done_second = _done(first), _done(second)
    shared = [key for key in done_first if key in done_second]
    scored = [key for key in shared if done_first[key].has_scores and done_second[key].has_scores]
    nobody = np.zeros(0, np.int64)
    index, labels, weights, positions = nobody, nobody, np.zeros(0, np.float32), (nobody, nobody)
    reasons = [] if shared else ["The studies have no run of the same kind, name and seed."]
    if len(scored) < len(shared):
        what = "No shared run has" if not scored else f"{len(shared) - len(scored)} of {len(shared)} shared runs lack"
        reasons.append(f"{what} scores per jet in both studies: a run imported from a log has none.")
    for store, done in ((first, done_first), (second, done_second)):
        faults = _faults(store, {key: done[key] for key in scored})
        reasons += _told(store, faults)
        scored = [key for key in scored if key not in faults]
    if scored:
        if reason := _other_data(first, second):
            reasons.append(reason)
        else:
            index, labels, weights, positions, reason = _shared_jets(first, second)
            if reason:
                reasons.append(reason)
    here, there = positions
    runs = [
        PairedRun(key, done_first[key].arrays["scores_test"][here], done_second[key].arrays["scores_test"][there])
        for key in (scored if len(index) else ())
    ]
    return Pairing(
        index,
        labels,
        weights,
        positions,
        tuple(runs),
        tuple(shared),
        tuple(scored),
        tuple(key for key in done_first if key not in done_second),
        tuple(key for key in done_second if key not in done_first),
        tuple(reasons),
    )


def _done(store: StudyStore) -> dict[RunKey, StoredResult]:
    """The results that are done: teacher, baselines, students."""
    results: Iterable[StoredResult] = sorted(store.results(), key=lambda result: KINDS.index(result.kind))
    return {RunKey(r.kind, r.name, r.seed): r for r in results if r.status == "done"}


def fault_of_scores(result: StoredResult, jets: int) -> str:
    """Why a result's scores on so many test jets can't be used; empty where they can."""
    scores = result.arrays["scores_test"]
    if scores.shape != (jets,):
        return f"it has {len(scores)} scores for {jets} test jets"
    if bad := int((~np.isfinite(scores)).sum()):
        return f"{bad} of its {len(scores)} test scores are not finite"
    return "all its test scores are equal" if np.ptp(scores) == 0 else ""


def _faults(store: StudyStore, results: Mapping[RunKey, StoredResult]) -> dict[RunKey, str]:
    jets = len(store.shared("test")["labels"]) if results else 0
    return {key: fault for key, result in results.items() if (fault := fault_of_scores(result, jets))}


def _told(store: StudyStore, faults: Mapping[RunKey, str]) -> Iterator[str]:
    """A sentence for each kind of fault."""
    for fault in dict.fromkeys(faults.values()):
        first, *others = (f"{key.name}, seed {key.seed}," for key, own in faults.items() if own == fault)
        yield f"{store.path}: {first} " + (f"and {len(others)} more are" if others else "is") + f" left out: {fault}."


def _other_data(first: StudyStore, second: StudyStore) -> str:
    """Why the two studies' jets are not known to be the same; empty where they are."""
    prints = []
    for store in (first, second):
        name = store.provenance.get("decisive", {}).get("data", {}).get("fingerprint")
        if not isinstance(name, str):
            return f"{store.path} does not say which jets it was made with, so none can be paired."
        prints.append(name)
    if prints[0] != prints[1]:
        return (
            f"The studies were made of other data (fingerprints {prints[0][:8]}… and {prints[1][:8]}…): a jet's index "
            "means another jet, or the same with other constituents, so none can be paired."
        )
    return ""


def _shared_jets(
    first: StudyStore, second: StudyStore
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any], tuple[NDArray[np.int64], NDArray[np.int64]], str]:
    """index, labels, weights, positions, and why there are none (empty: there are)."""
    jets, others = first.shared("test"), second.shared("test")
    index, here, there = np.intersect1d(jets["index"], others["index"], return_indices=True)
    labels, weights = jets["labels"][here], jets["weights"][here]
    reason = ""
    if not np.array_equal(labels, others["labels"][there]) or not np.array_equal(weights, others["weights"][there]):
        reason = "Test jets of equal index have other labels or weights, so none can be paired."
    elif len(np.unique(labels[weights > 0])) < 2:
        reason = (
            f"The studies share {len(index):,} test jets"
            + (" of one class" if len(index) else "")
            + ": their splits differ (seed or fractions of the data), so no difference can be measured jet by jet."
        )
    if reason:
        return index[:0], labels[:0], weights[:0], (here[:0], there[:0]), reason
    return index, labels, weights, (here, there), ""
