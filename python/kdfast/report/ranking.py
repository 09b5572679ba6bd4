"""Configurations in order: estimates, the baseline, the set of the best, and one configuration for each
goal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from kdfast.report import physics
from kdfast.report.comparisons import best_of_equals, configurations, to_separate
from kdfast.report.families import LEVEL_OF_REPORT, Adjusted, level_of
from kdfast.report.fitting import Contrast, matrix_root
from kdfast.report.networks import COLUMNS, StudyNetworks, means_of
from kdfast.report.records import comparison_of, estimate_of, number, on_front, setting_fields
from kdfast.report.sampling import Estimates, Floats, auc_interval, quantile
from kdfast.report.schema.choices import RankAgreement, TopTwo, Winner
from kdfast.report.schema.runs import Configuration
from kdfast.report.schema.settings import GroupTable
from kdfast.report.schema.values import Comparison, Estimate, Metric
from kdfast.store.table import combined_score, in_order, is_limited

__all__ = ["configuration_rows", "mean_versus_baseline", "rank_agreement", "top_two", "winners"]

_VALIDATION: dict[Metric, str] = {"auc": "auc_val", "rejection": "bkg_rej_50_val"}


def configuration_rows(study: StudyNetworks) -> list[Configuration]:
    limited_on_validation, frame = _numbers(study)
    ranked = frame[["auc_student", "combined"]].assign(bkg_rej_50=in_order(frame, "bkg_rej_50"))
    ranks = ranked.rank(ascending=False, method="min").astype(int)
    front = dict(zip(frame.index, on_front(ranked[list(COLUMNS.values())].to_numpy(np.float64)), strict=True))
    against = study.against_baseline
    best = {metric: _best_set(study, metric) for metric in study.comparable}
    spread = study.done.groupby("run_name")[list(COLUMNS.values())].agg(["std", "count"])
    found = []
    for name in study.students["auc"].names:
        row = frame.loc[name]
        numbers: dict[str, Any] = {}
        for metric, column in COLUMNS.items():
            tested = against.get(metric, {}).get(name)
            numbers |= {
                metric: _estimate(study, metric, name, float(row[column])),
                f"{metric}_std": number(spread.loc[name, (column, "std")]),
                f"rank_{metric}": int(ranks[column][name]),
                f"{metric}_validation": number(row.get(_VALIDATION[metric])),
                f"{metric}_vs_baseline": None if tested is None else _against(study, metric, name, tested),
                f"in_best_set_{metric}": name in best[metric] if metric in best else None,
                f"gap_recovered_{metric}": _gap(study, metric, name),
            }
        found.append(
            Configuration(
                **setting_fields(name, row, study.configs[name]),
                **numbers,
                runs=int(spread.loc[name, ("auc_student", "count")]),
                combined=float(row["combined"]),
                rank_combined=int(ranks["combined"][name]),
                rejection_validation_limit=name in limited_on_validation,
                combined_validation=number(row.get("combined_val")),
                pareto=bool(front[name]),
            )
        )
    open_ended = [c.run_name for c in found if c.rejection.error is not None and c.rejection.low is None]
    if open_ended:
        what = f"interval of the rejection of {', '.join(open_ended[:5])}"
        what += f" and {len(open_ended) - 5} more" if len(open_ended) > 5 else ""
        why = "too few seeds that differ too much: it would include everything that these jets can measure"
        study.add_missing(what, why)
    return sorted(found, key=lambda c: (c.rank_auc, c.run_name))


def _numbers(study: StudyNetworks) -> tuple[set[str], pd.DataFrame]:
    """Settings and means of the configurations, and those whose rejection is a lower limit on validation."""
    frame = study.settings.copy()
    for metric, column in COLUMNS.items():
        frame[column] = means_of(study.done, column, study.students.get(metric))
    fewest = study.done.groupby("run_name")[["n_bkg_50", "n_bkg_50_val"]].min()  # 0: a lower limit, as one run's is
    frame = frame.join(fewest)
    limited = set(frame.index[is_limited(frame, "bkg_rej_50_val")])
    for metric, column in _VALIDATION.items():
        if study.selected_on[metric] == "validation":
            frame[column] = _validation_means(study, column, limited if metric == "rejection" else ())
    if study.selected_on["combined"] == "validation":
        frame["combined_val"] = combined_score(frame, "_val")
    frame["combined"] = combined_score(frame)
    return limited, frame


def _estimate(study: StudyNetworks, metric: Metric, name: str, mean: float) -> Estimate:
    """mean: of the runs, of which one's rejection may be a lower limit."""
    if metric == "rejection" and name in study.limited:
        return Estimate(value=mean, lower_limit=True)
    contrast = study.students[metric].estimate(name)
    if metric == "auc":
        interval = auc_interval(contrast.value, contrast.error, contrast.df)
    else:
        interval = _rejection_interval(study, contrast)
    exact = metric == "auc" and interval is None  # an AUC of 0 or 1: the jets tell no error
    if not study.have_scores or exact:
        return Estimate(value=contrast.value)
    low, high = interval or (None, None)
    found = estimate_of(contrast, study.students[metric].seeds_known)
    return found.model_copy(update={"low": low, "high": high})


