"""Two studies: what they share, and a table of differences of the runs that both have, with intervals.

Runs are shared that have the same kind, name and seed, and test jets of the same index and data. On these
both scores of a jet enter one difference, so that most of the jets' fluctuation cancels. Where no jets are
shared, or scores per jet are missing, there are differences and no intervals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdfast.files import as_text
from kdfast.metrics import background_rejection
from kdfast.report.comparisons import configurations, holm
from kdfast.report.networks import fault_of_scores
from kdfast.report.records import estimate_of, jet_counts
from kdfast.report.sampling import Estimates, Floats, auc_estimates, rejection_estimates
from kdfast.report.schema.runs import Jets
from kdfast.report.schema.values import Estimate, Metric, Record
from kdfast.store.identity import differing, shown_setting
from kdfast.store.key import KINDS, RunKey
from kdfast.store.store import StudyStore

__all__ = ["PairedMetric", "PairedRow", "PairedRun", "Pairing", "StudyComparison", "compare", "pair_studies"]


# Settings that decide no result but say which runs there are.
_PLANNED = ("seeds", "grid")

# Longer lists among the settings are counted, and their first items shown.
_LISTED = 6


Kind = Literal["teacher", "baseline", "mean", "student"]


# ---- what they share


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


# ---- the comparison


class PairedMetric(Record):
    """A metric of the same network or configuration in two studies, means over seeds (geometric for
    rejections)."""

    first: float
    second: float
    change: Estimate
    """AUC: second minus first. Rejection: second over first. Without an interval where no test jets are
    shared."""
    p_holm: float | None
    """Of no change, adjusted over the configurations (Holm)."""


class PairedRow(Record):
    """A network, a configuration, or the mean of the configurations, in both studies."""

    kind: Kind
    name: str
    seeds: int
    """Number of seeds that both have."""
    auc: PairedMetric
    rejection: PairedMetric | None
    """At 50 % signal efficiency; null where a study does not give it, or a run's is a lower limit."""


class StudyComparison(Record):
    """The comparison of two studies."""

    names: tuple[str, str]
    """The studies' folders, with as many parent folders as it takes to distinguish them."""
    shared_test: Jets | None
    """The test jets on which differences are paired; null: there are none."""
    rows: list[PairedRow]
    """Teacher, baseline, mean of the configurations, then the configurations by the change of AUC."""
    settings: list[tuple[str, str | None, str | None]]
    """Settings that differ, in the first and in the second study; null: one does not have it."""
    reasons: list[str]
    """What can't be compared, and why."""


def compare(first: StudyStore, second: StudyStore) -> StudyComparison:
    """Compare the runs that two studies share.

    Raises
    ------
    StudyError
        For a damaged study. What can't be compared is named in `reasons`.
    """
    stores = (first, second)
    pairing = pair_studies(first, second)
    names = _names(first.path, second.path)
    pairs = _measured(pairing) if pairing.runs else _as_stored(stores, pairing.shared)
    rows = [row for kind in ("teacher", "baseline") for row in _rows(pairs, kind)]
    rows += _mean(pairs)
    rows += sorted(_rows(pairs, "student"), key=lambda row: -row.auc.change.value)
    reasons = [*pairing.reasons, *_limits(pairs)]
    for name, runs in zip(names, (pairing.only_first, pairing.only_second), strict=True):
        if runs:
            few = ", ".join(f"{key.name} (seed {key.seed})" for key in runs[:3])
            more = ", …" if len(runs) > 3 else ""
            reasons.append(f"Only in {name}: {len(runs)} runs ({few}{more}).")
    paired = len(pairing.index) > 0
    return StudyComparison(
        names=names,
        shared_test=jet_counts(pairing.labels, np.asarray(pairing.weights, np.float64)) if paired else None,
        rows=rows,
        settings=_settings(stores),
        reasons=reasons,
    )


def _names(first: Path, second: Path) -> tuple[str, str]:
    one = first.resolve().parts
    other = second.resolve().parts
    length = next((n for n in range(1, min(len(one), len(other)) + 1) if one[-n:] != other[-n:]), 1)
    return as_text(Path(*one[-length:])), as_text(Path(*other[-length:]))


def _settings(stores: Sequence[StudyStore]) -> list[tuple[str, str | None, str | None]]:
    whole = all("decisive" in store.provenance for store in stores)  # not so of imported studies
    here, there = (store.provenance["decisive"] if whole else store.settings for store in stores)
    found = list(differing(here, there))
    if whole:
        planned = [{key: store.settings.get(key) for key in _PLANNED} for store in stores]
        found += differing(planned[0], planned[1])
    return [(name, _shown(old), _shown(new)) for name, old, new in found]


def _shown(value: Any) -> str | None:
    if isinstance(value, list | tuple) and len(value) > _LISTED:
        return f"{len(value)}: {', '.join(map(str, value[:3]))}, …"
    return None if value is None else shown_setting(value)


# ---- numbers of both studies


@dataclass(frozen=True)
class _Pairs:
    """K runs in both studies. values: by metric [2, K], AUC and ln of the rejection (NaN: none, or a lower
    limit). factor: by metric [K, M], of the differences over samples of test jets; None: not known. limited
    [K]: a rejection is a lower limit in one of the studies."""

    keys: Sequence[RunKey]
    values: Mapping[Metric, Floats]
    factor: Mapping[Metric, Floats] | None
    limited: NDArray[np.bool_]


