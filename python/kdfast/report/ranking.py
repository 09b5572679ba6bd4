"""Configurations in order: estimates, the baseline, the set of the best, and one configuration for each
goal."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kdfast.report import physics, schema
from kdfast.report.comparisons import best_of_equals, configurations, to_separate
from kdfast.report.families import LEVEL_OF_REPORT, Adjusted, level_of, matrix_root
from kdfast.report.fitting import Contrast
from kdfast.report.networks import METRICS, StudyNetworks, means_of
from kdfast.report.records import comparison_of, number, setting_fields
from kdfast.report.sampling import Estimates, auc_interval, quantile
from kdfast.store.table import combined_score, in_order, is_limited

__all__ = ["configuration_rows", "mean_versus_baseline", "rank_agreement", "top_two", "winners"]

Floats = NDArray[np.float64]


def configuration_rows(study: StudyNetworks) -> list[schema.Configuration]:
    names = study.students["auc"].names
    frame = study.settings.copy()
    frame["auc_student"] = study.means("auc")
    frame["bkg_rej_50"] = study.means("rejection")
    fewest = study.done.groupby("run_name")[["n_bkg_50", "n_bkg_50_val"]].min()  # 0: a lower limit, as one run's is
    frame = frame.join(fewest)
    limited_on_validation = set(frame.index[is_limited(frame, "bkg_rej_50_val")])
    if study.selected_on["auc"] == "validation":
        frame["auc_val"] = _validation_means(study, "auc_val")
    if study.selected_on["rejection"] == "validation":
        frame["bkg_rej_50_val"] = _validation_means(study, "bkg_rej_50_val", limited_on_validation)
    if study.selected_on["combined"] == "validation":
        frame["combined_val"] = combined_score(frame, "_val")
    frame["combined"] = combined_score(frame)
    ranked = frame[["auc_student", "combined"]].assign(bkg_rej_50=in_order(frame, "bkg_rej_50"))
    ranks = ranked.rank(ascending=False, method="min").astype(int)
    versus = {metric: _versus_baseline(study, metric) for metric in METRICS}
    best = {metric: _best_set(study, metric) for metric in study.comparable}
    spread = study.done.groupby("run_name")[["auc_student", "bkg_rej_50"]].agg(["std", "count"])
    found = []
    for name in names:
        row = frame.loc[name]
        both = ranked[["auc_student", "bkg_rej_50"]]
        dominated = ((both >= both.loc[name]).all(axis=1) & (both > both.loc[name]).any(axis=1)).any()
        found.append(
            schema.Configuration(
                **setting_fields(name, row, study.configs[name]),
                runs=int(spread.loc[name, ("auc_student", "count")]),
                auc=_auc(study, name),
                rejection=_rejection(study, name, float(row["bkg_rej_50"])),
                auc_std=number(spread.loc[name, ("auc_student", "std")]),
                rejection_std=number(spread.loc[name, ("bkg_rej_50", "std")]),
                combined=float(row["combined"]),
                rank_auc=int(ranks["auc_student"][name]),
                rank_rejection=int(ranks["bkg_rej_50"][name]),
                rank_combined=int(ranks["combined"][name]),
                auc_validation=number(row.get("auc_val")),
                rejection_validation=number(row.get("bkg_rej_50_val")),
                rejection_validation_limit=name in limited_on_validation,
                combined_validation=number(row.get("combined_val")),
                auc_vs_baseline=versus["auc"].get(name),
                rejection_vs_baseline=versus["rejection"].get(name),
                in_best_set_auc=name in best["auc"] if "auc" in best else None,
                in_best_set_rejection=name in best["rejection"] if "rejection" in best else None,
                pareto=not dominated,
                gap_recovered_auc=_gap(study, "auc", name),
                gap_recovered_rejection=_gap(study, "rejection", name),
            )
        )
    open_ended = [c.run_name for c in found if c.rejection.error is not None and c.rejection.low is None]
    if open_ended:
        what = f"interval of the rejection of {', '.join(open_ended[:5])}"
        what += f" and {len(open_ended) - 5} more" if len(open_ended) > 5 else ""
        study.add_missing(
            what, "too few seeds that differ too much: it would include everything that these jets can measure"
        )
    return sorted(found, key=lambda c: (c.rank_auc, c.run_name))


def _auc(study: StudyNetworks, name: str) -> schema.Estimate:
    contrast = study.students["auc"].estimate(name)
    return _estimate(study, "auc", contrast, auc_interval(contrast.value, contrast.error, contrast.df))


def _rejection(study: StudyNetworks, name: str, mean: float) -> schema.Estimate:
    if name in study.limited:
        return schema.Estimate(value=mean, lower_limit=True)
    contrast = study.students["rejection"].estimate(name)
    return _estimate(study, "rejection", contrast, _rejection_interval(study, contrast))


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


def _estimate(
    study: StudyNetworks, metric: schema.Metric, contrast: Contrast, interval: tuple[float, float] | None
) -> schema.Estimate:
    exact = metric == "auc" and interval is None  # an AUC of 0 or 1: the jets tell no error
    if not study.have_scores or exact:
        return schema.Estimate(value=contrast.value)
    low, high = interval or (None, None)
    return schema.Estimate(
        value=contrast.value,
        error=contrast.error,
        low=low,
        high=high,
        error_test=math.sqrt(contrast.test_variance),
        error_runs=math.sqrt(contrast.run_variance) if study.students[metric].seeds_known else None,
    )


def _validation_means(study: StudyNetworks, column: str, limited: Collection[str] = ()) -> pd.Series:
    """limited: configurations that are no part of the others' means, as a run's number is a lower limit."""
    runs = study.done[~study.done["run_name"].isin(limited)]
    model = None
    if len(runs):
        estimates = Estimates(runs[column].to_numpy(np.float64), np.zeros((len(runs), 1)))
        model = configurations(estimates, list(runs["run_name"]), list(runs["seed"]))
    return means_of(study.done, column, model)


def _versus_baseline(study: StudyNetworks, metric: schema.Metric) -> dict[str, schema.Comparison]:
    tested = study.against_baseline.get(metric, {})
    return {name: _against(study, metric, name, found) for name, found in tested.items() if name is not None}


def _against(study: StudyNetworks, metric: schema.Metric, name: str | None, adjusted: Adjusted) -> schema.Comparison:
    """name: None for the mean of all."""
    baselines = study.baselines[metric]
    value = (baselines if name is None else baselines.of(name)).value
    return comparison_of(adjusted.contrast, value, baselines.students.seeds_known, adjusted)


def mean_versus_baseline(study: StudyNetworks) -> dict[schema.Metric, schema.Comparison]:
    """By metric; not the rejection where one of the configurations has only a limit."""
    tested = study.against_baseline
    metrics = [metric for metric in study.comparable if metric in tested]
    return {metric: _against(study, metric, None, tested[metric][None]) for metric in metrics}


def _best_set(study: StudyNetworks, metric: schema.Metric) -> set[str]:
    """The configurations that are statistically indistinguishable from the best: those that no other beats, all pairs
    taken together. The truly best one is among them in more than 95 % of studies."""
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


def _gap(study: StudyNetworks, metric: schema.Metric, name: str) -> schema.Estimate | None:
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
    found = physics.gap_recovered(gain.value, float(single.values[0]) - baseline.value, variances, quantile)
    return None if found is None else schema.Estimate(value=found.value, low=found.low, high=found.high)


def winners(
    study: StudyNetworks, rows: Sequence[schema.Configuration], groups: Sequence[schema.GroupTable]
) -> list[schema.Winner]:
    constant = [row for row in rows if row.strategy == "baseline"]
    goals: list[tuple[str, str, Sequence[schema.Configuration]]] = [
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

    def on_test(row: schema.Configuration, quantity: str) -> float:
        value = getattr(row, quantity)
        if not isinstance(value, schema.Estimate):
            return float(value)
        return math.inf if value.lower_limit else value.value

    def on_validation(row: schema.Configuration, quantity: str) -> float:
        limit = quantity == "rejection" and row.rejection_validation_limit
        value = getattr(row, f"{quantity}_validation")
        return math.inf if limit else -math.inf if value is None else float(value)

    winners: list[schema.Winner] = []
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
            more |= _excess(study, goal)
            more["best_set_size"] = sum(bool(getattr(row, f"in_best_set_{goal}")) for row in rows)
        value = getattr(chosen, f"{quantity}_validation")
        first = winners[0].configuration if winners else chosen.run_name
        for metric in study.comparable if chosen.run_name != first else ():
            students = study.students[metric]
            reference = float(students.values[students.index(first)])
            tested = study.pairs[metric].adjust(students.difference(chosen.run_name, first))
            more[f"{metric}_vs_best"] = comparison_of(tested.contrast, reference, students.seeds_known, tested)
        winners.append(
            schema.Winner(
                goal=goal,  # type: ignore[arg-type]
                configuration=chosen.run_name,
                selected_on=study.selected_on[quantity],  # type: ignore[arg-type]
                value_validation=value,
                highest_on_test=highest.run_name,
                **more,
            )
        )
    return winners


def _excess(study: StudyNetworks, metric: schema.Metric) -> dict[str, float | None]:
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


def top_two(study: StudyNetworks, rows: Sequence[schema.Configuration]) -> list[schema.TopTwo]:
    if len(rows) < 2 or study.jets is None:
        return []
    found = []
    for metric in study.comparable:
        students = study.students[metric]
        first, second = (students.names[i] for i in np.argsort(-students.values, kind="stable")[:2])
        contrast = students.difference(first, second)
        tested = study.pairs[metric].adjust(contrast)
        seeds, jets = to_separate(contrast, seeds=students.seeds, jets=len(study.jets.labels))
        reference = float(students.values[students.index(second)])
        found.append(
            schema.TopTwo(
                metric=metric,
                first=first,
                second=second,
                difference=comparison_of(contrast, reference, students.seeds_known, tested),
                seeds_needed=seeds if students.seeds_known else None,
                jets_needed=jets,
            )
        )
    return found


def rank_agreement(study: StudyNetworks, *, simulated: int = 4000) -> schema.RankAgreement | None:
    """Whether seeds agree on the order of configurations by AUC, more than equal configurations on the same test jets
    would; None with fewer than two seeds or four configurations that all have them, or where nothing is tested."""
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
    return schema.RankAgreement(
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
