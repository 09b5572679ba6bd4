"""Figures of what a physicist asks next of a tagger: calibration, performance by pT, mass, and how students
follow the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdfast.metrics import RocCurve
from kdfast.report.figures.performance import ShownNetwork, TestSample
from kdfast.report.figures.style import (
    CONTEXT,
    HALF,
    ROLES,
    WIDE,
    Drawing,
    Figures,
    axes_grid,
    by_strategy,
    drawing,
    error_bars,
    filled,
    legend_above,
)
from kdfast.report.sampling import Floats
from kdfast.report.schema import Analysis
from kdfast.report.schema.physics import PtBin, PtRatio
from kdfast.report.schema.runs import Network

__all__ = ["physics_figures"]


# Working points of the mass figure, in percent of signal efficiency, with their lines.
_MASS_POINTS = {30: ":", 50: "-", 80: "--"}

# Widths of the bins of mass in GeV; the first that gives at most so many bins is taken.
_BIN_WIDTHS, _MOST_BINS = (5.0, 10.0, 20.0, 50.0, 100.0), 40

# Jets of either class that are drawn as points.
_MOST_POINTS = 1500


def physics_figures(analysis: Analysis, sample: TestSample | None) -> Figures:
    """Those that the study has the scores, pT and mass for."""
    shown: dict[str, Network] = {network.role: network for network in analysis.networks}
    if analysis.calibration:
        yield "calibration", partial(_calibration, analysis, shown)
    if analysis.by_pt:
        yield "by_pt", partial(_by_pt, analysis, shown)
    if sample is None:
        return
    roles = {network.style: network for network in sample.side_by_side}
    if sample.mass is not None and np.isfinite(sample.mass[sample.labels == 0]).sum() > 1:
        yield "mass", partial(_mass, sample, sample.mass, sample.side_by_side)
    if any(run.mass_divergence is not None for run in analysis.runs):
        yield "sculpting", partial(_sculpting, analysis)
    students = [roles[role] for role in ("baseline", "student") if role in roles]
    if "teacher" in roles and students:
        yield "agreement", partial(_agreement, sample, roles["teacher"], students)


def _calibration(analysis: Analysis, shown: Mapping[str, Network]) -> Drawing:
    figure, ((axes,),) = axes_grid(size=(HALF, 4.5))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
    said_of = []
    for curve in analysis.calibration:
        style = ROLES[curve.role]
        predicted, observed = ([getattr(b, name) for b in curve.bins] for name in ("predicted", "observed"))
        errors = np.abs([[b.low - b.observed for b in curve.bins], [b.high - b.observed for b in curve.bins]])
        label = shown[curve.role].label
        axes.errorbar(predicted, observed, yerr=errors, marker="o", markersize=4, label=label, **style)
        said_of.append(f"{label}: expected calibration error {curve.expected_error:.3f}, Brier score {curve.brier:.4f}")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="Predicted probability of signal", ylabel="Share of signal")
    legend_above(figure, axes)
    return drawing("calibration", figure, "; ".join(said_of))


def _by_pt(analysis: Analysis, shown: Mapping[str, Network]) -> Drawing:
    figure, axes = axes_grid(1, 3, size=(WIDE, 3.7))
    roles = list(dict.fromkeys(b.role for b in analysis.by_pt))
    edges = sorted({edge for b in analysis.by_pt for edge in (b.pt_low, b.pt_high)})

    def bars(panel: Any, bins: Sequence[PtBin | PtRatio], name: str, role: str, marker: str, **label: Any) -> None:
        """A quantity of the bins, and their widths."""
        centres = np.array([0.5 * (b.pt_low + b.pt_high) for b in bins])
        widths = np.array([0.5 * (b.pt_high - b.pt_low) for b in bins])
        options = {"color": ROLES[role]["color"], "marker": marker, "markersize": 5, "xerr": widths}
        error_bars(panel, centres, [getattr(b, name) for b in bins], **options, **label)

    said_of = []
    for role, marker in zip(roles, "osD", strict=False):
        bins = [b for b in analysis.by_pt if b.role == role]
        label = shown[role].label
        bars(axes[0, 0], bins, "auc", role, marker, label=label)
        bars(axes[0, 1], bins, "rejection", role, marker)
        aucs = [f"{b.pt_low:.0f} to {b.pt_high:.0f} GeV AUC {b.auc.value:.4f}" for b in bins]
        said_of.append(f"{label}: {', '.join(aucs)}")
    if analysis.pt_ratios:
        bars(axes[0, 2], analysis.pt_ratios, "ratio", "student", "D")
    axes[0, 2].axhline(1.0, **ROLES["baseline"])
    for panel in axes[0]:
        panel.set(xlabel=r"Jet $p_T$ [GeV]", xlim=(edges[0], edges[-1]))
    axes[0, 0].set_ylabel("AUC")
    axes[0, 1].set(yscale="log", ylabel=r"1/$ε_B$ at $ε_S$ = 50 %")
    axes[0, 2].set_ylabel(r"1/$ε_B$, student / baseline")
    legend_above(figure, axes[0, 0], 100)
    return drawing("by_pt", figure, "; ".join(said_of))


def _mass_edges(mass: Floats) -> Floats:
    """Bins of one width, a round number, over all but a hundredth of the jets; the rest is in the outer bins."""
    low, high = np.quantile(mass[np.isfinite(mass)], [0.005, 0.995])
    width = next((w for w in _BIN_WIDTHS if (high - low) / w <= _MOST_BINS), _BIN_WIDTHS[-1])
    first = width * np.floor(low / width)
    return np.asarray(first + width * np.arange(max(2.0, np.ceil((high - first) / width)) + 1.0))


def _mass(sample: TestSample, mass: Floats, networks: Sequence[ShownNetwork]) -> Drawing:
    edges = _mass_edges(mass)
    inside = np.clip(mass, edges[0], np.nextafter(edges[-1], 0.0))
    known = np.isfinite(mass)
    background = (sample.labels == 0) & known

    def shares(chosen: NDArray[np.bool_]) -> Floats:
        """Percent of the chosen jets per GeV."""
        counts, _ = np.histogram(inside[chosen], edges, weights=sample.weights[chosen])
        return np.asarray(100.0 * counts / max(counts.sum(), 1e-12) / np.diff(edges))

    everything = shares(background)
    signal = shares((sample.labels == 1) & known)
    options = {"sharex": True, "sharey": "row", "height_ratios": [3, 1.5]}
    figure, axes = axes_grid(2, len(networks), size=(WIDE, 5.0), **options)
    said_of = []
    for column, network in enumerate(networks):
        top, ratio = axes[:, column]
        top.stairs(everything, edges, color="0.55", fill=True, alpha=0.45, label="All background")
        top.stairs(signal, edges, color=ROLES["student 2"]["color"], linestyle="-.", label="Signal", linewidth=1.2)
        curve: RocCurve = sample.curves[sample.networks.index(network)]
        for point, line in _MASS_POINTS.items():
            passing = background & (network.scores >= curve.thresholds[curve.reaching(point / 100)])
            style = {"color": ROLES[network.style]["color"], "linestyle": line, "linewidth": 1.4}
            found = shares(passing)
            top.stairs(found, edges, label=f"Background at {point} %", **style)
            ratio.stairs(np.where(everything > 0.0, found / np.maximum(everything, 1e-12), np.nan), edges, **style)
            said_of.append(f"{network.label} at {point} %: {int(passing.sum()):,} background jets pass")
        ratio.axhline(1.0, color="0.6", linewidth=0.8)
        top.set_title(filled(network.label, 30), loc="left")
        ratio.set(xlabel="Jet mass [GeV]", xlim=(edges[0], edges[-1]))
    axes[0, 0].set_ylabel("Share of jets per GeV [%]")
    axes[1, 0].set_ylabel("Ratio")
    figure.align_ylabels(axes[:, 0])
    legend_above(figure, axes[0, 0], columns=3)
    return drawing("mass", figure, "; ".join(said_of))


def _sculpting(analysis: Analysis) -> Drawing:
    figure, ((axes,),) = axes_grid(size=(HALF, 4.5))
    runs = [run for run in analysis.runs if run.mass_divergence is not None and "50" in run.rejection]
    for own, label, look in by_strategy(runs):
        x = [run.rejection["50"].value for run in own]
        y = [run.mass_divergence for run in own]
        axes.plot(x, y, markersize=4, linestyle="none", label=label, alpha=0.8, **look)
    said_of = [f"{len(runs)} students"]
    networks = {network.role: network for network in analysis.networks if "50" in network.rejection}
    for m in analysis.mass_sculpting:
        if m.efficiency == 50 and m.role in networks:
            rejection = networks[m.role].rejection["50"].value
            style = {"color": ROLES[m.role]["color"], "marker": "*", "markersize": 12, "markeredgecolor": "white"}
            axes.plot(rejection, m.divergence, linestyle="none", label=m.role.capitalize(), **style)
            axes.axhline(m.expected_without, color=CONTEXT, linewidth=0.8, linestyle=(0, (1, 2)))
            where = f"{m.divergence:.3f} bits at a rejection of {rejection:.1f}"
            said_of.append(f"{networks[m.role].label}: {where}")
    axes.set(xlabel=r"1/$ε_B$ at $ε_S$ = 50 %", ylabel="Mass divergence [bits]")
    axes.set_ylim(bottom=0.0)
    legend_above(figure, axes, columns=2)
    return drawing("sculpting", figure, "; ".join(said_of))


def _rank_correlation(one: Floats, other: Floats) -> str:
    """Spearman's ρ as text; – where one of the two does not vary."""
    if len(one) < 2 or np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return "–"
    return f"{stats.spearmanr(one, other).statistic:.2f}"


