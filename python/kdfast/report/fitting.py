"""Least squares with two sources of error: the shared test jets, and what differs from run to run.

Runs y [K] follow a linear model y = X b + u + e. u is the test jets' fluctuation, with the known covariance
F Fᵀ of sampling.py (strongly correlated between runs, as they are tested on the same jets); e is
independent from run to run with unknown variance σ²: the seed, or the scatter of configurations about the
model. Ordinary least squares gives b = L y; its covariance is L F Fᵀ Lᵀ + σ² L Lᵀ. The residuals' mean
square holds both sources, so σ² = max(0, RSS/df − tr(M F Fᵀ)/df), M = 1 − X L: the test jets' part is not
counted twice. Errors take σ² to be at least a quarter of its own standard error: an estimate that comes out
as 0 by chance is not an absence (the tests' simulations show that intervals then cover what they should).

statsmodels has either part alone (OLS: F = 0; GLS: σ² = 0) but not their sum, so this is written by hand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, special

from kdfast.report.sampling import Estimates, quantile

__all__ = [
    "ROUNDING",
    "Contrast",
    "Fit",
    "Part",
    "Resampled",
    "Scatter",
    "critical",
    "fit",
    "matrix_root",
    "satterthwaite",
]

Floats = NDArray[np.float64]

# A variance of as many degrees of freedom needs no separate treatment, even at a level of 0.1 %.
_WELL_KNOWN = 30

# The smallest p-value of a contrast with a poorly known variance: what the sum over a normal distribution resolves.
_LOWEST = 1e-16

# A poorly known σ is taken to be at least this share of the known one, so that the sum has at most some thousand terms.
_LEAST_SPREAD = 0.02

# Simulated studies at once: a matrix of them and the runs.
_BLOCK = 1_000

# Differences and errors below this are those of floating-point sums of equal numbers.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Part:
    """A part of a run-to-run variance that is estimated: the variance, with what fluctuates in its estimate
    (a mean square that may hold test jets, too), and the estimate's degrees of freedom. test: what of the
    mean square the test jets are known to make, which the contrast's test variance holds, too."""

    variance: float
    mean_square: float
    df: float
    test: float = 0.0


class Scatter(NamedTuple):
    """Errors of m contrasts by a poorly known variance: their covariance [m, m] by its mean square, and the
    degrees of freedom of this."""

    covariance: Floats
    df: int

    def of(self, chosen: NDArray[np.intp]) -> Scatter:
        """Those of some contrasts."""
        return Scatter(self.covariance[np.ix_(chosen, chosen)], self.df)

    def draws(self, rng: np.random.Generator, number: int) -> NDArray[np.float32]:
        """[number, m] of Student's t, with one mean square for all contrasts."""
        normal = rng.standard_normal((number, len(self.covariance)), np.float32)
        mean_square: Floats = rng.chisquare(self.df, (number, 1)) / self.df
        errors = normal @ matrix_root(self.covariance).T.astype(np.float32)
        return np.asarray(errors / np.sqrt(mean_square), np.float32)


class Resampled(NamedTuple):
    """Errors of m contrasts, weights [m, K], by what many runs show of the scatter of one: residuals [K],
    scaled to its standard deviation. They tell its tails, too, which are often heavy: a few runs fail."""

    weights: Floats
    residuals: Floats

    @property
    def covariance(self) -> Floats:
        """[m, m]"""
        return np.asarray(np.mean(np.square(self.residuals)) * (self.weights @ self.weights.T))

    def of(self, chosen: NDArray[np.intp]) -> Resampled:
        """Those of some contrasts."""
        return Resampled(self.weights[chosen], self.residuals)

    def draws(self, rng: np.random.Generator, number: int) -> NDArray[np.float32]:
        """[number, m] with the residuals of K runs drawn at random."""
        pool, weights = self.residuals.astype(np.float32), self.weights.T.astype(np.float32)
        blocks = (min(_BLOCK, number - start) for start in range(0, number, _BLOCK))
        return np.concatenate([pool[rng.integers(len(pool), size=(size, len(weights)))] @ weights for size in blocks])


