"""Figures that compare configurations: ordered with intervals, by T and α, by strategy, AUC against
rejection."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from kdfast.distill.schedules import shown
from kdfast.report.figures.style import (
    CONTEXT,
    HALF,
    ROLES,
    STRATEGIES,
    WIDE,
    Drawing,
    Figures,
    axes_grid,
    bar_lengths,
    by_strategy,
    drawing,
    error_bars,
    legend_above,
    said,
)
from kdfast.report.layout import counted
from kdfast.report.sampling import quantile
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import Race
from kdfast.report.schema.runs import Configuration
from kdfast.report.schema.values import SIGNIFICANT, Estimate, Metric
from kdfast.report.two_studies import StudyComparison

__all__ = ["configuration_figures", "draw_differences"]

# Names that fit next to the points of one figure.
_LEADERS = 20
# Columns of a heat map whose numbers fit next to each other in half the width of a figure.
_CELLS = 5
_METRICS: tuple[tuple[Metric, str], ...] = (("auc", "AUC"), ("rejection", r"1/$ε_B$ at $ε_S$ = 50 %"))
_WORDS = {"auc": "AUC", "rejection": "rejection at 50 %"}


def configuration_figures(analysis: Analysis) -> Figures:
    """Those that the study has configurations for."""
    rows = analysis.configurations
    if not rows:
        return
    if len(rows) > 1:
        yield "configurations", partial(_ordered, analysis, rows)
        yield "leaders", partial(_leaders, analysis, rows)
        yield "pareto", partial(_pareto, analysis, rows)
    if analysis.grid is not None and len(analysis.grid.temp_init) * len(analysis.grid.alpha_init) > 1:
        yield "heat_maps", partial(_heat_maps, analysis)
    if len({row.strategy for row in rows}) > 1:
        yield "strategies", partial(_strategies, analysis, rows)
    if analysis.race is not None:
        yield "race", partial(_race, analysis.race)
    if len({each.p50_us for each in analysis.latencies}) > 1:
        yield "latency", partial(_latency, analysis)


def _estimate(row: Configuration, metric: str) -> Estimate:
    estimate: Estimate = getattr(row, metric)
    return estimate


def _in_set(row: Configuration, metric: str) -> bool:
    return bool(getattr(row, f"in_best_set_{metric}"))


def _references(axes: Any, analysis: Analysis, metric: str) -> None:
    """A line for the mean of each baseline. The teacher is left out: it is so far above that the students
    would fall together."""
    compared = [(r, c) for r in analysis.configurations if (c := getattr(r, f"{metric}_vs_baseline")) is not None]
    if compared:
        values = [_estimate(row, metric).value - c.difference.value for row, c in compared]
        different = {round(value, 9): value for value in reversed(values)}
        for number, value in enumerate(different.values()):  # one for each combination of further settings
            label = None if number else "Baseline (no teacher)"
            axes.axhline(value, label=label, linewidth=1.2, **ROLES["baseline"])


def _sizes(analysis: Analysis, metric: str) -> str:
    """How many configurations are indistinguishable from the best, in words."""
    rows = analysis.configurations
    if all(getattr(row, f"in_best_set_{metric}") is None for row in rows):
        return f"by {_WORDS[metric]} unknown"
    count = sum(_in_set(row, metric) for row in rows)
    return f"by {_WORDS[metric]} {count} of {len(rows)}"


def _best_names(rows: Sequence[Configuration]) -> str:
    parts = []
    for metric, digits in (("auc", 4), ("rejection", 2)):
        best = max(rows, key=lambda row: _estimate(row, metric).value)
        parts.append(f"highest {_WORDS[metric]}: {best.run_name}, {said(_estimate(best, metric), digits)}")
    return "; ".join(parts)


def _ordered(analysis: Analysis, rows: Sequence[Configuration]) -> Drawing:
    figure, axes = axes_grid(2, 1, size=(WIDE, 4.6))
    for panel, (metric, label) in zip(axes[:, 0], _METRICS, strict=True):
        ordered = sorted(rows, key=lambda row: -_estimate(row, metric).value)
        places = {row.run_name: place for place, row in enumerate(ordered, 1)}
        known = any(_in_set(row, metric) for row in ordered)
        for own, name, look in by_strategy(ordered):
            for inside in (True, False):
                chosen = [row for row in own if _in_set(row, metric) == inside]
                if chosen:
                    face = {} if inside or not known else {"markerfacecolor": "white"}
                    x = [places[row.run_name] for row in chosen]
                    estimates = [_estimate(row, metric) for row in chosen]
                    error_bars(panel, x, estimates, markersize=4.5, elinewidth=0.9, **look, **face)
            if metric == "auc":
                panel.plot([], [], linestyle="none", markersize=5, label=name, **look)
        _references(panel, analysis, metric)
        _paired_error(panel, analysis, metric, len(ordered))
        _places(panel, len(ordered))
        panel.set_ylabel(label)
    axes[1, 0].set_xlabel("Configurations in the order of each metric")
    axes[0, 0].legend(ncols=6, loc="upper right")
    _room_above(axes[0, 0])
    figure.align_ylabels()
    spread = analysis.distribution
    return drawing(
        "configurations",
        figure,
        _best_names(rows),
        errors=any(row.auc.error is not None for row in rows),
        sizes=[_sizes(analysis, metric) for metric, _ in _METRICS],
        paired=spread is not None and spread.auc_paired_error is not None,
    )


def _paired_error(axes: Any, analysis: Analysis, metric: str, count: int) -> None:
    """To the right of the points, the interval of a difference of two configurations."""
    error = None if analysis.distribution is None else getattr(analysis.distribution, f"{metric}_paired_error")
    axes.set_xlim(0, count * (1.06 if error else 1.0) + 1)
    if error:
        middle = np.median([_estimate(row, metric).value for row in analysis.configurations])
        axes.errorbar(count * 1.03 + 1, middle, yerr=quantile() * error, color="black", capsize=4, linewidth=2)


def _places(axes: Any, count: int) -> None:
    """Ticks at whole numbers from 1 to count, and none between them."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(nbins=9, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1).tick_values(1, count)
    axes.set_xticks([tick for tick in ticks if 1 <= tick <= count])
    axes.tick_params(axis="x", which="minor", bottom=False, top=False)


