"""How often a report is wrong, and how often it finds what is there: simulated studies of known truth through the whole
analysis of a report.

Test jets fluctuate with a covariance like that of trained students: standard errors of 0.0055 in AUC, of differences of
two students 0.0014 (half of it smooth in temperature and mixing weight, so that trends appear by chance), of a student
and the baseline 0.0021. Seeds add independent scatter of each run, normal or with the tails of Student's t of 3 degrees
of freedom, and what a seed does to all students alike relative to the baseline.

    python -m bench.error_rates --studies 500 --write docs/explanation/error-rates.md
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from kdfast.distill.schedules import RunConfig
from kdfast.report.analysis import analyse_networks
from kdfast.report.networks import StudyNetworks
from kdfast.report.outlook import Candidates, places
from kdfast.report.physics import TestJets
from kdfast.report.sampling import Estimates
from kdfast.report.schema import Analysis
from kdfast.report.schema.values import Comparison
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.result import StoredResult
from kdfast.store.settings import SearchSettings
from kdfast.store.table import results_table
from kdfast.study.search import next_round

Floats = NDArray[np.float64]

# AUC and rejection of each network, each with its row of the covariance's factor.
Given = dict[RunKey, tuple[float, Floats, float, Floats]]

CONFIGURATIONS = grid(temperature=[3.0, 10.0], alpha=[0.3, 0.9], temperature_final=[1.0], alpha_final=[0.1])
AUC, REJECTION = 0.92, 21.0

# Standard error of one number and 1 − its correlation with another student's: AUC, rejection.
_ERRORS = {"auc": (0.0055, 0.033), "rejection": (3.1, 0.22)}
_DIMENSIONS = 60
_JETS = 400


@dataclass(frozen=True)
class Truth:
    """seeds: number of them. seed_spread: σ of a run's AUC from seed to seed. tails: of that scatter ("normal" or
    "heavy"). effect: true AUC of a configuration relative to the baseline. leaders: number of configurations that are
    refined with `further` seeds, chosen by their validation AUC over the first ones. race: only those are trained that
    a race of the configurations chooses."""

    seeds: int
    seed_spread: float
    tails: str = "normal"
    effect: Callable[[RunConfig], float] = lambda config: 0.0
    configurations: Sequence[RunConfig] = tuple(CONFIGURATIONS)
    leaders: int = 0
    further: int = 0
    race: bool = False


class SimulatedNetworks(StudyNetworks):
    """Networks whose numbers, and their covariance over test jets, are given instead of scores."""

    have_scores = True  # type: ignore[assignment]

    def __init__(
        self, results: Sequence[StoredResult], given: Given, first_seeds: Sequence[int], stages: int = 1
    ) -> None:
        self.given = given
        self.first_seeds = first_seeds
        self.stages = stages
        self.missing = []
        self.results = results
        labels = np.arange(_JETS) % 2
        self.jets = TestJets(labels, np.ones(_JETS), None, None)
        self.usable = {result.key for result in results}
        self.table = results_table(results)
        self.done = self.table
        self.seeds = sorted(set(map(int, self.done["seed"])))
        self.selected_on = dict.fromkeys(("auc", "rejection", "combined"), "validation")
        self.store = _NoStore(settings={"seeds": list(first_seeds)}, provenance={})  # type: ignore[assignment]

    def part(self, results: Iterable[StoredResult], *, stages: int) -> SimulatedNetworks:
        return SimulatedNetworks(list(results), self.given, self.first_seeds, stages)

    @property
    def scores(self) -> Floats:  # type: ignore[override]
        """Of no meaning: the calibration of simulated networks is not looked at."""
        rng = np.random.default_rng(0)
        return rng.normal(size=(len(self.networks), _JETS)) + np.arange(_JETS) % 2

    @property
    def auc(self) -> Estimates:  # type: ignore[override]
        return self._estimates(0)

    @property
    def rejection(self) -> Estimates:  # type: ignore[override]
        return self._estimates(2)

    @property
    def log_rejection(self) -> dict[int, Estimates]:  # type: ignore[override]
        own = self.rejection
        log = Estimates(np.log(own.values), own.factor / own.values[:, None])
        return {30: log, 50: log, 80: log}

    def _estimates(self, place: int) -> Estimates:
        rows = [self.given[result.key] for result in self.networks]
        return Estimates(np.array([row[place] for row in rows]), np.array([row[place + 1] for row in rows]))


class _NoStore(SimpleNamespace):
    """What an analysis asks of a study's folder."""

    path = Path("simulated")

    def has_shared(self, name: str) -> bool:
        return True

    def shared(self, name: str) -> dict[str, NDArray[Any]]:
        return {"labels": np.arange(_JETS) % 2, "weights": np.ones(_JETS)}

    def latencies(self) -> dict[RunKey, Any]:
        return {}


