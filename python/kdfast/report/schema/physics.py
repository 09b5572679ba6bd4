"""The networks shown, by jet pT, in the mass that they select, and as probabilities."""

from __future__ import annotations

from kdfast.report.schema.values import Comparison, Estimate, Record, Role

__all__ = ["Calibration", "CalibrationBin", "MassSculpting", "PtBin", "PtDifference", "PtRatio"]


class PtBin(Record):
    """One network in a range of jet pT (GeV)."""

    role: Role
    pt_low: float
    pt_high: float
    signal: int
    background: int
    auc: Estimate
    rejection: Estimate
    """At 50 % signal efficiency within the bin."""
    signal_efficiency: Estimate
    background_efficiency: Estimate
    """At the threshold that gives 50 % over all test jets."""


class PtRatio(Record):
    """Rejection at 50 % of the best student over the baseline's, on the same jets in a range of jet pT (GeV)."""

    pt_low: float
    pt_high: float
    ratio: Estimate


class PtDifference(Record):
    """One network's AUC in the highest bin of `by_pt` minus that in its lowest; bins with few jets are in
    neither."""

    role: Role
    auc: Comparison


class MassSculpting(Record):
    """Mass of the background that passes against all background's; Jensen–Shannon divergence in bits (0:
    the same, 1: no overlap)."""

    role: Role
    efficiency: int
    """Signal efficiency in percent."""
    survivors: int
    edges: list[float]
    """Of the bins of mass (GeV), equally filled by all background."""
    all: list[float]
    passing: list[float]
    """Share per bin."""
    divergence: float
    """As observed: positive on average even without sculpting, as few jets pass."""
    corrected: float
    low: float
    high: float
    """Corrected for its bias, and 95 % interval (basic bootstrap over jets)."""
    expected_without: float
    """Mean for the same number of background jets picked at random."""
    p_value: float
    """Chance of a divergence at least as large among such picks."""
    p_adjusted: float
    """Adjusted for all directional statements of the report."""


class CalibrationBin(Record):
    predicted: float
    observed: float
    low: float
    high: float
    jets: int


class Calibration(Record):
    """Whether scores are probabilities of signal, at the classes' shares among the test jets."""

    role: Role
    bins: list[CalibrationBin]
    """Equally filled by predicted probability; observed share of signal with Wilson's interval."""
    expected_error: float
    """Mean |observed − predicted| over the bins, weighted by jets."""
    brier: float
    log_loss: float
    slope: Estimate | None
    """Of a logistic regression of the label on the score (logit): 1 for calibrated scores, below 1:
    overconfident."""
    intercept: Estimate | None
