"""The figures of a report, drawn from its analysis; those of single networks also from their scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kdfast.distill.schedules import shown
from kdfast.errors import ConfigError
from kdfast.report.figures.configurations import configuration_figures, draw_differences
from kdfast.report.figures.performance import ShownNetwork, TestSample, performance_figures
from kdfast.report.figures.physics import physics_figures
from kdfast.report.figures.style import STUDENTS, Drawing, drawn_on, experiment_label, exports, figure_style
from kdfast.report.figures.training import Curves, training_figures
from kdfast.report.records import planned_settings
from kdfast.report.schema import Analysis
from kdfast.report.schema.values import Estimate
from kdfast.store.key import RunKey
from kdfast.store.store import StoredResult, StudyStore

__all__ = [
    "ORDER",
    "Drawing",
    "draw",
    "draw_differences",
    "drawn_on",
    "experiment_label",
    "exports",
    "figure_style",
    "figures",
]

# The figures in the order of a report; on its page two that are not wide share a row.
ORDER = (
    "roc",
    "rejection",
    "configurations",
    "leaders",
    "race",
    "heat_maps",
    "strategies",
    "pareto",
    "latency",
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
    drawings = figures(analysis, store)
    return [drawings[name]() for name in ORDER if name in drawings]


def figures(
    analysis: Analysis, store: StudyStore, runs: Sequence[StoredResult] = ()
) -> dict[str, Callable[[], Drawing]]:
    """What draws each figure that the study has the numbers for, by name, inside `figure_style`.

    runs: the networks that are shown; none: teacher, baseline and the best students. Raises ConfigError for
    more students than there are styles for.
    """
    if runs:
        networks = _chosen(analysis, runs)
        leaders = [result.name for result in runs if result.kind == "student"]
        seed = next((result.seed for result in runs if result.kind == "student"), None)
    else:
        leaders = _leaders(analysis)
        seed = next((n.seed for n in analysis.networks if n.role == "student"), None)
        networks = _networks(analysis, store, leaders, seed)
    sample = _sample(analysis, store, networks, chosen=bool(runs))
    curves: dict[str, Curves] = {role: networks[role][1].curves for role in ("teacher", "baseline") if role in networks}
    planned = planned_settings(store.settings, store.provenance)
    epochs = None if planned is None else planned.recipe.epochs
    return {
        **dict(performance_figures(analysis, sample)),
        **dict(physics_figures(analysis, sample)),
        **dict(configuration_figures(analysis)),
        **dict(training_figures(analysis, leaders, seed, curves, epochs)),
    }


def _sample(
    analysis: Analysis, store: StudyStore, networks: Mapping[str, tuple[str, StoredResult]], *, chosen: bool
) -> TestSample | None:
    """The test jets and the networks, by style, that have scores; None where none has."""
    scored = {style: (label, result) for style, (label, result) in networks.items() if result.has_scores}
    if not scored:
        return None
    measured: dict[tuple[str, str, int], tuple[Estimate | None, Estimate | None]] = {
        ("student", run.run_name, run.seed): (run.auc, run.rejection.get("50")) for run in analysis.runs
    }
    measured |= {(n.role, n.run_name, n.seed): (n.auc, n.rejection.get("50")) for n in analysis.networks}
    shown = []
    for style, (label, result) in scored.items():
        scores = np.asarray(result.arrays["scores_test"], np.float64)
        shown.append(ShownNetwork(style, label, scores, *measured.get(result.key, (None, None))))
    mass = None
    if store.has_shared("test_kinematics"):
        mass = np.asarray(store.shared("test_kinematics")["mass"], np.float64)
    jets = store.shared("test")
    labels = np.asarray(jets["labels"], np.int64)
    return TestSample(labels, np.asarray(jets["weights"], np.float64), shown, mass, chosen)


def _chosen(analysis: Analysis, runs: Sequence[StoredResult]) -> dict[str, tuple[str, StoredResult]]:
    """Label and stored result of networks that a user has chosen, by style."""
    labels: dict[tuple[str, str, int], str] = {
        (n.role, n.run_name, n.seed): n.label for n in analysis.networks if n.role != "student"
    }
    names = {"teacher": "Teacher (offline view)", "baseline": "Baseline (no teacher)"}
    students = iter(STUDENTS)
    found: dict[str, tuple[str, StoredResult]] = {}
    for result in runs:
        style = next(students, None) if result.kind == "student" else result.kind
        if style is None or style in found:
            most = f"at most {len(STUDENTS)} students, one baseline and one teacher"
            raise ConfigError(f"a figure shows {most}", where="runs", hint="choose fewer")
        label = f"{shown(result.name)}, seed {result.seed}"
        if result.kind in names and result.config is None:
            label = names[result.kind]
        found[style] = labels.get(result.key, label), result
    return found


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
            found[f"student {number}"] = f"{shown(name)}, seed {seed}", store.get(RunKey("student", name, seed))
    return found
