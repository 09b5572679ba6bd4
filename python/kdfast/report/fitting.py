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

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from kdfast.report.sampling import Estimates, quantile

__all__ = ["ROUNDING", "Contrast", "Fit", "Part", "critical", "fit", "satterthwaite"]

Floats = NDArray[np.float64]

# A variance of as many degrees of freedom needs no separate treatment, even at a level of 0.1 %.
_WELL_KNOWN = 30

# Logarithm of the smallest level that is searched; scipy's quantiles of Student's t fail at far smaller ones.
_LOWEST = math.log(1e-16)

# Differences and errors below this are those of floating-point sums of equal numbers.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Part:
    """A part of a run-to-run variance that is estimated: the variance, with what fluctuates in its estimate (a mean
    square that may hold test jets, too), and the estimate's degrees of freedom."""

    variance: float
    mean_square: float
    df: float


@dataclass(frozen=True)
class Contrast:
    """A linear combination of coefficients: value, its variances from the test jets and from run to run, and the
    degrees of freedom of Student's t (Satterthwaite's; inf where the run-to-run variance plays no part). parts: those
    of the run-to-run variance that are estimated."""

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

    def half_width(self, level: float) -> float:
        """How far a two-sided test's bounds lie from the value.

        Satterthwaite's approximation fails at the small levels of many tests: where a variance of few degrees of
        freedom comes out small by chance, the test jets' part makes it look well known. So such a part has Student's t
        of its own, the rest the normal quantile, each at half of the level; their sum holds whatever the parts are.
        """
        loose = [part for part in self.parts if part.df < _WELL_KNOWN]
        if not loose:
            return critical(level, self.df) * self.error
        known = self.test_variance + self.run_variance - sum(part.variance for part in loose)
        spread = math.sqrt(sum(part.mean_square for part in loose))
        df = min(part.df for part in loose)
        if known <= ROUNDING * spread**2:
            return critical(level, df) * spread
        return critical(level / 2.0) * math.sqrt(known) + critical(level / 2.0, df) * spread

    @cached_property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the combination is 0: the level at which `half_width` reaches the value; 1
        where no error is known."""
        distance = abs(self.value)
        if self.error < ROUNDING or distance < ROUNDING:
            return 1.0
        if not any(part.df < _WELL_KNOWN for part in self.parts):
            t = distance / self.error
            return float(2.0 * (special.stdtr(self.df, -t) if math.isfinite(self.df) else special.ndtr(-t)))

        def beyond(log_level: float) -> float:
            return self.half_width(math.exp(log_level)) - distance

        if beyond(_LOWEST) <= 0.0:
            return math.exp(_LOWEST)
        return float(math.exp(optimize.brentq(beyond, _LOWEST, 0.0, xtol=1e-6))) if beyond(0.0) < 0.0 else 1.0


def critical(level: float, df: float = math.inf) -> float:
    """Quantile of a two-sided test: Student's t, or the normal distribution for infinitely many degrees of freedom."""
    return float(-special.stdtrit(df, level / 2.0) if math.isfinite(df) else -special.ndtri(level / 2.0))


@dataclass(frozen=True)
class Fit:
    """coefficients [p]; solve [p, K]: L; factor [p, M] of their test-jet covariance; spread [p, p] = L Lᵀ;
    mapping [p, p] = L X.

    run_variance: σ² as estimated, 0 where df = 0 (then nothing tells it). mean_square: RSS/df. test_share:
    what of it the test jets explain, tr(M F Fᵀ)/df.
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
        return (Part(self.cautious_variance * unit, self.uncertain * unit, self.df),) if self.df and unit > 0.0 else ()

    @property
    def cautious_variance(self) -> float:
        """σ² as errors take it: not below a quarter of its standard error."""
        return max(self.run_variance, 0.25 * self.uncertain * math.sqrt(2.0 / self.df)) if self.df else 0.0

    @property
    def uncertain(self) -> float:
        """What fluctuates in the estimate of σ²: its mean square, at least what the test jets are known to
        make."""
        return max(self.mean_square, self.test_share)


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
    )
