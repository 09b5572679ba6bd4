"""Figures of single networks on the test jets: ROC curves, rejection, scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast.metrics import RocCurve, roc_curve
from kdfast.report.figures.style import (
    HALF,
    ROLES,
    WIDE,
    Drawing,
    Figures,
    axes_grid,
    drawing,
    filled,
    fits,
    legend_above,
    said,
)
from kdfast.report.layout import with_error
from kdfast.report.sampling import Estimates, Floats, quantile, rejection_estimates
from kdfast.report.schema import Analysis
from kdfast.report.schema.values import Estimate

__all__ = ["ShownNetwork", "TestSample", "performance_figures"]


# Signal efficiencies, in percent, where bands are computed.
_POINTS = (*range(1, 10), *range(10, 96, 5), 98, 99)
_CLASSES = (("signal", 1, "-"), ("background", 0, "--"))


@dataclass(frozen=True)
class ShownNetwork:
    """A network, its logits on the test jets [B], and its numbers with their errors. style: a key of
    ROLES."""

    style: str
    label: str
    scores: Floats
    auc: Estimate | None
    rejection: Estimate | None


@dataclass(frozen=True)
class TestSample:
    """The test jets, labels and weights [B], and the networks that are drawn on them. mass [B]: of the jets
    (GeV), None where it is not stored. chosen: whether a user has chosen the networks."""

    __test__ = False  # not a test class of pytest's

    labels: NDArray[np.int64]
    weights: Floats
    networks: Sequence[ShownNetwork]
    mass: Floats | None = None
    chosen: bool = False

    @property
    def side_by_side(self) -> Sequence[ShownNetwork]:
        """Those that have a panel each: all, or teacher, baseline and best student."""
        return [n for n in self.networks if self.chosen or n.style in ("teacher", "baseline", "student")]

    @cached_property
    def curves(self) -> list[RocCurve]:
        return [roc_curve(self.labels, network.scores, self.weights) for network in self.networks]

    @cached_property
    def log_rejections(self) -> Mapping[int, Estimates]:
        """ln(1/ε_B) at _POINTS, with the covariance of the networks (bootstrap over the jets)."""
        scores = np.stack([network.scores for network in self.networks])
        return rejection_estimates(self.labels, scores, self.weights, points=_POINTS, replicates=300)

    @cached_property
    def efficiencies(self) -> Floats:
        return np.array(_POINTS) / 100

    def band(self, k: int, reference: int | None = None) -> tuple[Floats, Floats, Floats]:
        """1/ε_B at _POINTS, or its ratio to a reference on the same jets: value and ends of the 95 %
        interval.

        NaN where fewer than 5 background jets survive: there a bootstrap does not know the error."""
        values = np.empty(len(_POINTS))
        errors = np.empty(len(_POINTS))
        for i, point in enumerate(_POINTS):
            found = self.log_rejections[point]
            row = found.factor[k] - (0.0 if reference is None else found.factor[reference])
            values[i] = found.values[k] - (0.0 if reference is None else found.values[reference])
            errors[i] = np.sqrt(row @ row)
            if any(self._survivors(j, point) < 5 for j in (k, reference) if j is not None):
                values[i] = np.nan
        half = quantile() * errors
        return np.exp(values), np.exp(values - half), np.exp(values + half)

    def _survivors(self, k: int, point: int) -> int:
        return int(self.curves[k].survivors[self.curves[k].reaching(point / 100)])


def performance_figures(analysis: Analysis, sample: TestSample | None) -> Figures:
    """Those that the study has the scores for."""
    if sample is not None and sample.networks:
        yield "roc", partial(_roc, analysis, sample)
        yield "rejection", partial(_rejection, analysis, sample)
        yield "scores", partial(_scores, sample)


def _shade(network: ShownNetwork) -> dict[str, Any]:
    """The look of a network's band."""
    first = network.style in ("teacher", "baseline", "student")
    return {"color": ROLES[network.style]["color"], "alpha": 0.18 if first else 0.08, "linewidth": 0}


def _jets(analysis: Analysis) -> str:
    test = analysis.study.test
    return "" if test is None else f"{test.signal:,} signal, {test.background:,} background test jets"


def _numbers(networks: Sequence[ShownNetwork]) -> str:
    return "; ".join(f"{n.label}: AUC {said(n.auc, 4)}, rejection at 50 % {said(n.rejection, 2)}" for n in networks)


