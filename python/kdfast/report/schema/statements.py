"""The statements of a report."""

from __future__ import annotations

from enum import Enum
from typing import Any

from kdfast.report.schema.values import Record

__all__ = ["Claim", "Finding"]


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
