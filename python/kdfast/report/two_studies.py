"""Two studies side by side: differences of the runs that both have, on the test jets that both have.

A run's difference, second minus first, is treated like a run of one study: its covariance with all others over samples
of test jets is known from the scores, and what differs from seed to seed enters by the two-way model (comparisons.py).
On shared test jets both scores of a jet go into one difference, so that most of the jets' fluctuation cancels; on other
jets the two studies fluctuate independently. Without scores per jet there are differences and no errors.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.files import as_text
from kdfast.metrics import background_rejection
from kdfast.report.analysis import analyse
from kdfast.report.comparisons import configurations, holm
from kdfast.report.findings import is_supported, versus
from kdfast.report.fitting import Contrast, fit
from kdfast.report.layout import counted
from kdfast.report.pairing import Pairing, RunKey, pair_studies
from kdfast.report.records import comparison_of, jet_counts
from kdfast.report.sampling import Estimates, auc_estimates, rejection_estimates
from kdfast.report.schema import Comparison, Finding, Jets, Metric, Network, Record
from kdfast.store.identity import differing, shown_setting
from kdfast.store.store import StudyStore

__all__ = ["Beside", "DifferingSetting", "PairedMetric", "StudyComparison", "compare"]

Floats = NDArray[np.float64]

# Metrics by the names of stored results.
_METRICS: dict[Metric, str] = {"auc": "auc", "rejection": "bkg_rej_50"}

# Longer lists among the settings are counted, and their first items shown.
_LISTED = 6


class DifferingSetting(Record):
    """A setting in which the studies differ; null: one does not have it."""

    name: str
    first: str | None
    second: str | None


class PairedMetric(Record):
    """A metric of the same network or configuration in two studies."""

    first: float
    second: float
    limits: tuple[bool, bool] = (False, False)
    """Whether the first, the second is a lower limit: no background survives in one of its runs."""
    comparison: Comparison | None
    """Second minus first; p_holm over all configurations. Null where errors can't be had: no scores per jet, or no
    background that survives."""


class Beside(Record):
    """A network, or the mean of a configuration's runs, in both studies."""

    label: str
    runs: int
    """Seeds that both have."""
    configurations: int
    """Number that it is the mean of; 1 but for the mean of several."""
    auc: PairedMetric
    rejection: PairedMetric | None
    """At 50 % signal efficiency; null where a study does not give it."""

    def comparison(self, metric: Metric) -> Comparison | None:
        """The tested difference of a metric; None where there is none."""
        paired = self.auc if metric == "auc" else self.rejection
        return None if paired is None else paired.comparison


class StudyComparison(Record):
    """All of a comparison of two studies."""

    names: tuple[str, str]
    """Of the studies' folders, with as many of those above them as it takes to tell them apart."""
    test: tuple[Jets | None, Jets | None]
    shared_test: Jets | None
    """The test jets on which differences are measured jet by jet; null: each study's own, as if independent."""
    reasons: list[str]
    """What can't be paired, and why."""
    settings: list[DifferingSetting]
    best: tuple[list[Network], list[Network]]
    """Teacher, baseline and best student of each, on its own test jets."""
    teacher: Beside | None
    baseline: Beside | None
    """Mean over the shared seeds."""
    mean: Beside | None
    """Mean over the shared configurations; where they do not share all seeds, over the largest set of them that shares
    some."""
    configurations: list[Beside]
    """The highest difference of AUC first."""
    only_first: list[str]
    only_second: list[str]
    """Runs, "name, seed N"."""
    findings: list[Finding]


def compare(first: StudyStore, second: StudyStore) -> StudyComparison:
    """Everything about two studies side by side. Raises StudyError for a damaged one; what they do not share is said in
    `reasons`."""
    pairing = pair_studies(first, second)
    analyses = analyse(first), analyse(second)
    pairs = _pairs((first, second), pairing)
    names = _names(first.path, second.path)
    teacher = _mean(pairs, [k for k, key in enumerate(pairs.keys) if key.kind == "teacher"], "Teacher")
    baseline = _mean(pairs, [k for k, key in enumerate(pairs.keys) if key.kind == "baseline"], "Baseline")
    students = [k for k, key in enumerate(pairs.keys) if key.kind == "student"]
    mean = _mean(pairs, students, "Mean of {} configurations")
    rows = _configurations(pairs, students)
    whole = all("decisive" in store.provenance for store in (first, second))  # not so of imported studies
    here, there = (store.provenance["decisive"] if whole else store.settings for store in (first, second))
    # what decides no result but says which runs there are
    asked, also = ({key: store.settings.get(key) for key in ("seeds", "grid")} for store in (first, second))
    return StudyComparison(
        names=names,
        test=(analyses[0].study.test, analyses[1].study.test),
        shared_test=jet_counts(pairing.labels, np.asarray(pairing.weights, np.float64)) if pairing.runs else None,
        reasons=[*pairing.reasons, *_reasons(pairs, pairing)],
        settings=[
            DifferingSetting(name=name, first=_setting(old), second=_setting(new))
            for name, old, new in (*differing(here, there), *(differing(asked, also) if whole else ()))
        ],
        best=(analyses[0].networks, analyses[1].networks),
        teacher=teacher,
        baseline=baseline,
        mean=mean,
        configurations=rows,
        only_first=[f"{key.name}, seed {key.seed}" for key in pairing.only_first],
        only_second=[f"{key.name}, seed {key.seed}" for key in pairing.only_second],
        findings=_findings(names, {"teacher": teacher, "baseline": baseline}, mean, rows),
    )


