"""hyperparameter_analysis.txt: what temperature and mixing weight do, in tables, correlations and models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdfast.report.findings import is_supported
from kdfast.report.layout import STRATEGY_NAMES, at_least, columns, interval, section, summary_cells, title, wrapped
from kdfast.report.schema import Analysis, Comparison, GroupTable, MetricSummary
from kdfast.report.texts.results_summary import grid, missing

__all__ = ["GROUP_HEADS", "differences", "group_rows", "hyperparameter_analysis", "sentences"]

# Of the columns of group_rows, after the label's.
GROUP_HEADS = ("runs", "AUC mean", "std", "max", "rej mean", "std", "max")


def hyperparameter_analysis(analysis: Analysis) -> str:
    parts = [title("KNOWLEDGE DISTILLATION: HYPERPARAMETER ANALYSIS")]
    if analysis.configurations:
        by = {table.setting: table for table in analysis.groups}
        parts += [
            _table(analysis, by.get("temp_init"), "BY INITIAL TEMPERATURE"),
            _table(analysis, by.get("alpha_init"), "BY INITIAL ALPHA"),
            _table(analysis, by.get("strategy"), "BY STRATEGY"),
            section("TEMPERATURE × ALPHA: MEAN AUC", [grid(analysis.grid, "auc", 4)] if analysis.grid else []),
            section(
                "TEMPERATURE × ALPHA: MEAN REJECTION", [grid(analysis.grid, "rejection", 2)] if analysis.grid else []
            ),
            section("BEST (T_init, α_init) PAIRS", _pairs(analysis)),
            section("CORRELATIONS", _correlations(analysis)),
            section("LINEAR MODEL", _models(analysis)),
            section("SHARES OF THE VARIANCE", _shares(analysis)),
            section("VARIANCES", _variances(analysis)),
            section("RANGES", _ranges(analysis)),
            section("AGREEMENT BETWEEN SEEDS", sentences(analysis, ["seeds", "top_two"])),
        ]
    parts.append(missing(analysis))
    return "\n".join(parts)


def sentences(analysis: Analysis, topics: Iterable[str]) -> list[str]:
    """The findings of some topics, as a list."""
    wanted = list(topics)
    chosen = sorted((f for f in analysis.findings if f.topic in wanted), key=lambda f: wanted.index(f.topic))
    lines = dict.fromkeys(wrapped(finding.text, "  - ") for finding in chosen)  # two wishes may choose the same
    return list(lines) or ["  The data do not allow a statement."]


def group_rows(table: GroupTable) -> list[list[str]]:
    """label, then the columns of GROUP_HEADS."""
    return [[_label(table, g.label), str(g.runs), *summary_cells(g.auc, g.rejection)] for g in table.groups]


def _label(table: GroupTable, label: str) -> str:
    return STRATEGY_NAMES[label] if table.setting == "strategy" else label


def differences(table: GroupTable) -> str:
    """The groups' differences to the one with the highest mean, at equal other settings."""

    def cell(comparison: Comparison | None, reference: str | None, label: str, digits: int) -> list[str]:
        if comparison is None:
            return ["reference" if label == reference else "can't be told", ""]
        mark = " *" if is_supported(comparison) else ""
        return [interval(comparison.difference, digits, sign=True) + mark, f"{comparison.p_holm:.2g}"]

    rows = [
        [
            _label(table, g.label),
            *cell(g.auc_difference, table.reference, g.label, 4),
            *cell(g.rejection_difference, table.reference_rejection, g.label, 2),
        ]
        for g in table.groups
    ]
    return columns(["", "AUC, to the highest mean", "p Holm", "rejection, to the highest mean", "p Holm"], rows)


def _table(analysis: Analysis, table: GroupTable | None, heading: str) -> str:
    if table is None:
        return section(heading, ["  The grid has none."])
    names = {"temp_init": "T_init", "alpha_init": "α_init", "strategy": "strategy"}
    lines = [
        columns([names[table.setting], *GROUP_HEADS], group_rows(table)),
        "",
        wrapped(
            "Differences at equal other settings (linear model with these as factors); * : seen at 5 % after Holm."
        ),
        differences(table),
        "",
        *sentences(analysis, [f"{table.setting}_auc", f"{table.setting}_rejection"]),
    ]
    return section(heading, lines)


def _pairs(analysis: Analysis) -> list[str]:
    rows = [
        [
            str(place),
            str(p.temp_init),
            str(p.alpha_init),
            str(p.runs),
            f"{p.auc:.4f}",
            at_least(p.rejection, p.rejection_limits),
        ]
        for place, p in enumerate(analysis.pairs[:10], start=1)
    ]
    return [columns(["#", "T_init", "α_init", "runs", "mean AUC", "mean rejection"], rows)]


