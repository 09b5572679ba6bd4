"""Configurations against each other, on the test jets and seeds that they share.

With one seed a "configuration" is one trained network, and what another seed would give is not known; with
several, seeds are blocks of a two-way model, run = configuration + seed + rest (fitting.py), whose rest
enters each test. The rest is alike among students, but not for what sets them apart as a whole: students of
one seed share targets and err alike relative to the baseline, and a trend in α may differ from seed to
seed. Such combinations are taken in each seed by itself, and their scatter from seed to seed counts
(`Baseline`, `Configurations.by_seed`). Where runs do not connect all configurations and seeds (each run has
its own seed, say), there is no mean over all seeds: then run = configuration + rest, and what a seed does
to all alike is part of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdfast.report.fitting import Contrast, Fit, Resampled, Scatter, fit, satterthwaite
from kdfast.report.sampling import Estimates, quantile

__all__ = [
    "Baseline",
    "Baselines",
    "Configurations",
    "baseline",
    "best_of_equals",
    "configurations",
    "holm",
    "to_separate",
]

Floats = NDArray[np.float64]

# Simulated data sets behind a critical value or an expected maximum: its error is a few per cent of a σ.
_DRAWS = 4000


@dataclass(frozen=True)
class Configurations:
    """C configurations' estimates: means over seeds (least-squares means where they have different seeds;
    plain ones where seeds and configurations are not connected).

    names [C]; values [C]; weights [C, K]: of the runs in these. test [C, C]: covariance from the test jets.
    spread [C, C]: the run-to-run variance σ²'s coefficients, so that σ² · spread is the covariance from
    seeds, but for what all configurations share. factor [C, M]: test = factor @ factor.T. common_variance:
    of what a seed does to all configurations alike, for one seed; it matters for absolute numbers, not for
    differences. blocks [seeds]: the seeds, in the model's order. connected: they are blocks of the model.
    runs: all runs [K]; rows [seeds, C]: theirs in each seed that all configurations have.
    """

    names: tuple[str, ...]
    values: Floats
    weights: Floats
    factor: Floats
    test: Floats
    spread: Floats
    model: Fit
    common_variance: float
    blocks: tuple[int, ...]
    connected: bool
    runs: Estimates
    rows: NDArray[np.int64]

    def index(self, name: str) -> int:
        return self.names.index(name)

    @property
    def seeds(self) -> int:
        return len(self.blocks)

    @property
    def seeds_known(self) -> bool:
        """Whether the variance between seeds could be measured."""
        return self.seed_df > 0

    @property
    def seed_df(self) -> int:
        """Degrees of freedom of the variance between seeds: for a single configuration its runs' own
        scatter, as nothing separates the rest from what a seed does to all."""
        return self.seeds - 1 if len(self.names) == 1 else self.model.df

    def estimate(self, name: str) -> Contrast:
        """One configuration's value, with the variance from test jets and that from seeds (0 where
        unknown)."""
        i = self.index(name)
        if len(self.names) == 1 and (alone := self.by_seed(np.ones(1))) is not None:
            return alone.combined(float(self.values[i]), self.factor[i], float(alone.spread[0, 0]))
        own = self.model.cautious_variance * float(self.spread[i, i])
        common = self.common_variance / self.seeds
        run = own + common
        test = float(self.test[i, i])
        least = float(max(self.seeds - 1, 1))
        uncertain = (own**2 / self.model.df if self.model.df else 0.0) + common**2 / least
        df = max(least, (run + test) ** 2 / uncertain) if uncertain else math.inf
        return Contrast(float(self.values[i]), test, run, df)

    def difference(self, one: str, other: str) -> Contrast:
        """one − other, paired: common jets and common seeds cancel."""
        i, j = self.index(one), self.index(other)
        unit = float(self.spread[i, i] + self.spread[j, j] - 2.0 * self.spread[i, j])
        return self.model.combined(float(self.values[i] - self.values[j]), self.factor[i] - self.factor[j], unit)

    def by_seed(self, weights: Floats) -> Fit | None:
        """Σ weights · runs in each seed by itself, as a model of its mean: the run_variance is the scatter
        from seed to seed. None with fewer than two seeds that all configurations have."""
        if len(self.rows) < 2:
            return None
        values = self.runs.values[self.rows] @ weights
        factor = np.stack([weights @ self.runs.factor[rows] for rows in self.rows])
        return fit(Estimates(values, factor), np.ones((len(values), 1)))

    def noise(self) -> Floats:
        """Covariance [C, C] of the estimates, without what all share alike."""
        return self.test + self.model.cautious_variance * self.spread

    def resampled(self) -> Resampled | None:
        """The part of `noise` that seeds make, where many runs tell its tails."""
        _, scatters = self.model.scatter(self.weights)
        return next((scatter for scatter in scatters if isinstance(scatter, Resampled)), None)

    def without(self, *names: str) -> Configurations:
        """Those left when some are taken away."""
        keep = np.array([i for i, name in enumerate(self.names) if name not in names], np.int64)
        return replace(
            self,
            names=tuple(self.names[i] for i in keep),
            values=self.values[keep],
            weights=self.weights[keep],
            factor=self.factor[keep],
            test=self.test[np.ix_(keep, keep)],
            spread=self.spread[np.ix_(keep, keep)],
            rows=self.rows[:, keep],
        )


def configurations(runs: Estimates, names: Sequence[str], seeds: Sequence[int]) -> Configurations:
    """The two-way model of runs [K], each of a named configuration and a seed.

    Where a seed of other configurations is missing, its estimate is what its mean over all seeds would be
    if a seed moved all configurations alike (least-squares mean). Where configurations and seeds are not
    connected, it is its runs' mean.
    """
    known = list(dict.fromkeys(names))
    blocks = list(dict.fromkeys(seeds))
    design = np.zeros((len(runs), len(known) + len(blocks)))
    for row, (name, seed) in enumerate(zip(names, seeds, strict=True)):
        design[row, known.index(name)] = design[row, len(known) + blocks.index(seed)] = 1.0
    model = fit(runs, design)
    means = np.hstack([np.eye(len(known)), np.full((len(known), len(blocks)), 1.0 / len(blocks))])
    connected = bool(np.abs(means @ model.mapping - means).max() < 1e-8)
    if not connected:
        model = fit(runs, design[:, : len(known)])
        means = np.eye(len(known))
    place = {key: row for row, key in enumerate(zip(names, seeds, strict=True))}
    rows = [[place.get((name, seed), -1) for name in known] for seed in blocks]
    complete = [row for row in rows if -1 not in row]
    factor = means @ model.factor
    return Configurations(
        names=tuple(known),
        values=np.round(means @ model.coefficients, 12),  # equal runs stay equal
        weights=means @ model.solve,
        factor=factor,
        test=factor @ factor.T,
        spread=means @ model.spread @ means.T,
        model=model,
        common_variance=_common_variance(model, len(known), len(blocks)) if connected else 0.0,
        blocks=tuple(blocks),
        connected=connected,
        runs=runs,
        rows=np.array(complete, np.int64).reshape(-1, len(known)),
    )


@dataclass(frozen=True)
class Baseline:
    """The student without a teacher, compared with the configurations of the same further settings.

    group [n]: their places among the students. level: a model of baseline minus their mean, seed by seed; its
    run_variance is how much that differs from seed to seed, which the rest among students does not include.
    """

    students: Configurations
    level: Fit
    group: NDArray[np.int64]

    @property
    def value(self) -> float:
        """Over the same seeds as the configurations' values."""
        return float(self.students.values[self.group].mean() + self.level.coefficients[0])

    @property
    def run_variance(self) -> float:
        """Of its mean over seeds relative to the configurations."""
        return self.level.cautious_variance * float(self.level.spread[0, 0])

    @cached_property
    def factor(self) -> Floats:
        """[M] of its variance from the test jets."""
        return np.asarray(self.students.factor[self.group].mean(axis=0) + self.level.factor[0])