def _names(first: Path, second: Path) -> tuple[str, str]:
    one, other = first.resolve().parts, second.resolve().parts
    length = next((n for n in range(1, min(len(one), len(other)) + 1) if one[-n:] != other[-n:]), 1)
    return as_text(Path(*one[-length:])), as_text(Path(*other[-length:]))


def _setting(value: Any) -> str | None:
    if isinstance(value, list | tuple) and len(value) > _LISTED:
        return f"{len(value)}: {', '.join(map(str, value[:3]))}, …"
    return None if value is None else shown_setting(value)


def _reasons(pairs: _Pairs, pairing: Pairing) -> Iterator[str]:
    """What else can't be compared."""
    here, there = (
        {(key.name, key.seed) for key in (*pairing.shared, *alone) if key.kind == "student"}
        for alone in (pairing.only_first, pairing.only_second)
    )
    if not here & there and (names := {name for name, _ in here} & {name for name, _ in there}):
        seeds = [", ".join(map(str, sorted({s for name, s in runs if name in names}))) for runs in (here, there)]
        verb = "is" if len(names) == 1 else "are"
        yield (
            f"{counted(len(names), 'configuration')} {verb} in both studies, but with other seeds ({seeds[0]} in the "
            f"first, {seeds[1]} in the second): runs are compared where name and seed are the same."
        )
    limited = sorted(
        {key.name for key, limit in zip(pairs.keys, pairs.limits[0] | pairs.limits[1], strict=True) if limit}
    )
    if limited:
        more = f" and {len(limited) - 3} more" if len(limited) > 3 else ""
        yield (
            f"No background jet survives at 50 % in a run of {', '.join(limited[:3])}{more}: rejections there are "
            "lower limits, marked '>', and neither they nor means that hold one are compared."
        )


# ---- runs that both have


@dataclass(frozen=True)
class _Pairs:
    """K runs of both studies. first, second: values [K] by metric, NaN where it is not given. factor: of their
    differences, [K, M] by metric; none where there are no errors. limits [2, K]: the rejection is a lower limit in the
    first, in the second study."""

    keys: Sequence[RunKey]
    first: Mapping[Metric, Floats]
    second: Mapping[Metric, Floats]
    factor: Mapping[Metric, Floats] | None
    limits: NDArray[np.bool_]

    def difference(self, metric: Metric, rows: Sequence[int]) -> Estimates | None:
        if self.factor is None:
            return None
        return Estimates((self.second[metric] - self.first[metric])[rows], self.factor[metric][rows])

    def limited(self, metric: Metric, rows: Sequence[int]) -> tuple[bool, bool]:
        """Whether a mean over these rows is a lower limit, in each study."""
        if metric != "rejection":
            return False, False
        return bool(self.limits[0, rows].any()), bool(self.limits[1, rows].any())


@dataclass(frozen=True)
class _Measured:
    """Networks' metrics on one set of jets: values [K] and factors [K, M] by metric; limits [K]."""

    values: Mapping[Metric, Floats]
    factor: Mapping[Metric, Floats]
    limits: NDArray[np.bool_]

    def rows(self, part: slice) -> _Measured:
        return _Measured(
            {metric: values[part] for metric, values in self.values.items()},
            {metric: factor[part] for metric, factor in self.factor.items()},
            self.limits[part],
        )


