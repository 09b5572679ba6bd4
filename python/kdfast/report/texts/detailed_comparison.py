"""detailed_comparison.txt: strategies and ranges head to head, the ranking, and a configuration for each wish."""

from __future__ import annotations

from collections.abc import Iterator

from kdfast.report.layout import (
    ADJUSTED_MEANS,
    STRATEGY_NAMES,
    WISHES,
    columns,
    interval,
    means_are_adjusted,
    section,
    title,
    with_error,
    wrapped,
)
from kdfast.report.schema import Analysis, Comparison, GroupTable
from kdfast.report.texts.hyperparameter_analysis import GROUP_HEADS, differences, group_rows, sentences
from kdfast.report.texts.results_summary import missing

__all__ = ["detailed_comparison"]

_TOP = 30


def detailed_comparison(analysis: Analysis) -> str:
    parts = [title("KNOWLEDGE DISTILLATION: DETAILED COMPARISON")]
    if analysis.configurations:
        by = {table.setting: table for table in analysis.groups}
        parts += [
            section("STRATEGIES HEAD TO HEAD", _groups(analysis, by.get("strategy"), "strategy")),
            section("BY ANNEALING RANGE (BEST TO WORST BY MEAN AUC)", _groups(analysis, by.get("temp_range"), "T")),
            section("BY ALPHA RANGE (BEST TO WORST BY MEAN AUC)", _groups(analysis, by.get("alpha_range"), "α")),
            section("IMPROVEMENT OVER CONSTANT T AND α", _over_constant(by.get("strategy"))),
            section("IMPROVEMENT OVER THE BASELINE WITHOUT A TEACHER", sentences(analysis, ["improvement", "gap"])),
            section(f"TOP {min(_TOP, len(analysis.configurations))} BY AUC ON THE TEST JETS", _ranking(analysis)),
            section("CONSISTENCY", _consistency(analysis, by.get("strategy"))),
            section("DECISION MATRIX", _decisions(analysis)),
            section("BY JET pT", _by_pt(analysis)),
            section("MASS OF THE BACKGROUND THAT PASSES", _mass(analysis)),
            section("CALIBRATION OF THE SCORES", _calibration(analysis)),
        ]
    parts.append(missing(analysis))
    return "\n".join(parts)


def _groups(analysis: Analysis, table: GroupTable | None, head: str) -> Iterator[str]:
    if table is None:
        yield "  The grid has none."
        return
    yield columns([head, *GROUP_HEADS], group_rows(table))
    if len(table.groups) > 1:
        yield ""
        yield wrapped("Differences at equal other settings; *: seen at 5 % after Holm.")
        yield differences(table)
        yield ""
        yield from sentences(analysis, [f"{table.setting}_auc", f"{table.setting}_rejection"])


def _over_constant(table: GroupTable | None) -> list[str]:
    if table is None or all(g.auc_over_constant is None for g in table.groups):
        return ["  No run has constant T and α."]
    rows = [
        [
            STRATEGY_NAMES[g.label],
            f"{g.auc_over_constant:+.4f}",
            "-" if (r := g.rejection_over_constant) is None else f"{r:+.2f}",
        ]
        for g in table.groups
        if g.label != "baseline"
    ]
    if not rows:
        return ["  No run has a schedule."]
    return [
        columns(["mean minus that of constant T and α", "AUC", "rejection"], rows),
        wrapped(
            "Raw means: strategies differ in their shares of T and α. At equal settings: see the strategies above."
        ),
    ]


def _ranking(analysis: Analysis) -> Iterator[str]:
    def against(comparison: Comparison | None, digits: int) -> str:
        return "-" if comparison is None else f"{comparison.difference.value:+.{digits}f}"

    rows = [
        [
            str(row.rank_auc),
            row.run_name,
            with_error(row.auc, 4),
            "-" if row.auc_std is None else f"{row.auc_std:.4f}",
            against(row.auc_vs_baseline, 4),
            with_error(row.rejection, 2),
            "yes" if row.beside_best_auc else "-" if row.beside_best_auc is None else "no",
        ]
        for row in analysis.configurations[:_TOP]
    ]
    heads = ["rank", "configuration", "AUC", "std", "gain", "rejection at 50 %", "beside best"]
    yield columns(heads, rows, left=(1,))
    yield wrapped(
        "std: over the seeds. gain: AUC minus the baseline's. beside best: no other configuration beats it (95 % "
        "confidence "
        "set of the best). A rank is an order of estimates; neighbours are rarely different."
    )
    if means_are_adjusted(analysis):
        yield wrapped(ADJUSTED_MEANS)
    yield from sentences(analysis, ["best_auc", "best_rejection", "top_two", "pareto"])