def _rejection_interval(study: StudyNetworks, contrast: Contrast) -> tuple[float, float] | None:
    """Symmetric on the logarithm's scale. None where it would hold all that a rejection on these jets can
    be, from 1 to the number of background jets: two seeds that differ much have so large a Student's t."""
    value = contrast.value
    if value <= 0.0 or study.jets is None:
        return None
    half = quantile(contrast.df) * contrast.error / value
    most = (study.jets.labels == 0).sum()
    if half > max(math.log(value), math.log(most / value)):
        return None
    return value * math.exp(-half), value * math.exp(half)


def _validation_means(study: StudyNetworks, column: str, limited: Collection[str] = ()) -> pd.Series:
    """limited: configurations that are no part of the others' means, as a run's number is a lower limit."""
    runs = study.done[~study.done["run_name"].isin(limited)]
    model = None
    if len(runs):
        estimates = Estimates(runs[column].to_numpy(np.float64), np.zeros((len(runs), 1)))
        model = configurations(estimates, list(runs["run_name"]), list(runs["seed"]))
    return means_of(study.done, column, model)


def _against(study: StudyNetworks, metric: Metric, name: str | None, adjusted: Adjusted) -> Comparison:
    """name: None for the mean of all."""
    baselines = study.baselines[metric]
    value = (baselines if name is None else baselines.of(name)).value
    return comparison_of(adjusted.contrast, value, baselines.students.seeds_known, adjusted)


def mean_versus_baseline(study: StudyNetworks) -> dict[Metric, Comparison]:
    """By metric; not the rejection where one of the configurations has only a limit."""
    tested = study.against_baseline
    metrics = [metric for metric in study.comparable if metric in tested]
    return {metric: _against(study, metric, None, tested[metric][None]) for metric in metrics}


def _best_set(study: StudyNetworks, metric: Metric) -> set[str]:
    """The configurations that are statistically indistinguishable from the best: those that no other beats,
    all pairs taken together. The truly best one is among them in more than 95 % of studies."""
    students = study.students[metric]
    pairs = study.pairs[metric]
    errors = np.where(pairs.errors > 0.0, pairs.errors, np.inf)
    t = (students.values[:, None] - students.values[None, :]) / errors
    inside = set()
    for c, name in enumerate(students.names):
        rival = students.names[int(np.argmax(t[:, c]))]
        if rival == name or pairs.adjust(students.difference(rival, name)).low <= 0.0:
            inside.add(name)
    return inside


def _gap(study: StudyNetworks, metric: Metric, name: str) -> Estimate | None:
    """With the quantile of the simultaneous interval of the gain, so that the two agree."""
    tested = study.against_baseline.get(metric, {}).get(name)
    if tested is None or metric not in study.teachers:
        return None
    baseline = study.baselines[metric].of(name)
    students = baseline.students
    gain = tested.contrast
    single = study.metric(metric).rows([study.teachers[metric]])
    of_gain = students.factor[students.index(name)] - baseline.factor
    of_gap = single.factor[0] - baseline.factor
    variances = (
        gain.test_variance + gain.run_variance,
        float(of_gap @ of_gap) + baseline.run_variance + students.common_variance / students.seeds,
        float(of_gain @ of_gap) + baseline.run_variance,
    )
    quantile = (tested.high - tested.low) / (2.0 * gain.error) if gain.error > 0.0 else 0.0
    return physics.gap_recovered(gain.value, float(single.values[0]) - baseline.value, variances, quantile)