def _correlations(analysis: Analysis) -> list[str]:
    symbols = {"temp_init": "T_init", "alpha_init": "α_init"}
    rows = [
        [
            f"{symbols[c.setting]} with {'AUC' if c.metric == 'auc' else 'rejection'}",
            f"{c.r_runs:+.3f}",
            f"{c.r:+.3f}",
            f"[{c.low:+.3f}, {c.high:+.3f}]",
            interval(c.slope, 5 if c.metric == "auc" else 3, sign=True),
            f"{c.slope_p_value:.2g}",
            f"{c.slope_p_holm:.2g}",
        ]
        for c in analysis.correlations
    ]
    if not rows:
        return ["  None: T and α, or the results, do not vary enough."]
    return [
        columns(
            ["Pearson's r", "runs", "configs", "95 % interval", "slope ± error [95 % interval]", "p", "p Holm"], rows
        ),
        wrapped(
            "runs, configs: over all runs, over the configurations' means (with an interval from the scatter of points "
            "alone). slope, per unit of T or α, and its p have the shared test jets' part of the error too; sentences "
            "go by it after Holm's correction over these slopes."
        ),
        "",
        *sentences(analysis, ["correlation_auc", "correlation_rejection", "importance"]),
    ]


def _models(analysis: Analysis) -> Iterator[str]:
    for model in analysis.models:
        digits = 4 if model.metric == "auc" else 2
        yield f"  {'AUC' if model.metric == 'auc' else 'Rejection at 50 %'} (R² = {model.r_squared:.3f}, {model.df} df)"
        rows = [
            [t.name, interval(t.slope, digits + 1, sign=True), f"{t.p_value:.2g}", f"{t.p_holm:.2g}"]
            for t in model.terms
        ]
        yield columns(["slope of", "± error [95 % interval]", "p", "p Holm"], rows)
        yield ""
    yield from sentences(analysis, ["model_auc", "model_rejection"])
    yield wrapped(
        "T_last, α_last: values of the last epoch, the initial ones where constant. Settings are centred: a "
        "slope holds at "
        "the mean of the others. Errors have the test jets' part and the scatter of configurations about the model."
    )


def _shares(analysis: Analysis) -> Iterator[str]:
    for shares in analysis.variance_shares:
        rows = [[name, f"{100 * value:.1f} %"] for name, value in shares.shares.items()]
        rows.append(["expected of noise alone", f"{100 * shares.expected_noise:.1f} %"])
        yield columns(["AUC" if shares.metric == "auc" else "rejection at 50 %", "share"], rows)
        yield ""
    yield from sentences(analysis, ["shares_auc", "shares_rejection"])
    yield wrapped(
        "Analysis of variance (type II) of the configurations' means; T_final and α_final with 'constant' as a "
        "level. The "
        "rest holds noise and higher interactions. In a grid that is not fully crossed the shares need not add "
        "up to 100 %."
    )


def _variances(analysis: Analysis) -> Iterator[str]:
    d = analysis.distribution
    if d is None:
        return

    def cell(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = [
        ["standard deviation over runs", cell(d.auc.std, 4), cell(d.rejection.std, 2)],
        ["variance over runs", cell(d.auc.variance, 6), cell(d.rejection.variance, 3)],
        ["standard error of one run, test jets (median)", cell(d.auc_error, 4), cell(d.rejection_error, 2)],
        [
            "standard error of a difference, paired (median)",
            cell(d.auc_paired_error, 4),
            cell(d.rejection_paired_error, 2),
        ],
        ["std from seed to seed, beyond the test jets", cell(d.auc_seed_std, 4), cell(d.rejection_seed_std, 2)],
        ["std of what a seed does to all alike", cell(d.auc_seed_common_std, 4), cell(d.rejection_seed_common_std, 2)],
    ]
    yield columns(["", "AUC", "rejection"], rows)
    if d.seed_df == 0:
        yield wrapped("One seed, or too few runs that share seeds: the variance between seeds is not known.")
    elif 0.0 in (d.auc_seed_std, d.rejection_seed_std):
        yield wrapped("0: the scatter between seeds is not larger than the test jets make it by themselves.")


def _ranges(analysis: Analysis) -> Iterator[str]:
    d = analysis.distribution
    if d is None:
        return

    def span(summary: MetricSummary, digits: int) -> list[str]:
        low = at_least(summary.min, summary.limits == d.runs, digits)
        return [low, *(at_least(value, summary.limits, digits) for value in (summary.max, summary.max - summary.min))]

    yield columns(["", "min", "max", "range"], [["AUC", *span(d.auc, 4)], ["rejection at 50 %", *span(d.rejection, 2)]])
