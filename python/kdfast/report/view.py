"""What texts and page ask of an analysis: its parts by name, and what is derived from several of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kdfast.distill.recipe import AXES
from kdfast.report.layout import counted
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import Winner
from kdfast.report.schema.runs import Configuration, Network, Run
from kdfast.report.schema.settings import Correlation, Group, GroupTable
from kdfast.report.schema.values import Comparison, Finding

__all__ = ["ADJUSTED_MEANS", "ReportView"]

# Said with numbers of configurations, where they are not the plain means of their runs.
ADJUSTED_MEANS = (
    "Configurations have different seeds: a configuration's number is what its mean over all seeds would be if a seed "
    "moved all alike (least-squares mean), so that lucky seeds favour none. Tables by setting, and the CSV file, are "
    "over all runs as they are."
)


@dataclass(frozen=True)
class ReportView:
    """An analysis as its texts and its page show it."""

    analysis: Analysis

    @cached_property
    def tables(self) -> dict[str, GroupTable]:
        """Tables of groups by setting."""
        return {table.setting: table for table in self.analysis.groups}

    @property
    def axes(self) -> dict[str, str]:
        """Labels of the further axes that configurations have."""
        names = {name for row in self.analysis.configurations for name in row.settings}
        return {name: axis.label for name, axis in AXES.items() if name in names}

    @property
    def further(self) -> list[GroupTable]:
        """The tables of further axes."""
        return [table for table in self.analysis.groups if table.setting in AXES]

    @cached_property
    def rows(self) -> dict[str, Configuration]:
        """The configurations among which winners are chosen, by name: the leaders, or all."""
        return {row.run_name: row for row in self.analysis.judged.configurations}

    @cached_property
    def winners(self) -> dict[str, Winner]:
        """By goal."""
        return {winner.goal: winner for winner in self.analysis.judged.winners}

    @cached_property
    def networks(self) -> dict[str, Network]:
        """The networks shown, by role."""
        return {network.role: network for network in self.analysis.networks}

    @cached_property
    def missing(self) -> dict[str, list[str]]:
        """What is missing, by reason."""
        found: dict[str, list[str]] = {}
        for item in self.analysis.missing:
            found.setdefault(item.reason, []).append(item.what)
        return found

    @property
    def asked(self) -> int:
        """Number of students that were asked for."""
        return sum(self.analysis.study.counts.values())

    @property
    def done(self) -> int:
        return self.analysis.study.counts.get("done", 0)

    @cached_property
    def further_seeds(self) -> list[int]:
        """Those that judge the leaders, and did not choose them."""
        refinement = self.analysis.refinement
        return [] if refinement is None else refinement.seeds

    @property
    def extent(self) -> str:
        """ "132 configurations × 3 seeds", or how many seeds each has."""
        text = counted(self.analysis.study.configurations, "configuration")
        seeds = sorted({row.runs for row in self.analysis.configurations})
        if not seeds:
            return text
        if not self.analysis.study.seeds_given:
            return f"{text}, seeds not given"
        text += f" × {counted(seeds[0], 'seed')}" if len(seeds) == 1 else f", with {seeds[0]} to {seeds[-1]} seeds each"
        refinement = self.analysis.refinement
        if refinement is None:
            return text
        further = counted(len(refinement.seeds), "further seed")
        return f"{text}; {further} for {counted(len(refinement.configurations), 'leader')}"

    @cached_property
    def adjusted(self) -> str:
        """ADJUSTED_MEANS where a configuration's number is another than its runs' mean; else empty."""
        values: dict[str, list[float]] = {}
        for run in self.analysis.runs:
            if run.auc is not None and run.seed not in self.further_seeds:
                values.setdefault(run.run_name, []).append(run.auc.value)
        for row in self.analysis.configurations:
            own = values[row.run_name]
            if abs(sum(own) / len(own) - row.auc.value) > 1e-9:
                return ADJUSTED_MEANS
        return ""

    @property
    def student_on(self) -> str:
        """The jets on which the best student was chosen: "validation", or "test" where a run has no
        validation AUC."""
        done = (run for run in self.analysis.runs if run.status == "done")
        return "validation" if all(run.auc_validation is not None for run in done) else "test"

    def runs_of(self, row: Configuration) -> list[Run]:
        """The runs that a configuration's numbers are means of."""
        own = [run for run in self.analysis.runs if run.run_name == row.run_name and run.auc is not None]
        judged_apart = self.analysis.refinement is not None
        return [run for run in own if (run.seed in self.further_seeds) == judged_apart]

    def limited_runs(self, point: str) -> int:
        """Number of runs in which no background survives at a signal efficiency in percent."""
        return sum(run.survivors.get(point) == 0 for run in self.analysis.runs)

    def said(self, *topics: str) -> list[Finding]:
        """The findings of some topics, in the order of these."""
        chosen = [finding for finding in self.analysis.findings if finding.topic in topics]
        return sorted(chosen, key=lambda finding: topics.index(finding.topic))

    def supported(self, *topics: str) -> list[Finding]:
        """Those of them that state a direction."""
        return [finding for finding in self.said(*topics) if finding.supported]

    def insights(self) -> list[Finding]:
        """What is established besides the tables by setting; of the networks shown, for the best student."""
        found = self.supported("refined", "importance", "correlation_auc", "best_auc", "seeds", "gap")
        return found + [f for f in self.supported("pt", "mass") if "the best student" in f.text.lower()]

    def questions(self) -> list[tuple[str, Comparison]]:
        """The planned comparisons of AUC."""
        rows = [] if self.analysis.verdict is None else self.analysis.verdict.rows
        found = [(f"{row.label.split(':')[0]} - baseline", row.comparison) for row in rows]
        return found + [(f"{c.one} - {c.other}", c.comparison) for c in self.analysis.planned if c.metric == "auc"]

    def trend(self, setting: str) -> Correlation | None:
        """The correlation of AUC with a setting."""
        found = (c for c in self.analysis.correlations if c.setting == setting and c.metric == "auc")
        return next(found, None)

    # ---- configurations

    def ranked(self, quantity: str, most: int) -> list[Configuration]:
        """The best configurations by auc, rejection or combined: by validation where there is one."""
        ordered = sorted(self.analysis.configurations, key=lambda row: getattr(row, f"rank_{quantity}"))
        chosen = [winner for winner in self.analysis.winners if winner.goal == quantity]
        if chosen and chosen[0].selected_on == "validation":

            def chosen_by(row: Configuration) -> tuple[bool, float]:
                limit = quantity == "rejection" and row.rejection_validation_limit
                return limit, getattr(row, f"{quantity}_validation") or 0.0

            ordered.sort(key=chosen_by, reverse=True)
        return ordered[:most]

    def indistinguishable(self, winner: Winner) -> bool:
        """Whether the chosen configuration is in the confidence set of the best on the test jets. One that
        is chosen on validation may be beaten there."""
        row = self.rows[winner.configuration]
        return bool(row.in_best_set_auc if winner.goal == "auc" else row.in_best_set_rejection)

    def first_goal(self, name: str) -> str:
        """The first goal for which a configuration is chosen."""
        return next(winner.goal for winner in self.winners.values() if winner.configuration == name)

    @property
    def any_beats_baseline(self) -> bool:
        return any(row.beats_baseline for row in self.rows.values())

    @property
    def networks_have_limits(self) -> bool:
        return any(e.lower_limit for network in self.analysis.networks for e in network.rejection.values())

    @property
    def compared(self) -> bool:
        """Whether configurations are compared with the baseline."""
        return any(row.auc_vs_baseline for row in self.rows.values())

    # ---- groups

    def by_consistency(self, table: GroupTable) -> list[Group]:
        return sorted(table.groups, key=lambda group: -(group.consistency or 0.0))

    def is_best(self, table: GroupTable, group: Group) -> bool:
        """Whether a group beats every other."""
        others = [other.auc_difference for other in table.groups if other.label != group.label]
        return all(c is not None and c.supported and c.difference.value < 0 for c in others)

    def edges(self) -> list[tuple[str, str, str]]:
        """Settings whose best value, with a significant effect, lies at the edge of the grid: name,
        value, and the side ("below", "above") to search."""
        found = []
        symbols = {"temp_init": "initial T", "alpha_init": "initial α"}
        symbols |= {c.question: AXES[c.question].label.lower() for c in self.analysis.planned if c.question in AXES}
        for setting, symbol in symbols.items():
            table = self.tables.get(setting)
            supported = any(finding.supported for finding in self.said(f"{setting}_auc"))
            if table is None or table.reference is None or len(table.groups) < 2 or not supported:
                continue
            if table.reference == table.groups[0].label:
                found.append((symbol, table.reference, "below"))
            elif table.reference == table.groups[-1].label:
                found.append((symbol, table.reference, "above"))
        return found
