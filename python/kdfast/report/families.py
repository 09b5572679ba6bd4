"""One error budget for all directional statements of a report.

A report without any true effect makes a false directional statement in at most 5 % of studies. The budget is
split among families that are declared here, before any data are seen:

- main: the configurations, and their mean, against the baseline;
- effects: temperature, mixing weight and schedules, at equal other settings;
- choices: configurations against each other, and their order under different seeds;
- physics: the networks shown, by pT, mass and calibration.

Inside a family tests are adjusted by the distribution of the largest |t|, step-down (Westfall and Young,
Resampling-Based Multiple Testing, 1993). That distribution is simulated with the estimated correlation of the
contrasts: they share test jets, seeds and configurations, so that far fewer than their number are
independent, and Bonferroni's or Holm's correction would give away power. The interval of a contrast uses the
quantile of the step at which the contrast was judged, so that an interval never contradicts a verdict.
Contrasts are compared by their p-values, turned into normal quantiles, as a variance with few degrees of
freedom gives a contrast other tails. Where contrasts share such a variance (the scatter of one baseline's
seeds), the simulation draws it once for all of them; where many runs tell how a run scatters, it draws from
their residuals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from kdfast.report.fitting import ROUNDING, Contrast, Resampled, Scatter, critical, matrix_root

__all__ = [
    "BUDGET",
    "LEVEL_OF_REPORT",
    "PHYSICS_LEVEL",
    "Adjusted",
    "AllPairs",
    "adjust",
    "alone",
    "level_of",
]

Floats = NDArray[np.float64]

# Chance of any false directional statement in a report.
LEVEL_OF_REPORT = 0.05
BUDGET = {"main": 0.025, "effects": 0.0125, "choices": 0.005, "physics": 0.0075}

# Parts of a family's level by metric: AUC is the primary one.
_PARTS = {"auc": 0.7, "rejection": 0.3}

# Level of a test of the family physics, of which there are twelve: of each of three networks the dependence
# on pT, the mass, slope and intercept of the calibration.
PHYSICS_LEVEL = BUDGET["physics"] / 12

# Simulated studies: as many as make a level of 0.5 % known to 7 % of itself, fewer where there are thousands
# of tests.
_MOST_DRAWS, _FEWEST_DRAWS = 40_000, 4_000
_DRAWN_NUMBERS = 20_000_000

# Configurations of which all pairs are simulated; for more the range of all of them bounds their differences.
_MOST_PAIRED = 1_000

# Distances of which a contrast's p-value is computed; between them its normal quantile is interpolated.
_TABULATED = 64

# In place of a p-value of 0.
_SMALLEST = 1e-300

# |t| of contrasts that are many standard errors long is cut here: p-values of 1e-300 have no normal quantile.
_LARGEST = 37.0


@dataclass(frozen=True)
class Adjusted:
    """A contrast as one of its family.

    p_value is to be compared with 5 %, the level of the report: the family's adjusted p-value, times the
    report's level over the family's. low, high: the simultaneous interval.
    """

    contrast: Contrast
    p_value: float
    low: float
    high: float

    def times(self, sign: float) -> Adjusted:
        """sign: 1 or −1, which turns a difference round."""
        low, high = sorted((sign * self.low, sign * self.high))
        return Adjusted(self.contrast.times(sign), self.p_value, low, high)


def level_of(family: str, metric: str, stages: int = 1) -> float:
    """The level of a family's tests by one metric, in one of so many equal stages of a study."""
    return BUDGET[family] * _PARTS[metric] / stages


def adjust(
    contrasts: Sequence[Contrast], covariance: Floats, level: float, scatters: Sequence[Scatter | Resampled] = ()
) -> list[Adjusted]:
    """Step-down tests of contrasts [m] at a level.

    covariance [m, m]: of their errors, of which only the correlations count. Where there are scatters: of the
    known errors, to which these add.
    """
    if not contrasts:
        return []
    observed = np.array([_normal_quantile(contrast.p_value) for contrast in contrasts])
    order = np.argsort(-observed, kind="stable")
    covariance = covariance[np.ix_(order, order)]  # the same draws in whatever order contrasts come
    if scatters:
        largest = _with_scatters([contrasts[i] for i in order], covariance, [s.of(order) for s in scatters])
    else:
        largest = np.abs(_draws(covariance))
    # Heavy tails may make even a single contrast less significant than its p-value says.
    heavy = any(isinstance(scatter, Resampled) for scatter in scatters)
    # [draws, m]: the largest |t| among a contrast and those that are less significant
    np.maximum.accumulate(largest[:, ::-1], axis=1, out=largest[:, ::-1])
    found: list[Adjusted | None] = [None] * len(contrasts)
    so_far = 0.0
    quantile = math.inf
    for step, i in enumerate(order):
        left = math.inf if heavy else len(contrasts) - step
        rejected_so_far = so_far < level
        beyond = float(np.mean(largest[:, step] >= observed[i]))
        if heavy:
            beyond = max(beyond, 1.0 / len(largest))
        so_far = max(so_far, _bounded(beyond, contrasts[i], left))
        if rejected_so_far:
            quantile = _upper(np.sort(largest[:, step]), level, left)
        found[i] = _adjusted(contrasts[i], so_far, quantile, level)
    return [one for one in found if one is not None]