def winners(study: StudyNetworks, rows: Sequence[Configuration], groups: Sequence[GroupTable]) -> list[Winner]:
    constant = [row for row in rows if row.strategy == "baseline"]
    goals: list[tuple[str, str, Sequence[Configuration]]] = [
        ("auc", "auc", rows),
        ("rejection", "rejection", rows),
        ("combined", "combined", rows),
        ("constant", "auc", constant),
    ]
    (strategies,) = (table for table in groups if table.setting == "strategy")
    consistent = [group for group in strategies.groups if group.consistency is not None]
    if consistent:
        steadiest = max(consistent, key=lambda group: group.consistency or 0.0).label
        goals.append(("consistent", "auc", [row for row in rows if row.strategy == steadiest]))

    def on_test(row: Configuration, quantity: str) -> float:
        value = getattr(row, quantity)
        if not isinstance(value, Estimate):
            return float(value)
        return math.inf if value.lower_limit else value.value

    def on_validation(row: Configuration, quantity: str) -> float:
        limit = quantity == "rejection" and row.rejection_validation_limit
        value = getattr(row, f"{quantity}_validation")
        return math.inf if limit else -math.inf if value is None else float(value)

    winners: list[Winner] = []
    for goal, quantity, among in goals:
        if not among:
            continue
        if study.selected_on[quantity] == "validation":
            chosen = max(among, key=lambda row: (on_validation(row, quantity), on_validation(row, "auc")))
        else:
            chosen = max(among, key=lambda row: on_test(row, quantity))
        highest = max(among, key=lambda row: (on_test(row, quantity), row is chosen))
        more: dict[str, Any] = {}
        if goal in study.comparable:
            more = _excess(study, goal)
            more["best_set_size"] = sum(bool(getattr(row, f"in_best_set_{goal}")) for row in rows)
        first = winners[0].configuration if winners else chosen.run_name
        for metric in study.comparable if chosen.run_name != first else ():
            more[f"{metric}_vs_best"] = _of_pair(study, metric, chosen.run_name, first)
        winners.append(
            Winner(
                goal=goal,  # type: ignore[arg-type]
                configuration=chosen.run_name,
                selected_on=study.selected_on[quantity],  # type: ignore[arg-type]
                value_validation=getattr(chosen, f"{quantity}_validation"),
                highest_on_test=highest.run_name,
                **more,
            )
        )
    return winners


def _of_pair(study: StudyNetworks, metric: Metric, one: str, other: str) -> Comparison:
    """One configuration against another, as one of all pairs."""
    students = study.students[metric]
    tested = study.pairs[metric].adjust(students.difference(one, other))
    reference = float(students.values[students.index(other)])
    return comparison_of(tested.contrast, reference, students.seeds_known, tested)


def _excess(study: StudyNetworks, metric: Metric) -> dict[str, float | None]:
    """Winner's curse of a choice on the test jets, and of one on validation quoted from test."""
    students = study.students[metric]
    excess: dict[str, float | None] = {"excess_on_test": best_of_equals(students.noise())}
    if students.seeds_known and study.selected_on[metric] == "validation" and study.jets is not None:
        validation = len(study.store.shared("validation")["labels"])
        from_seeds = students.model.cautious_variance * students.spread
        # as many jets of the same kind: the test jets' covariance, scaled
        selection = students.test * (len(study.jets.labels) / max(validation, 1)) + from_seeds
        excess["excess_chosen"] = best_of_equals(selection, from_seeds)
    return excess


def top_two(study: StudyNetworks, rows: Sequence[Configuration]) -> list[TopTwo]:
    if len(rows) < 2 or study.jets is None:
        return []
    found = []
    for metric in study.comparable:
        students = study.students[metric]
        first, second = (students.names[i] for i in np.argsort(-students.values, kind="stable")[:2])
        contrast = students.difference(first, second)
        seeds, jets = to_separate(contrast, seeds=students.seeds, jets=len(study.jets.labels))
        found.append(
            TopTwo(
                metric=metric,
                first=first,
                second=second,
                difference=_of_pair(study, metric, first, second),
                seeds_needed=seeds if students.seeds_known else None,
                jets_needed=jets,
            )
        )
    return found


def rank_agreement(study: StudyNetworks, *, simulated: int = 4000) -> RankAgreement | None:
    """Whether seeds agree on the order of configurations by AUC, more than equal configurations on the same
    test jets would; None with fewer than two seeds or four configurations that all have them, or where
    nothing is tested."""
    students = study.students["auc"]
    seeds, number = students.rows.shape
    if seeds < 2 or number < 4 or "auc" not in study.comparable:
        return None
    rows = students.rows.ravel()
    factor = students.runs.factor[rows]
    covariance = factor @ factor.T + (students.model.run_variance + 1e-18) * np.eye(len(rows))
    root = matrix_root(covariance)
    draws = np.random.default_rng(0).standard_normal((simulated, len(rows))) @ root.T
    expected = _mean_rho(draws.reshape(simulated, seeds, number))
    rho = float(_mean_rho(students.runs.values[students.rows][None])[0])
    p = float((1 + (expected >= rho).sum()) / (1 + simulated))
    level = level_of("choices", "auc", study.stages) / 2.0
    return RankAgreement(
        seeds=seeds,
        rho=rho,
        expected=float(expected.mean()),
        p_value=p,
        p_adjusted=min(1.0, p * LEVEL_OF_REPORT / level),
        configurations=number,
    )


def _mean_rho(values: Floats) -> Floats:
    """[studies] from [studies, seeds, C]: Spearman's ρ averaged over all pairs of seeds."""
    seeds = values.shape[1]
    ranks = stats.rankdata(values, axis=2)
    ranks -= ranks.mean(axis=2, keepdims=True)
    length = np.linalg.norm(ranks, axis=2, keepdims=True)
    unit = ranks / np.where(length > 0.0, length, 1.0)
    together = np.square(unit.sum(axis=1)).sum(axis=1)  # Σ over all pairs, and each seed with itself
    return np.asarray((together - seeds) / (seeds * (seeds - 1)))
