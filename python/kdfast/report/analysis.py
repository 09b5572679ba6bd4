"""From a study's stored results to the one object that every part of a report reads (schema.py).

Single networks' numbers and their errors come from sampling.py, comparisons from comparisons.py, effects of settings
from effects.py, tables by pT, of mass and of calibration from physics.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.errors import ConfigError, StudyError
from kdfast.metrics import WORKING_POINTS
from kdfast.report import effects, physics, schema
from kdfast.report.comparisons import (
    Configurations,
    benjamini_hochberg,
    beside_best,
    best_of_equals,
    configurations,
    holm,
    to_separate,
)
from kdfast.report.findings import findings
from kdfast.report.fitting import Contrast
from kdfast.report.sampling import Estimates, auc_estimates, auc_interval, quantile, rejection_estimates
from kdfast.report.table import STRATEGIES, combined_score, results_table, select_best, selected_on
from kdfast.study.results import NEED_SCORES
from kdfast.study.settings import StudySettings
from kdfast.study.store import StoredResult, StudyStore

__all__ = ["analyse"]

Floats = NDArray[np.float64]
METRICS: tuple[schema.Metric, ...] = ("auc", "rejection")


def analyse(store: StudyStore) -> schema.Analysis:
    """Everything that the stored results of a study tell, finished or not.

    Raises StudyError for a damaged result or study, and for test jets of one class. A run whose scores are not finite
    or all equal takes no part, and is named in `missing`.
    """
    return _Analyst(store).analysis()


@dataclass(frozen=True)
class _Jets:
    """The test jets: labels, weights [B]; pt, mass [B] in GeV or None."""

    labels: NDArray[np.int64]
    weights: Floats
    pt: Floats | None
    mass: Floats | None


class _Analyst:
    """Holds what the parts of one analysis share. `missing` grows as parts find out what they lack."""

    def __init__(self, store: StudyStore) -> None:
        self.store = store
        self.missing: list[schema.Missing] = []
        self.results = self._distinct(store.results())
        self.jets = self._test_jets()
        self.usable = self._usable()
        table = results_table(self.results)
        for i, (name, seed) in enumerate(zip(table["run_name"], table["seed"], strict=True)):
            if table.loc[i, "status"] == "done" and ("student", name, seed) not in self.usable:
                table.loc[i, "status"] = "unusable"
        self.table = table
        self.done = table[table["status"] == "done"].reset_index(drop=True)
        self.seeds = sorted(set(map(int, self.done["seed"])))
        self.selected_on = selected_on(table, "combined")  # one kind of jets for all wishes

    # ---- what is there

    def lacks(self, what: str, reason: str) -> None:
        self.missing.append(schema.Missing(what=what, reason=reason))

    def _distinct(self, results: Iterable[StoredResult]) -> list[StoredResult]:
        """One result per configuration and seed: a second one, under another name, is left out."""
        kept: dict[tuple[Any, ...], StoredResult] = {}
        for result in results:
            identity = (result.kind, result.config.name if result.config else result.name, result.seed)
            if identity in kept:
                first = kept[identity]
                reason = f"has the same T, α and seed as {first.name}, which is reported instead"
                self.lacks(f"run {result.name}, seed {result.seed}", reason)
            else:
                kept[identity] = result
        return list(kept.values())

    def _test_jets(self) -> _Jets | None:
        """The shared test jets, or None where results have no scores (an imported study)."""
        scored = any(result.has_scores for result in self.results)
        if not scored:
            return None
        arrays = self.store.shared("test")
        labels, weights = np.asarray(arrays["labels"], np.int64), np.asarray(arrays["weights"], np.float64)
        for label, name in ((1, "signal"), (0, "background")):
            if not ((labels == label) & (weights > 0)).any():
                raise StudyError(
                    f"the test jets hold no {name} of weight above 0: nothing can be compared",
                    where=str(self.store.path),
                    hint="a report needs test jets of both classes",
                )
        pt = mass = None
        if self.store.has_shared("test_kinematics"):
            kinematics = self.store.shared("test_kinematics")
            pt, mass = np.asarray(kinematics["pt"], np.float64), np.asarray(kinematics["mass"], np.float64)
        return _Jets(labels, weights, pt, mass)

    def _usable(self) -> set[tuple[str, str, int]]:
        """Networks with metrics, and with finite scores that are not all equal where there are scores."""
        usable = set()
        for result in self.results:
            if result.status != "done":
                continue
            fault = None
            if not all(math.isfinite(result.metrics.get(name, math.nan)) for name in ("auc", "bkg_rej_50")):
                fault = "it has no finite AUC and rejection"
            elif self.jets is not None and result.has_scores:
                scores = result.arrays["scores_test"]
                if scores.shape != self.jets.labels.shape:
                    fault = f"it has {len(scores)} scores for {len(self.jets.labels)} test jets"
                elif bad := int((~np.isfinite(scores)).sum()):
                    fault = f"{bad} of its {len(scores)} test scores are not finite"
                elif np.ptp(scores) == 0:
                    fault = "all its test scores are equal"
            if fault is None:
                usable.add((result.kind, result.name, result.seed))
            else:
                self.lacks(f"{result.kind} {result.name}, seed {result.seed}", fault)
        return usable

    def _find(self, kind: str, seed: int | None = None, name: str | None = None) -> StoredResult | None:
        for result in self.results:
            if (
                result.kind == kind
                and (result.kind, result.name, result.seed) in self.usable
                and seed in (None, result.seed)
                and name in (None, result.name)
            ):
                return result
        return None

    @cached_property
    def networks(self) -> list[StoredResult]:
        """Every usable network: students in the table's order, baselines, teacher."""
        by_key = {(r.kind, r.name, r.seed): r for r in self.results}
        students = [
            by_key["student", name, int(seed)]
            for name, seed in zip(self.done["run_name"], self.done["seed"], strict=True)
        ]
        others = [r for kind in ("baseline", "teacher") for r in self.results if r.kind == kind and self._in_use(r)]
        return [*students, *others]

    def _in_use(self, result: StoredResult) -> bool:
        return (result.kind, result.name, result.seed) in self.usable

    @cached_property
    def have_scores(self) -> bool:
        """Whether every network has scores on the test jets."""
        return self.jets is not None and all(result.has_scores for result in self.networks)

    # ---- estimates of single networks

    @cached_property
    def scores(self) -> Floats:
        """[networks, jets]"""
        return np.stack([np.asarray(result.arrays["scores_test"], np.float64) for result in self.networks])

    @cached_property
    def auc(self) -> Estimates:
        if self.have_scores and self.jets is not None:
            return auc_estimates(self.jets.labels, self.scores, self.jets.weights)
        values = np.array([result.metrics["auc"] for result in self.networks], np.float64)
        return Estimates(values, np.zeros((len(values), 1)))

    @cached_property
    def log_rejection(self) -> dict[int, Estimates]:
        """ln(1/ε_B) by working point."""
        if self.have_scores and self.jets is not None:
            return rejection_estimates(self.jets.labels, self.scores, self.jets.weights)
        found = {}
        for point in WORKING_POINTS:
            values = [r.metrics.get(f"bkg_rej_{point}", math.nan) for r in self.networks]
            if not any(map(math.isnan, values)):
                found[point] = Estimates(np.log(values), np.zeros((len(values), 1)))
        return found

    @cached_property
    def rejection(self) -> Estimates:
        """1/ε_B at 50 %, on its own scale."""
        log = self.log_rejection[50]
        values = np.exp(log.values)
        return Estimates(values, log.factor * values[:, None])

    def _metric(self, metric: schema.Metric) -> Estimates:
        return self.auc if metric == "auc" else self.rejection

    def _survivors(self, result: StoredResult, point: int) -> int | None:
        count = result.metrics.get(f"n_bkg_{point}")
        return None if count is None else int(count)

    def _auc_of(self, k: int) -> schema.Estimate:
        value = float(self.auc.values[k])
        if not self.have_scores:
            return schema.Estimate(value=value)
        return physics.auc_estimate(value, float(self.auc.errors[k]))

    def _rejections_of(self, k: int) -> dict[str, schema.Estimate]:
        found = {}
        for point, estimates in self.log_rejection.items():
            value, survivors = math.exp(estimates.values[k]), self._survivors(self.networks[k], point)
            if self.have_scores:
                error = float(estimates.errors[k])
                found[str(point)] = physics.rejection_estimate(value, error, 1 if survivors is None else survivors)
            else:
                found[str(point)] = schema.Estimate(value=value, lower_limit=survivors == 0)
        return found

    def _counts_of(self, k: int) -> dict[str, int]:
        counts = {str(p): self._survivors(self.networks[k], p) for p in WORKING_POINTS}
        return {point: count for point, count in counts.items() if count is not None}

    # ---- configurations

    def _two_way(self, metric: schema.Metric) -> Configurations:
        rows = [k for k, r in enumerate(self.networks) if r.kind != "teacher"]
        names = ["baseline" if self.networks[k].kind == "baseline" else self.networks[k].name for k in rows]
        return configurations(self._metric(metric).rows(rows), names, [self.networks[k].seed for k in rows])

    @cached_property
    def with_baseline(self) -> dict[schema.Metric, Configurations]:
        return {metric: self._two_way(metric) for metric in METRICS}

    @cached_property
    def students(self) -> dict[schema.Metric, Configurations]:
        return {metric: estimates.without("baseline") for metric, estimates in self.with_baseline.items()}

    @cached_property
    def settings(self) -> pd.DataFrame:
        return effects.settings_frame(self.done, self.students["auc"].names)

    @cached_property
    def limits(self) -> int:
        """Networks whose rejection at 50 % is a lower limit."""
        return sum(self._survivors(r, 50) == 0 for r in self.networks)

    @cached_property
    def comparable(self) -> tuple[schema.Metric, ...]:
        """The metrics that configurations can be compared by."""
        if not self.have_scores:
            for what in NEED_SCORES:
                self.lacks(what, "not every run has scores per jet (an imported one has none)")
            return ()
        if self.limits:
            reason = f"no background survives for {self.limits} networks: their rejection is a lower limit"
            self.lacks("comparisons of rejection at 50 %", f"{reason}; more test jets are needed")
            return ("auc",)
        return METRICS

    def _estimate(self, metric: schema.Metric, name: str) -> schema.Estimate:
        contrast = self.students[metric].estimate(name)
        if not self.have_scores:
            return schema.Estimate(value=contrast.value)
        known = self.students[metric].seeds_known
        if metric == "auc":
            interval = auc_interval(contrast.value, contrast.error, contrast.df)
        elif self.limits:
            return schema.Estimate(value=contrast.value, lower_limit=True)
        else:
            half = quantile(contrast.df) * contrast.error / contrast.value
            interval = contrast.value * math.exp(-half), contrast.value * math.exp(half)
        low, high = interval or (None, None)
        return schema.Estimate(
            value=contrast.value,
            error=contrast.error,
            low=low,
            high=high,
            error_test=math.sqrt(contrast.test_variance),
            error_runs=math.sqrt(contrast.run_variance) if known else None,
        )

    def _configurations(self) -> list[schema.Configuration]:
        auc, rejection = self.students["auc"], self.students["rejection"]
        names = auc.names
        frame = self.settings.copy()
        frame["auc_student"], frame["bkg_rej_50"] = auc.values, rejection.values
        if self.selected_on == "validation":
            frame["auc_val"] = self._validation_means("auc_val")
            frame["bkg_rej_50_val"] = self._validation_means("bkg_rej_50_val")
            frame["combined_val"] = combined_score(frame, "_val")
        frame["combined"] = combined_score(frame)
        ranks = {
            column: frame[column].rank(ascending=False, method="min").astype(int)
            for column in ("auc_student", "bkg_rej_50", "combined")
        }
        versus = {metric: self._versus_baseline(metric) for metric in METRICS}
        beside = {m: set(beside_best(self.students[m])) if m in self.comparable else None for m in METRICS}
        spread = self.done.groupby("run_name")[["auc_student", "bkg_rej_50"]].agg(["std", "count"])
        found = []
        for name in names:
            row = frame.loc[name]
            dominated = (
                (frame["auc_student"] >= row["auc_student"])
                & (frame["bkg_rej_50"] >= row["bkg_rej_50"])
                & ((frame["auc_student"] > row["auc_student"]) | (frame["bkg_rej_50"] > row["bkg_rej_50"]))
            ).any()
            found.append(
                schema.Configuration(
                    **_setting(name, row),
                    runs=int(spread.loc[name, ("auc_student", "count")]),
                    auc=self._estimate("auc", name),
                    rejection=self._estimate("rejection", name),
                    auc_std=_number(spread.loc[name, ("auc_student", "std")]),
                    rejection_std=_number(spread.loc[name, ("bkg_rej_50", "std")]),
                    combined=float(row["combined"]),
                    rank_auc=int(ranks["auc_student"][name]),
                    rank_rejection=int(ranks["bkg_rej_50"][name]),
                    rank_combined=int(ranks["combined"][name]),
                    auc_validation=_number(row.get("auc_val")),
                    rejection_validation=_number(row.get("bkg_rej_50_val")),
                    combined_validation=_number(row.get("combined_val")),
                    auc_vs_baseline=versus["auc"].get(name),
                    rejection_vs_baseline=versus["rejection"].get(name),
                    beside_best_auc=None if (b := beside["auc"]) is None else name in b,
                    beside_best_rejection=None if (b := beside["rejection"]) is None else name in b,
                    pareto=not dominated,
                    gap_recovered_auc=self._gap("auc", name),
                    gap_recovered_rejection=self._gap("rejection", name),
                )
            )
        return sorted(found, key=lambda c: (c.rank_auc, c.run_name))

    def _validation_means(self, column: str) -> Floats:
        values = self.done[column].to_numpy(np.float64)
        estimates = Estimates(values, np.zeros((len(values), 1)))
        return configurations(estimates, list(self.done["run_name"]), list(self.done["seed"])).values

    def _versus_baseline(self, metric: schema.Metric) -> dict[str, schema.Comparison]:
        both = self.with_baseline[metric]
        if metric not in self.comparable:
            return {}
        if "baseline" not in both.names:
            return {}
        differences = {name: both.difference(name, "baseline") for name in self.students[metric].names}
        p_values = [contrast.p_value for contrast in differences.values()]
        corrections = zip(holm(p_values), benjamini_hochberg(p_values), strict=True)
        reference = float(both.values[both.index("baseline")])
        return {
            name: _comparison(contrast, reference, both.seeds_known, *p_adjusted)
            for (name, contrast), p_adjusted in zip(differences.items(), corrections, strict=True)
        }

    def _mean_versus_baseline(self) -> dict[schema.Metric, schema.Comparison]:
        found = {}
        for metric in self.comparable:
            both = self.with_baseline[metric]
            if "baseline" in both.names:
                b = both.index("baseline")
                weights = np.full(len(both.names), 1.0 / (len(both.names) - 1))
                weights[b] = -1.0
                contrast = both.combination(weights)
                found[metric] = _comparison(contrast, float(both.values[b]), both.seeds_known)
        return found

    def _gap(self, metric: schema.Metric, name: str) -> schema.Estimate | None:
        both = self.with_baseline[metric]
        teacher = [k for k, r in enumerate(self.networks) if r.kind == "teacher"]
        if metric not in self.comparable or "baseline" not in both.names or not teacher:
            return None
        i, b, single = both.index(name), both.index("baseline"), self._metric(metric).rows(teacher[:1])
        gain, gap = both.values[i] - both.values[b], single.values[0] - both.values[b]
        of_gain, of_gap = both.factor[i] - both.factor[b], single.factor[0] - both.factor[b]
        variance = both.model.cautious_variance
        paired = both.spread[i, i] + both.spread[b, b] - 2.0 * both.spread[i, b]
        found = physics.gap_recovered(
            float(gain),
            float(gap),
            (
                float(of_gain @ of_gain + variance * paired),
                float(of_gap @ of_gap + variance * both.spread[b, b] + both.common_variance / both.seeds),
                float(of_gain @ of_gap + variance * (both.spread[b, b] - both.spread[i, b])),
            ),
            both.difference(name, "baseline").df,
        )
        return None if found is None else schema.Estimate(value=found.value, low=found.low, high=found.high)

    # ---- runs

    def _runs(self) -> list[schema.Run]:
        place = {(r.name, r.seed): k for k, r in enumerate(self.networks) if r.kind == "student"}
        stored = {(r.name, r.seed): r for r in self.results if r.kind == "student"}
        keyed = self.done.set_index(["run_name", "seed"])
        combined = combined_score(keyed).to_dict()
        rank = keyed["auc_student"].rank(ascending=False, method="min").to_dict()
        found = []
        for _, row in self.table.iterrows():
            key = (str(row["run_name"]), int(row["seed"]))
            result, k = stored[key], place.get(key)
            common = {
                **_setting(key[0], row),
                "seed": key[1],
                "status": row["status"],
                "message": result.message,
                "epochs": _integer(row["epochs"]),
                "curves": {n: [_number(v) for v in values] for n, values in result.curves.items()},
            }
            if k is None:
                found.append(schema.Run(**common))
                continue
            baseline = self._find("baseline", key[1])
            rejection = self._rejections_of(k)
            best, epochs, seconds = row["best_epoch"], row["epochs"], _number(result.metrics.get("seconds"))
            share = None if pd.isna(best) or pd.isna(epochs) else (int(best) + 1) / max(int(epochs), 1)
            found.append(
                schema.Run(
                    **common,
                    auc=self._auc_of(k),
                    rejection=rejection,
                    survivors=self._counts_of(k),
                    combined=float(combined[key]),
                    rank=int(rank[key]),
                    auc_validation=_number(row["auc_val"]),
                    rejection_validation=_number(row["bkg_rej_50_val"]),
                    auc_gain=None if baseline is None else float(self.auc.values[k] - baseline.metrics["auc"]),
                    rejection_gain=None
                    if baseline is None or rejection["50"].lower_limit
                    else rejection["50"].value / baseline.metrics["bkg_rej_50"] - 1.0,
                    best_epoch=_integer(best),
                    seconds=seconds,
                    seconds_to_best=None if seconds is None or share is None else seconds * share,
                )
            )
        return found

    # ---- tables by setting

    def _groups(self) -> list[schema.GroupTable]:
        frame = self.settings.copy()
        frame["tf"], frame["af"] = frame["temp_final"].fillna(-1.0), frame["alpha_final"].fillna(-1.0)
        labels = {
            "temp_init": frame["temp_init"].map(str),
            "alpha_init": frame["alpha_init"].map(str),
            "strategy": frame["strategy"],
            "temp_range": _ranges(frame, "temp"),
            "alpha_range": _ranges(frame, "alpha"),
        }
        beside = {
            "temp_init": ["alpha_init", "tf", "af"],
            "alpha_init": ["temp_init", "tf", "af"],
            "strategy": ["temp_init", "alpha_init"],
            "temp_range": ["alpha_init", "af"],
            "alpha_range": ["temp_init", "tf"],
        }
        return [
            self._group_table(setting, groups.dropna(), frame[beside[setting]])
            for setting, groups in labels.items()
            if groups.notna().any()
        ]

    def _group_table(self, setting: str, groups: pd.Series, beside: pd.DataFrame) -> schema.GroupTable:
        runs = self.done.assign(group=self.done["run_name"].map(groups)).dropna(subset=["group"])
        means = runs.groupby("group", sort=False)[["auc_student", "bkg_rej_50"]].mean()
        constant = means.loc["baseline"] if setting == "strategy" and "baseline" in means.index else None
        outside = [name for name in self.settings.index if name not in groups.index]
        references: dict[str, str] = {}
        differences: dict[str, dict[str, schema.Comparison]] = {metric: {} for metric in METRICS}
        for metric, column in zip(METRICS, ("auc_student", "bkg_rej_50"), strict=True):
            references[metric] = str(means[column].idxmax())
            estimates = self.students[metric].without(*outside)
            for found in effects.group_differences(estimates, groups, beside.loc[groups.index], references[metric]):
                differences[metric][found.group] = _comparison(
                    found.contrast, float(means.loc[references[metric], column]), True, found.p_holm
                )
        rows = []
        centres = [
            self.students["auc"].values[[self.students["auc"].index(n) for n in own]] for own in _members(groups)
        ]
        spread = effects.equal_spread(centres)
        order = [s for s in STRATEGIES if s in means.index] if setting == "strategy" else _in_order(means, setting)
        for label in order:
            own = runs[runs["group"] == label]
            auc, rejection = _summary(own["auc_student"]), _summary(own["bkg_rej_50"])
            rows.append(
                schema.Group(
                    label=str(label),
                    runs=len(own),
                    auc=auc,
                    rejection=rejection,
                    consistency=None if auc.std is None else 1.0 / (auc.std + 0.001),
                    auc_over_constant=None if constant is None else auc.mean - float(constant["auc_student"]),
                    rejection_over_constant=None
                    if constant is None
                    else rejection.mean - float(constant["bkg_rej_50"]),
                    auc_difference=differences["auc"].get(str(label)),
                    rejection_difference=differences["rejection"].get(str(label)),
                )
            )
        return schema.GroupTable(
            setting=setting,  # type: ignore[arg-type]
            reference=references["auc"],
            reference_rejection=references["rejection"],
            groups=rows,
            spread_p_value=spread,
        )

    def _pairs(self) -> tuple[schema.SettingTable, list[schema.Pair]]:
        by = self.done.groupby(["temp_init", "alpha_init"])
        means = by[["auc_student", "bkg_rej_50"]].mean()
        counts = by.size()
        temps, alphas = sorted(self.done["temp_init"].unique()), sorted(self.done["alpha_init"].unique())

        def rows(column: str) -> list[list[float | None]]:
            return [[_number(means[column].get((t, a))) for a in alphas] for t in temps]

        table = schema.SettingTable(
            temp_init=temps, alpha_init=alphas, auc=rows("auc_student"), rejection=rows("bkg_rej_50")
        )
        pairs = [
            schema.Pair(
                temp_init=float(t),
                alpha_init=float(a),
                runs=int(counts[t, a]),
                auc=float(row["auc_student"]),
                rejection=float(row["bkg_rej_50"]),
            )
            for (t, a), row in means.iterrows()
        ]
        return table, sorted(pairs, key=lambda pair: -pair.auc)

    # ---- effects

    def _correlations(self) -> list[schema.Correlation]:
        found = []
        for setting in ("temp_init", "alpha_init"):
            for metric, column in zip(METRICS, ("auc_student", "bkg_rej_50"), strict=True):
                values = self.settings[setting].to_numpy(np.float64)
                own = effects.correlation(values, self.students[metric].values)
                runs = effects.correlation(
                    self.done[setting].to_numpy(np.float64), self.done[column].to_numpy(np.float64)
                )
                slope = effects.slopes(self.students[metric], values)
                if own is not None and runs is not None and slope is not None:
                    found.append(
                        schema.Correlation(
                            setting=setting,
                            metric=metric,
                            r_runs=runs.r,
                            r=own.r,
                            low=own.low,
                            high=own.high,
                            p_value=own.p_value,
                            points=own.n,
                            slope=_contrast(slope[0]),
                            slope_p_value=slope[0].p_value,
                        )
                    )
        return found

    def _importance(self) -> list[schema.Importance]:
        settings = [self.settings[name].to_numpy(np.float64) for name in ("temp_init", "alpha_init")]
        found = []
        for metric in METRICS:
            slopes = effects.slopes(self.students[metric], *settings)
            if slopes is not None and all(np.ptp(values) > 0 for values in settings):
                found.append(schema.Importance(metric=metric, difference=_comparison(slopes[2], 0.0, True)))
        return found

    def _models(self) -> list[schema.LinearModel]:
        found = []
        for metric in METRICS:
            fitted = effects.linear_model(self.students[metric], self.settings)
            if fitted is None:
                reason = "too few configurations, or none of T and α varies"
                self.lacks(f"linear model of {metric}", reason)
                continue
            slopes, df, r_squared = fitted
            terms = [
                schema.Term(name=name, slope=_contrast(contrast), p_value=contrast.p_value, p_holm=p)
                for (name, contrast), p in zip(slopes.items(), holm([c.p_value for c in slopes.values()]), strict=True)
            ]
            found.append(schema.LinearModel(metric=metric, terms=terms, df=df, r_squared=r_squared))
        return found

    def _shares(self) -> list[schema.VarianceShares]:
        found = []
        for metric in METRICS:
            shares = effects.variance_shares(self.students[metric], self.settings)
            if isinstance(shares, str):
                self.lacks(f"shares of the variance of {metric}", shares)
            else:
                found.append(schema.VarianceShares(metric=metric, shares=shares[0], expected_noise=shares[1]))
        return found

    def _distribution(self) -> schema.Distribution:
        students = range(len(self.done))

        def error(estimates: Estimates) -> float | None:
            return float(np.median(estimates.errors[list(students)])) if self.have_scores else None

        def paired(metric: schema.Metric) -> float | None:
            noise = self.students[metric].noise()
            if not self.have_scores or len(noise) < 2:
                return None
            variance = np.diag(noise)[:, None] + np.diag(noise)[None, :] - 2.0 * noise
            return math.sqrt(max(0.0, float(np.median(variance[np.triu_indices(len(noise), 1)]))))

        def by_seed(metric: schema.Metric) -> tuple[float | None, float | None]:
            model = self.with_baseline[metric]
            if not model.seeds_known:
                return None, None
            return math.sqrt(model.model.run_variance), math.sqrt(model.common_variance)

        own, common = by_seed("auc")
        own_rejection, common_rejection = by_seed("rejection")
        return schema.Distribution(
            runs=len(self.done),
            auc=_summary(self.done["auc_student"]),
            rejection=_summary(self.done["bkg_rej_50"]),
            auc_error=error(self.auc),
            rejection_error=None if self.limits else error(self.rejection),
            auc_paired_error=paired("auc"),
            rejection_paired_error=None if self.limits else paired("rejection"),
            auc_seed_std=own,
            rejection_seed_std=own_rejection,
            auc_seed_common_std=common,
            rejection_seed_common_std=common_rejection,
            seed_df=self.with_baseline["auc"].model.df,
        )

    def _top_quartile(self) -> schema.TopQuartile:
        done = self.done
        top = done.sort_values("auc_student", ascending=False, kind="stable").head(math.ceil(len(done) / 4))

        def shares(runs: pd.DataFrame) -> dict[str, float]:
            found = {
                "α_init ≥ 0.7": float((runs["alpha_init"] >= 0.7).mean()),
                "T_init ≥ 7": float((runs["temp_init"] >= 7).mean()),
            }
            return found | {name: float((runs["strategy"] == name).mean()) for name in STRATEGIES}

        return schema.TopQuartile(
            runs=len(top),
            mean_temp_init=float(top["temp_init"].mean()),
            mean_alpha_init=float(top["alpha_init"].mean()),
            all_mean_temp_init=float(done["temp_init"].mean()),
            all_mean_alpha_init=float(done["alpha_init"].mean()),
            shares=shares(top),
            all_shares=shares(done),
        )

    # ---- choices

    def _winners(
        self, rows: Sequence[schema.Configuration], groups: Sequence[schema.GroupTable]
    ) -> list[schema.Winner]:
        constant = [row for row in rows if row.strategy == "baseline"]
        wishes: list[tuple[str, str, Sequence[schema.Configuration]]] = [
            ("auc", "auc", rows),
            ("rejection", "rejection", rows),
            ("combined", "combined", rows),
            ("constant", "auc", constant),
        ]
        (strategies,) = (table for table in groups if table.setting == "strategy")
        consistent = [group for group in strategies.groups if group.consistency is not None]
        if consistent:
            steadiest = max(consistent, key=lambda group: group.consistency or 0.0).label
            wishes.append(("consistent", "auc", [row for row in rows if row.strategy == steadiest]))

        def on_test(row: schema.Configuration, quantity: str) -> float:
            value = getattr(row, quantity)
            return float(value.value if isinstance(value, schema.Estimate) else value)

        winners: list[schema.Winner] = []
        for wish, quantity, among in wishes:
            if not among:
                continue
            highest = max(among, key=lambda row: on_test(row, quantity))
            chosen = highest
            if self.selected_on == "validation":
                chosen = max(among, key=lambda row: getattr(row, f"{quantity}_validation"))
            more: dict[str, Any] = {}
            if wish in self.comparable:
                more |= self._excess(wish)
                more["beside_best"] = sum(bool(getattr(row, f"beside_best_{wish}")) for row in rows)
            value = getattr(chosen, f"{quantity}_validation")
            first = winners[0].configuration if winners else chosen.run_name
            for metric in self.comparable if chosen.run_name != first else ():
                students = self.students[metric]
                reference = float(students.values[students.index(first)])
                contrast = students.difference(chosen.run_name, first)
                more[f"{metric}_vs_best"] = _comparison(contrast, reference, students.seeds_known)
            winners.append(
                schema.Winner(
                    wish=wish,  # type: ignore[arg-type]
                    configuration=chosen.run_name,
                    value_validation=value,
                    highest_on_test=highest.run_name,
                    **more,
                )
            )
        return winners

    def _excess(self, metric: schema.Metric) -> dict[str, float | None]:
        """Winner's curse of a choice on the test jets, and of one on validation quoted from test."""
        students = self.students[metric]
        excess: dict[str, float | None] = {"excess_on_test": best_of_equals(students.noise())}
        if students.seeds_known and self.selected_on == "validation" and self.jets is not None:
            validation = len(self.store.shared("validation")["labels"])
            from_seeds = students.model.cautious_variance * students.spread
            # as many jets of the same kind: the test jets' covariance, scaled
            selection = students.test * (len(self.jets.labels) / max(validation, 1)) + from_seeds
            excess["excess_chosen"] = best_of_equals(selection, from_seeds)
        return excess

    def _top_two(self, rows: Sequence[schema.Configuration]) -> list[schema.TopTwo]:
        if len(rows) < 2 or self.jets is None:
            return []
        found = []
        for metric in self.comparable:
            students = self.students[metric]
            first, second = (students.names[i] for i in np.argsort(-students.values, kind="stable")[:2])
            contrast = students.difference(first, second)
            seeds, jets = to_separate(contrast, seeds=students.seeds, jets=len(self.jets.labels))
            reference = float(students.values[students.index(second)])
            found.append(
                schema.TopTwo(
                    metric=metric,
                    first=first,
                    second=second,
                    difference=_comparison(contrast, reference, students.seeds_known),
                    seeds_needed=seeds if students.seeds_known else None,
                    jets_needed=jets,
                )
            )
        return found

    # ---- physics

    def _shown(self) -> list[tuple[schema.Network, int]]:
        """Teacher, baseline and best student, with their places among the networks."""
        shown: list[tuple[schema.Network, StoredResult]] = []
        best = select_best(self.done, "auc") if len(self.done) else None
        seed = None if best is None else int(best["seed"])
        baseline = self._find("baseline", seed) or self._find("baseline")
        roles = [
            ("teacher", "Teacher (offline view)", self._find("teacher")),
            ("baseline", "Baseline (no teacher)", baseline),
        ]
        if best is not None:
            name = str(best["run_name"])
            roles.append(("student", f"Best student: {name}", self._find("student", seed, name)))
        for role, label, result in roles:
            if result is None:
                self.lacks(f"the {role}", "no finished one is stored")
                continue
            k = next(k for k, r in enumerate(self.networks) if r is result)
            network = schema.Network(
                role=role,  # type: ignore[arg-type]
                label=label,
                run_name=result.name,
                seed=result.seed,
                auc=self._auc_of(k),
                rejection=self._rejections_of(k),
                survivors=self._counts_of(k),
                auc_validation=_number(result.metrics.get("auc_val")),
            )
            shown.append((network, result))
        return [(n, next(k for k, r in enumerate(self.networks) if r is result)) for n, result in shown]

    def _physics(self, shown: Sequence[tuple[schema.Network, int]]) -> dict[str, Any]:
        jets = self.jets
        if not self.have_scores or jets is None:
            return {}
        by_pt: list[schema.PtBin] = []
        sculpting: list[schema.MassSculpting] = []
        calibrations: list[schema.Calibration] = []
        if jets.pt is None or jets.mass is None:
            reason = "the study does not hold pT and mass of its test jets (made by an older kdfast); "
            reason += "the same sweep again adds them"
            self.lacks("AUC and rejection by pT", reason)
            self.lacks("mass of the background that passes", reason)
        for network, k in shown:
            scores = self.scores[k]
            calibrations.append(physics.calibration(network.role, jets.labels, scores, jets.weights))
            if jets.pt is not None and jets.mass is not None:
                finite = np.isfinite(jets.pt)
                edges = physics.pt_edges(jets.pt[finite], jets.labels[finite])
                by_pt += physics.pt_bins(
                    network.role, jets.labels[finite], scores[finite], jets.weights[finite], jets.pt[finite], edges
                )
                for point in WORKING_POINTS:
                    found = physics.mass_sculpting(network.role, jets.labels, scores, jets.weights, jets.mass, point)
                    if found is None:
                        self.lacks(
                            f"mass of the background that passes the {network.role} at {point} %",
                            f"fewer than {physics.FEWEST_SURVIVORS} background jets pass, or their masses do not vary",
                        )
                    else:
                        sculpting.append(found)
        return {
            "by_pt": by_pt,
            "pt_differences": [d for n, _ in shown if (d := _pt_difference([b for b in by_pt if b.role == n.role]))],
            "mass_sculpting": sculpting,
            "calibration": calibrations,
        }

    # ---- all of it

    def _study(self) -> schema.Study:
        counts = {str(status): int(n) for status, n in self.table["status"].value_counts().items()}
        there = {(r.kind, r.name, r.seed) for r in self.results}
        absent = [run for run in self._asked() if run not in there]
        if absent:
            counts["missing"] = sum(kind == "student" for kind, _, _ in absent)
            few = ", ".join(f"{name} (seed {seed})" for _, name, seed in absent[:5])
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            self.lacks(f"{len(absent)} runs that the settings ask for", f"not trained yet: {few}{more}")
        imported = self.store.provenance.get("imported", {})
        for note in imported.get("notes", ()) if isinstance(imported, dict) else ():
            self.lacks("import", str(note))
        return schema.Study(
            name=self.store.path.resolve().name,
            seeds=self.seeds,
            configurations=int(self.done["run_name"].nunique()),
            counts=counts,
            test=None if self.jets is None else _jets(self.jets.labels, self.jets.weights),
            validation=self._validation_jets(),
            selected_on=self.selected_on,  # type: ignore[arg-type]
            settings=self.store.settings,
            provenance=self.store.provenance,
            kdfast=__version__,
        )

    def _asked(self) -> list[tuple[str, str, int]]:
        """The runs that the settings ask for; none where the settings are not a sweep's."""
        try:
            settings = StudySettings.resolve(self.store.settings, data_given=True)
        except ConfigError:
            return []
        others = [] if "imported" in self.store.provenance else [("teacher", "teacher", settings.data.seed)]
        others += [] if "imported" in self.store.provenance else [("baseline", "baseline", s) for s in settings.seeds]
        return [*others, *(("student", c.name, s) for s in settings.seeds for c in settings.runs())]

    def _validation_jets(self) -> schema.Jets | None:
        if not self.store.has_shared("validation"):
            return None
        arrays = self.store.shared("validation")
        return _jets(arrays["labels"], np.asarray(arrays["weights"], np.float64))

    def analysis(self) -> schema.Analysis:
        study, runs = self._study(), self._runs()
        shown = self._shown()
        if self.done.empty:
            self.lacks("tables, comparisons and effects", "no student has finished yet")
            return schema.Analysis(
                study=study, runs=runs, networks=[n for n, _ in shown], missing=self.missing, **self._physics(shown)
            )
        if not self.seeds[1:]:
            self.lacks(
                "variance between seeds",
                "the study has one seed: its numbers compare trained networks, not configurations; "
                "`kdfast refine` adds seeds",
            )
        if self._find("baseline") is None:
            self.lacks("improvements over the baseline", "no baseline has finished")
        rows, groups = self._configurations(), self._groups()
        grid, pairs = self._pairs()
        whole = schema.Analysis(
            study=study,
            networks=[network for network, _ in shown],
            runs=runs,
            configurations=rows,
            mean_vs_baseline=self._mean_versus_baseline(),
            distribution=self._distribution(),
            groups=groups,
            grid=grid,
            pairs=pairs,
            correlations=self._correlations(),
            importance=self._importance(),
            models=self._models(),
            variance_shares=self._shares(),
            top_quartile=self._top_quartile(),
            strategies={name: int((self.done["strategy"] == name).sum()) for name in STRATEGIES},
            winners=self._winners(rows, groups),
            top_two=self._top_two(rows),
            rank_agreement=[
                schema.RankAgreement(seeds=(a, b), rho=rho, p_value=p, configurations=n)
                for a, b, rho, p, n in effects.rank_agreement(
                    self.done["auc_student"], self.done["run_name"], self.done["seed"]
                )
            ],
            **self._physics(shown),
            missing=self.missing,
        )
        return whole.model_copy(update={"findings": findings(whole)})


