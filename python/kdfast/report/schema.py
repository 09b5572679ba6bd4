"""The report as one object: what `report.json` holds, and all that the texts, tables and figures read.

Metrics are those of the test jets unless the name says validation. Intervals are at 95 %. A quantity that
is not available is null, and `missing` says why. Rejections are 1/ε_B; keys "30", "50", "80" are signal
efficiencies in percent. `python -m kdfast.report.schema` prints the JSON schema.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "FORMAT",
    "SIGNIFICANT",
    "Analysis",
    "Calibration",
    "CalibrationBin",
    "Claim",
    "Comparison",
    "Configuration",
    "Correlation",
    "Distribution",
    "Estimate",
    "Expected",
    "Finding",
    "Group",
    "GroupTable",
    "Importance",
    "Jets",
    "Latency",
    "LinearModel",
    "MassSculpting",
    "MetricSummary",
    "Missing",
    "Network",
    "Pair",
    "PtBin",
    "PtDifference",
    "PtRatio",
    "Race",
    "RankAgreement",
    "Run",
    "SettingTable",
    "Study",
    "Term",
    "TopQuartile",
    "TopTwo",
    "VarianceShares",
    "Winner",
]

# Level of the tests, after correction for their number.
SIGNIFICANT = 0.05

# Version of report.json. A field that is added keeps it; one that changes its meaning or goes away raises it.
FORMAT = 2

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


class Jets(Record):
    """Numbers of jets of a split; effective: (Σw)²/Σw²."""

    signal: int
    background: int
    effective_signal: float
    effective_background: float
    weighted: bool


class Study(Record):
    """What was run, and what of it is there."""

    name: str
    """Name of the study's folder."""
    seeds: list[int]
    seeds_given: bool = True
    """False for imported results whose files do not say: then `seeds` is a placeholder."""
    configurations: int
    """Different ones with at least one run that is done."""
    counts: dict[str, int]
    """Students by status: done, diverged, unusable, damaged, missing."""
    test: Jets | None
    validation: Jets | None
    scored: bool = False
    """Whether all networks have scores on the test jets, from which errors and tests come."""
    selected_on: Literal["validation", "test"]
    """Where best runs are chosen by AUC; "test" only where a study has no validation AUC."""
    settings: dict[str, Any]
    """study.toml."""
    provenance: dict[str, Any]
    """provenance.json: versions, instruction set, fingerprint of the data."""
    kdfast: str
    """The version that made the report."""


class Missing(Record):
    """An analysis, or a run, that is not in the report, and why."""

    what: str
    reason: str


class Setting(Record):
    run_name: str
    strategy: str
    """baseline (T, α constant), tempanneal, alphasched, combined."""
    temp_init: float
    temp_final: float | None
    """Null: constant."""
    alpha_init: float
    alpha_final: float | None
    settings: dict[str, float | int | str] = {}
    """Further settings that it has of its own: those of its recipe, and model."""


class Run(Setting):
    """One trained student."""

    seed: int
    status: str
    """done, diverged, or unusable (scores that are not finite)."""
    message: str = ""
    auc: Estimate | None = None
    rejection: dict[str, Estimate] = {}
    survivors: dict[str, int] = {}
    """Background jets that pass, by signal efficiency."""
    combined: float | None = None
    """Mean of AUC and rejection at 50 %, each scaled to 0…1 over the study's runs; limits count as the
    largest."""
    rank: int | None = None
    """By AUC among runs, 1 is the highest."""
    auc_validation: float | None = None
    rejection_validation: float | None = None
    """At 50 %."""
    auc_gain: float | None = None
    """AUC minus that of the baseline of the same seed and further settings."""
    rejection_gain: float | None = None
    """Rejection at 50 % over the baseline's of the same seed, minus 1."""
    mass_divergence: float | None = None
    """Jensen–Shannon divergence (bits) between the masses of the background that passes at 50 % signal efficiency and
    of all background, as observed."""
    best_epoch: int | None = None
    """Counted from 0."""
    epochs: int | None = None
    seconds: float | None = None
    """Of the training."""
    seconds_to_best: float | None = None
    """Share (best_epoch + 1)/epochs of the training's time."""
    curves: dict[str, list[float | None]] = {}
    """A value per epoch, by name; null where it was not finite."""


