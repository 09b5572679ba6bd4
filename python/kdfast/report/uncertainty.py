"""Standard errors of one AUC and of one background rejection on one set of jets.

With weights, a class counts as (Σw)²/Σw² jets.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdfast.metrics import background_rejection, roc_curve

__all__ = ["auc_error", "effective_number", "rejection_error"]


def effective_number(weights: ArrayLike) -> float:
    """(Σw)²/Σw²: the number of unweighted jets with the same relative fluctuation."""
    w = np.asarray(weights, np.float64)
    return float(w.sum() ** 2 / np.square(w).sum())


def auc_error(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """σ of an AUC, after DeLong, DeLong & Clarke-Pearson (Biometrics 44, 1988, 837).

    The AUC is the mean over signal of each signal jet's share of background below it, and likewise the mean over
    background; its variance is the sum of the two samples' variances of these shares, each over its number of jets.
    """
    y, s = np.asarray(labels), np.asarray(scores, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    signal = y == 1

    def share_below(of: NDArray[np.bool_], among: NDArray[np.bool_]) -> NDArray[np.float64]:
        order = np.argsort(s[among], kind="stable")
        sorted_scores, cumulated = s[among][order], np.concatenate(([0.0], np.cumsum(w[among][order])))
        below, not_above = (cumulated[np.searchsorted(sorted_scores, s[of], side)] for side in ("left", "right"))
        return (below + not_above) / (2.0 * cumulated[-1])

    variance = 0.0
    for of, among in ((signal, ~signal), (~signal, signal)):
        shares, number = share_below(of, among), effective_number(w[of])
        spread = np.average((shares - np.average(shares, weights=w[of])) ** 2, weights=w[of])
        variance += spread / max(number - 1.0, 1.0)
    return math.sqrt(variance)


def rejection_error(
    labels: ArrayLike, scores: ArrayLike, efficiency: float, weights: ArrayLike | None = None
) -> float | None:
    """σ of 1/ε_B at a signal efficiency; None where no background survives (then there is only a limit).

    Two sources: the surviving background's binomial fluctuation, √(ε_B (1 − ε_B)/n_B), and the threshold's, which
    moves with the signal: half the change of ε_B between ε_S ± √(ε_S (1 − ε_S)/n_S).
    """
    rejection = background_rejection(labels, scores, efficiency, weights)
    if rejection.is_lower_limit:
        return None
    y = np.asarray(labels)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    n_signal, n_background = effective_number(w[y == 1]), effective_number(w[y == 0])
    curve = roc_curve(labels, scores, weights)
    shift = math.sqrt(efficiency * (1.0 - efficiency) / n_signal)
    low, high = np.interp(
        [efficiency - shift, efficiency + shift], curve.signal_efficiency, curve.background_efficiency
    )
    passing = 1.0 / rejection.value
    sigma = math.hypot(math.sqrt(passing * (1.0 - passing) / n_background), (high - low) / 2.0)
    return rejection.value * sigma / passing