# ---- values


def _setting(name: str, row: pd.Series) -> dict[str, Any]:
    return {
        "run_name": name,
        "strategy": row["strategy"],
        "temp_init": float(row["temp_init"]),
        "temp_final": _number(row["temp_final"]),
        "alpha_init": float(row["alpha_init"]),
        "alpha_final": _number(row["alpha_final"]),
    }


def _number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) or not math.isfinite(value) else float(value)


def _integer(value: Any) -> int | None:
    return None if value is None or pd.isna(value) else int(value)


def _jets(labels: NDArray[Any], weights: Floats) -> schema.Jets:
    def effective(label: int) -> float:
        w = weights[labels == label]
        return float(w.sum() ** 2 / np.square(w).sum()) if w.any() else 0.0

    return schema.Jets(
        signal=int((labels == 1).sum()),
        background=int((labels == 0).sum()),
        effective_signal=effective(1),
        effective_background=effective(0),
        weighted=bool(np.ptp(weights) > 0),
    )


def _summary(values: pd.Series) -> schema.MetricSummary:
    several = len(values) > 1
    return schema.MetricSummary(
        mean=float(values.mean()),
        std=float(values.std()) if several else None,
        variance=float(values.var()) if several else None,
        min=float(values.min()),
        max=float(values.max()),
    )