def studies(truth: Truth, number: int, seed: int = 0) -> Iterator[tuple[Analysis, dict[RunKey, float]]]:
    """Analyses of simulated studies, each with the true AUCs of its networks, minus AUC."""
    covariance = _Covariance(truth.configurations)
    for k in range(number):
        yield _study(truth, covariance, np.random.default_rng([seed, k]))


class _Covariance:
    """Directions of the test jets' fluctuations: common to all, smooth in the settings, and a run's own."""

    def __init__(self, configurations: Sequence[RunConfig]) -> None:
        self.smooth = {}
        for config in configurations:
            last = config.temp_init if config.temp_final is None else config.temp_final
            alpha = config.alpha_init if config.alpha_final is None else config.alpha_final
            self.smooth[config.name] = np.array([math.log(config.temp_init / 5), math.log(last / 3)]) / 2
            self.smooth[config.name] = np.append(self.smooth[config.name], [config.alpha_init - 0.5, alpha - 0.4])
        scale = math.sqrt(np.mean([v @ v for v in self.smooth.values()]))
        self.smooth = {name: v / scale for name, v in self.smooth.items()}

    def row(self, metric: str, key: RunKey, own: np.random.Generator) -> Floats:
        size, apart = _ERRORS[metric]
        direction = own.normal(size=_DIMENSIONS - 10)
        direction /= np.linalg.norm(direction)
        found = np.zeros(_DIMENSIONS)
        found[0] = math.sqrt(1.0 - apart)
        if key.kind == "student":
            found[1:5] = math.sqrt(apart / 2) * self.smooth[key.name]
            found[10:] = math.sqrt(apart / 2) * direction
        else:
            found[10:] = math.sqrt(2.5 * apart) * direction
        return size * found


def _study(truth: Truth, covariance: _Covariance, rng: np.random.Generator) -> tuple[Analysis, dict[RunKey, float]]:
    test = {metric: rng.normal(size=_DIMENSIONS) for metric in _ERRORS}
    validation = {metric: rng.normal(size=_DIMENSIONS) for metric in _ERRORS}
    results: list[StoredResult] = []
    given: Given = {}
    true: dict[RunKey, float] = {}
    level = {}  # of what a seed does to all students alike

    def scatter() -> float:
        value = rng.normal() if truth.tails == "normal" else rng.standard_t(3) / math.sqrt(3.0)
        return float(value) * truth.seed_spread

    def train(kind: str, name: str, seed: int, config: RunConfig | None) -> None:
        key = RunKey(kind, name, seed)
        run = scatter()
        if config is not None:
            run += truth.effect(config) + level.setdefault(seed, scatter() / 2)
        own = np.random.default_rng([seed, *name.encode()])
        auc, rejection = (covariance.row(metric, key, own) for metric in _ERRORS)
        true[key] = run
        values = {}
        for suffix, jets in (("", test), ("_val", validation)):
            values[f"auc{suffix}"] = AUC + run + float(auc @ jets["auc"])
            expected = REJECTION * math.exp(20.0 * run)
            values[f"bkg_rej_50{suffix}"] = max(1.5, expected + float(rejection @ jets["rejection"]))
            values |= {f"n_bkg_{point}{suffix}": 300 for point in (30, 50, 80)}
        given[key] = (values["auc"], auc, values["bkg_rej_50"], rejection)
        values |= {"best_epoch": 3, "epochs": 6}
        results.append(StoredResult(kind, name, seed, config, metrics=values))

    first = range(1, truth.seeds + 1)
    for seed in first:
        train("baseline", "baseline", seed, None)
        for config in truth.configurations:
            train("student", config.name, seed, config)
    if truth.race:
        chosen = _raced(truth.configurations, results)
        results = [result for result in results if result.kind != "student" or result.name in chosen]
    if truth.leaders:
        ranked = sorted(truth.configurations, key=lambda c: -_mean_validation(results, c.name))
        for seed in range(truth.seeds + 1, truth.seeds + truth.further + 1):
            train("baseline", "baseline", seed, None)
            for config in ranked[: truth.leaders]:
                train("student", config.name, seed, config)
    study = SimulatedNetworks(results, given, list(first))
    return analyse_networks(study), true