class Configuration(Setting):
    """One configuration: the mean of its runs (least-squares mean where configurations have different
    seeds)."""

    runs: int
    auc: Estimate
    rejection: Estimate
    """At 50 %."""
    auc_std: float | None
    rejection_std: float | None
    """Standard deviation over its seeds, n − 1."""
    combined: float
    """Of the means, scaled over the configurations; lower limits of the rejection count as the largest."""
    rank_auc: int
    rank_rejection: int
    """Lower limits share the first place."""
    rank_combined: int
    auc_validation: float | None
    rejection_validation: float | None
    rejection_validation_limit: bool = False
    """Whether that is a lower limit."""
    combined_validation: float | None
    auc_vs_baseline: Comparison | None = None
    rejection_vs_baseline: Comparison | None = None
    in_best_set_auc: bool | None = None
    """In the 95 % confidence set of the best by AUC: no other configuration beats it."""
    in_best_set_rejection: bool | None = None
    pareto: bool
    """No other configuration has both a higher AUC and a higher rejection."""
    gap_recovered_auc: Estimate | None = None
    """(student − baseline)/(teacher − baseline), Fieller's interval."""
    gap_recovered_rejection: Estimate | None = None


class Latency(Record):
    """What a network costs next to its AUC: time of one jet on one thread by onnxruntime."""

    role: Role
    run_name: str
    parameters: int
    flops: float | None
    """Of the matrix products, for a jet of the mean number of constituents."""
    constituents: float
    """Mean of the jets that were timed."""
    p50_us: float
    p99_us: float
    """Median and 99th percentile of the calls, in µs."""
    auc: Estimate
    pareto: bool
    """No other of these networks is as fast and tags better, or is faster and tags as well."""


class Expected(Record):
    """A candidate of a race."""

    run_name: str
    score: float | None
    """On the validation jets, mean over the seeds; null: it was not trained, or did not finish."""
    expected: float
    error: float
    """Expected score and its standard error, without the noise of a single network."""


class Race(Record):
    """How the race of a grid ended, or where it is."""

    metric: Literal["auc", "bkg_rej_50"]
    """What scores are of; of bkg_rej_50 they are logarithms."""
    trained: int
    candidates: int
    leader: str
    """The candidate with the highest expected score of those that finished."""
    tolerance: float
    expected_better: float
    """How many of the candidates that were not trained are expected to be better than the leader by more than the
    tolerance."""
    outlook: list[Expected]
    """The highest expected score first."""


class Network(Record):
    """A network that the physics tables show."""

    role: Role
    label: str
    run_name: str
    seed: int
    auc: Estimate | None
    rejection: dict[str, Estimate]
    survivors: dict[str, int]
    auc_validation: float | None


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
    """Metric on ln T_init, ln T_last, α_init, α_last (centred; last: of the last epoch), further axes of numbers, and
    their products."""

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


class Winner(Record):
    """The configuration for one goal, chosen on validation."""

    goal: Literal["auc", "rejection", "combined", "constant", "consistent"]
    configuration: str
    selected_on: Literal["validation", "test"]
    """The jets on which it was chosen; "test" where runs have no validation numbers for this goal."""
    value_validation: float | None
    """Of the quantity that the choice looked at."""
    highest_on_test: str
    """The configuration that is best by the same quantity on the test jets."""
    excess_on_test: float | None = None
    """By how much the best of equal configurations, chosen on the test jets, exceeds its true value on
    average."""
    excess_chosen: float | None = None
    """The same for a choice on validation and a number from test: what the seeds' luck adds."""
    best_set_size: int | None = None
    """Size of the confidence set of the best (auc, rejection)."""
    auc_vs_best: Comparison | None = None
    rejection_vs_best: Comparison | None = None
    """Minus those of the configuration for the goal `auc`; null for that one itself."""


