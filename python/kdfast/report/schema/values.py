"""What all models of report.json share: numbers with their errors, and statements made of them."""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["SIGNIFICANT", "Claim", "Comparison", "Estimate", "Finding", "Metric", "Record", "Role"]

# Level of the tests, after correction for their number.
SIGNIFICANT = 0.05


Role = Literal["teacher", "baseline", "student"]


Metric = Literal["auc", "rejection"]
"""AUC, or background rejection at 50 % signal efficiency."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Estimate(Record):
    """A number with its error."""

    value: float
    error: float | None = None
    """Standard error from all sources that are known."""
    low: float | None = None
    high: float | None = None
    """Ends of the 95 % interval."""
    error_test: float | None = None
    """The part of the error that the finite test jets make."""
    error_runs: float | None = None
    """The part that differs from run to run: of configurations the seed, null with one seed, which does not
    determine it; of groups and slopes the scatter of configurations about the model."""
    lower_limit: bool = False
    """No background survives: value is the 68 % lower limit n_B/1.14, without an interval."""

    def excludes(self, value: float) -> bool:
        """Whether there is an interval, and the value is outside it."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


class Comparison(Record):
    """A difference on common test jets and seeds, tested as one of its family (families.py)."""

    difference: Estimate
    """Its interval is simultaneous with all others of the report: together they hold in 95 % of studies."""
    relative: float | None
    """The difference over the reference's value."""
    p_value: float | None
    """Two-sided, by itself: DeLong's test of an AUC, a bootstrap over jets for a rejection, with the seeds'
    variance. Null where nothing is tested."""
    p_adjusted: float | None = None
    """Adjusted for all directional statements of the report: below 5 % the difference is supported."""

    @property
    def supported(self) -> bool:
        """Whether a difference is there."""
        return self.p_adjusted is not None and self.p_adjusted < SIGNIFICANT and self.difference.excludes(0.0)


class Claim(str, Enum):
    """What a finding is about. Its numbers' names, and its words, are those of the macro in
    templates/findings.j2."""

    NO_SCORES = "no_scores"
    FEW_JETS = "few_jets"
    SPREAD = "spread"
    BASELINE_COUNTS = "baseline_counts"
    EQUAL = "equal"
    HIGHER = "higher"
    LOWER = "lower"
    NOT_DIFFERENT = "not_different"
    BEST_SET = "best_set"
    SEED_VARIANCE_UNKNOWN = "seed_variance_unknown"
    RANK_AGREEMENT = "rank_agreement"
    GROUP_HIGHEST = "group_highest"
    GROUP_HIGHER_THAN_SOME = "group_higher_than_some"
    GROUP_NOT_DIFFERENT = "group_not_different"
    GROUP_BELOW_ANOTHER = "group_below_another"
    TREND = "trend"
    IMPORTANCE = "importance"
    SHARES = "shares"
    CONVERGENCE = "convergence"
    PARETO = "pareto"
    GAP = "gap"
    GAP_UNCERTAIN = "gap_uncertain"
    MASS = "mass"
    CALIBRATION = "calibration"


class Finding(Record):
    """A statement of the report, made from a tested quantity."""

    topic: str
    """Where it belongs: improvement, best_auc, strategy_rejection, pt, …"""
    code: Claim
    supported: bool
    """Whether a test supports a difference or an effect; false: the data are compatible with there being
    none."""
    numbers: dict[str, Any]
    """The numbers and names that it states."""
    text: str
    """The same as a sentence."""