@dataclass(frozen=True)
class Contrast:
    """A linear combination of coefficients: value, its variances from the test jets and from run to run, and
    the degrees of freedom of Student's t (Satterthwaite's; inf where the run-to-run variance plays no part).
    parts: those of the run-to-run variance that are estimated."""

    value: float
    test_variance: float
    run_variance: float
    df: float
    parts: tuple[Part, ...] = ()

    def times(self, sign: float) -> Contrast:
        """sign: 1 or −1, which turns a difference round."""
        return replace(self, value=sign * self.value)

    @property
    def error(self) -> float:
        return math.sqrt(self.test_variance + self.run_variance)

    @property
    def interval(self) -> tuple[float, float]:
        """Pointwise, by Satterthwaite's degrees of freedom."""
        half = quantile(self.df) * self.error
        return self.value - half, self.value + half

    @cached_property
    def bound(self) -> _Bound:
        """How errors are distributed."""
        loose = [part for part in self.parts if part.df < _WELL_KNOWN]
        if not loose:
            return _Bound(0.0, self.error, self.df)
        known = self.test_variance + self.run_variance - sum(part.variance + part.test for part in loose)
        spread = math.sqrt(sum(part.mean_square for part in loose))
        return _Bound(math.sqrt(max(known, 0.0)), spread, min(part.df for part in loose))

    def half_width(self, level: float) -> float:
        """How far a two-sided test's bounds lie from the value."""
        return self.bound.half_width(level)

    @cached_property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the combination is 0: the level at which `half_width` reaches the
        value; 1 where no error is known."""
        distance = abs(self.value)
        if self.error < ROUNDING or distance < ROUNDING:
            return 1.0
        return float(self.bound.beyond(np.array([distance]))[0])


@dataclass(frozen=True)
class _Bound:
    """Distribution of known · Z + spread · T, with normal Z and Student's T of df degrees of freedom.

    Satterthwaite's approximation fails at the small levels of many tests: where a variance of few degrees of
    freedom comes out small by chance, the test jets' part makes it look well known. So what is known stays
    normal, and what is estimated is Student's t. A test by the sum of both is wrong at most as often as its
    level says, whatever the parts are [Behrens and Fisher's; Robinson, Annals of Statistics 4, 1976, 963].
    """

    known: float
    spread: float
    df: float

    def beyond(self, distances: Floats) -> Floats:
        """P(|known · Z + spread · T| ≥ d) for distances [n] above 0."""
        if not math.isfinite(self.df):
            return np.asarray(2.0 * special.ndtr(-distances / self.spread))
        if self.known <= ROUNDING * self.spread:
            return np.asarray(2.0 * special.stdtr(self.df, -distances / self.spread))
        spread = max(self.spread, _LEAST_SPREAD * self.known)
        step = min(0.1, 0.25 * spread / self.known)
        z = np.arange(-12.0, 12.0, step)
        weights = np.exp(-0.5 * z * z)
        weights /= weights.sum()
        t = (distances[:, None] - self.known * z) / spread  # by symmetry, the other side is as probable
        return np.maximum(2.0 * special.stdtr(self.df, -t) @ weights, _LOWEST)

    def half_width(self, level: float) -> float:
        """The distance that is exceeded with this probability."""
        if self.spread == 0.0:
            return critical(level) * self.known
        if not math.isfinite(self.df) or self.known <= ROUNDING * self.spread:
            return critical(level, self.df) * self.spread
        spread = max(self.spread, _LEAST_SPREAD * self.known)
        largest = critical(level / 2.0) * self.known + critical(level / 2.0, self.df) * spread  # each at half the level
        wanted = max(level, _LOWEST)
        if wanted >= 1.0:
            return 0.0
        return float(optimize.brentq(lambda d: self.beyond(np.array([d]))[0] - wanted, 0.0, largest, rtol=1e-9))


def critical(level: float, df: float = math.inf) -> float:
    """Quantile of a two-sided test: Student's t, or the normal distribution for infinitely many degrees of freedom."""
    return float(-special.stdtrit(df, level / 2.0) if math.isfinite(df) else -special.ndtri(level / 2.0))


@dataclass(frozen=True)
class Fit:
    """coefficients [p]; solve [p, K]: L; factor [p, M] of their test-jet covariance; spread [p, p] = L Lᵀ;
    mapping [p, p] = L X.

    run_variance: σ² as estimated, 0 where df = 0 (then nothing tells it). mean_square: RSS/df. test_share:
    what of it the test jets explain, tr(M F Fᵀ)/df. residuals [K].
    """

    coefficients: Floats
    solve: Floats
    factor: Floats
    spread: Floats
    mapping: Floats
    run_variance: float
    mean_square: float
    test_share: float
    df: int
    residuals: Floats

    def contrast(self, weights: Floats) -> Contrast | None:
        """The combination with these weights [p]; None where the design can't tell it."""
        scale = max(1.0, float(np.abs(weights).max(initial=0.0)))
        if np.abs(weights @ self.mapping - weights).max(initial=0.0) > 1e-8 * scale:
            return None
        unit = float(weights @ self.spread @ weights)
        return self.combined(float(weights @ self.coefficients), weights @ self.factor, unit)

    def combined(self, value: float, factor: Floats, unit: float) -> Contrast:
        """A combination whose test-jet variance is |factor|² and whose run-to-run variance is σ² · unit."""
        test = float(factor @ factor)
        run = self.cautious_variance * unit
        df = satterthwaite(test + run, (self.uncertain * unit, self.df))
        return Contrast(value, test, run, df, self.part(unit))

    def part(self, unit: float) -> tuple[Part, ...]:
        """σ² · unit as a part of a variance; none where it is unknown."""
        if not self.df or unit <= 0.0:
            return ()
        return (Part(self.cautious_variance * unit, self.uncertain * unit, self.df, self.test_share * unit),)

    def scatter(self, weights: Floats) -> tuple[Floats, list[Scatter | Resampled]]:
        """Errors from run to run of contrasts with weights [m, K]; before them, what of their test jets'
        covariance [m, m] these include."""
        units = weights @ weights.T
        if not self.df:
            return 0.0 * units, []
        if self.df < _WELL_KNOWN:
            return self.test_share * units, [Scatter(self.uncertain * units, self.df)]
        scale = math.sqrt(self.cautious_variance / max(float(np.mean(np.square(self.residuals))), ROUNDING**2))
        return 0.0 * units, [Resampled(weights, scale * self.residuals)]

    @property
    def cautious_variance(self) -> float:
        """σ² as errors take it: not below a quarter of its standard error."""
        return max(self.run_variance, 0.25 * self.uncertain * math.sqrt(2.0 / self.df)) if self.df else 0.0

    @property
    def uncertain(self) -> float:
        """What fluctuates in the estimate of σ²: its mean square, at least what the test jets are known to
        make."""
        return max(self.mean_square, self.test_share)


def matrix_root(covariance: Floats) -> Floats:
    """R with R Rᵀ = covariance [m, m], whose rounding may make it slightly indefinite."""
    try:
        return np.asarray(linalg.cholesky(covariance, lower=True))
    except linalg.LinAlgError:
        values, vectors = linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def satterthwaite(variance: float, *estimated: tuple[float, int]) -> float:
    """Degrees of freedom of a variance, parts of which are estimated: each with what fluctuates in it, and
    its own degrees of freedom (Biometrics Bulletin 2, 1946, 110). inf where no part is."""
    parts = [(part, df) for part, df in estimated if df > 0 and part > 0.0]
    if not parts:
        return math.inf
    return max(float(min(df for _, df in parts)), variance**2 / sum(part**2 / df for part, df in parts))


def fit(runs: Estimates, design: Floats) -> Fit:
    """The model of runs (values [K], factor [K, M]) with design X [K, p], of any rank."""
    solve: Floats = np.linalg.pinv(design).astype(np.float64)
    coefficients = solve @ runs.values
    factor = solve @ runs.factor
    residual = runs.values - design @ coefficients
    unexplained = runs.factor - design @ factor
    df = len(runs) - int(np.linalg.matrix_rank(design))
    mean_square = float(residual @ residual) / df if df else 0.0
    test_share = float(np.einsum("km,km->", unexplained, unexplained)) / df if df else 0.0
    return Fit(
        coefficients=coefficients,
        solve=solve,
        factor=factor,
        spread=solve @ solve.T,
        mapping=solve @ design,
        run_variance=max(0.0, mean_square - test_share),
        mean_square=mean_square,
        test_share=test_share,
        df=df,
        residuals=residual,
    )