def _room_above(axes: Any, share: float = 0.2) -> None:
    """For a legend."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + share * (high - low))


def _leaders(analysis: Analysis, rows: Sequence[Configuration]) -> Drawing:
    leaders = sorted(rows, key=lambda row: row.rank_auc)[:_LEADERS]
    compared = all(row.auc_vs_baseline and row.rejection_vs_baseline for row in leaders)
    figure, axes = axes_grid(1, 2, size=(WIDE, 1.3 + 0.2 * len(leaders)), sharey=True)
    for panel, (metric, label) in zip(axes[0], _METRICS, strict=True):
        known = any(_in_set(row, metric) for row in rows)
        for i, row in enumerate(leaders):
            estimate = _estimate(row, metric)
            if compared:
                estimate = getattr(row, f"{metric}_vs_baseline").difference
            _, color, marker = STRATEGIES[row.strategy]
            face = color if _in_set(row, metric) or not known else "white"
            look = {"color": color, "marker": marker, "markersize": 6, "markerfacecolor": face}
            panel.errorbar(estimate.value, i, xerr=bar_lengths([estimate]), linestyle="none", **look)
        if compared:
            panel.axvline(0.0, linewidth=1.2, **ROLES["baseline"])
        panel.set_xlabel(f"{label}\nrelative to the baseline" if compared else label)
        panel.grid(axis="y", color="0.92")
        panel.set_axisbelow(True)
        panel.tick_params(axis="y", which="both", left=False, right=False)
    axes[0, 0].set_yticks(np.arange(len(leaders)), [shown(row.run_name) for row in leaders])
    axes[0, 0].set_ylim(len(leaders) - 0.3, -0.7)
    numbers = [(row.run_name, row.auc.value, row.rejection.value) for row in leaders[:5]]
    best = "; ".join(f"{name}: AUC {auc:.4f}, rejection {rejection:.2f}" for name, auc, rejection in numbers)
    return drawing("leaders", figure, best, number=len(leaders), compared=compared)


def _pareto(analysis: Analysis, rows: Sequence[Configuration]) -> Drawing:
    figure, ((axes,),) = axes_grid(size=(HALF, 4.5))

    def points(chosen: Sequence[Configuration]) -> list[tuple[float, float]]:
        return [(row.auc.value, row.rejection.value) for row in chosen]

    for own, name, look in by_strategy(rows):
        axes.plot(*zip(*points(own), strict=True), linestyle="none", markersize=5, label=name, **look)
    front = sorted((row for row in rows if row.pareto), key=lambda row: row.auc.value)
    _front(axes, points(front), "steps-pre")
    spread = analysis.distribution
    errors = [] if spread is None else [spread.auc_paired_error, spread.rejection_paired_error]
    known = [error for error in errors if error is not None]
    if len(known) == 2:
        _typical_error(axes, *known)
    axes.set(xlabel="AUC", ylabel=_METRICS[1][1])
    axes.legend(loc="upper left")
    best = ", ".join(row.run_name for row in front)
    return drawing("pareto", figure, f"On the Pareto front: {best}", cross=len(known) == 2)


def _front(axes: Any, points: Sequence[tuple[float, float]], steps: str) -> None:
    """A line through the best of both quantities, and circles around them."""
    x, y = zip(*points, strict=True)
    axes.plot(x, y, drawstyle=steps, color="black", linewidth=1.2, label="Pareto front")
    axes.plot(x, y, linestyle="none", marker="o", markersize=10, markerfacecolor="none", color="black")


def _race(race: Race) -> Drawing:
    figure, ((axes,),) = axes_grid(size=(WIDE, 3.4))
    places = {each.run_name: place for place, each in enumerate(race.outlook, 1)}
    trained = [each for each in race.outlook if each.score is not None]
    others = [each for each in race.outlook if each.score is None]
    color = ROLES["student"]["color"]
    for which, label, shade in ((trained, "trained", color), (others, "not trained", CONTEXT)):
        x = [places[each.run_name] for each in which]
        y = [each.expected for each in which]
        errors = [2 * each.error for each in which]
        look: dict[str, Any] = {"linestyle": "none", "marker": "_", "color": shade, "linewidth": 1}
        axes.errorbar(x, y, yerr=errors, label=f"expected, {label}", **look)
    x = [places[each.run_name] for each in trained]
    scores = [each.score for each in trained]
    axes.plot(x, scores, label="score", linestyle="none", marker="o", markersize=4, color=color)
    if race.front:
        front = [each for each in trained if each.run_name in race.front]
        x = [places[each.run_name] for each in front]
        look = {"linestyle": "none", "marker": "o", "markersize": 9, "markerfacecolor": "none", "color": "black"}
        axes.plot(x, [each.score for each in front], label="Pareto front", **look)
    else:
        best = next(each.expected for each in race.outlook if each.run_name == race.leader)
        axes.axhline(best + race.tolerance, color="black", linewidth=0.8, linestyle="--", label="leader + tolerance")
    axes.margins(0.02, 0.08)
    axes.set_xlabel("Configurations by expected score")
    axes.set_ylabel("Validation AUC" if race.metric == "auc" else "ln(validation rejection)")
    legend_above(figure, axes, columns=4)
    leads, better = f"leader {race.leader}", f"be more than {race.tolerance:.1g} better"
    if race.front:
        leads, better = f"on the front: {', '.join(race.front)}", "join it"
    state = f"{race.trained} of {race.candidates} trained; {leads}"
    return drawing("race", figure, f"{state}; {race.expected_better:.1g} of the others are expected to {better}")


def _latency(analysis: Analysis) -> Drawing:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, ((axes,),) = axes_grid(size=(HALF, 4.5))
    strategies = {row.run_name: row.strategy for row in analysis.configurations}
    for each in analysis.latencies:
        color, marker = ROLES[each.role]["color"], "s"
        if each.role == "student":
            _, color, marker = STRATEGIES[strategies[each.run_name]]
        look: dict[str, Any] = {"color": color, "marker": marker, "markersize": 5, "linewidth": 0.8}
        late = [[0.0], [max(each.p99_us - each.p50_us, 0.0)]]
        axes.errorbar(each.p50_us, each.auc.value, yerr=bar_lengths([each.auc]), xerr=late, **look)
    front = [each for each in analysis.latencies if each.pareto]
    _front(axes, [(each.p50_us, each.auc.value) for each in front], "steps-post")
    named = [each for each in analysis.latencies if each.role != "student"]
    sizes = {each.parameters: each for each in analysis.latencies}
    unnamed = sizes.keys() - {each.parameters for each in named}
    for each in (*named, *(sizes[size] for size in sorted(unnamed))):
        text = f"{each.parameters:,}" if each.role == "student" else f"{each.role}, {each.parameters:,}"
        where: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (0, 4), "textcoords": "offset points"}
        axes.annotate(text, (each.p50_us, 1.0), rotation=45, ha="left", va="bottom", **where)
    axes.set(xscale="log", xlabel="time of one jet (µs)", ylabel="AUC")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    fastest = [f"{each.run_name}: {each.p50_us:.0f} µs, AUC {said(each.auc, 4)}" for each in front]
    return drawing("latency", figure, "; ".join(fastest))


def _typical_error(axes: Any, auc: float, rejection: float) -> None:
    """A cross in the lower right corner, for which room is made."""
    (x_low, x_high) = axes.get_xlim()
    (y_low, y_high) = axes.get_ylim()
    x, y = x_high - 1.3 * auc, y_low - 1.3 * rejection
    axes.errorbar(x, y, xerr=auc, yerr=rejection, color="black", capsize=3, linewidth=1)
    axes.set_xlim(min(x_low, x - 1.3 * auc), x_high)
    axes.set_ylim(y - 1.3 * rejection, y_high)


def _heat_maps(analysis: Analysis) -> Drawing:
    grid = analysis.grid
    assert grid is not None
    temps, alphas = grid.temp_init, grid.alpha_init
    height = max(1.5 + 0.32 * len(temps), 2.6)
    stacked = len(alphas) > _CELLS
    shape, size = ((2, 1), (WIDE, 2 * height)) if stacked else ((1, 2), (WIDE, height))
    figure, axes = axes_grid(*shape, size=size)
    for panel, (metric, label), form in zip(axes.flat, _METRICS, ("{:.4f}", "{:.2f}"), strict=True):
        values = np.array(getattr(grid, metric), np.float64)  # None becomes NaN
        mesh = panel.pcolormesh(values, cmap="cividis", edgecolors="white", linewidth=1)
        middle = np.nanmean([np.nanmin(values), np.nanmax(values)])
        for i, j in np.argwhere(np.isfinite(values)) if len(alphas) <= 2.5 * _CELLS else ():
            color = "white" if values[i, j] < middle else "black"
            panel.text(j + 0.5, i + 0.5, form.format(values[i, j]), ha="center", va="center", color=color)
        panel.set_xticks(np.arange(len(alphas)) + 0.5, [f"{a:g}" for a in alphas])
        panel.set_yticks(np.arange(len(temps)) + 0.5, [f"{t:g}" for t in temps])
        panel.tick_params(which="both", length=0)
        panel.minorticks_off()
        panel.set_title(f"Mean {label}", loc="left")
        panel.set(xlabel="Initial α", ylabel="Initial T")
        figure.colorbar(mesh, ax=panel, pad=0.02)
    best = analysis.pairs[0]
    where = f"T = {best.temp_init:g}, α = {best.alpha_init:g}, over {counted(best.runs, 'run')}"
    return drawing("heat_maps", figure, f"Highest mean AUC: {best.auc:.4f} at {where}")


def _strategies(analysis: Analysis, rows: Sequence[Configuration]) -> Drawing:
    figure, axes = axes_grid(1, 2, size=(WIDE, 3.2))
    present = list(by_strategy(rows))
    rng = np.random.default_rng(0)
    said_of = []
    for panel, (metric, label) in zip(axes[0], _METRICS, strict=True):
        for i, (own, _, look) in enumerate(present):
            values = [_estimate(row, metric).value for row in own]
            places = i + rng.uniform(-0.22, 0.22, len(values))
            panel.plot(places, values, linestyle="none", markersize=4, **look)
            mean = float(np.mean(values))
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            panel.errorbar(i, mean, yerr=std, color="black", marker="_", markersize=18, capsize=4)
            spread = f"mean {_WORDS[metric]} {mean:.4g}, standard deviation {std:.2g}"
            said_of.append(f"{own[0].strategy}: {spread}")
        _references(panel, analysis, metric)
        panel.set_xticks(range(len(present)), [name for _, name, _ in present])
        panel.tick_params(axis="x", which="minor", bottom=False, top=False)
        panel.set(xlim=(-0.6, len(present) - 0.4), xlabel="Strategy", ylabel=label)
    if axes[0, 0].get_legend_handles_labels()[0]:  # a baseline
        _room_above(axes[0, 0], 0.12)
        axes[0, 0].legend(loc="upper left")
    return drawing("strategies", figure, "; ".join(said_of))


def draw_differences(comparison: StudyComparison) -> list[Drawing]:
    """The differences of two studies' shared configurations, where they have intervals."""
    rows = [row for row in comparison.rows if row.kind == "student" and row.auc.change.low is not None]
    if not rows:
        return []
    figure, axes = axes_grid(2, 1, size=(WIDE, 5.0), sharex=True)
    labels: dict[Metric, str] = {"auc": "Δ AUC", "rejection": r"Ratio of 1/$ε_B$ at 50 %"}
    for panel, (metric, label) in zip(axes[:, 0], labels.items(), strict=True):
        compared = [(i, found) for i, row in enumerate(rows, 1) if (found := getattr(row, metric)) is not None]
        for significant, color in ((True, ROLES["student"]["color"]), (False, "0.5")):
            chosen = [(i, m.change) for i, m in compared if (m.p_holm < SIGNIFICANT) == significant]
            places = [i for i, _ in chosen]
            changes = [change for _, change in chosen]
            if chosen:
                error_bars(panel, places, changes, color=color, marker="o", markersize=4, elinewidth=0.9)
        panel.axhline(0.0 if metric == "auc" else 1.0, color="black", linewidth=1)
        panel.set_xlim(0, len(rows) + 1)
        _places(panel, len(rows))
        panel.set_ylabel(label)
    axes[-1, 0].set_xlabel("Shared configurations, ordered by the difference in AUC")
    figure.align_ylabels()
    largest = f"largest difference in AUC: {rows[0].name}, {said(rows[0].auc.change, 4)}"
    return [drawing("differences", figure, largest, names=comparison.names)]