class TopTwo(Record):
    """What it would take to separate the two configurations of the highest metric."""

    metric: Metric
    first: str
    second: str
    difference: Comparison
    seeds_needed: int | None
    """With the test jets at hand, for 80 % power at 5 %; null: no number is enough, or it is undetermined."""
    jets_needed: int | None
    """With the seeds at hand; likewise."""


class RankAgreement(Record):
    """Spearman's ρ of the configurations' order by AUC under two seeds, averaged over all pairs of seeds."""

    seeds: int
    rho: float
    expected: float
    """Mean of equal configurations: the test jets that all seeds share favour the same ones."""
    p_value: float
    """Share of simulated studies of equal configurations with a ρ at least as large."""
    p_adjusted: float
    configurations: int


class PlannedContrast(Record):
    """A contrast that a reader expects, at equal other settings."""

    question: str
    """temperature, annealing, alpha, scheduling, or a further axis of numbers."""
    metric: Metric
    one: str
    other: str
    comparison: Comparison
    """one minus other."""


class Convergence(Record):
    """Whether the students had stopped to improve when their training ended."""

    runs: int
    late: int
    """Runs whose best epoch is among the last tenth of the epochs that they could have had."""
    stopped: int
    """Runs that patience ended early."""
    slope: Estimate | None
    """Change of the validation AUC per epoch over the last quarter of the epochs, mean over runs."""
    groups: dict[str, tuple[int, int]]
    """By strategy: late runs, and runs."""


class Refinement(Record):
    """Configurations that lead, with seeds that did not choose them."""

    seeds: list[int]
    configurations: list[Configuration]
    """Sorted by AUC, the highest first."""
    mean_vs_baseline: dict[Metric, Comparison]
    winners: list[Winner]


class Light(Record):
    """One of the three things that decide how far a study can be believed."""

    about: Literal["seeds", "test jets", "convergence"]
    state: Literal["good", "fair", "poor", "unknown"]
    text: str
    advice: str


class VerdictRow(Record):
    label: str
    comparison: Comparison


class Verdict(Record):
    """The first screen of a report."""

    text: str
    rows: list[VerdictRow]
    """Mean of the sweep, the chosen configuration and the best constant one, each minus the baseline (AUC)."""
    lights: list[Light]


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


class Analysis(Record):
    """All of a report."""

    format: int = FORMAT
    study: Study
    missing: list[Missing] = []
    networks: list[Network] = []
    runs: list[Run] = []
    configurations: list[Configuration] = []
    """Sorted by AUC, the highest first."""
    mean_vs_baseline: dict[Metric, Comparison] = {}
    """Mean of all configurations minus the baseline."""
    distribution: Distribution | None = None
    groups: list[GroupTable] = []
    grid: SettingTable | None = None
    pairs: list[Pair] = []
    """Sorted by AUC, the highest first."""
    correlations: list[Correlation] = []
    importance: list[Importance] = []
    models: list[LinearModel] = []
    variance_shares: list[VarianceShares] = []
    top_quartile: TopQuartile | None = None
    strategies: dict[str, int] = {}
    """Runs by strategy."""
    latencies: list[Latency] = []
    """The fastest first; empty where `kdfast latency` has measured none."""
    winners: list[Winner] = []
    top_two: list[TopTwo] = []
    rank_agreement: RankAgreement | None = None
    planned: list[PlannedContrast] = []
    convergence: Convergence | None = None
    refinement: Refinement | None = None
    race: Race | None = None
    """Null where the whole grid was to be trained, and while too few have finished."""
    verdict: Verdict | None = None
    by_pt: list[PtBin] = []
    pt_differences: list[PtDifference] = []
    pt_ratios: list[PtRatio] = []
    mass_sculpting: list[MassSculpting] = []
    calibration: list[Calibration] = []
    findings: list[Finding] = []


if __name__ == "__main__":
    import json

    print(json.dumps(Analysis.model_json_schema(), indent=1, ensure_ascii=False))