def _contrast(contrast: Contrast, seeds_known: bool = True) -> schema.Estimate:
    low, high = contrast.interval
    return schema.Estimate(
        value=contrast.value,
        error=contrast.error,
        low=low,
        high=high,
        error_test=math.sqrt(contrast.test_variance),
        error_runs=math.sqrt(contrast.run_variance) if seeds_known else None,
    )


def _comparison(
    contrast: Contrast, reference: float, seeds_known: bool, holm: float | None = None, bh: float | None = None
) -> schema.Comparison:
    return schema.Comparison(
        difference=_contrast(contrast, seeds_known),
        relative=contrast.value / reference if reference else None,
        p_value=contrast.p_value,
        p_holm=holm,
        p_bh=bh,
    )


def _pt_difference(bins: Sequence[schema.PtBin]) -> schema.PtDifference | None:
    """Bins hold different jets, so their errors are independent."""
    if len(bins) < 2 or bins[0].auc.error is None or bins[-1].auc.error is None:
        return None
    contrast = Contrast(
        bins[-1].auc.value - bins[0].auc.value, bins[0].auc.error ** 2 + bins[-1].auc.error ** 2, 0.0, math.inf
    )
    return schema.PtDifference(role=bins[0].role, auc=_comparison(contrast, bins[0].auc.value, False))


def _ranges(frame: pd.DataFrame, quantity: str) -> pd.Series:
    """ "10.0 → 2.0" for each configuration, missing where the value is constant."""
    first, last = frame[f"{quantity}_init"], frame[f"{quantity}_final"]
    return (first.map(str) + " → " + last.map(str)).where(last.notna())


def _members(groups: pd.Series) -> list[list[str]]:
    """The configurations of each group."""
    return [list(own.index) for _, own in groups.groupby(groups)]


def _in_order(means: pd.DataFrame, setting: str) -> list[str]:
    """Values rising; ranges by mean AUC, the highest first."""
    if setting.endswith("range"):
        return [str(label) for label in means["auc_student"].sort_values(ascending=False, kind="stable").index]
    return sorted((str(label) for label in means.index), key=float)