def _measured(jets: Mapping[str, NDArray[Any]], scores: Sequence[NDArray[Any]]) -> _Measured:
    labels, weights = np.asarray(jets["labels"], np.int64), np.asarray(jets["weights"], np.float64)
    matrix = np.asarray(scores, np.float64)
    auc = auc_estimates(labels, matrix, weights)
    log_rejection = rejection_estimates(labels, matrix, weights, points=(50,))[50]
    rejection = np.exp(log_rejection.values)
    return _Measured(
        {"auc": auc.values, "rejection": rejection},
        {"auc": auc.factor, "rejection": log_rejection.factor * rejection[:, None]},
        np.array([background_rejection(labels, row, 0.5, weights).is_lower_limit for row in matrix]),
    )


def _pairs(stores: tuple[StudyStore, StudyStore], pairing: Pairing) -> _Pairs:
    stored = [{RunKey(r.kind, r.name, r.seed): r for r in store.results()} for store in stores]
    scored = pairing.scored
    if pairing.runs:  # on the same jets
        jets = {"labels": pairing.labels, "weights": pairing.weights}
        parts = zip(stored, pairing.positions, strict=True)
        scores = [found[key].arrays["scores_test"][part] for found, part in parts for key in scored]
        both = _measured(jets, scores)
        one, other = both.rows(slice(len(scored))), both.rows(slice(len(scored), None))
        factor = {metric: other.factor[metric] - one.factor[metric] for metric in _METRICS}
    elif scored:  # on independent ones
        one, other = (
            _measured(store.shared("test"), [found[key].arrays["scores_test"] for key in scored])
            for store, found in zip(stores, stored, strict=True)
        )
        factor = {metric: np.hstack([-one.factor[metric], other.factor[metric]]) for metric in _METRICS}
    else:
        keys = [
            key
            for key in pairing.shared
            if not all(found[key].has_scores for found in stored)  # else they can't be used
            and all(math.isfinite(found[key].metrics.get("auc", math.nan)) for found in stored)
        ]
        first, second = (
            {
                metric: np.array([found[key].metrics.get(name, math.nan) for key in keys], np.float64)
                for metric, name in _METRICS.items()
            }
            for found in stored
        )
        limits = np.array([[found[key].metrics.get("n_bkg_50") == 0 for key in keys] for found in stored], bool)
        return _Pairs(keys, first, second, None, limits)
    return _Pairs(scored, one.values, other.values, factor, np.stack([one.limits, other.limits]))


# ---- differences


def _block(keys: Sequence[RunKey]) -> set[RunKey]:
    """The largest set of runs in which each configuration has each seed, so that no seed's luck counts for some of
    them alone. All runs where no seed has two configurations and no configuration two seeds."""
    seeds: dict[int, set[str]] = {}
    for key in keys:
        seeds.setdefault(key.seed, set()).add(key.name)
    best: list[RunKey] = []
    usual = sorted(seeds, key=lambda seed: -len(seeds[seed]))
    for number in range(1, len(usual) + 1):
        names = set.intersection(*(seeds[seed] for seed in usual[:number]))
        block = [key for key in keys if key.name in names and key.seed in usual[:number]]
        best = max(best, block, key=len)
    return set(best if len(best) > 1 else keys)


def _mean(pairs: _Pairs, rows: Sequence[int], label: str) -> Beside | None:
    """Mean over runs, of the largest block of configurations and seeds; {} in the label: the configurations' number."""
    if not rows:
        return None
    block = _block([pairs.keys[k] for k in rows])
    rows = [k for k in rows if pairs.keys[k] in block]
    names, seeds = {key.name for key in block}, sorted({key.seed for key in block})
    by_seed = np.array([[pairs.keys[k].seed == seed for k in rows] for seed in seeds], np.float64)
    averaging = by_seed / by_seed.sum(axis=1, keepdims=True)  # [seeds, rows]

    def contrast(difference: Estimates) -> Contrast:
        means = Estimates(averaging @ difference.values, averaging @ difference.factor)
        found = fit(means, np.ones((len(means), 1))).contrast(np.ones(1))
        assert found is not None
        return found

    def paired(metric: Metric) -> PairedMetric | None:
        if np.isnan([pairs.first[metric][rows], pairs.second[metric][rows]]).any():
            return None
        first, second = (float((averaging @ values[metric][rows]).mean()) for values in (pairs.first, pairs.second))
        difference = pairs.difference(metric, rows)
        comparison, limits = None, pairs.limited(metric, rows)
        if difference is not None and not any(limits):
            comparison = comparison_of(contrast(difference), first, len(averaging) > 1)
        return PairedMetric(first=first, second=second, limits=limits, comparison=comparison)

    auc = paired("auc")
    assert auc is not None
    number = len(names)
    return Beside(
        label=label.format(number), runs=len(seeds), configurations=number, auc=auc, rejection=paired("rejection")
    )