def _measured(pairing: Pairing, replicates: int | None = None) -> _Pairs:
    """Of the paired runs, on the shared test jets."""
    labels = np.asarray(pairing.labels, np.int64)
    weights = np.asarray(pairing.weights, np.float64)
    runs = pairing.runs
    scores = np.array([run.first for run in runs] + [run.second for run in runs], np.float64)
    estimates: dict[Metric, Estimates] = {
        "auc": auc_estimates(labels, scores, weights),
        "rejection": rejection_estimates(labels, scores, weights, points=(50,), replicates=replicates)[50],
    }
    limits = [background_rejection(labels, row, 0.5, weights).is_lower_limit for row in scores]
    return _Pairs(
        keys=[run.key for run in runs],
        values={metric: found.values.reshape(2, -1) for metric, found in estimates.items()},
        factor={metric: found.factor[len(runs) :] - found.factor[: len(runs)] for metric, found in estimates.items()},
        limited=np.any(np.asarray(limits, bool).reshape(2, -1), axis=0),
    )


def _as_stored(stores: Sequence[StudyStore], shared: Sequence[RunKey]) -> _Pairs:
    """Of the shared runs, each on its own study's test jets: without errors."""
    stored = [{r.key: r for r in store.results()} for store in stores]
    keys = [key for key in shared if all(np.isfinite(runs[key].metrics.get("auc", np.nan)) for runs in stored)]

    def metric(name: str) -> Floats:
        return np.array([[runs[key].metrics.get(name, np.nan) for key in keys] for runs in stored], np.float64)

    values: dict[Metric, Floats] = {"auc": metric("auc"), "rejection": np.log(metric("bkg_rej_50"))}
    return _Pairs(keys, values, None, (metric("n_bkg_50") == 0).any(axis=0))


def _limits(pairs: _Pairs) -> list[str]:
    names = sorted({key.name for key, limit in zip(pairs.keys, pairs.limited, strict=True) if limit})
    if not names:
        return []
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [
        f"No background jet survives at 50 % in a run of {', '.join(names[:3])}{more}: their rejections are lower "
        "limits, and are not compared."
    ]


# ---- rows


def _rows(pairs: _Pairs, kind: Kind) -> list[PairedRow]:
    """A row for each network or configuration of a kind."""
    seeds = Counter(key.name for key in pairs.keys if key.kind == kind)
    rejections = _compared(pairs, "rejection", kind)
    return [
        PairedRow(kind=kind, name=name, seeds=seeds[name], auc=auc, rejection=rejections.get(name))
        for name, auc in _compared(pairs, "auc", kind).items()
    ]


def _mean(pairs: _Pairs) -> list[PairedRow]:
    """The mean over the shared configurations and the seeds that all of them have; none for a single one."""
    seeds_of: dict[str, set[int]] = {}
    for key in pairs.keys:
        if key.kind == "student":
            seeds_of.setdefault(key.name, set()).add(key.seed)
    seeds = sorted(set.intersection(*seeds_of.values())) if len(seeds_of) > 1 else []
    if not seeds:
        return []
    name = f"mean of {len(seeds_of)} configurations"
    by_seed = np.array([[key.kind == "student" and key.seed == seed for key in pairs.keys] for seed in seeds], float)
    averaging = by_seed / by_seed.sum(axis=1, keepdims=True)
    used = by_seed.any(axis=0)
    means = _Pairs(
        [RunKey("mean", name, seed) for seed in seeds],
        {metric: values[:, used] @ averaging[:, used].T for metric, values in pairs.values.items()},
        None if pairs.factor is None else {metric: averaging @ factor for metric, factor in pairs.factor.items()},
        averaging @ pairs.limited > 0,
    )
    return _rows(means, "mean")


def _compared(pairs: _Pairs, metric: Metric, kind: Kind) -> dict[str, PairedMetric]:
    """By name, the means over seeds and their difference, by the two-way model of configurations and
    seeds."""
    unknown = np.any(~np.isfinite(pairs.values[metric]), axis=0)
    if metric == "rejection":
        unknown |= pairs.limited
    rows = [k for k, key in enumerate(pairs.keys) if key.kind == kind]
    left_out = {pairs.keys[k].name for k in rows if unknown[k]}
    places = [k for k in rows if pairs.keys[k].name not in left_out]
    if not places:
        return {}
    names = [pairs.keys[k].name for k in places]
    seeds = [pairs.keys[k].seed for k in places]
    one, other = pairs.values[metric][:, places]
    nothing = np.zeros((len(places), 1))
    factor = nothing if pairs.factor is None else pairs.factor[metric][places]
    model = configurations(Estimates(other - one, factor), names, seeds)
    first, second = (configurations(Estimates(values, nothing), names, seeds).values for values in (one, other))
    contrasts = [model.estimate(name) for name in model.names]
    adjusted = holm([contrast.p_value for contrast in contrasts])
    found = {}
    for i, name in enumerate(model.names):
        change = estimate_of(contrasts[i], model.seeds_known)
        if pairs.factor is None:
            change = Estimate(value=change.value)
        ends = float(first[i]), float(second[i])
        if metric == "rejection":
            change, ends = _ratio(change), (math.exp(first[i]), math.exp(second[i]))
        p_holm = None if pairs.factor is None else adjusted[i]
        found[name] = PairedMetric(first=ends[0], second=ends[1], change=change, p_holm=p_holm)
    return found


def _ratio(log: Estimate) -> Estimate:
    """second/first from the difference of logarithms."""
    low, high = (None if end is None else math.exp(end) for end in (log.low, log.high))
    return Estimate(value=math.exp(log.value), low=low, high=high)
