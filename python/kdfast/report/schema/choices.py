"""Which configurations are chosen, and how far that can be believed."""

from __future__ import annotations

from typing import Literal

from kdfast.report.schema.runs import Configuration
from kdfast.report.schema.values import Comparison, Estimate, Metric, Record

__all__ = [
    "Convergence",
    "Expected",
    "Light",
    "Race",
    "RankAgreement",
    "Refinement",
    "TopTwo",
    "Verdict",
    "VerdictRow",
    "Winner",
]


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
    tolerance; of a race for the Pareto front, to join it."""
    front: list[str] = []
    """Of a race for the Pareto front: the configurations on it, by their expected AUC and rejection."""
    outlook: list[Expected]
    """The highest expected score first."""


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
