"""The ROC figure: background rejection against signal efficiency, as the field draws it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdfast._files import write_content
from kdfast.metrics import evaluate, roc_curve

__all__ = ["RocLine", "save_roc_figure"]

# Okabe and Ito's colours, which colour-blind readers tell apart; the line styles tell them apart in grey too.
_STYLES = {
    "teacher": {"color": "black", "linestyle": "-"},
    "student": {"color": "#0072B2", "linestyle": "-"},
    "baseline": {"color": "#D55E00", "linestyle": "--"},
}
_EFFICIENCIES = np.linspace(0.01, 1.0, 397)


@dataclass(frozen=True)
class RocLine:
    """One network's line. kind: "teacher", "baseline" or "student"; label: in the legend; scores [B] of the jets."""

    kind: str
    label: str
    scores: NDArray[Any]


def save_roc_figure(
    lines: Sequence[RocLine], labels: NDArray[Any], weights: NDArray[Any], folder: Path
) -> dict[str, Path]:
    """Writes roc.pdf and roc.png into folder: the networks' rejections, and below them the student's
    over the baseline's.

    A line begins where the first background jet survives.
    """
    import mplhep
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves = {line.kind: _rejections(labels, line.scores, weights) for line in lines}
    # a style of its own, inside a context: the user's settings stay as they are
    with style.context([mplhep.style.ATLAS, {"figure.constrained_layout.use": True, "legend.fontsize": 13}]):
        figure = Figure(figsize=(8, 8))
        FigureCanvasAgg(figure)
        with_ratio = "baseline" in curves and "student" in curves
        top, *below = figure.subplots(
            2 if with_ratio else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 1] if with_ratio else [1]
        )[:, 0]
        for line in lines:
            numbers = evaluate(labels, line.scores, weights)
            limit = ">" if numbers["n_bkg_50"] == 0 else ""
            text = f"{line.label}\nAUC {numbers['auc']:.4f}, $1/ε_B$(50 %) = {limit}{numbers['bkg_rej_50']:.1f}"
            top.plot(_EFFICIENCIES, curves[line.kind], label=text, **_STYLES[line.kind])
        top.set_yscale("log")
        top.set_xlim(0.0, 1.0)
        top.set_ylim(1.0, 3.0 * np.nanmax([10.0, *np.concatenate(list(curves.values()))]))
        top.set_ylabel(r"Background rejection $1/ε_B$")
        signal = int((labels == 1).sum())
        top.legend(title=f"{signal:,} signal, {len(labels) - signal:,} background test jets", alignment="left")
        for axes in below:
            ratio = curves["student"] / curves["baseline"]
            axes.axhline(1.0, **_STYLES["baseline"])
            axes.plot(_EFFICIENCIES, ratio, **_STYLES["student"])
            usual = ratio[(_EFFICIENCIES > 0.2) & np.isfinite(ratio)]  # below, a handful of jets decides
            spread = 1.3 * max(float(np.max(np.abs(usual - 1.0), initial=0.0)), 0.05)
            axes.set_ylim(1.0 - spread, 1.0 + spread)
            axes.yaxis.set_major_locator(MaxNLocator(4, prune="both"))  # no number meets those of the other axes
            axes.set_ylabel("Student /\nbaseline")
        (below[-1] if below else top).set_xlabel(r"Signal efficiency $ε_S$")
        paths = {"roc_pdf": folder / "roc.pdf", "roc_png": folder / "roc.png"}
        for path in paths.values():
            kind, buffer = path.suffix[1:], io.BytesIO()
            # no date: the same results give the same file
            figure.savefig(buffer, format=kind, dpi=150, metadata={"CreationDate": None} if kind == "pdf" else {})
            write_content(path, buffer.getvalue())
    return paths


def _rejections(labels: NDArray[Any], scores: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    """1/ε_B at _EFFICIENCIES, each at the first threshold that reaches it; NaN where no background survives."""
    curve = roc_curve(labels, scores, weights)
    reached = np.minimum(np.searchsorted(curve.signal_efficiency, _EFFICIENCIES), len(curve.thresholds) - 1)
    passing = curve.background_efficiency[reached]
    return np.divide(1.0, passing, out=np.full_like(passing, np.nan), where=passing > 0)
