"""AUC and background rejection, with weights; ties count as a real threshold would count them.

A jet passes a threshold t if its score is ≥ t, so jets of equal score pass or fail together. Signal has
label 1, background label 0. Jets with weight 0 are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdfast.errors import ConfigError, DataError

__all__ = [
    "WORKING_POINTS",
    "Rejection",
    "RocCurve",
    "background_rejection",
    "background_rejections",
    "evaluate",
    "roc_auc",
    "roc_curve",
]

Floats = NDArray[np.float64]

# Signal efficiencies, in percent, at which the background rejection is reported; 50 % is the study's.
WORKING_POINTS = (30, 50, 80)

# −ln(1 − 0.68): the mean of a Poisson that gives no event 32 % of the time.
POISSON_68 = 1.14


class Rejection(NamedTuple):
    """Background rejection 1/ε_B at a signal efficiency.

    Attributes
    ----------
    value
        1/ε_B, or its 68 % lower limit n_B/1.14 if no background jet survives; always finite.
    survivors
        Background jets that pass the threshold (a count, not a sum of weights).
    is_lower_limit
        Whether no background jet survived.
    """

    value: float
    survivors: int
    is_lower_limit: bool


class RocCurve(NamedTuple):
    """Efficiencies with each distinct score as threshold; thresholds fall, so efficiencies rise ([n] each).

    Attributes
    ----------
    signal_efficiency, background_efficiency
        Shares of the (weighted) signal and background that pass.
    survivors
        Background jets that pass (a count).
    thresholds
        A jet passes if its score is ≥ the threshold.
    rounding
        Relative error that weighted sums may have in an efficiency.
    """

    signal_efficiency: Floats
    background_efficiency: Floats
    survivors: NDArray[np.int64]
    thresholds: Floats
    rounding: float

    def reaching(self, efficiency: float) -> int:
        """Place of the first (highest) threshold whose signal efficiency reaches ``efficiency``, in (0, 1].

        Rounding does not decide. The last threshold has efficiency 1, so there is always one.
        """
        return int(np.argmax(self.signal_efficiency >= efficiency * (1.0 - self.rounding)))


def _one_dimensional(values: ArrayLike, name: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"needs one value per jet, has shape {array.shape}", where=name)
    return array


def _split(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats | None, Floats | None]:
    """Scores of signal and background, weights of signal and background (None: all 1), checked."""
    y, s = _one_dimensional(labels, "labels"), _one_dimensional(scores, "scores").astype(np.float64, copy=False)
    if len(y) != len(s):
        raise DataError(f"{len(s)} scores for {len(y)} labels", where="scores")
    signal = y == 1
    if bad := int(np.count_nonzero(~signal & (y != 0))):
        raise DataError(f"labels must be 0 (background) or 1 (signal), {bad} of {len(y)} are neither", where="labels")
    if nans := int(np.count_nonzero(np.isnan(s))):
        raise DataError(f"{nans} of {len(s)} scores are NaN", where="scores", hint="did the training diverge?")
    w: Floats | None = None
    if weights is not None:
        w = _one_dimensional(weights, "weights").astype(np.float64, copy=False)
        if len(w) != len(y):
            raise DataError(f"{len(w)} weights for {len(y)} labels", where="weights")
        if not (np.isfinite(w).all() and (w >= 0).all()):
            raise DataError("weights must be finite and not negative", where="weights")
        used = w > 0
        if not used.all():
            signal, s, w = signal[used], s[used], w[used]
    background = ~signal
    for chosen, name in ((signal, "signal (label 1)"), (background, "background (label 0)")):
        if not chosen.any():
            weighty = "" if weights is None else " with a weight above 0"
            raise DataError(f"there is no {name} jet{weighty}", where="labels", hint="a metric needs both classes")
    if w is None:
        return s[signal], s[background], None, None
    return s[signal], s[background], w[signal], w[background]


def roc_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the (weighted) share of pairs in which signal scores above background; ties count half.

    Parameters
    ----------
    labels
        [B], 1 for signal and 0 for background.
    scores
        [B], on any monotonic scale.
    weights
        [B], ≥ 0; default: none. Without weights the count is exact.

    Returns
    -------
    float
        The same bits for the same input.

    Raises
    ------
    DataError
        For NaN scores or a single class.

    Examples
    --------
    >>> from kdfast.metrics import roc_auc
    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    signal, background, w_signal, w_background = _split(labels, scores, weights)
    if w_signal is None or w_background is None:
        signal.sort()  # copies, by boolean indexing: ours to sort; sorted needles search faster
        background.sort()
        below = np.searchsorted(background, signal, "left").sum(dtype=np.int64)
        not_above = np.searchsorted(background, signal, "right").sum(dtype=np.int64)
        return int(below + not_above) / (2 * len(signal) * len(background))
    order = np.argsort(background, kind="stable")
    background, cumulated = background[order], np.concatenate(([0.0], np.cumsum(w_background[order])))
    pairs = cumulated[np.searchsorted(background, signal, "left")]
    pairs += cumulated[np.searchsorted(background, signal, "right")]
    area = float(np.dot(w_signal, pairs) / (2.0 * w_signal.sum() * cumulated[-1]))
    return min(area, 1.0)  # rounding


def _roc(signal: Floats, background: Floats, w_signal: Floats | None, w_background: Floats | None) -> RocCurve:
    thresholds = np.unique(np.concatenate((signal, background)))[::-1]

    def passing(values: Floats, weights: Floats | None) -> tuple[NDArray[np.int64], Floats]:
        order = np.argsort(values, kind="stable")[::-1]
        falling = values[order]
        count = np.searchsorted(-falling, -thresholds, "right").astype(np.int64)
        if weights is None:
            return count, count / len(values)
        cumulated = np.concatenate(([0.0], np.cumsum(weights[order])))
        return count, cumulated[count] / cumulated[-1]

    _, signal_efficiency = passing(signal, w_signal)
    survivors, background_efficiency = passing(background, w_background)
    rounding = 0.0 if w_signal is None else len(signal) * np.finfo(np.float64).eps
    return RocCurve(signal_efficiency, background_efficiency, survivors, thresholds, rounding)


def roc_curve(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> RocCurve:
    """Signal and background efficiency with every distinct score as threshold (a jet with score ≥ threshold passes).

    Arguments and errors are those of `roc_auc`. The last point is (1, 1); the point (0, 0) above all scores
    is not listed.
    """
    return _roc(*_split(labels, scores, weights))


def background_rejection(
    labels: ArrayLike, scores: ArrayLike, efficiency: float, weights: ArrayLike | None = None
) -> Rejection:
    """1/ε_B at the first (highest) threshold whose signal efficiency reaches ``efficiency``.

    Parameters
    ----------
    labels, scores, weights
        As for `roc_auc`.
    efficiency
        Signal efficiency, in (0, 1]. Rounding of weighted sums does not decide whether it is reached.

    Returns
    -------
    Rejection
        If no background jet survives, the value is the 68 % lower limit n_B/1.14, never inf. With weights,
        n_B is the effective number (Σw)²/Σw².

    Raises
    ------
    ConfigError
        For an efficiency outside (0, 1].
    DataError
        For NaN scores or a single class.
    """
    return background_rejections(labels, scores, [efficiency], weights)[0]


def background_rejections(
    labels: ArrayLike, scores: ArrayLike, efficiencies: Iterable[float], weights: ArrayLike | None = None
) -> list[Rejection]:
    """`background_rejection` at each of several signal efficiencies, of one ROC curve."""
    signal, background, w_signal, w_background = _split(labels, scores, weights)
    curve = _roc(signal, background, w_signal, w_background)
    number = len(background) if w_background is None else w_background.sum() ** 2 / np.square(w_background).sum()
    return [_rejection(curve, efficiency, float(number)) for efficiency in efficiencies]


def _rejection(curve: RocCurve, efficiency: float, number: float) -> Rejection:
    """number: of background jets, effective where they have weights."""
    if not 0 < efficiency <= 1:  # NaN fails too
        raise ConfigError(f"a signal efficiency lies in (0, 1], is {efficiency}", where="efficiency")
    point = curve.reaching(efficiency)
    survivors = int(curve.survivors[point])
    if survivors == 0:
        return Rejection(number / POISSON_68, 0, True)
    value = 1.0 / float(curve.background_efficiency[point])
    if not math.isfinite(value):  # weights so small that their share underflows
        raise DataError("the weights span too wide a range for a rejection", where="weights")
    return Rejection(value, survivors, False)


def evaluate(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, suffix: str = ""
) -> dict[str, float]:
    """The numbers of one network on one set of jets.

    Parameters
    ----------
    labels, scores, weights
        As for `roc_auc`.
    suffix
        Appended to each name: ``"_val"`` for the validation jets.

    Returns
    -------
    dict
        ``auc``, and for each signal efficiency of P percent in WORKING_POINTS ``bkg_rej_P`` and
        ``n_bkg_P``, the surviving background jets. ``n_bkg_P`` = 0 marks ``bkg_rej_P`` as a 68 % lower
        limit.
    """
    numbers: dict[str, float] = {f"auc{suffix}": roc_auc(labels, scores, weights)}
    efficiencies = [percent / 100 for percent in WORKING_POINTS]
    rejections = background_rejections(labels, scores, efficiencies, weights)
    for percent, rejection in zip(WORKING_POINTS, rejections, strict=True):
        numbers[f"bkg_rej_{percent}{suffix}"] = rejection.value
        numbers[f"n_bkg_{percent}{suffix}"] = rejection.survivors
    return numbers
