"""The figures of a report, drawn from its analysis; those of single networks also from their scores."""

from __future__ import annotations

import numpy as np

from kdfast.report.figures.configurations import configuration_figures, draw_differences
from kdfast.report.figures.performance import ShownNetwork, TestSample, performance_figures
from kdfast.report.figures.physics import physics_figures
from kdfast.report.figures.style import Drawing, exports, figure_style
from kdfast.report.figures.training import Curves, training_figures
from kdfast.report.records import planned_settings
from kdfast.report.schema import Analysis, Estimate
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore

__all__ = ["ORDER", "Drawing", "draw", "draw_differences", "exports", "figure_style"]

# The figures in the order of a report; on its page two that are not wide share a row.
ORDER = (
    "roc",
    "rejection",
    "configurations",
    "leaders",
    "heat_maps",
    "strategies",
    "pareto",
    "calibration",
    "sculpting",
    "by_pt",
    "scores",
    "agreement",
    "mass",
    "schedules",
    "training",
)


def draw(analysis: Analysis, store: StudyStore) -> list[Drawing]:
    """Every figure that the study has the numbers for, in the order of ORDER. To be called, and the
    drawings exported, inside `figure_style`."""
    leaders = _leaders(analysis)
    seed = next((n.seed for n in analysis.networks if n.role == "student"), None)
    networks = _networks(analysis, store, leaders, seed)
    scored = {style: (label, result) for style, (label, result) in networks.items() if result.has_scores}
    measured: dict[tuple[str, str, int], tuple[Estimate | None, Estimate | None]] = {
        ("student", run.run_name, run.seed): (run.auc, run.rejection.get("50")) for run in analysis.runs
    }
    measured |= {(n.role, n.run_name, n.seed): (n.auc, n.rejection.get("50")) for n in analysis.networks}

    sample = None
    if scored:
        jets = store.shared("test")
        sample = TestSample(
            np.asarray(jets["labels"], np.int64),
            np.asarray(jets["weights"], np.float64),
            [
                ShownNetwork(
                    style,
                    label,
                    np.asarray(result.arrays["scores_test"], np.float64),
                    *measured[result.kind, result.name, result.seed],
                )
                for style, (label, result) in scored.items()
            ],
            np.asarray(store.shared("test_kinematics")["mass"], np.float64)
            if store.has_shared("test_kinematics")
            else None,
        )
    curves: dict[str, Curves] = {role: networks[role][1].curves for role in ("teacher", "baseline") if role in networks}
    planned = planned_settings(store.settings, store.provenance)
    drawings = {
        drawing.name: drawing
        for drawing in (
            *performance_figures(analysis, sample),
            *physics_figures(analysis, sample),
            *configuration_figures(analysis),
            *training_figures(analysis, leaders, seed, curves, None if planned is None else planned.recipe.epochs),
        )
    }
    return [drawings[name] for name in ORDER if name in drawings]


def _leaders(analysis: Analysis) -> list[str]:
    """The best configurations by AUC, rejection and combined score, each once; first that of the student
    shown."""
    student = [network.run_name for network in analysis.networks if network.role == "student"]
    goals = [w.configuration for w in analysis.winners if w.goal in ("auc", "rejection", "combined")]
    return list(dict.fromkeys([*student, *goals]))[:3]


def _networks(
    analysis: Analysis, store: StudyStore, leaders: list[str], seed: int | None
) -> dict[str, tuple[str, StoredResult]]:
    """Label and stored result of the networks shown, by style: the analysis' own, and the other leaders
    with the same seed as its best student (equal initial weights and batches)."""
    found: dict[str, tuple[str, StoredResult]] = {
        n.role: (n.label, store.get(RunKey(n.role, n.run_name, n.seed))) for n in analysis.networks
    }
    for number, name in enumerate(leaders[1:], 2):
        if any(run.run_name == name and run.seed == seed and run.status == "done" for run in analysis.runs):
            assert seed is not None
            found[f"student {number}"] = f"{name}, seed {seed}", store.get(RunKey("student", name, seed))
    return found
