"""Figures of how the networks were trained: schedules of T and α, loss and validation AUC by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from kdfast.distill.schedules import RunConfig, shown
from kdfast.errors import ConfigError
from kdfast.report.figures.style import (
    CONTEXT,
    ROLES,
    STUDENTS,
    WIDE,
    Drawing,
    Figures,
    axes_grid,
    drawing,
    legend_above,
)
from kdfast.report.schema import Analysis
from kdfast.report.schema.runs import Setting

__all__ = ["Curves", "training_figures"]

Curves = Mapping[str, Sequence[float | None]]


def training_figures(
    analysis: Analysis, leaders: Sequence[str], seed: int | None, others: Mapping[str, Curves], epochs: int | None
) -> Figures:
    """leaders: names of the best configurations, at most as many as STUDENTS. seed: of the best student.
    others: curves of teacher and baseline, by role. epochs: as planned; None where that is not known."""
    if leaders and any(row.temp_final is not None or row.alpha_final is not None for row in analysis.runs):
        yield "schedules", partial(_schedules, analysis, leaders, epochs)
    if any(run.curves for run in analysis.runs):
        yield "training", partial(_training, analysis, leaders, seed, others)


def _config(row: Setting) -> RunConfig:
    """With the shape that the run's name tells; linear where the name is of another kind."""
    try:
        shape = RunConfig.from_name(row.run_name).shape
    except ConfigError:
        shape = "linear"
    return RunConfig(row.temp_init, row.alpha_init, row.temp_final, row.alpha_final, shape)


def _style(number: int) -> dict[str, Any]:
    return ROLES[STUDENTS[number]]


def _schedules(analysis: Analysis, leaders: Sequence[str], epochs: int | None) -> Drawing:
    figure, axes = axes_grid(1, 2, size=(WIDE, 3.5))
    steps = epochs if epochs and epochs > 1 else 101
    x = np.arange(1, steps + 1) if epochs and epochs > 1 else np.linspace(0.0, 100.0, steps)
    configs = {row.run_name: _config(row) for row in analysis.runs}

    def values(config: RunConfig) -> np.ndarray[Any, Any]:
        return np.array([config.at(epoch, steps) for epoch in range(steps)]).T

    for column, (panel, label) in enumerate(zip(axes[0], ("Temperature T", "Mixing weight α"), strict=True)):
        for curve in {tuple(values(config)[column]) for config in configs.values()}:
            panel.plot(x, curve, color=CONTEXT, linewidth=0.6, zorder=0)
        for number, name in enumerate(leaders):
            panel.plot(x, values(configs[name])[column], label=shown(name), **_style(number))
        panel.set_xlabel("Epoch" if epochs and epochs > 1 else "Share of the training [%]")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.set_ylabel(label)
    axes[0, 1].set_ylim(0.0, 1.0)
    _, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(0.0, 1.35 * high)
    axes[0, 0].legend(loc="upper right")
    own = [configs[name] for name in leaders]
    spans = [f"T {_span(c.temp_init, c.temp_final)}, α {_span(c.alpha_init, c.alpha_final)}" for c in own]
    return drawing("schedules", figure, "; ".join(map(": ".join, zip(leaders, spans, strict=True))))


def _span(first: float, last: float | None) -> str:
    return f"{first:g}" if last is None else f"{first:g} to {last:g}"


def _training(analysis: Analysis, leaders: Sequence[str], seed: int | None, others: Mapping[str, Curves]) -> Drawing:
    from matplotlib.collections import LineCollection

    names = [("loss", "Training loss"), ("auc_val", "AUC on validation jets")]
    if any("loss_kd" in run.curves for run in analysis.runs):
        names = [("loss_label", "Loss of the labels"), ("loss_kd", "Distillation loss"), names[1]]
    figure, axes = axes_grid(1, len(names), size=(WIDE, 3.9))
    labels: dict[str, str] = {network.role: network.label for network in analysis.networks}
    with_curves = [run for run in analysis.runs if run.curves]
    of_one_seed = {run.run_name: run.curves for run in with_curves if run.seed == seed}
    for panel, (name, label) in zip(axes[0], names, strict=True):
        lines = [_points(run.curves, name) for run in with_curves]
        # hundreds of lines: as an image inside the vector figure
        panel.add_collection(LineCollection(lines, colors=CONTEXT, linewidths=0.4, rasterized=True, zorder=0))
        for number, leader in enumerate(leaders):
            if leader in of_one_seed:  # the students and the baseline of a seed compare; other seeds have other luck
                points = _points(of_one_seed[leader], name)
                panel.plot(*points.T, label=f"{shown(leader)}, seed {seed}", marker=".", **_style(number))
        for role, curves in others.items():
            # the teacher's loss is of other views, and the baseline has no distillation loss
            if name == "auc_val" or (role == "baseline" and name != "loss_kd"):
                panel.plot(*_points(curves, name).T, label=labels[role], marker=".", **ROLES[role])
        panel.autoscale_view()
        panel.set_xlabel("Epoch")
        panel.set_ylabel(label)
        panel.xaxis.get_major_locator().set_params(integer=True)
    legend_above(figure, axes[0, -1], columns=2)
    validated = [(run.auc_validation, run) for run in with_curves if run.auc_validation is not None]
    highest = "no validation AUC is stored"
    if validated:
        auc, best = max(validated, key=lambda each: each[0])
        highest = f"highest validation AUC {auc:.4f}: {best.run_name}, seed {best.seed}"
    return drawing("training", figure, highest)


def _points(curves: Curves, name: str) -> np.ndarray[Any, Any]:
    """[epochs, 2]: epoch, counted from 1, and value; NaN where it is not finite."""
    values = np.array(curves.get(name, ()), np.float64)  # None becomes NaN
    given = curves.get("epoch")
    epochs = np.arange(1, len(values) + 1) if given is None else np.array(given, np.float64)
    return np.stack([epochs[: len(values)], values], axis=1)