def _consistency(analysis: Analysis, table: GroupTable | None) -> Iterator[str]:
    if table is None:
        return
    ordered = sorted(table.groups, key=lambda g: -(g.consistency or 0.0))
    rows = [
        [
            STRATEGY_NAMES[g.label],
            "-" if g.auc.std is None else f"{g.auc.std:.4f}",
            "-" if g.consistency is None else f"{g.consistency:.2f}",
        ]
        for g in ordered
    ]
    yield columns(["strategy", "std of AUC", "consistency"], rows)
    yield wrapped("consistency = 1/(std of AUC over the runs + 0.001).")
    yield from sentences(analysis, ["consistency"])


def _decisions(analysis: Analysis) -> Iterator[str]:
    by_name = {row.run_name: row for row in analysis.configurations}
    rows = []
    for winner in analysis.winners:
        row = by_name[winner.configuration]
        rows.append([WISHES[winner.wish], row.run_name, with_error(row.auc, 4), with_error(row.rejection, 2)])
    yield columns(["wish", "configuration", "AUC", "rejection at 50 %"], rows, left=(0, 1))
    yield wrapped(f"Chosen on the {analysis.study.selected_on} jets; numbers from the test jets.")
    if means_are_adjusted(analysis):
        yield wrapped("Least-squares means over all seeds, as in the ranking above.")
    topics = [f"choice_{wish}" for wish in WISHES]
    if any(finding.topic in topics for finding in analysis.findings):
        yield from sentences(analysis, topics)


def _networks(analysis: Analysis) -> Iterator[str]:
    """Which networks the tables of single ones show."""
    shown = [
        f"{n.role}: " + ("" if n.role == "baseline" else f"{n.run_name}, ") + f"seed {n.seed}"
        for n in analysis.networks
        if n.role != "teacher"
    ]
    if shown:
        yield wrapped("; ".join(shown) + ".")


def _by_pt(analysis: Analysis) -> list[str]:
    rows = [
        [
            b.role,
            f"{b.pt_low:.0f} – {b.pt_high:.0f}",
            f"{b.signal} + {b.background}",
            interval(b.auc, 4),
            interval(b.rejection, 2),
            f"{100 * b.signal_efficiency.value:.1f} %",
            f"{100 * b.background_efficiency.value:.2f} %",
        ]
        for b in analysis.by_pt
    ]
    if not rows:
        return ["  Not available (the reason stands below)."]
    heads = ["network", "pT (GeV)", "S + B jets", "AUC", "rejection at 50 % in the bin", "ε_S", "ε_B"]
    return [
        columns(heads, rows, left=(0, 1)),
        *_networks(analysis),
        wrapped("ε_S, ε_B: efficiencies in the bin at the threshold that gives 50 % signal over all test jets."),
        *sentences(analysis, ["pt"]),
    ]


def _mass(analysis: Analysis) -> list[str]:
    rows = [
        [
            m.role,
            f"{m.efficiency} %",
            str(m.survivors),
            f"{m.divergence:.3f}",
            f"{m.corrected:.3f} [{m.low:.3f}, {m.high:.3f}]",
            f"{m.expected_without:.3f}",
            f"{m.p_value:.2g}",
        ]
        for m in analysis.mass_sculpting
    ]
    if not rows:
        return ["  Not available (the reason stands below)."]
    heads = ["network", "ε_S", "B jets", "JSD (bits)", "corrected [95 %]", "random picks", "p"]
    return [
        columns(heads, rows),
        *_networks(analysis),
        wrapped(
            "JSD: Jensen–Shannon divergence between the masses of the background that passes and of all "
            "background, 0 for no "
            "sculpting, 1 for no overlap; corrected for the bias of few jets. random picks: mean for as many "
            "jets picked at "
            "random; p: share of such picks at least as far off."
        ),
        *sentences(analysis, ["mass"]),
    ]


def _calibration(analysis: Analysis) -> list[str]:
    rows = [
        [
            c.role,
            f"{100 * c.expected_error:.1f} %",
            f"{c.brier:.4f}",
            f"{c.log_loss:.4f}",
            "-" if c.slope is None else interval(c.slope, 2),
            "-" if c.intercept is None else interval(c.intercept, 2, sign=True),
        ]
        for c in analysis.calibration
    ]
    if not rows:
        return ["  Not available (the reason stands below)."]
    return [
        columns(["network", "ECE", "Brier", "log loss", "slope", "intercept"], rows),
        *_networks(analysis),
        wrapped(
            "ECE: mean |observed − predicted| share of signal over ten bins. Slope, intercept: logistic "
            "regression of the "
            "label on the score; 1 and 0 for calibrated scores, a slope below 1 is overconfidence. All at the "
            "test jets' "
            "share of signal."
        ),
        *sentences(analysis, ["calibration"]),
    ]