def _raced(configurations: Sequence[RunConfig], results: Sequence[StoredResult]) -> set[str]:
    """Names of those that a race trains; it tolerates the standard error of a difference."""
    x = places(configurations)
    scores: dict[int, float] = {}
    while True:
        tried = np.isin(np.arange(len(x)), [*scores])
        chosen, _ = next_round(Candidates(configurations, x, scores, tried, 0.0014), SearchSettings())
        if not chosen:
            return {configurations[number].name for number in scores}
        scores |= {number: _mean_validation(results, configurations[number].name) for number in chosen}


def _mean_validation(results: Sequence[StoredResult], name: str) -> float:
    return float(np.mean([r.metrics["auc_val"] for r in results if r.name == name]))


# ---- what is false


def false_statements(analysis: Analysis, truth: Truth, true: dict[RunKey, float]) -> list[str]:
    """Directional statements of a report that are false, by topic.

    With several seeds they are about configurations, with one about trained networks, whose own truth includes the
    luck of the seed; statements on settings are about configurations in either case."""
    networks = truth.seeds == 1

    def value(name: str) -> float:
        if networks:
            return true[RunKey("baseline" if name == "baseline" else "student", name, 1)]
        config = next((c for c in truth.configurations if c.name == name), None)
        return 0.0 if config is None else truth.effect(config)

    def wrong(comparison: Comparison | None, difference: float) -> bool:
        return bool(comparison and comparison.supported and comparison.difference.value * difference <= 0.0)

    found = []
    rows = analysis.configurations
    for metric in ("auc", "rejection"):
        for row in rows:
            if wrong(getattr(row, f"{metric}_vs_baseline"), value(row.run_name) - value("baseline")):
                found.append("improvement")
        mean = np.mean([value(row.run_name) for row in rows]) - value("baseline")
        if wrong(analysis.mean_vs_baseline.get(metric), float(mean)):  # type: ignore[call-overload]
            found.append("mean")
        inside = [row.run_name for row in rows if getattr(row, f"in_best_set_{metric}")]
        values = {row.run_name: value(row.run_name) for row in rows}
        best = [name for name, v in values.items() if v == max(values.values())]
        if not set(best) & set(inside) or (not networks and not set(best) <= set(inside)):
            found.append("best set")
    for two in analysis.top_two:
        if wrong(two.difference, value(two.first) - value(two.second)):
            found.append("top two")
    for winner in analysis.winners:
        for comparison in (winner.auc_vs_best, winner.rejection_vs_best):
            if wrong(comparison, value(winner.configuration) - value(analysis.winners[0].configuration)):
                found.append("choices")
    if analysis.refinement is not None:  # always about configurations
        for row in analysis.refinement.configurations:
            config = next(c for c in truth.configurations if c.name == row.run_name)
            for comparison in (row.auc_vs_baseline, row.rejection_vs_baseline):
                if wrong(comparison, truth.effect(config)):
                    found.append("refined")
    effects = ["planned_temp", "planned_ann", "planned_sched", "temp"]
    if not any(truth.effect(config) for config in truth.configurations):
        effects += ["planned_alpha", "alpha", "strategy", "correlation", "importance", "seeds"]
    found += [f.topic for f in analysis.findings if f.supported and f.topic.startswith(tuple(effects))]
    return found


@dataclass(frozen=True)
class Rates:
    """Of simulated studies: shares with a false directional statement, in which all intervals of the main family by AUC
    hold, and in which an effect is established: α, or the mean of the configurations against the baseline."""

    studies: int
    false: float
    coverage: float
    alpha: float
    mean: float
    topics: dict[str, int]


def rates(truth: Truth, number: int, seed: int = 0) -> Rates:
    """Of a number of studies of one truth."""
    counts = dict.fromkeys(("false", "coverage", "alpha", "mean"), 0)
    topics: dict[str, int] = {}
    for analysis, true in studies(truth, number, seed):
        false = set(false_statements(analysis, truth, true))
        for topic in false:
            topics[topic] = topics.get(topic, 0) + 1
        counts["false"] += bool(false)
        counts["coverage"] += _covered(analysis, truth, true)
        supported = [f for f in analysis.findings if f.supported and f.numbers.get("value", 0.0) > 0.0]
        counts["alpha"] += any(f.topic in ("planned_alpha_auc", "correlation_auc") for f in supported)
        mean = analysis.mean_vs_baseline.get("auc")
        counts["mean"] += mean is not None and mean.supported
    return Rates(number, **{name: count / number for name, count in counts.items()}, topics=topics)


