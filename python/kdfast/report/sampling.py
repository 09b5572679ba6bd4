"""How the numbers of many networks fluctuate together with the test jets that they share.

A metric of K networks on one set of jets is an estimate [K] with a covariance [K, K]. Both kinds here keep
a factor F [K, M] with covariance F Fᵀ, so that any linear combination of networks (a mean over seeds, a
difference, a slope) has its test-set variance at once: |l F|².

- AUC: DeLong's placements (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988, 837) in a weighted form, which no
  library has: M is the number of jets.
- ln of the background rejection: bootstrap of both classes, so that the background's fluctuation and the signal
  threshold's both count: M is the number of replicates, the same ones for all networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdfast.metrics import WORKING_POINTS, background_rejections, roc_auc

__all__ = [
    "LEVEL",
    "Estimates",
    "Floats",
    "auc_estimates",
    "auc_interval",
    "effective_number",
    "quantile",
    "rejection_estimates",
]

Floats = NDArray[np.float64]

# Confidence of every interval of the report.
LEVEL = 0.95

# Bootstrap replicates: a standard error is then known to 1/√(2 · 600) = 3 %; where that would take minutes,
# to 5 %.
_MOST_REPLICATES, _FEWEST_REPLICATES = 600, 200
_DRAWN_JETS = 12_000_000

# Elements of a block of resampled weights [jets, replicates], float32: 64 MB.
_BLOCK = 8_000_000

# Jets whose weights are summed at once to find a threshold.
_ROWS = 64


@dataclass(frozen=True)
class Estimates:
    """values [K], and factor [K, M]: their covariance over samples of test jets is factor @ factor.T."""

    values: Floats
    factor: Floats

    @cached_property
    def errors(self) -> Floats:
        """Standard errors [K]."""
        return np.sqrt(np.einsum("km,km->k", self.factor, self.factor))

    def rows(self, chosen: Sequence[int] | NDArray[np.int64]) -> Estimates:
        """Those of some networks."""
        return Estimates(self.values[chosen], self.factor[chosen])

    def __len__(self) -> int:
        return len(self.values)


@cache
def quantile(df: float = math.inf) -> float:
    """How many standard errors the two-sided interval extends to each side: Student's t, 1.96 for many
    degrees of freedom."""
    return float(stats.t.isf((1.0 - LEVEL) / 2.0, df) if math.isfinite(df) else stats.norm.isf((1.0 - LEVEL) / 2.0))


def effective_number(weights: Floats) -> float:
    """(Σw)²/Σw²: as many jets of equal weight would fluctuate alike; 0 without weight."""
    return float(weights.sum() ** 2 / np.square(weights).sum()) if weights.any() else 0.0


# ---- AUC


def auc_estimates(labels: NDArray[np.int64], scores: Floats, weights: Floats) -> Estimates:
    """AUCs of networks with scores [K, B] on jets with labels and weights [B], and their factor [K, B].

    A signal jet's placement is the share of background below it (ties half), a background jet's the share
    of signal above it; the AUC A is the weighted mean of either. A jet contributes w_i/Σw · (placement − A)
    · √(n/(n − 1)), with the sums and n over its class, and the AUC's variance is the sum of the squares:
    DeLong's for equal weights.
    """
    signal = labels == 1
    values = np.empty(len(scores))
    factor = np.zeros(scores.shape)
    classes = [
        (np.flatnonzero(signal), np.flatnonzero(~signal), 1.0),
        (np.flatnonzero(~signal), np.flatnonzero(signal), -1.0),
    ]
    for k, row in enumerate(scores):
        values[k] = roc_auc(labels, row, weights)
        for own, other, sign in classes:
            order = np.argsort(row[other], kind="stable")
            falling = row[other][order]
            cumulated = np.concatenate(([0.0], np.cumsum(weights[other][order])))
            places = np.searchsorted(falling, row[own], "left"), np.searchsorted(falling, row[own], "right")
            below = (cumulated[places[0]] + cumulated[places[1]]) / (2.0 * cumulated[-1])
            factor[k, own] = sign * below
    for own, _, _ in classes:
        w = weights[own] / weights[own].sum()
        n = np.count_nonzero(weights[own])
        part = factor[:, own]
        part = (part - (part @ w)[:, None]) * (w * math.sqrt(n / max(n - 1, 1)))
        factor[:, own] = part
    factor[(values == 0.0) | (values == 1.0)] = 0.0  # but for rounding they are: the jets tell no error
    return Estimates(values, factor)


def auc_interval(auc: float, error: float, df: float = math.inf) -> tuple[float, float] | None:
    """The interval of an AUC, symmetric on the logit's scale so that it stays inside (0, 1).

    None where the AUC is 0 or 1: then the jets hold nothing to tell its error from.
    """
    if not 0.0 < auc < 1.0:
        return None
    centre = math.log(auc / (1.0 - auc))
    half = quantile(df) * error / (auc * (1.0 - auc))
    low, high = (1.0 / (1.0 + math.exp(-x)) for x in (centre - half, centre + half))
    return low, high


# ---- background rejection


def rejection_estimates(
    labels: NDArray[np.int64],
    scores: Floats,
    weights: Floats,
    *,
    points: Sequence[int] = WORKING_POINTS,
    replicates: int | None = None,
) -> dict[int, Estimates]:
    """By signal efficiency in percent, ln(1/ε_B) of networks with scores [K, B], and their factor [K,
    replicates].

    Signal and background are resampled apart, each to its own number of jets (multinomial counts times the
    weights); threshold and surviving background are found anew in each replicate. Where a replicate has no
    survivor, half a jet of mean weight stands in, and a network without any gets its 68 % lower limit.
    replicates: None: 600, and fewer for more than 20,000 jets, down to 200.
    """
    if replicates is None:
        replicates = int(np.clip(_DRAWN_JETS // max(len(labels), 1), _FEWEST_REPLICATES, _MOST_REPLICATES))
    rng = np.random.default_rng(0)
    own = [np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)]
    values = {point: np.empty(len(scores)) for point in points}
    drawn = {point: np.empty((len(scores), replicates)) for point in points}
    for k, row in enumerate(scores):
        found = background_rejections(labels, row, [point / 100 for point in points], weights)
        for point, rejection in zip(points, found, strict=True):
            values[point][k] = math.log(rejection.value)
    falling = [[_Falling.of(row[part]) for part in own] for row in scores]
    block = max(1, min(replicates, _BLOCK // max(len(labels), 1)))
    for start in range(0, replicates, block):
        stop = min(start + block, replicates)
        resampled = [_resampled_weights(rng, weights[part], stop - start) for part in own]
        for k, (signal, background) in enumerate(falling):
            passing = _resampled_background(signal, background, resampled[0], resampled[1], points)
            for point in points:
                drawn[point][k, start:stop] = -np.log(passing[point])
    return {
        point: Estimates(
            values[point], (drawn[point] - drawn[point].mean(axis=1, keepdims=True)) / math.sqrt(max(replicates - 1, 1))
        )
        for point in points
    }


def _resampled_weights(rng: np.random.Generator, weights: Floats, replicates: int) -> NDArray[np.float32]:
    """[jets, replicates]: how often each jet is drawn, times its weight."""
    n = len(weights)
    counts = rng.multinomial(n, np.full(n, 1.0 / n), size=replicates).T
    found = np.empty(counts.shape, np.float32)
    np.multiply(counts, weights[:, None], out=found, casting="unsafe")  # in float64, a few numbers at a time
    return found


class _Falling(NamedTuple):
    """Scores of jets from the highest to the lowest, and their places before."""

    scores: Floats
    order: NDArray[np.intp]

    @classmethod
    def of(cls, scores: Floats) -> _Falling:
        order = np.argsort(-scores, kind="stable")
        return cls(scores[order], order)


def _resampled_background(
    signal: _Falling,
    background: _Falling,
    signal_weights: NDArray[np.float32],
    background_weights: NDArray[np.float32],
    points: Sequence[int],
) -> dict[int, Floats]:
    """ε_B [replicates] at the first threshold that reaches each signal efficiency, by efficiency."""
    jets = len(signal.scores)
    rounding = 1.0 - jets * float(np.finfo(np.float64).eps)  # must not decide: see `RocCurve.reaching`
    first = _first_reaching(signal_weights[signal.order], np.array(points) / 100 * rounding)
    thresholds = signal.scores[first]
    total = background_weights.sum(axis=0, dtype=np.float64)
    rising = -background.scores
    survivors = {point: np.searchsorted(rising, -thresholds[:, i], "right") for i, point in enumerate(points)}
    most = max(1, max(int(count.max()) for count in survivors.values()))
    passed = np.cumsum(background_weights[background.order[:most]], axis=0, dtype=np.float64)  # the rest passes nowhere
    found = {}
    for point, count in survivors.items():
        weight = np.where(count > 0, passed[count - 1, np.arange(len(count))], 0.0)
        found[point] = np.where(weight > 0, weight, 0.5 * total / len(background.scores)) / total
    return found


def _first_reaching(weights: NDArray[np.float32], shares: Floats) -> NDArray[np.intp]:
    """[replicates, shares]: the first row of weights [jets, replicates] at which their running sum reaches
    each share of its total. Sums of blocks find the block, and running sums inside it the row."""
    jets, replicates = weights.shape
    padded = np.zeros((-(-jets // _ROWS) * _ROWS, replicates), np.float32)
    padded[:jets] = weights
    blocks = padded.reshape(-1, _ROWS, replicates)
    sums = np.cumsum(blocks.sum(axis=1, dtype=np.float64), axis=0)
    columns = np.arange(replicates)
    first = np.empty((replicates, len(shares)), np.intp)
    for i, share in enumerate(shares):
        wanted = share * sums[-1]
        block = np.count_nonzero(sums < wanted, axis=0)
        before = np.where(block > 0, sums[block - 1, columns], 0.0)
        inside = before[:, None] + np.cumsum(blocks[block, :, columns], axis=1, dtype=np.float64)
        first[:, i] = block * _ROWS + np.count_nonzero(inside < wanted[:, None], axis=1)
    return np.minimum(first, jets - 1)
