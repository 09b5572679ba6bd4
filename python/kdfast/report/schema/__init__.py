"""The report as one object: what `report.json` holds, and all that the texts, tables and figures read.

Metrics are those of the test jets unless the name says validation. Intervals are at 95 %. A quantity that
is not available is null, and `missing` says why. Rejections are 1/ε_B; keys "30", "50", "80" are signal
efficiencies in percent. `python -m kdfast.report.schema` prints the JSON schema.
"""

from __future__ import annotations

from kdfast.report.schema import settings
from kdfast.report.schema.choices import Convergence, Race, RankAgreement, Refinement, TopTwo, Verdict, Winner
from kdfast.report.schema.physics import Calibration, MassSculpting, PtBin, PtDifference, PtRatio
from kdfast.report.schema.runs import Configuration, Latency, Network, Run, Study
from kdfast.report.schema.values import Comparison, Finding, Metric, Record

__all__ = ["FORMAT", "Analysis", "Missing"]

# Version of report.json. A field that is added keeps it; one that changes its meaning or goes away raises it.
FORMAT = 2


class Missing(Record):
    """An analysis, or a run, that is not in the report, and why."""

    what: str
    reason: str


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
    distribution: settings.Distribution | None = None
    groups: list[settings.GroupTable] = []
    grid: settings.SettingTable | None = None
    pairs: list[settings.Pair] = []
    """Sorted by AUC, the highest first."""
    correlations: list[settings.Correlation] = []
    importance: list[settings.Importance] = []
    models: list[settings.LinearModel] = []
    variance_shares: list[settings.VarianceShares] = []
    top_quartile: settings.TopQuartile | None = None
    strategies: dict[str, int] = {}
    """Runs by strategy."""
    latencies: list[Latency] = []
    """The fastest first; empty where `kdfast latency` has measured none."""
    winners: list[Winner] = []
    top_two: list[TopTwo] = []
    rank_agreement: RankAgreement | None = None
    planned: list[settings.PlannedContrast] = []
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

    @property
    def judged(self) -> Analysis | Refinement:
        """What choices are made among: the leaders where further seeds judge them, or all configurations."""
        return self if self.refinement is None else self.refinement
