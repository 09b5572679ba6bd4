"""The study, its runs and configurations, and the networks that a report shows."""

from __future__ import annotations

from typing import Any, Literal

from kdfast.report.schema.values import Comparison, Estimate, Record, Role

__all__ = ["Configuration", "Jets", "Latency", "Network", "Run", "Setting", "Study"]


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

    @property
    def beats_baseline(self) -> bool:
        """Whether AUC or rejection is significantly higher than the baseline's, and neither lower."""
        compared = (self.auc_vs_baseline, self.rejection_vs_baseline)
        gains = [c.difference.value for c in compared if c is not None and c.supported]
        return bool(gains) and all(gain > 0 for gain in gains)


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
