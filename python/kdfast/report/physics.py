"""What a physicist asks next of a tagger: its performance by pT, the mass it selects, whether scores are
probabilities.

The networks shown are teacher, baseline and best student, on the test jets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import brier_score_loss, log_loss
from statsmodels.stats.proportion import proportion_confint

from kdfast.metrics import background_rejection, roc_curve
from kdfast.report import sampling
from kdfast.report.families import LEVEL_OF_REPORT, PHYSICS_LEVEL
from kdfast.report.fitting import critical
from kdfast.report.sampling import Floats
from kdfast.report.schema.physics import Calibration, CalibrationBin, MassSculpting, PtBin, PtRatio
from kdfast.report.schema.values import Estimate

__all__ = [
    "TestJets",
    "calibration",
    "gap_recovered",
    "mass_divergence",
    "mass_sculpting",
    "pt_bins",
    "pt_edges",
    "pt_ratios",
]

_REPLICATES = 1000
FEWEST_SURVIVORS = 30

# Elements of a block of replicates [replicates, jets]: 16 bytes each, 64 MB.
_BLOCK = 4_000_000

# Of more background jets, only those that pass are drawn one by one.
_MANY_JETS = 50_000

# Jets of either class, (Σw)²/Σw² with weights, that a bin of pT must hold: with 20 the interval of an AUC
# covers 93 to 96 %, with 5 some 87 %, and one jet has no scatter to tell an error from.
FEWEST_IN_BIN = 20


@dataclass(frozen=True)
class TestJets:
    """The test jets: labels, weights [B]; pt, mass [B] in GeV or None."""

    __test__ = False  # not a test class of pytest's

    labels: NDArray[np.int64]
    weights: Floats
    pt: Floats | None = None
    mass: Floats | None = None


def threshold_at(jets: TestJets, scores: Floats, efficiency: float) -> float:
    """The first score whose signal efficiency reaches `efficiency`."""
    curve = roc_curve(jets.labels, scores, jets.weights)
    return float(curve.thresholds[curve.reaching(efficiency)])


# ---- by pT


def pt_edges(pt: Floats, labels: NDArray[np.int64]) -> Floats:
    """Edges of bins of pT (GeV) equally filled by the jets of finite pT, of which there is one at least: at
    most five, and as many as give each 100 jets of either class where both classes have the same spectrum.
    With other spectra a bin may hold far fewer of one (see `pt_bins`)."""
    pt, labels = pt[np.isfinite(pt)], labels[np.isfinite(pt)]
    scarcer = int(min((labels == 1).sum(), (labels == 0).sum()))
    bins = max(1, min(5, scarcer // 100))
    edges = np.unique(np.quantile(pt, np.linspace(0.0, 1.0, bins + 1)))
    return edges if len(edges) > 1 else np.array([edges[0], np.nextafter(edges[0], np.inf)])


def pt_bins(role: str, jets: TestJets, scores: Floats, edges: Floats) -> list[PtBin]:
    """One network in each bin of pT; bins with fewer than 20 jets of a class are left out. Jets whose pT is
    not finite are in none, but count for the threshold over all jets."""
    threshold = threshold_at(jets, scores, 0.5)
    found = []
    for ends, inside in _bins_of_pt(jets, edges):
        y = jets.labels[inside]
        s = scores[inside]
        w = jets.weights[inside]
        auc = sampling.auc_estimates(y, s[None], w)
        rejection = background_rejection(y, s, 0.5, w)
        log_rejection = sampling.rejection_estimates(y, s[None], w, points=(50,))[50]
        signal, background = (_efficiency(s[y == label] >= threshold, w[y == label]) for label in (1, 0))
        found.append(
            PtBin(
                role=role,  # type: ignore[arg-type]
                **ends,
                signal=int((y == 1).sum()),
                background=int((y == 0).sum()),
                auc=auc_estimate(float(auc.values[0]), float(auc.errors[0])),
                rejection=rejection_estimate(rejection.value, float(log_rejection.errors[0]), rejection.survivors),
                signal_efficiency=signal,
                background_efficiency=background,
            )
        )
    return found


def _bins_of_pt(jets: TestJets, edges: Floats) -> Iterator[tuple[dict[str, float], NDArray[np.bool_]]]:
    """The ends of bins that hold enough jets of either class, and which jets [B] are in them."""
    if jets.pt is None:
        return
    place = np.clip(np.searchsorted(edges, jets.pt, "right") - 1, 0, len(edges) - 2)
    for b in range(len(edges) - 1):
        inside = (place == b) & (jets.weights > 0) & np.isfinite(jets.pt)
        classes = (jets.weights[inside & (jets.labels == label)] for label in (0, 1))
        if min(map(sampling.effective_number, classes)) >= FEWEST_IN_BIN:
            yield {"pt_low": float(edges[b]), "pt_high": float(edges[b + 1])}, inside


def pt_ratios(jets: TestJets, student: Floats, baseline: Floats, edges: Floats) -> list[PtRatio]:
    """Rejections at 50 % of one network over another's within each bin of pT, paired: both are resampled
    together. Bins with few jets, or without a background jet that survives, are left out."""
    found = []
    for ends, inside in _bins_of_pt(jets, edges):
        y = jets.labels[inside]
        w = jets.weights[inside]
        both = np.stack([student[inside], baseline[inside]])
        if any(background_rejection(y, scores, 0.5, w).is_lower_limit for scores in both):
            continue
        log = sampling.rejection_estimates(y, both, w, points=(50,))[50]
        value = float(log.values[0] - log.values[1])
        error = float(np.linalg.norm(log.factor[0] - log.factor[1]))
        half = critical(1.0 - sampling.LEVEL) * error
        ratio, low, high = (math.exp(x) for x in (value, value - half, value + half))
        found.append(PtRatio(**ends, ratio=Estimate(value=ratio, error=ratio * error, low=low, high=high)))
    return found


def auc_estimate(value: float, error: float) -> Estimate:
    """An AUC with its interval; no error and no interval if it is 0 or 1, where these jets determine none."""
    interval = sampling.auc_interval(value, error)
    if interval is None:
        return Estimate(value=value)
    return Estimate(value=value, error=error, low=interval[0], high=interval[1], error_test=error)


def rejection_estimate(value: float, log_error: float, survivors: int) -> Estimate:
    """A rejection with its interval, symmetric on the scale of ln(1/ε_B), where background survives.

    log_error: standard error of the logarithm.
    """
    if survivors == 0:
        return Estimate(value=value, lower_limit=True)
    half = sampling.quantile() * log_error
    low, high = (math.exp(math.log(value) + shift) for shift in (-half, half))
    error = value * log_error
    return Estimate(value=value, error=error, low=low, high=high, error_test=error)


def _efficiency(passed: NDArray[np.bool_], weights: Floats) -> Estimate:
    """A share with Wilson's interval; with weights, a class counts as (Σw)²/Σw² jets."""
    share = float(np.average(passed, weights=weights))
    number = sampling.effective_number(weights)
    low, high = proportion_confint(share * number, number, alpha=1.0 - sampling.LEVEL, method="wilson")
    return Estimate(value=share, error=math.sqrt(share * (1.0 - share) / number), low=float(low), high=float(high))


