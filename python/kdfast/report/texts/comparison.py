"""comparison.txt: two studies side by side."""

from __future__ import annotations

from collections.abc import Sequence

from kdfast.report.layout import at_least, columns, section, title, with_error, wrapped
from kdfast.report.schema import Jets
from kdfast.report.two_studies import Beside, PairedMetric, StudyComparison

__all__ = ["comparison_text"]

# Characters of a setting in its column.
_SETTING = 36


def comparison_text(comparison: StudyComparison) -> str:
    first, second = comparison.names
    pairs = [f"First:  {first}, {_jets(comparison.test[0])}", f"Second: {second}, {_jets(comparison.test[1])}", ""]
    if comparison.shared_test is not None:
        pairs.append(f"Differences are second minus first, jet by jet on {_jets(comparison.shared_test)} of both.")
    elif any(row.auc.comparison for row in comparison.configurations):
        pairs.append("Differences are second minus first; the studies' test jets are taken as independent.")
    else:
        pairs.append("Differences are second minus first; they have no errors.")
    pairs += comparison.reasons
    said = [wrapped(finding.text, "  - ") for finding in comparison.findings]
    if not said:
        untested = comparison.configurations or comparison.baseline or comparison.teacher
        said = [
            wrapped("Nothing is tested: without scores per jet the differences below have no errors.")
            if untested
            else "  nothing is shared"
        ]
    parts = [
        title("TWO STUDIES SIDE BY SIDE"),
        section("WHAT IS COMPARED", [wrapped(line, "") for line in pairs]),
        section("RESULT", said),
        section("THE BEST OF EACH, ON ITS OWN TEST JETS", [_best(comparison)]),
    ]
    networks = [row for row in (comparison.teacher, comparison.baseline, comparison.mean) if row is not None]
    if networks:
        parts.append(section("NETWORKS AND THE MEAN", [_differences("of both", networks)]))
    if comparison.configurations:
        lines = [_differences("configuration", comparison.configurations)]
        if any(row.auc.comparison for row in comparison.configurations):
            lines += ["", "p: of no difference, adjusted for all configurations (Holm)."]
        parts.append(section("CONFIGURATIONS OF BOTH, BY THE DIFFERENCE OF AUC", lines))
    settings = [[s.name, *(_short(value) for value in (s.first, s.second))] for s in comparison.settings]
    shown = columns(["setting", "first", "second"], settings, left=(0, 1, 2)) if settings else "  none that is stored"
    parts.append(section("SETTINGS THAT DIFFER", [shown]))
    for name, runs in zip(comparison.names, (comparison.only_first, comparison.only_second), strict=True):
        if runs:
            parts.append(section(f"ONLY IN {name} ({len(runs)} runs)", [f"  {run}" for run in runs]))
    return "\n".join(parts)


def _short(setting: str | None) -> str:
    """For a column; comparison.json has the whole."""
    if setting is None:
        return "-"
    return setting if len(setting) <= _SETTING else f"{setting[: _SETTING - 1]}…"


def _jets(jets: Jets | None) -> str:
    return "no test jets" if jets is None else f"{jets.signal:,} signal and {jets.background:,} background test jets"


def _best(comparison: StudyComparison) -> str:
    rows = [
        [
            name,
            network.label,
            "-" if network.auc is None else with_error(network.auc, 4),
            "-" if "50" not in network.rejection else with_error(network.rejection["50"], 2),
        ]
        for name, networks in zip(comparison.names, comparison.best, strict=True)
        for network in networks
    ]
    return columns(["study", "network", "AUC", "rejection at 50 %"], rows, left=(0, 1))


def _differences(head: str, rows: Sequence[Beside]) -> str:
    """A table for each metric."""
    tables = []
    for name, digits, metric in (("AUC", 4, "auc"), ("rejection at 50 %", 2, "rejection")):
        cells = [[row.label, str(row.runs), *_cells(getattr(row, metric), digits)] for row in rows]
        tables.append(columns([f"{head}: {name}", "seeds", "first", "second", "difference [95 %]", "p"], cells))
    return "\n\n".join(tables)


def _cells(paired: PairedMetric | None, digits: int) -> list[str]:
    if paired is None:
        return ["-"] * 4
    both = zip((paired.first, paired.second), paired.limits, strict=True)
    ends = [at_least(value, limit, digits) for value, limit in both]
    if any(paired.limits):
        return [*ends, "-", "-"]
    if paired.comparison is None:
        return [*ends, f"{paired.second - paired.first:+.{digits}f}", "-"]
    comparison = paired.comparison
    p = comparison.p_value if comparison.p_holm is None else comparison.p_holm
    d = comparison.difference
    ends.append(f"{d.value:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]")
    return [*ends, "<0.001" if p < 0.001 else f"{p:.3f}"]
