"""results_summary.txt: what was run, what its numbers can carry, the top configurations, and grids of T × α."""

from __future__ import annotations

from collections.abc import Iterator

from kdfast.report.layout import (
    ADJUSTED_MEANS,
    at_least,
    columns,
    counted,
    interval,
    means_are_adjusted,
    section,
    title,
    with_error,
    wrapped,
)
from kdfast.report.schema import Analysis, Configuration, Metric, SettingTable

__all__ = ["MISSING", "configurations_and_seeds", "grid", "missing", "results_summary"]

# Heading of the part that each text ends with.
MISSING = "WHAT IS MISSING, AND WHY"
_TOP = 10


def results_summary(analysis: Analysis) -> str:
    parts = [title("KNOWLEDGE DISTILLATION: SUMMARY OF RESULTS"), section("WHAT WAS RUN", _overview(analysis))]
    if analysis.configurations:
        carried = [f for f in analysis.findings if f.topic in ("precision", "seeds", "improvement", "best_auc")]
        parts += [
            section("WHAT THESE NUMBERS CAN CARRY", [wrapped(f.text, "  - ") for f in carried]),
            _top(analysis, "AUC", "auc"),
            _top(analysis, "BACKGROUND REJECTION AT 50 %", "rejection"),
            _top(analysis, "COMBINED SCORE", "combined"),
        ]
    if analysis.grid is not None:
        parts += [
            section("GRID T_init × α_init: MEAN AUC", [grid(analysis.grid, "auc", 4)]),
            section("GRID T_init × α_init: MEAN REJECTION AT 50 %", [grid(analysis.grid, "rejection", 2)]),
        ]
    parts.append(missing(analysis))
    return "\n".join(parts)


def _overview(analysis: Analysis) -> Iterator[str]:
    study = analysis.study
    runs = sum(study.counts.values())
    counts = ", ".join(f"{number} {status}" for status, number in study.counts.items())
    yield f"  Study:           {study.name}"
    yield f"  Students:        {runs}" + (f" ({counts})" if counts else "")
    yield f"  With a result:   {configurations_and_seeds(analysis)}"
    yield f"  Seeds:           {', '.join(map(str, study.seeds)) or 'none'}"
    if study.test is not None:
        weighted = (
            f"; weighted, they count as {study.test.effective_signal:,.0f} and {study.test.effective_background:,.0f}"
            if study.test.weighted
            else ""
        )
        yield f"  Test jets:       {study.test.signal:,} signal, {study.test.background:,} background{weighted}"
    for network in analysis.networks:
        number = "-" if network.auc is None else interval(network.auc, 4)
        at_50 = network.rejection.get("50")
        yield f"  {network.role.capitalize() + ':':<17}AUC {number}"
        yield " " * 19 + f"rejection at 50 % {'-' if at_50 is None else interval(at_50, 2)}"
        yield " " * 19 + f"({network.run_name}, seed {network.seed})"
    yield ""
    yield wrapped(
        f"Best runs are chosen on the {study.selected_on} jets; the numbers are from the test jets unless marked. "
        "Rejection is 1/ε_B at the given signal efficiency. value ± standard error [95 % interval]. Standard "
        "deviations "
        "are with n − 1."
    )
    if len(study.seeds) > 1:
        yield wrapped(
            "Student above: the one network of highest validation AUC, kept as models/best_student. A configuration's "
            "number is its mean over seeds."
        )
    if means_are_adjusted(analysis):
        yield wrapped(ADJUSTED_MEANS)
    limits = {p: sum(run.survivors.get(p) == 0 for run in analysis.runs) for p in ("30", "50", "80")}
    if any(limits.values()):
        where = ", ".join(f"{counted(count, 'run')} at {p} %" for p, count in limits.items() if count)
        yield wrapped(
            f"No background jet survives for {where}: there the rejection is a 68 % lower limit (n_B/1.14), marked "
            "'>', and so are means that hold one."
        )


def configurations_and_seeds(analysis: Analysis) -> str:
    """ "132 configurations × 3 seeds", or how many seeds each has."""
    number = analysis.study.configurations
    text = counted(number, "configuration")
    seeds = sorted({row.runs for row in analysis.configurations})
    if not seeds:
        return text
    if len(seeds) == 1:
        return f"{text} × {counted(seeds[0], 'seed')}"
    return f"{text}, with {seeds[0]} to {seeds[-1]} seeds each"


def _top(analysis: Analysis, name: str, quantity: str) -> str:
    """The best configurations by one quantity, by validation where there is one."""
    on_validation = analysis.study.selected_on == "validation"

    def rank(row: Configuration) -> int:
        return int(getattr(row, f"rank_{quantity}"))

    def chosen_by(row: Configuration) -> tuple[bool, float | None]:
        """Whether it is a lower limit, and the number."""
        return quantity == "rejection" and row.rejection_validation_limit, getattr(row, f"{quantity}_validation")

    ordered = sorted(analysis.configurations, key=rank)
    if on_validation:
        ordered.sort(key=lambda row: (chosen_by(row)[0], chosen_by(row)[1] or 0.0), reverse=True)
    rows = [
        [
            str(place),
            row.run_name,
            str(row.runs),
            "-" if value is None else at_least(value, limit, 4),
            str(rank(row)),
            with_error(row.auc, 4),
            with_error(row.rejection, 2),
            f"{row.combined:.3f}",
        ]
        for place, row in enumerate(ordered[:_TOP], start=1)
        for limit, value in [chosen_by(row)]
    ]
    heads = ["#", "configuration", "seeds", "val", "rank test", "AUC", "rejection at 50 %", "combined"]
    lines = [columns(heads, rows, left=(1,))]
    if on_validation:
        lines.append(wrapped("Ordered by validation (val); rank test: place by the same quantity on the test jets."))
    return section(f"TOP {counted(len(rows), 'configuration').upper()} BY {name}", lines)


def grid(table: SettingTable, metric: Metric, digits: int) -> str:
    """A row per T_init, a column per α_init."""
    heads = ["T_init \\ α_init", *map(str, table.alpha_init)]
    means = table.auc if metric == "auc" else table.rejection
    none = [[0] * len(table.alpha_init)] * len(table.temp_init)
    limits = none if metric == "auc" else table.rejection_limits
    rows = [
        [str(temp), *("-" if v is None else at_least(v, n, digits) for v, n in zip(values, numbers, strict=True))]
        for temp, values, numbers in zip(table.temp_init, means, limits, strict=True)
    ]
    return columns(heads, rows)


def missing(analysis: Analysis) -> str:
    """What the report lacks, and why; runs without a result."""
    by_reason: dict[str, list[str]] = {}
    for lack in analysis.missing:
        by_reason.setdefault(lack.reason, []).append(lack.what)
    lines = [wrapped(f"{'; '.join(what)}: {reason}", "  - ") for reason, what in by_reason.items()]
    lines += [
        wrapped(f"{run.run_name}, seed {run.seed}: {run.status}" + (f" ({run.message})" if run.message else ""), "  - ")
        for run in analysis.runs
        if run.status == "diverged"
    ]
    return section(MISSING, lines or ["  Nothing: every run that the settings ask for is there."])