def _agreement(sample: TestSample, teacher: ShownNetwork, students: Sequence[ShownNetwork]) -> Drawing:
    figure, axes = axes_grid(1, len(students), size=(WIDE, 3.9), sharey=True, sharex=True)
    rng = np.random.default_rng(0)
    said_of = []
    for panel, student in zip(axes[0], students, strict=True):
        for name, label, role in (("background", 0, "baseline"), ("signal", 1, "student")):
            jets = np.flatnonzero(sample.labels == label)
            rho = _rank_correlation(student.scores[jets], teacher.scores[jets])
            drawn = rng.permutation(jets)[:_MOST_POINTS]
            look = {"color": ROLES[role]["color"], "marker": ".", "markersize": 2.5, "alpha": 0.5}
            look |= {"linestyle": "none", "rasterized": True, "label": f"{name.capitalize()}: ρ = {rho}"}
            panel.plot(student.scores[drawn], teacher.scores[drawn], **look)
            said_of.append(f"{student.label}, {name}: Spearman's ρ {rho}")
        panel.set_title(filled(student.label, 44), loc="left")
        panel.set_xlabel("Score (logit)")
        panel.legend(loc="lower right", markerscale=4)
    axes[0, 0].set_ylabel("Teacher's score (logit)")
    return drawing("agreement", figure, "; ".join(said_of), most=_MOST_POINTS)