@dataclass(frozen=True)
class Baselines:
    """The baselines of all combinations of further settings; of most studies one."""

    students: Configurations
    each: tuple[Baseline, ...]

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """Of the configurations that have a baseline, among the students."""
        return np.sort(np.concatenate([baseline.group for baseline in self.each]))

    @property
    def names(self) -> tuple[str, ...]:
        """Of these configurations."""
        return tuple(self.students.names[i] for i in self.places)

    def of(self, name: str) -> Baseline:
        """That of a configuration of `names`."""
        place = self.students.index(name)
        return next(baseline for baseline in self.each if place in baseline.group)

    @cached_property
    def shares(self) -> Floats:
        """[n + 1, baselines]: which baseline a configuration has, and last each one's share of them."""
        own = np.array([[place in baseline.group for baseline in self.each] for place in self.places], np.float64)
        return np.vstack([own, own.mean(axis=0)])

    @property
    def value(self) -> float:
        """Mean over the configurations."""
        return float(self.shares[-1] @ [baseline.value for baseline in self.each])

    def differences(self) -> tuple[list[Contrast], Floats, list[Scatter | Resampled]]:
        """Each configuration of `names` minus its baseline, and last their mean minus the baselines', all
        paired; with their covariance [n + 1, n + 1] from the test jets alone, and the errors from run to run,
        which add to it."""
        students = self.students
        number = len(students.names)
        weights = np.eye(number)[self.places]
        weights = np.vstack([weights, np.full((1, len(weights)), 1.0 / len(weights)) @ weights])
        means = np.zeros((len(self.each), number))
        for row, baseline in zip(means, self.each, strict=True):
            row[baseline.group] = 1.0 / len(baseline.group)
        shares = self.shares
        centred = weights - shares @ means
        factor = weights @ students.factor - shares @ np.stack([baseline.factor for baseline in self.each])
        covariance = factor @ factor.T
        test = np.diag(covariance).copy()
        values = weights @ students.values - shares @ [baseline.value for baseline in self.each]
        models = [(students.model, centred @ students.weights)]
        for baseline, share in zip(self.each, shares.T, strict=True):
            models.append((baseline.level, np.outer(share, baseline.level.solve[0])))
        scatters: list[Scatter | Resampled] = []
        for model, of_runs in models:
            included, own = model.scatter(of_runs)
            covariance -= included
            scatters += own
        units = [np.square(of_runs).sum(axis=1) for _, of_runs in models]
        contrasts = []
        for i, value in enumerate(values):
            of_this = [(model, float(unit[i])) for (model, _), unit in zip(models, units, strict=True)]
            run = sum(model.cautious_variance * unit for model, unit in of_this)
            df = satterthwaite(float(test[i]) + run, *((model.uncertain * unit, model.df) for model, unit in of_this))
            parts = sum((model.part(unit) for model, unit in of_this), ())
            contrasts.append(Contrast(float(value), float(test[i]), run, df, parts))
        return contrasts, covariance, scatters