# ---- mass


def mass_sculpting(
    role: str, jets: TestJets, scores: Floats, efficiency: int, *, seed: int = 0
) -> MassSculpting | None:
    """The mass of the background that passes at a signal efficiency (percent) against that of all background.

    The divergence of two histograms is biased upwards by their fluctuations, so it is shown with its mean
    for as many jets picked at random (permutation test), and corrected by the bootstrap's bias (basic
    bootstrap: 2 D − D*). The threshold is held fixed. None where fewer than 30 jets pass: the bootstrap
    does not see what bins that stayed empty by chance might hold.
    """
    chosen = _mass_cells(jets, scores, efficiency)
    if chosen is None:
        return None
    edges, cells, passed = chosen
    everything = cells.sum(axis=0)
    passing = cells[passed].sum(axis=0)
    observed = float(_divergence(passing, everything))
    random, again = _resampled_divergences(cells, passed, np.random.default_rng(seed))
    tail = (1.0 - sampling.LEVEL) / 2.0
    low, high = 2.0 * observed - np.nanquantile(again, [1.0 - tail, tail])
    p = _tail(random, observed)
    return MassSculpting(
        role=role,  # type: ignore[arg-type]
        efficiency=efficiency,
        survivors=int(passed.sum()),
        edges=edges.tolist(),
        all=(everything / everything.sum()).tolist(),
        passing=(passing / cells[passed].sum()).tolist(),
        divergence=observed,
        corrected=max(0.0, 2.0 * observed - float(np.nanmean(again))),
        low=max(0.0, float(low)),
        high=max(observed, float(high)),  # near 0 the correction overshoots; the observed one is too high on average
        expected_without=float(random.mean()),
        p_value=p,
        p_adjusted=min(1.0, p * LEVEL_OF_REPORT / PHYSICS_LEVEL),
    )


