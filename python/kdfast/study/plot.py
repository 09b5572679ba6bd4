"""`study.plot`: the report's figures one by one, on axes of the user's or on new ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kdfast.errors import ConfigError, StudyError
from kdfast.report.analysis import analyse
from kdfast.report.figures import drawn_on, experiment_label, figure_style, figures
from kdfast.report.schema import Analysis
from kdfast.store.store import StoredResult, StudyStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["StudyPlots"]

Style: TypeAlias = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None
AnyAxes: TypeAlias = "Axes | Sequence[Axes] | np.ndarray[Any, Any]"

_PARAMETERS = """
        label : str, optional
            Line above the first axes, e.g. "ATLAS Simulation Preliminary": its first word is bold.
        ax : Axes or sequence of Axes, optional
            Where to draw, one for each panel. By default on axes of a new figure of pyplot's.
        style : optional
            What `matplotlib.style.use` takes, e.g. ``mplhep.style.CMS``; {} for your own settings. By default the
            report's style, which is ATLAS' with its own sizes.

        Returns
        -------
        Axes or ndarray of Axes
            What was drawn on.

        Raises
        ------
        ConfigError
            For an unknown run or another number of axes than the figure has panels.
        StudyError
            If the study does not have the numbers for the figure."""

_RUNS = """
        runs : sequence of str, optional
            Names of the runs to show, "teacher" and "baseline" among them. By default teacher, baseline and the best
            students.
        seed : int, optional
            Of these runs. By default that of the best student."""


def _figure(name: str, about: str, choice: str = "") -> Callable[..., Any]:
    """A method that draws a figure of the whole study, or of chosen networks. choice: the documentation of these."""

    def of_runs(
        self: StudyPlots,
        runs: Sequence[str] | None = None,
        *,
        seed: int | None = None,
        label: str | None = None,
        ax: AnyAxes | None = None,
        style: Style = None,
    ) -> Any:
        return self._draw(name, label, ax, style, self._choose(runs, seed))

    def of_study(self: StudyPlots, *, label: str | None = None, ax: AnyAxes | None = None, style: Style = None) -> Any:
        return self._draw(name, label, ax, style)

    method: Callable[..., Any] = of_runs if choice else of_study
    method.__doc__ = f"{about}\n\n        Parameters\n        ----------{choice}{_PARAMETERS}\n        "
    method.__name__ = name
    method.__qualname__ = f"StudyPlots.{name}"
    return method


class StudyPlots:
    """The figures of a study's report, one by one, drawn by matplotlib; `StudyResults.plot` gives it.

    The first figure takes some seconds, as the report's analysis is made for it.

    Examples
    --------
    >>> ax = study.plot.roc(["teacher", "baseline"], label="ATLAS Simulation")
    >>> ax.get_xlabel()
    'Background efficiency $ε_B$'
    >>> from matplotlib import pyplot
    >>> figure, ax = pyplot.subplots(1, 2)
    >>> panels = study.plot.strategies(ax=ax, style={})
    >>> pyplot.close("all")
    """

    def __init__(self, store: StudyStore, find: Callable[[str, int | None], StoredResult]) -> None:
        """find: a run's result by name and seed."""
        self._store = store
        self._find = find

    roc = _figure("roc", "Draw the signal efficiency against the background efficiency.", _RUNS)
    rejection = _figure(
        "rejection", "Draw the rejection against the signal efficiency; on two axes also its ratio.", _RUNS
    )
    scores = _figure("scores", "Draw the distributions of the scores by class, a panel for each run.", _RUNS)
    mass = _figure("mass", "Draw the mass of the background that passes, two panels for each run.", _RUNS)
    training = _figure("training", "Draw losses and validation AUC by epoch.", _RUNS)
    schedules = _figure("schedules", "Draw the schedules of T and α.", _RUNS)
    configurations = _figure("configurations", "Draw AUC and rejection of every configuration in order.")
    leaders = _figure("leaders", "Draw the best configurations relative to the baseline.")
    race = _figure("race", "Draw the expected score of every configuration of a race.")
    heat_maps = _figure("heat_maps", "Draw mean AUC and rejection by initial T and α.")
    strategies = _figure("strategies", "Draw AUC and rejection by strategy.")
    pareto = _figure("pareto", "Draw the rejection of every configuration against its AUC.")
    latency = _figure("latency", "Draw the AUC against the time of one jet, as `kdfast latency` stored it.")
    calibration = _figure("calibration", "Draw the share of signal against the predicted probability.")
    sculpting = _figure("sculpting", "Draw the mass divergence of every student against its rejection.")
    by_pt = _figure("by_pt", "Draw AUC and rejection by jet pT.")
    agreement = _figure("agreement", "Draw the teacher's scores against those of baseline and best student.")

    @cached_property
    def _analysis(self) -> Analysis:
        return analyse(self._store)

    def _choose(self, runs: Sequence[str] | None, seed: int | None) -> list[StoredResult]:
        """The results of these runs; none where the figure's usual ones are to be shown."""
        if isinstance(runs, str):
            raise ConfigError("must be a list of names", where="runs", hint=f"runs=[{runs!r}]")
        if runs is None and seed is not None:
            raise ConfigError("needs runs", where="seed", hint='e.g. runs=["teacher", "baseline"]')
        best = next((network.seed for network in self._analysis.networks if network.role == "student"), None)
        found = []
        for name in runs or ():
            try:
                found.append(self._find(name, None if name == "teacher" else seed))
            except ConfigError:
                if seed is not None or best is None:
                    raise
                found.append(self._find(name, best))
        return found

    def _draw(
        self, name: str, label: str | None, ax: AnyAxes | None, style: Style, runs: Sequence[StoredResult] = ()
    ) -> Any:
        drawings = figures(self._analysis, self._store, runs)
        if name not in drawings:
            hint = "ANALYSIS_SUMMARY.txt of its report says what is missing"
            raise StudyError(f"does not have the numbers for the figure {name}", where=str(self._store.path), hint=hint)
        from matplotlib import style as styles

        given = () if ax is None else tuple(np.array(ax, object).ravel())
        context: Any = styles.context
        with figure_style() if style is None else context(style), drawn_on(given) as drawn:
            drawings[name]()
            (axes,) = drawn
            if label is not None:
                experiment_label(axes.flat[0], label)
        return axes.item() if axes.size == 1 else axes.squeeze()