def _covered(analysis: Analysis, truth: Truth, true: dict[RunKey, float]) -> bool:
    """Whether every interval of a configuration minus the baseline holds the truth."""
    effects = {config.name: truth.effect(config) for config in truth.configurations}
    for row in analysis.configurations:
        difference = effects[row.run_name]
        if truth.seeds == 1:
            difference = true[RunKey("student", row.run_name, 1)] - true[RunKey("baseline", "baseline", 1)]
        if row.auc_vs_baseline is not None and row.auc_vs_baseline.difference.excludes(difference):
            return False
    return True


def published(config: RunConfig) -> float:
    """The study's effect: r(α_init, AUC) = 0.62 over 132 runs whose AUC spreads by 0.0037."""
    return 0.0103 * config.alpha_init


def shifted(difference: float, config: RunConfig) -> float:
    """Every configuration differs from the baseline by as much."""
    return difference


SETTINGS = {
    f"{seeds} seed{'s' * (seeds > 1)}, σ = {spread}{', heavy tails' * (tails == 'heavy')}": Truth(seeds, spread, tails)
    for seeds in (1, 2, 3, 5)
    for spread in (0.001, 0.009)
    for tails in ("normal", "heavy")
}
SETTINGS |= {
    f"race of 132, {seeds} seed{'s' * (seeds > 1)}, σ = {spread}": Truth(
        seeds, spread, configurations=tuple(grid("study")), race=True
    )
    for seeds in (1, 3)
    for spread in (0.001, 0.009)
}
SETTINGS |= {
    f"refined: 5 leaders of 1 seed, 4 further ones, σ = {spread}": Truth(1, spread, leaders=5, further=4)
    for spread in (0.001, 0.003, 0.009)
}
EFFECTS = {
    "the published effect of α, one seed, 132 configurations": Truth(
        1, 0.0025, effect=published, configurations=tuple(grid("study"))
    ),
    "all configurations 0.004 above the baseline, 5 seeds, σ = 0.001": Truth(5, 0.001, effect=partial(shifted, 0.004)),
    "all configurations 0.008 above the baseline, 5 seeds, σ = 0.001": Truth(5, 0.001, effect=partial(shifted, 0.008)),
    "all configurations 0.012 above the baseline, 5 seeds, σ = 0.001": Truth(5, 0.001, effect=partial(shifted, 0.012)),
}

_PAGE = """# How often a report is wrong

Simulated studies of known truth, each through the whole analysis of a report. `{command}` makes this page.

In the first table no setting has any effect. *False*: share of reports with a false directional statement; the
budget is 5 %. *Coverage*: share in which every interval of a configuration minus the baseline (AUC) holds.

| null studies | reports | false | coverage |
|---|---|---|---|
{null}

In the second table there is an effect. *Found*: share of reports that establish it.

| effect | reports | found | false | coverage |
|---|---|---|---|---|
{effects}

{note}
"""


def null_row(label: str, number: int) -> str:
    found = rates(SETTINGS[label], number)
    return f"| {label} | {number} | {100 * found.false:.1f} % | {100 * found.coverage:.1f} % |"


def effect_row(label: str, number: int) -> str:
    found = rates(EFFECTS[label], number)
    share = found.alpha if "α" in label else found.mean
    return f"| {label} | {number} | {100 * share:.0f} % | {100 * found.false:.1f} % | {100 * found.coverage:.1f} % |"


def page(number: int) -> str:
    """Markdown of all simulations, one setting to a process."""
    with ProcessPoolExecutor(initializer=threadpool_limits, initargs=(1,)) as pool:
        effects = [pool.submit(effect_row, label, max(1, number // 4)) for label in EFFECTS]  # the longest first
        null = [pool.submit(null_row, label, number) for label in SETTINGS]
        for row in as_completed([*effects, *null]):
            print(row.result(), file=sys.stderr, flush=True)
    note = " ".join(__doc__.split("\n\n")[1].split())
    command = f"python -m bench.error_rates --studies {number}"
    rows = {"null": "\n".join(row.result() for row in null), "effects": "\n".join(row.result() for row in effects)}
    return _PAGE.format(command=command, note=note, **rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500, help="simulated studies of each setting")
    parser.add_argument("--write", type=Path, help="the page, instead of stdout")
    options = parser.parse_args()
    text = page(options.studies)
    if options.write is None:
        print(text)
    else:
        options.write.write_text(text, encoding="utf-8")