def _configurations(pairs: _Pairs, students: Sequence[int]) -> list[Beside]:
    found: dict[Metric, dict[str, PairedMetric]] = {}
    for metric in _METRICS:
        rows = [k for k in students if np.isfinite([pairs.first[metric][k], pairs.second[metric][k]]).all()]
        # a lower limit is no measured value for the model of the others
        limited = {pairs.keys[k].name for k in rows if any(pairs.limited(metric, [k]))}
        found[metric] = {
            name: _limited(pairs, metric, [k for k in rows if pairs.keys[k].name == name]) for name in limited
        }
        rows = [k for k in rows if pairs.keys[k].name not in limited]
        if not rows:
            continue
        names, seeds = [pairs.keys[k].name for k in rows], [pairs.keys[k].seed for k in rows]
        means = [
            configurations(Estimates(values[metric][rows], np.zeros((len(rows), 1))), names, seeds)
            for values in (pairs.first, pairs.second)
        ]
        ends = {name: tuple(float(m.values[m.index(name)]) for m in means) for name in means[0].names}
        difference = pairs.difference(metric, rows)
        comparisons: dict[str, Comparison] = {}
        if difference is not None:
            model = configurations(difference, names, seeds)
            contrasts = [model.estimate(name) for name in model.names]
            adjusted = holm([contrast.p_value for contrast in contrasts])
            comparisons = {
                name: comparison_of(contrast, ends[name][0], model.seeds_known, p)
                for name, contrast, p in zip(model.names, contrasts, adjusted, strict=True)
            }
        found[metric] |= {
            name: PairedMetric(first=first, second=second, comparison=comparisons.get(name))
            for name, (first, second) in ends.items()
        }
    runs = Counter(pairs.keys[k].name for k in students)
    beside = [
        Beside(label=name, runs=runs[name], configurations=1, auc=auc, rejection=found["rejection"].get(name))
        for name, auc in found["auc"].items()
    ]
    return sorted(beside, key=lambda row: row.auc.first - row.auc.second)


def _limited(pairs: _Pairs, metric: Metric, rows: Sequence[int]) -> PairedMetric:
    """Plain means of runs with a lower limit among them."""
    first, second = (float(values[metric][rows].mean()) for values in (pairs.first, pairs.second))
    return PairedMetric(first=first, second=second, limits=pairs.limited(metric, rows), comparison=None)


# ---- sentences


def _same(beside: Beside) -> bool:
    """Whether the networks are the same ones: no jet adds to the difference."""
    comparison = beside.auc.comparison
    return comparison is not None and comparison.difference.value == 0.0 and comparison.difference.error_test == 0.0


def _findings(
    names: tuple[str, str], networks: Mapping[str, Beside | None], mean: Beside | None, rows: Sequence[Beside]
) -> list[Finding]:
    said: list[Finding] = []
    first, second = names

    def sentence(one: str, other: str, beside: Beside) -> None:
        for metric in _METRICS:
            if (comparison := beside.comparison(metric)) is not None:
                said.append(versus(one, other, comparison, metric))

    for kind, beside in networks.items():
        if beside is not None and _same(beside):
            said.append(
                Finding(topic="", text=f"The {kind} scores the test jets alike in both studies.", supported=True)
            )
        elif beside is not None:
            sentence(f"the {kind} of {second}", f"that of {first}", beside)
    if mean is not None:
        which = f"the {len(rows)} shared configurations"
        if mean.configurations < len(rows):
            which = f"{mean.configurations} of {which} (those with {mean.runs} seeds)"
        sentence(f"the mean of {which} in {second}", f"that in {first}", mean)
    words: dict[Metric, str] = {"auc": "AUC", "rejection": "rejection at 50 %"}
    for metric, name in words.items():
        compared = [c for row in rows if (c := row.comparison(metric)) is not None]
        if len(compared) > 1:
            higher = sum(is_supported(c) and c.difference.value > 0 for c in compared)
            lower = sum(is_supported(c) and c.difference.value < 0 for c in compared)
            text = (
                f"Of {len(compared)} shared configurations, {higher} have a higher {name} in {second} and {lower} a "
                f"lower one (5 % level after Holm's correction); for the other {len(compared) - higher - lower} no "
                "difference is seen."
            )
            said.append(Finding(topic="", text=text, supported=bool(higher or lower)))
    if mean is not None and mean.runs == 1:
        text = "With one shared seed the differences are of trained networks: another seed may change them."
        said.append(Finding(topic="", text=text, supported=False))
    return said
