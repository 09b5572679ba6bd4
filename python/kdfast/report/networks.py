"""The networks of a study as a report sees them: which are usable, and their numbers with the test jets'
errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdfast.distill.recipe import Settings
from kdfast.distill.schedules import Run, RunConfig
from kdfast.errors import StudyError
from kdfast.metrics import WORKING_POINTS
from kdfast.models.config import OwnModel
from kdfast.report import effects, physics
from kdfast.report.comparisons import Baselines, Configurations, baseline, configurations
from kdfast.report.families import Adjusted, AllPairs, adjust, level_of
from kdfast.report.physics import TestJets
from kdfast.report.records import planned_settings
from kdfast.report.sampling import Estimates, auc_estimates, rejection_estimates
from kdfast.report.schema import Missing
from kdfast.report.schema.values import Estimate, Metric
from kdfast.store.key import RunKey, run_name
from kdfast.store.settings import StudySettings
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.table import NEED_SCORES, axis_columns, results_table, selected_on

__all__ = ["COLUMNS", "METRICS", "StudyNetworks", "fault_of_scores", "means_of"]

Floats = NDArray[np.float64]
# The metrics, with their columns of the results table.
COLUMNS: dict[Metric, str] = {"auc": "auc_student", "rejection": "bkg_rej_50"}
METRICS = tuple(COLUMNS)


class StudyNetworks:
    """What the parts of one analysis of a store's results share: networks, their table, and what is
    missing."""

    def __init__(self, store: StudyStore, results: Iterable[StoredResult], *, stages: int = 1) -> None:
        """stages: number of such objects of which one report speaks: they share its error budget."""
        self.store = store
        self.stages = stages
        self.missing: list[Missing] = []
        self.results = self._distinct(results)
        self.jets = self._test_jets()
        self.usable = self._usable()
        table = results_table(self.results)
        for i, (name, seed) in enumerate(zip(table["run_name"], table["seed"], strict=True)):
            if table.loc[i, "status"] == "done" and RunKey("student", name, seed) not in self.usable:
                table.loc[i, "status"] = "unusable"
        self.table = table
        self.done = table[table["status"] == "done"].reset_index(drop=True)
        self.seeds = sorted(set(map(int, self.done["seed"])))
        columns = {"auc": "auc", "rejection": "bkg_rej_50", "combined": "combined"}
        self.selected_on = {quantity: selected_on(table, column) for quantity, column in columns.items()}

    def part(self, results: Iterable[StoredResult], *, stages: int) -> StudyNetworks:
        """Some of the results by themselves. (Simulations make networks of their own kind.)"""
        return StudyNetworks(self.store, results, stages=stages)

    def add_missing(self, what: str, reason: str) -> None:
        self.missing.append(Missing(what=what, reason=reason))

    def _distinct(self, results: Iterable[StoredResult]) -> list[StoredResult]:
        """One result per configuration and seed: a second one, under another name, is left out."""
        kept: dict[tuple[Any, ...], StoredResult] = {}
        for result in results:
            identity = (result.kind, result.config.name if result.config else result.name, result.seed)
            first = kept.setdefault(identity, result)
            if first is not result:
                reason = f"has the same T, α and seed as {first.name}, which is reported instead"
                self.add_missing(f"run {result.name}, seed {result.seed}", reason)
        return list(kept.values())

    def _test_jets(self) -> TestJets | None:
        """The shared test jets, or None where results have no scores (an imported study)."""
        scored = any(result.has_scores for result in self.results)
        if not scored:
            return None
        arrays = self.store.shared("test")
        labels = np.asarray(arrays["labels"], np.int64)
        weights = np.asarray(arrays["weights"], np.float64)
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
            pt = np.asarray(kinematics["pt"], np.float64)
            mass = np.asarray(kinematics["mass"], np.float64)
        return TestJets(labels, weights, pt, mass)

    def _usable(self) -> set[RunKey]:
        """Networks with metrics, and with finite scores that are not all equal where there are scores."""
        usable = set()
        for result in self.results:
            if result.status != "done":
                continue
            fault = ""
            needed = ["auc", "bkg_rej_50"] if result.kind == "student" or result.has_scores else ["auc"]
            if not all(math.isfinite(result.metrics.get(name, math.nan)) for name in needed):
                fault = "it has no finite AUC and rejection"
            elif self.jets is not None and result.has_scores:
                fault = fault_of_scores(result, len(self.jets.labels))
            if not fault:
                usable.add(result.key)
            else:
                kind = "" if result.kind == result.name else f"{result.kind} "
                self.add_missing(f"{kind}{result.name}, seed {result.seed}", fault)
        return usable

    @cached_property
    def configs(self) -> dict[str, RunConfig]:
        """The students' configurations, by name."""
        students = (result for result in self.results if result.kind == "student")
        return {result.name: result.config for result in students if isinstance(result.config, RunConfig)}

    def baseline_of(self, name: str, seed: int | None = None) -> StoredResult | None:
        """The baseline of a student: of the same further settings."""
        config = self.configs[name].baseline
        usable = (r for r in self.results if r.kind == "baseline" and r.key in self.usable)
        return next((r for r in usable if r.config == config and seed in (None, r.seed)), None)

    def find(self, kind: str, seed: int | None = None, name: str | None = None) -> StoredResult | None:
        usable = (r for r in self.results if r.kind == kind and r.key in self.usable)
        return next((r for r in usable if seed in (None, r.seed) and name in (None, r.name)), None)

    @cached_property
    def networks(self) -> list[StoredResult]:
        """Every usable network: students in the table's order, baselines, teacher."""
        by_key = {r.key: r for r in self.results}
        students = [
            by_key[RunKey("student", name, int(seed))]
            for name, seed in zip(self.done["run_name"], self.done["seed"], strict=True)
        ]
        others = [r for kind in ("baseline", "teacher") for r in self.results if r.kind == kind]
        return [*students, *(r for r in others if r.key in self.usable)]

    @cached_property
    def have_scores(self) -> bool:
        """Whether every network has scores on the test jets."""
        return self.jets is not None and all(result.has_scores for result in self.networks)

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
        for point in WORKING_POINTS:  # an imported baseline may have none: NaN
            values = np.array([r.metrics.get(f"bkg_rej_{point}", math.nan) for r in self.networks], np.float64)
            if np.isfinite(values).any():
                found[point] = Estimates(np.log(values), np.zeros((len(values), 1)))
        return found

    @cached_property
    def rejection(self) -> Estimates:
        """1/ε_B at 50 %, on its own scale."""
        log = self.log_rejection[50]
        values = np.exp(log.values)
        return Estimates(values, log.factor * values[:, None])

    def metric(self, metric: Metric) -> Estimates:
        return self.auc if metric == "auc" else self.rejection

    def _survivors(self, result: StoredResult, point: int) -> int | None:
        count = result.metrics.get(f"n_bkg_{point}")
        return None if count is None else int(count)

    def auc_of(self, k: int) -> Estimate:
        value = float(self.auc.values[k])
        if not self.have_scores:
            return Estimate(value=value)
        return physics.auc_estimate(value, float(self.auc.errors[k]))

    def rejections_of(self, k: int) -> dict[str, Estimate]:
        found = {}
        for point, estimates in self.log_rejection.items():
            if math.isnan(estimates.values[k]):
                continue
            value = math.exp(estimates.values[k])
            survivors = self._survivors(self.networks[k], point)
            estimate = Estimate(value=value, lower_limit=survivors == 0)
            if self.have_scores:
                error = float(estimates.errors[k])
                estimate = physics.rejection_estimate(value, error, 1 if survivors is None else survivors)
            found[str(point)] = estimate
        return found

    def counts_of(self, k: int) -> dict[str, int]:
        counts = {str(p): self._survivors(self.networks[k], p) for p in WORKING_POINTS}
        return {point: count for point, count in counts.items() if count is not None}

    def _finite(self, kind: str, metric: Metric) -> list[int]:
        values = self.metric(metric).values
        return [k for k, r in enumerate(self.networks) if r.kind == kind and np.isfinite(values[k])]

    def _model(self, metric: Metric, rows: Sequence[int]) -> Configurations:
        names = [self.networks[k].name for k in rows]
        seeds = [self.networks[k].seed for k in rows]
        return configurations(self.metric(metric).rows(rows), names, seeds)

    @cached_property
    def students(self) -> dict[Metric, Configurations]:
        """The two-way model of configurations and seeds. That of the rejection has none whose rejection is
        a lower limit, which would enter every other's number; the rejection is absent where all are."""
        rows = {metric: self._finite("student", metric) for metric in METRICS}
        rows["rejection"] = [k for k in rows["rejection"] if self.networks[k].name not in self.limited]
        found = {metric: self._model(metric, own) for metric, own in rows.items() if own}
        loose = [metric for metric, model in found.items() if not model.connected]
        if loose:
            what = "means over common seeds" if "auc" in loose else "means of the rejection over common seeds"
            reason = (
                "no configuration links all seeds: numbers are plain means of runs, and seeds' luck is part of them"
            )
            self.add_missing(what, reason)
        return found

    @cached_property
    def baselines(self) -> dict[Metric, Baselines]:
        """The baselines compared with `students`; without a metric where too few seeds are shared, or the
        baselines' own rejections are limits."""
        found, unpaired = {}, set()
        for metric, students in self.students.items():
            groups: dict[Run, list[int]] = {}  # places of configurations, by their baseline
            for place, name in enumerate(students.names):
                groups.setdefault(self.configs[name].baseline, []).append(place)
            compared = []
            limited = 0
            for config, group in groups.items():
                own = [k for k in self._finite("baseline", metric) if self.networks[k].config == config]
                limits = sum(self.is_limit(k) for k in own)
                if metric == "rejection" and limits:
                    limited += limits
                    continue
                seeds = [self.networks[k].seed for k in own]
                one = baseline(students, self.metric(metric).rows(own), seeds, group)
                if one is not None:
                    compared.append(one)
                elif seeds:
                    unpaired.add(", ".join(str(seed) for seed in seeds if seed in students.blocks))
                elif self.find("baseline") is not None:
                    self.add_missing(f"improvements over {run_name(config)}", "none has finished")
            if limited:
                reason = f"no background survives for {limited} baselines: their rejection is a lower limit"
                self.add_missing("rejection relative to the baseline's", reason)
            if compared:
                found[metric] = Baselines(students, tuple(compared))
        for seeds_of_both in unpaired:
            have = f"only seed {seeds_of_both} has" if seeds_of_both else "no seed has"
            reason = f"{have} both a baseline and students: what another seed would do to the baseline is unknown"
            self.add_missing("tests of improvements over the baseline", reason)
        return found

    # ---- families of tests (families.py): by metric, none where a metric's errors are unknown

    @cached_property
    def against_baseline(self) -> dict[Metric, dict[str | None, Adjusted]]:
        """Configurations, and (None) their mean, minus the baseline."""
        found = {}
        for metric in self.tested:
            compared = self.baselines.get(metric)
            if compared is not None:
                contrasts, covariance, scatters = compared.differences()
                tested = adjust(contrasts, covariance, level_of("main", metric, self.stages), scatters)
                found[metric] = dict(zip((*compared.names, None), tested, strict=True))
        return found

    @cached_property
    def pairs(self) -> dict[Metric, AllPairs]:
        """Configurations against each other. Half of the level by AUC is for their order under different seeds."""
        levels = {metric: level_of("choices", metric, self.stages) for metric in METRICS}
        levels["auc"] /= 2.0
        models = {metric: self.students[metric] for metric in self.comparable}
        return {metric: AllPairs(own.noise(), levels[metric], own.resampled()) for metric, own in models.items()}

    @cached_property
    def effects(self) -> dict[Metric, effects.Effects]:
        """Effects of settings, also where they can only be described (`comparable` says which are tested)."""
        return {
            metric: effects.Effects(self.students[metric], self.settings, level_of("effects", metric, self.stages))
            for metric in self.modelled
        }

    @cached_property
    def tested(self) -> tuple[Metric, ...]:
        """The metrics by which configurations without a lower limit are compared with the baseline."""
        return tuple(self.students) if self.have_scores else ()

    @cached_property
    def settings(self) -> pd.DataFrame:
        return effects.settings_frame(self.done, self.students["auc"].names, self._usual)

    @cached_property
    def planned(self) -> StudySettings | None:
        """The settings of the sweep; None for an import, and where they can't be read."""
        return planned_settings(self.store.settings, self.store.provenance)

    @property
    def _usual(self) -> Mapping[str, Any]:
        """The study's own values of further settings, which runs without these have."""
        settings = self.planned
        if settings is None:
            return {}
        model, recipe = settings.student(Settings())
        usual = {name: getattr(recipe, name, None) for name in axis_columns(self.done)}
        if "model" in usual:
            usual["model"] = "own" if isinstance(model, OwnModel) else settings.model
        return Settings(usual)

    def is_limit(self, k: int) -> bool:
        """Whether a network's rejection at 50 % is a lower limit."""
        return self._survivors(self.networks[k], 50) == 0

    @cached_property
    def limited(self) -> set[str]:
        """Configurations with a run whose rejection at 50 % is a lower limit: so is their mean."""
        return {r.name for k, r in enumerate(self.networks) if r.kind == "student" and self.is_limit(k)}

    @cached_property
    def modelled(self) -> tuple[Metric, ...]:
        """The metrics that put all configurations in order: not the rejection where one's is a lower
        limit."""
        if self.limited:
            runs = sum(r.kind == "student" and self.is_limit(k) for k, r in enumerate(self.networks))
            reason = f"no background survives for {runs} of {len(self.done)} runs: their rejection is a lower limit"
            what = "comparisons of configurations and settings by rejection at 50 %"
            self.add_missing(what, f"{reason}; more test jets are needed")
            return ("auc",)
        return METRICS

    @cached_property
    def comparable(self) -> tuple[Metric, ...]:
        """Those whose errors are known, too."""
        if not self.have_scores:
            for what in NEED_SCORES:
                self.add_missing(what, "these need scores per jet, which not every run has (an imported one has none)")
            return ()
        return self.modelled

    @cached_property
    def teachers(self) -> dict[Metric, int]:
        """The teacher's place among the networks, for each metric in which it is no lower limit."""
        place = next((k for k, r in enumerate(self.networks) if r.kind == "teacher"), None)
        if place is None:
            return {}
        if self.is_limit(place):
            self.add_missing("gap recovered in rejection", "no background survives for the teacher: a lower limit")
            return {"auc": place}
        return dict.fromkeys(METRICS, place)


def means_of(runs: pd.DataFrame, column: str, model: Configurations | None) -> pd.Series:
    """By run_name, the estimates of a model of the column; of configurations outside it, their runs' plain
    means."""
    found = runs.groupby("run_name", sort=False)[column].mean()
    if model is not None:
        found[list(model.names)] = model.values
    return found


def fault_of_scores(result: StoredResult, jets: int) -> str:
    """Why a result's scores can't be used on a number of test jets; empty where they can."""
    scores = result.arrays["scores_test"]
    if scores.shape != (jets,):
        return f"it has {len(scores)} scores for {jets} test jets"
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        return f"{bad} of its {len(scores)} test scores are not finite"
    return "all its test scores are equal" if np.ptp(scores) == 0 else ""