def baseline(
    students: Configurations, runs: Estimates, seeds: Sequence[int], group: Sequence[int] | None = None
) -> Baseline | None:
    """The baseline's runs [n] of these seeds compared with students, or with a group of them by their places.

    None where they have no seed in common, or only one while the students have several: what another seed
    would do to the baseline is then unknown, and no test is possible. Where seeds are no part of the
    students' model, the baseline is compared with the configurations' mean over all runs, whose scatter
    includes what a seed does to all."""
    shared = [i for i, seed in enumerate(seeds) if seed in students.blocks]
    if not shared or (students.seeds_known and len(shared) < 2):
        return None
    known = len(students.names)
    places = np.arange(known) if group is None else np.array(group, np.int64)
    levels = np.zeros((len(shared), len(students.model.coefficients)))
    levels[:, places] = 1.0 / len(places)  # the configurations' mean in that seed
    for row, i in enumerate(shared if students.connected else ()):
        levels[row, known + students.blocks.index(seeds[i])] = 1.0
    values = runs.values[shared] - levels @ students.model.coefficients
    factor = runs.factor[shared] - levels @ students.model.factor
    return Baseline(students, fit(Estimates(values, factor), np.ones((len(shared), 1))), places)


def _common_variance(model: Fit, known: int, blocks: int) -> float:
    """Variance of the seeds' common effect, by the excess of the scatter of the seeds' estimates over its
    noise."""
    if blocks < 2:
        return 0.0
    centre = np.hstack([np.zeros((blocks, known)), np.eye(blocks) - 1.0 / blocks])
    effects = centre @ model.coefficients
    factor = centre @ model.factor
    noise = np.einsum("km,km->", factor, factor) + model.run_variance * np.trace(centre @ model.spread @ centre.T)
    return max(0.0, (float(effects @ effects) - float(noise)) / (blocks - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the largest of (m − rank + 1) p so far, at most 1. Rejecting those below 5
    % keeps the chance of any false rejection below 5 %, whatever the dependence. (By hand: statsmodels'
    collects the process's garbage at each call, which takes longer than the rest of a report's tests.)"""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty(len(p))
    found[order] = np.minimum(stepped, 1.0)
    return found.tolist()


def best_of_equals(selection: Floats, reported: Floats | None = None, *, seed: int = 0) -> float:
    """How much the best of n equal configurations exceeds its true value on average (winner's curse).

    selection [n, n]: covariance of the numbers that the choice looks at. reported [n, n]: covariance between
    these and the numbers that are then quoted (None: the same numbers). Independent errors σ give 2.6 σ for
    132. What all configurations share changes no choice and adds nothing on average: it is left out, so that
    it adds no noise here.
    """
    number = len(selection)
    if number < 2:
        return 0.0
    centre = np.eye(number) - 1.0 / number
    chosen_by = centre @ selection @ centre
    values, vectors = np.linalg.eigh(chosen_by)
    root = vectors * np.sqrt(np.maximum(values, 0.0))  # rounding makes some of them negative
    draws = np.random.default_rng(seed).standard_normal((_DRAWS, number)) @ root.T
    winner = draws.argmax(axis=1)
    quoted = draws
    if reported is not None:  # the quoted numbers' expectation, given those that the choice looked at
        quoted = draws @ np.linalg.pinv(chosen_by, hermitian=True) @ (centre @ reported @ centre)
    return max(0.0, float(quoted[np.arange(len(draws)), winner].mean()))


def to_separate(difference: Contrast, *, seeds: int, jets: int, power: float = 0.8) -> tuple[int | None, int | None]:
    """How many seeds (with the jets at hand) and how many test jets (with the seeds at hand) it would take
    to see a difference of the observed size in 80 % of studies, at the 5 % level: None where no number
    would be enough, as the other source alone is too large, or where it is undetermined.

    Var = v_test · jets/jets' + v_run · seeds/seeds', to be at most (difference / (z_0.975 + z_0.8))².
    """
    if difference.value == 0.0:
        return None, None
    allowed = (difference.value / (quantile() + float(stats.norm.isf(1.0 - power)))) ** 2

    def needed(at_hand: int, variance: float, other: float) -> int | None:
        return math.ceil(at_hand * variance / (allowed - other)) if variance > 0 and allowed > other else None

    more_seeds = needed(seeds, difference.run_variance, difference.test_variance)
    return more_seeds, needed(jets, difference.test_variance, difference.run_variance)
