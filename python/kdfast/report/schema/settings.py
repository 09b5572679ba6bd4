"""What settings do: tables by setting, effects, and the distribution of the results."""

from __future__ import annotations

from kdfast.report.schema.values import Comparison, Estimate, Metric, Record

__all__ = [
    "Correlation",
    "Distribution",
    "Group",
    "GroupTable",
    "Importance",
    "LinearModel",
    "MetricSummary",
    "Pair",
    "PlannedContrast",
    "SettingTable",
    "Term",
    "TopQuartile",
    "VarianceShares",
]


class MetricSummary(Record):
    """Mean, standard deviation (n − 1), extremes of a metric over runs."""

    mean: float
    std: float | None
    variance: float | None
    min: float
    max: float
    limits: int = 0
    """How many of the values are lower limits: with any, mean and maximum are limits, too, and std is
    null."""


class Group(Record):
    """Runs that share a setting."""

    label: str
    runs: int
    auc: MetricSummary
    rejection: MetricSummary
    consistency: float | None
    """1/(std of AUC + 0.001)."""
    auc_over_constant: float | None
    rejection_over_constant: float | None
    """Mean minus that of the strategy `baseline`; strategies only."""
    auc_difference: Comparison | None = None
    rejection_difference: Comparison | None = None
    """Relative to the table's reference group, at equal other settings (linear model); null for the reference itself
    and where the grid does not determine it."""


class GroupTable(Record):
    """Groups by one setting."""

    setting: str
    """temp_init, alpha_init, strategy, temp_range, alpha_range, or a further axis of the grid."""
    reference: str | None
    """The group with the highest mean AUC, which the others' differences are to."""
    reference_rejection: str | None
    """The group with the highest mean rejection, likewise; null where a run's rejection is a lower limit."""
    groups: list[Group]


class Pair(Record):
    """Mean over the runs of one (T_init, α_init)."""

    temp_init: float
    alpha_init: float
    runs: int
    auc: float
    rejection: float
    rejection_limits: int
    """How many of these are lower limits: with any, so is the mean."""


class SettingTable(Record):
    """T_init × α_init: means, null where there is no run."""

    temp_init: list[float]
    alpha_init: list[float]
    auc: list[list[float | None]]
    """A row per T_init."""
    rejection: list[list[float | None]]
    rejection_limits: list[list[int]]
    """How many runs' rejections are lower limits."""


class Correlation(Record):
    """Pearson's r of a setting with a metric."""

    setting: str
    """temp_init, alpha_init, or a further axis of the grid."""
    symbol: str
    """As texts name it; of a further axis that spans a decade or more, its logarithm."""
    metric: Metric
    r_runs: float
    """Over all runs."""
    r: float
    low: float
    high: float
    p_value: float
    """Over configurations' means (runs of one configuration are not independent), interval by Fisher's z:
    the scatter of points alone. That they share test jets is not in it."""
    points: int
    slope: Comparison
    """Metric per unit of T or α, with the test jets' part of the error: what statements rest on."""


class Importance(Record):
    """Which of two settings, as α_init and T_init, goes with larger changes of a metric over the grid."""

    metric: Metric
    one: str
    other: str
    """Their symbols."""
    difference: Comparison
    """|slope × standard deviation over the grid| of one minus that of other, slopes of one linear model."""


class Term(Record):
    """A slope of the linear model; ln T per unit of ln T, α per unit of α."""

    name: str
    slope: Estimate
    """With a pointwise interval: a description, no test."""


class LinearModel(Record):
    """Metric on ln T_init, ln T_last, α_init, α_last (centred; last: of the last epoch), further axes of
    numbers, and their products."""

    metric: Metric
    settings: list[str]
    """Those that vary; a last value only where it is not the initial one throughout."""
    terms: list[Term]
    undetermined: list[str]
    """Terms whose slope the grid can't tell, as they change together with others."""
    df: int
    r_squared: float


class VarianceShares(Record):
    """Shares of the variance between configurations, by analysis of variance with type II sums of squares."""

    metric: Metric
    shares: dict[str, float]
    noise: dict[str, float]
    """The part of each share that test jets (and seeds, where there are several) are expected to make by
    themselves."""


class PlannedContrast(Record):
    """A contrast that a reader expects, at equal other settings."""

    question: str
    """temperature, annealing, alpha, scheduling, or a further axis of numbers."""
    metric: Metric
    one: str
    other: str
    comparison: Comparison
    """one minus other."""


class Distribution(Record):
    """Of the metrics over all runs, with the error of one."""

    runs: int
    auc: MetricSummary
    rejection: MetricSummary
    auc_error: float | None
    rejection_error: float | None
    """Median standard error, from the test jets, of one run's number."""
    auc_paired_error: float | None
    rejection_paired_error: float | None
    """Median standard error of a difference of two configurations, all known sources."""
    auc_seed_std: float | None
    """Standard deviation from seed to seed of one configuration relative to the others; null where there
    are none."""
    rejection_seed_std: float | None
    auc_seed_common_std: float | None
    """Standard deviation of what a seed does to all configurations alike."""
    rejection_seed_common_std: float | None
    seed_df: int
    """Degrees of freedom of the seeds' standard deviations; 0: they are unknown (one seed, or too few runs
    that share seeds), and numbers compare trained networks."""


class TopQuartile(Record):
    """The best ⌈n/4⌉ runs by AUC, compared with all runs."""

    runs: int
    mean_temp_init: float
    mean_alpha_init: float
    all_mean_temp_init: float
    all_mean_alpha_init: float
    shares: dict[str, float]
    all_shares: dict[str, float]
    """α_init ≥ 0.7, T_init ≥ 7, each strategy, and each value of a further axis."""