def _roc(analysis: Analysis, sample: TestSample) -> Drawing:
    figure, ((axes,),) = axes_grid(size=(HALF, 4.8))
    for k, network in enumerate(sample.networks):
        auc = network.auc
        label = network.label if auc is None else f"{network.label}: AUC {with_error(auc, 4)}"
        axes.plot(*_thinned(sample.curves[k]), label=label, **ROLES[network.style])
        _, low, high = sample.band(k)
        axes.fill_betweenx(sample.efficiencies, 1.0 / high, 1.0 / low, **_shade(network))
    grid = np.geomspace(1e-4, 1.0, 200)
    axes.plot(grid, grid, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
    background = int(((sample.labels == 0) & (sample.weights > 0)).sum())
    least = 10 ** np.floor(np.log10(3.0 / max(background, 10)))
    axes.set(xscale="log", xlim=(least, 1.0), ylim=(0.0, 1.06))
    axes.set(xlabel=r"Background efficiency $ε_B$", ylabel=r"Signal efficiency $ε_S$")
    legend_above(figure, axes)
    return drawing("roc", figure, _numbers(sample.networks), jets=_jets(analysis))


def _thinned(curve: RocCurve) -> tuple[Floats, Floats]:
    """(ε_B, ε_S) without points that no eye tells apart: evenly in ε_B's logarithm and in ε_S."""
    x = curve.background_efficiency
    y = curve.signal_efficiency
    x, y = x[x > 0], y[x > 0]
    places = np.stack([np.log(x) / max(-np.log(x[0]), 1e-9), y]) if len(x) else np.zeros((2, 0))
    steps = np.floor(places * 600).astype(np.int64)
    new = np.ones(len(x), bool)
    new[1:-1] = (steps[:, 1:-1] != steps[:, :-2]).any(axis=0)
    return x[new], y[new]


def _rejection(analysis: Analysis, sample: TestSample) -> Drawing:
    styles = [network.style for network in sample.networks]
    reference = styles.index("baseline") if "baseline" in styles else None
    with_ratio = reference is not None and len(styles) > 1 and fits(2)
    figure, axes = axes_grid(
        2 if with_ratio else 1, 1, size=(HALF, 4.8), sharex=True, height_ratios=[3, 1.3] if with_ratio else [1]
    )
    top = axes[0, 0]
    below = axes[-1, 0]
    reached = [10.0]
    for k, network in enumerate(sample.networks):
        values, low, high = sample.band(k)
        top.plot(sample.efficiencies, values, label=network.label, **ROLES[network.style])
        top.fill_between(sample.efficiencies, low, high, **_shade(network))
        reached += values[np.isfinite(values)].tolist()
        if with_ratio and k != reference and network.style != "teacher":
            ratio, low, high = sample.band(k, reference)
            below.plot(sample.efficiencies, ratio, **ROLES[network.style])
            below.fill_between(sample.efficiencies, low, high, **_shade(network))
    top.axvline(0.5, color="0.7", linewidth=0.8, linestyle=":")
    top.set(yscale="log", xlim=(0.0, 1.0), ylim=(1.0, 3.0 * max(reached)))
    top.set_ylabel(r"Background rejection 1/$ε_B$")
    legend_above(figure, top)
    if with_ratio:
        below.axhline(1.0, **ROLES["baseline"])
        below.axvline(0.5, color="0.7", linewidth=0.8, linestyle=":")
        below.set(ylim=_ratio_limits(sample, reference or 0), ylabel="Student /\nbaseline")
        figure.align_ylabels()
    below.set_xlabel(r"Signal efficiency $ε_S$")
    numbers = _numbers(sample.networks)
    return drawing("rejection", figure, numbers, jets=_jets(analysis), with_ratio=with_ratio)


def _ratio_limits(sample: TestSample, reference: int) -> tuple[float, float]:
    inside = sample.efficiencies >= 0.2  # below, a handful of jets decides
    ends = [
        np.concatenate(sample.band(k, reference))[np.tile(inside, 3)]
        for k, network in enumerate(sample.networks)
        if k != reference and network.style != "teacher"
    ]
    values = np.concatenate(ends) if ends else np.ones(1)
    spread = 1.15 * float(np.nanmax(np.abs(values - 1.0), initial=0.05))
    return max(0.0, 1.0 - spread), 1.0 + spread


def _scores(sample: TestSample) -> Drawing:
    shown = sample.side_by_side
    figure, axes = axes_grid(1, len(shown), size=(WIDE, 3.1), sharey=True)
    means = []
    for column, network in enumerate(shown):
        panel = axes[0, column]
        ends = np.quantile(network.scores, [0.001, 0.999])
        edges = np.linspace(ends[0] - 0.1, ends[1] + 0.1, 41)
        inside = np.clip(network.scores, edges[0], edges[-1])
        for name, label, line in _CLASSES:
            chosen = sample.labels == label
            weights = sample.weights[chosen] / sample.weights[chosen].sum() / np.diff(edges)[0]
            counts, _ = np.histogram(inside[chosen], edges, weights=weights)
            color = ROLES["student" if label else "baseline"]["color"]
            panel.stairs(counts, edges, color=color, linestyle=line, label=name.capitalize(), fill=False, linewidth=1.4)
            means.append(f"{network.label}, {name}: mean {np.average(network.scores[chosen]):.2f}")
        panel.set_title(filled(network.label, 30), loc="left")
        panel.set_xlabel("Score (logit)")
    low, high = axes[0, 0].get_ylim()
    axes[0, 0].set_ylim(max(low, 0.0), 1.25 * high)
    axes[0, 0].set_ylabel("Jets / unit of score (normalised)")
    axes[0, -1].legend()
    return drawing("scores", figure, "; ".join(means))