def _with_scatters(
    contrasts: Sequence[Contrast], covariance: Floats, scatters: Sequence[Scatter | Resampled]
) -> NDArray[np.float32]:
    """[draws, m]: |t| of contrasts with these errors, as normal quantiles of equal p."""
    errors = _draws(covariance) * np.sqrt(np.maximum(np.diag(covariance), 0.0)).astype(np.float32)
    for seed, scatter in enumerate(scatters, 1):
        errors += scatter.draws(np.random.default_rng(seed), len(errors))
    np.abs(errors, out=errors)
    for contrast, own in zip(contrasts, errors.T, strict=True):
        if contrast.error < ROUNDING:
            own[:] = 0.0
            continue
        distances = contrast.error * np.geomspace(1e-3, max(1.0, float(own.max()) / contrast.error), _TABULATED)
        quantiles = np.minimum(-special.ndtri(contrast.bound.beyond(distances) / 2.0), _LARGEST)
        own[:] = np.interp(own, np.append(0.0, distances), np.append(0.0, quantiles))
    return errors


def _bounded(simulated: float, contrast: Contrast, tests: float) -> float:
    """An adjusted p-value by simulation, between that of the contrast alone and Bonferroni's for the number
    of tests, which resolve what is very small."""
    return min(max(simulated, contrast.p_value), tests * max(contrast.p_value, _SMALLEST), 1.0)


def _upper(ordered: NDArray[np.float32], level: float, tests: float) -> float:
    """Critical value of the largest |t| at this level: a quantile of the simulated maxima, sorted, within bounds."""
    place = min(len(ordered) - math.ceil(len(ordered) * level), len(ordered) - 1)
    return min(max(float(ordered[place]), critical(level)), critical(level / tests))


def alone(contrast: Contrast, level: float) -> Adjusted:
    """A contrast that is one of a fixed number of tests, with its part of their level (Bonferroni)."""
    return _adjusted(contrast, contrast.p_value, critical(level), level)


def _adjusted(contrast: Contrast, p_value: float, quantile: float, level: float) -> Adjusted:
    """quantile: of normal contrasts; one with other tails has the half width of the same level."""
    half = contrast.half_width(2.0 * float(special.ndtr(-quantile)))
    if contrast.error < ROUNDING <= abs(contrast.value):
        half = math.inf  # a difference of which no error is known
    p = min(1.0, p_value * LEVEL_OF_REPORT / level)
    return Adjusted(contrast, p, contrast.value - half, contrast.value + half)


def _normal_quantile(p_value: float) -> float:
    return min(_LARGEST, critical(p_value))


def _draws(covariance: Floats) -> NDArray[np.float32]:
    """[draws, m] of a normal distribution with unit variances; 0 where there is none but rounding."""
    number = int(np.clip(_DRAWN_NUMBERS // len(covariance), _FEWEST_DRAWS, _MOST_DRAWS))
    sigma = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    known = sigma > max(ROUNDING, 1e-6 * float(sigma.max()))
    scale = np.where(known, sigma, 1.0)
    correlation = np.clip(covariance / np.outer(scale, scale), -1.0, 1.0)
    correlation[~known] = 0.0
    correlation[:, ~known] = 0.0
    np.fill_diagonal(correlation, 1.0 + 1e-6)  # contrasts may depend on each other
    normal = np.random.default_rng(0).standard_normal((number, len(covariance)), np.float32)
    return normal @ matrix_root(correlation).T.astype(np.float32) * known.astype(np.float32)


class AllPairs:
    """Every configuration against every other: valid whichever of them are compared, and by whatever they
    were chosen.

    The largest |t| over all pairs of equal configurations, simulated with their covariance [C, C] (Tukey's
    studentised range for errors that are correlated). scatter: a part of it that is drawn from residuals.
    """

    def __init__(self, covariance: Floats, level: float, scatter: Resampled | None = None) -> None:
        self.level = level
        diagonal = np.diag(covariance)
        variance = diagonal[:, None] + diagonal[None, :] - 2.0 * covariance
        self.errors = np.sqrt(np.maximum(variance, 0.0))
        self._covariance = covariance
        self._scatter = scatter
        self._number = max(1, len(covariance) * (len(covariance) - 1) // 2) if scatter is None else math.inf

    @cached_property
    def _largest(self) -> NDArray[np.float32]:
        """[draws]: the largest |t| over all pairs, sorted."""
        number = len(self._covariance)
        centre = np.eye(number) - 1.0 / number  # what all share cancels in each pair
        known = self._covariance if self._scatter is None else self._covariance - self._scatter.covariance
        differences = centre @ known @ centre
        sigma = np.sqrt(np.maximum(np.diag(differences), 0.0))
        draws = _draws(differences) * sigma.astype(np.float32)
        if self._scatter is not None:
            of_runs = Resampled(centre @ self._scatter.weights, self._scatter.residuals)
            draws += of_runs.draws(np.random.default_rng(1), len(draws))
        varying = self.errors > 1e-12
        if not varying.any():
            return np.zeros(1, np.float32)
        if number > _MOST_PAIRED:
            return np.sort(np.ptp(draws, axis=1) / np.float32(self.errors[varying].min()))
        inverse = np.where(varying, 1.0 / np.where(varying, self.errors, 1.0), 0.0).astype(np.float32)
        largest = np.zeros(len(draws), np.float32)
        for i in range(number - 1):
            t = np.abs(draws[:, i + 1 :] - draws[:, [i]]) * inverse[i, i + 1 :]
            np.maximum(largest, t.max(axis=1), out=largest)
        return np.sort(largest)

    @cached_property
    def quantile(self) -> float:
        """The normal quantile that no pair of equal configurations exceeds, at the level."""
        return _upper(self._largest, self.level, self._number)

    def adjust(self, contrast: Contrast) -> Adjusted:
        """The difference of two configurations as one of all pairs."""
        observed = _normal_quantile(contrast.p_value)
        above = len(self._largest) - np.searchsorted(self._largest, observed, "left")
        share = float(max(above, self._scatter is not None)) / len(self._largest)
        p = _bounded(share, contrast, self._number)
        return _adjusted(contrast, p, self.quantile, self.level)