def mass_divergence(jets: TestJets, scores: Floats) -> float | None:
    """The divergence at 50 % alone, as `mass_sculpting` observes it; None where that gives none."""
    chosen = _mass_cells(jets, scores, 50)
    if chosen is None:
        return None
    _, cells, passed = chosen
    return float(_divergence(cells[passed].sum(axis=0), cells.sum(axis=0)))


def _mass_cells(
    jets: TestJets, scores: Floats, efficiency: int
) -> tuple[Floats, NDArray[np.float32], NDArray[np.bool_]] | None:
    """Edges of bins equally filled by all background, its weights by bin [jets, bins], and which of its jets
    pass. None where fewer than 30 pass, or masses do not vary or are not known."""
    if jets.mass is None:
        return None
    passing = scores >= threshold_at(jets, scores, efficiency / 100)
    background = (jets.labels == 0) & (jets.weights > 0) & np.isfinite(jets.mass)
    passed = passing[background]
    m = jets.mass[background]
    survivors = int(passed.sum())
    if survivors < FEWEST_SURVIVORS:
        return None
    bins = min(20, max(4, survivors // 10))
    edges = np.unique(np.quantile(m, np.linspace(0.0, 1.0, bins + 1)))
    if len(edges) < 3:
        return None
    place = np.clip(np.searchsorted(edges, m, "right") - 1, 0, len(edges) - 2)
    cells = np.zeros((len(m), len(edges) - 1), np.float32)
    cells[np.arange(len(m)), place] = jets.weights[background]
    return edges, cells, passed


def _tail(random: Floats, observed: float) -> float:
    """Chance of a divergence at least as large as the observed one: of a gamma distribution with the mean and
    variance of the permutations (divergences are nearly χ²), which reaches further than their number does."""
    mean = float(random.mean())
    variance = float(random.var())
    if variance == 0.0:
        return 1.0
    return float(stats.gamma.sf(observed, mean**2 / variance, scale=variance / mean))


def _resampled_divergences(
    cells: NDArray[np.float32], passed: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """[replicates] each, for cells [jets, bins] and which jets passed: of as many jets picked at random, and
    of the jets that passed among jets drawn anew."""
    n, survivors = len(cells), int(passed.sum())
    if n > _MANY_JETS:
        return _resampled_of_many(cells, passed, rng)
    everything = cells.sum(axis=0)
    passed_cells = cells * passed[:, None]
    random = np.empty(_REPLICATES)
    again = np.empty(_REPLICATES)
    step = max(1, _BLOCK // n)  # a few at a time where there are many jets: memory does not grow with their product
    for start in range(0, _REPLICATES, step):
        block = slice(start, start + step)
        size = len(random[block])
        order = np.argpartition(rng.random((size, n), np.float32), survivors - 1, axis=1)
        picks = np.zeros((size, n), np.float32)
        np.put_along_axis(picks, order[:, :survivors], 1.0, axis=1)
        random[block] = _divergence(picks @ cells, everything)
        del order, picks
        counts = rng.poisson(1.0, (size, n)).astype(np.float32)  # the Poisson bootstrap: totals cancel in shares
        again[block] = _divergence(counts @ passed_cells, counts @ cells)
    return random, again


def _resampled_of_many(
    cells: NDArray[np.float32], passed: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """The same, at the cost of the jets that pass alone.

    The others fill their bins with thousands of jets each, so that sums over a Poisson bootstrap are normal:
    with the mean Σw and the variance Σw² of a bin.
    """
    everything = cells.sum(axis=0, dtype=np.float64)
    chosen = cells[passed]
    rest = cells[~passed]
    mean = rest.sum(axis=0, dtype=np.float64)
    scatter = np.sqrt(np.square(rest).sum(axis=0, dtype=np.float64))
    random = np.empty(_REPLICATES)
    again = np.empty(_REPLICATES)
    for replicate in range(_REPLICATES):
        picks = rng.choice(len(cells), len(chosen), replace=False, shuffle=False)
        random[replicate] = _divergence(cells[picks].sum(axis=0), everything)
        kept = rng.poisson(1.0, len(chosen)).astype(np.float32) @ chosen
        again[replicate] = _divergence(kept, kept + rng.normal(mean, scatter))
    return random, again


def _divergence(one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """Jensen–Shannon divergence (bits) of histograms [..., bins]."""
    both = np.broadcast_arrays(np.asarray(one, np.float64), np.asarray(other, np.float64))
    return np.square(jensenshannon(*both, base=2.0, axis=-1))


# ---- calibration


def calibration(role: str, jets: TestJets, scores: Floats) -> Calibration:
    """How well σ(score) is the probability of signal."""
    used = jets.weights > 0
    y = jets.labels[used]
    s = scores[used]
    w = jets.weights[used]
    probability = np.exp(-np.logaddexp(0.0, -s))
    edges = np.unique(np.quantile(probability, np.linspace(0.0, 1.0, 11)))
    place = np.clip(np.searchsorted(edges, probability, "right") - 1, 0, max(len(edges) - 2, 0))
    bins, error = [], 0.0
    for b in np.unique(place):
        inside = place == b
        observed = _efficiency(y[inside] == 1, w[inside])
        predicted = float(np.average(probability[inside], weights=w[inside]))
        error += abs(observed.value - predicted) * float(w[inside].sum() / w.sum())
        bins.append(
            CalibrationBin(
                predicted=predicted,
                observed=observed.value,
                low=observed.low or 0.0,
                high=1.0 if observed.high is None else observed.high,
                jets=int(inside.sum()),
            )
        )
    intercept, slope = _logistic(y, s, w)
    return Calibration(
        role=role,  # type: ignore[arg-type]
        bins=bins,
        expected_error=error,
        brier=float(brier_score_loss(y, probability, sample_weight=w)),
        log_loss=float(log_loss(y, probability, sample_weight=w, labels=[0, 1])),
        slope=slope,
        intercept=intercept,
    )


def _logistic(labels: NDArray[np.int64], scores: Floats, weights: Floats) -> tuple[Estimate | None, Estimate | None]:
    """Intercept and slope of statsmodels' logistic regression of the label on the score; None for scores
    that do not vary or separate the classes.

    Robust errors by hand: (Xᵀ W V X)⁻¹ (Σ w² r² x xᵀ) (Xᵀ W V X)⁻¹ with weights w, residuals r = y − p, V =
    p(1 − p). statsmodels takes weights for counts of equal jets, and has w in place of w² in the middle.
    """
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    signal = scores[labels == 1]
    background = scores[labels == 0]
    if np.ptp(scores) == 0 or signal.min() >= background.max() or signal.max() <= background.min():
        return None, None
    scaled = weights * (len(weights) / weights.sum())
    design = np.column_stack([np.ones(len(scores)), scores])
    result = GLM(labels, design, Binomial(), freq_weights=scaled).fit()
    p = np.asarray(result.fittedvalues)
    bread = np.linalg.inv(design.T @ (design * (scaled * p * (1.0 - p))[:, None]))
    scatter = design * (scaled * (labels - p))[:, None]
    errors = np.sqrt(np.diag(bread @ (scatter.T @ scatter) @ bread))
    reach = critical(PHYSICS_LEVEL)
    found = [
        Estimate(value=float(v), error=float(e), low=float(v - reach * e), high=float(v + reach * e))
        for v, e in zip(result.params, errors, strict=True)
    ]
    return found[0], found[1]


# ---- the gap between baseline and teacher


def gap_recovered(gain: float, gap: float, variances: tuple[float, float, float], quantile: float) -> Estimate | None:
    """(student − baseline)/(teacher − baseline) = gain/gap, with Fieller's interval (Biometrika 41, 1954,
    175).

    variances: of gain, of gap, and their covariance. The interval holds the θ with |gain − θ gap| ≤ q σ(gain
    − θ gap), q the quantile. Neither scipy nor statsmodels has it. There is none where the gap's own interval
    contains 0. None where the teacher is not above the baseline.
    """
    if gap <= 0:
        return None
    v1, v2, v12 = variances
    q2 = quantile**2
    a = gap**2 - q2 * v2
    b = gain * gap - q2 * v12
    c = gain**2 - q2 * v1
    if a <= 0 or b * b - a * c < 0:
        return Estimate(value=gain / gap)
    root = math.sqrt(b * b - a * c)
    return Estimate(value=gain / gap, low=(b - root) / a, high=(b + root) / a)
