"""What the configurations of a search are expected to reach: those that are trained, and those that are not.

All members of a seed share initial weights, batches and dropout. So the validation score is a smooth function
of T, α and the further settings, and the configurations that are trained tell of the others: by a Gaussian
process with a Matérn kernel (ν = 5/2), one length for each setting, and noise. [Rasmussen and Williams,
Gaussian Processes for Machine Learning, MIT Press 2006; scikit-learn computes it.]
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from threadpoolctl import threadpool_limits

from kdfast.distill.schedules import RunConfig
from kdfast.report import records
from kdfast.report.networks import StudyNetworks
from kdfast.report.sampling import Floats, auc_estimates, rejection_estimates
from kdfast.report.schema.choices import Expected, Race
from kdfast.store.result import StoredResult
from kdfast.store.settings import StudySettings

__all__ = [
    "Candidates",
    "Outlook",
    "fitted",
    "front_chance",
    "joins_front",
    "on_front",
    "places",
    "race",
    "smooth_part",
    "validation_scores",
]


FEWEST = 4  # configurations that tell of others
COMPARED = 8  # trained networks that tell what the test jets resolve


@dataclass(frozen=True)
class Outlook:
    """The expected score of each candidate [N], and what it says of those that are not trained.

    Scores are of the validation jets, means over the seeds, on the metric's scale (AUC, or ln of the
    rejection). mean, error [N]: expected, without the noise of a single run. leader: the trained candidate
    with the best mean. chance [N]: that a candidate which is not tried is better than the leader by more than
    the tolerance; 0 for others. kernel: of the fit.
    """

    mean: Floats
    error: Floats
    leader: int
    tolerance: float
    chance: Floats
    kernel: Any


def places(runs: Sequence[RunConfig]) -> Floats:
    """[N, d] in [0, 1]: where candidates are in the space of the settings that differ among them.

    T by its logarithm, α, at both ends of their schedules; numbers of further settings by their logarithm if
    they span more than a factor of 4; texts by a column each. Columns that say the same count once.
    """
    columns: list[Floats] = []
    for values in (
        [math.log(run.temp_init) for run in runs],
        [math.log(run.temp_final or run.temp_init) for run in runs],
        [run.alpha_init for run in runs],
        [run.alpha_init if run.alpha_final is None else run.alpha_final for run in runs],
    ):
        columns.append(np.array(values))
    columns += _of_texts([run.shape for run in runs])
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        found = [run.settings.get(name, "") for run in runs]
        if any(isinstance(value, str) for value in found):
            columns += _of_texts([str(value) for value in found])
        else:
            numbers = np.array(found, np.float64)
            wide = numbers.min() > 0 and numbers.max() > 4 * numbers.min()
            columns.append(np.log(numbers) if wide else numbers)
    spans = [(column - column.min(), np.ptp(column)) for column in columns]
    different = {(column / span).tobytes(): column / span for column, span in spans if span > 0}
    return np.stack([*different.values()], axis=1) if different else np.zeros((len(runs), 0))


def _of_texts(values: Sequence[str]) -> list[Floats]:
    kinds = sorted(set(values))
    return [np.array([value == kind for value in values], np.float64) for kind in kinds[1:]]


def fitted(x: Floats, scores: Floats, kernel: Any = None) -> Any:
    """scikit-learn's regressor of scores [n] with mean 0 and variance 1 at places [n, d].

    kernel: of a fit before; None: its parameters are those of the greatest likelihood.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    optimizer = "fmin_l_bfgs_b" if kernel is None else None
    if kernel is None:
        smooth = ConstantKernel(1.0, (0.05, 20.0)) * Matern(np.ones(x.shape[1]), (0.1, 20.0), nu=2.5)
        kernel = smooth + WhiteKernel(0.05, (1e-4, 1.0))
    with _one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: the setting does not matter
        return GaussianProcessRegressor(kernel, optimizer=optimizer).fit(x, scores)


def smooth_part(regressor: Any, x: Floats) -> tuple[Floats, Floats]:
    """Mean and standard error [N] at places, without the noise of a single run."""
    with _one_thread():
        mean, error = regressor.predict(x, return_std=True)
    return mean, np.sqrt(np.maximum(error**2 - regressor.kernel_.k2.noise_level, 1e-12))


def _one_thread() -> threadpool_limits:
    """For matrices of a few dozen rows. On a busy machine, threads of BLAS wait minutes for each other."""
    return threadpool_limits(limits=1, user_api="blas")


@dataclass(frozen=True)
class Candidates:
    """The configurations that a search chooses from, in the grid's order, and what is known of them.

    x: [N, d] their `places`. scores: of those that finished with all seeds, by number: mean over the seeds,
    of the validation jets, on the metric's scale. tried [N]: whether it is planned or was trained,
    successfully or not. tolerance: see `Outlook`; NaN while nothing has finished. affordable: further
    trainings that the search's budget of epochs and hours has room for. seeds: trainings of a configuration.
    rejection: the same candidates by their rejection, where the race looks for the Pareto front of both.
    """

    runs: Sequence[RunConfig]
    x: Floats
    scores: Mapping[int, float]
    tried: NDArray[np.bool_]
    tolerance: float
    affordable: float = math.inf
    seeds: int = 1
    rejection: Candidates | None = None

    @classmethod
    def of(
        cls,
        settings: StudySettings,
        results: Sequence[StoredResult],
        planned: Container[str],
        test: Mapping[str, NDArray[Any]],
        metric: str = "",
    ) -> Candidates:
        """planned: names of runs in packs. test: labels and weights of the test jets. metric: if not the search's."""
        search = settings.search
        assert search is not None
        rejection = None
        if search.keep == "pareto" and not metric:
            rejection = cls.of(settings, results, planned, test, "bkg_rej_50")
        metric = metric or search.metric
        runs = settings.runs()
        scores = validation_scores(results, runs, settings.seeds, metric)
        finished = {number: float(row.mean()) for number, row in enumerate(scores) if not np.isnan(row).any()}
        students = {(result.name, result.seed): result for result in results if result.kind == "student"}
        compared = [students[runs[number].name, settings.seeds[0]] for number in list(finished)[:COMPARED]]
        tolerance = search.tolerance or _resolution(compared, test, metric)
        names = {name for name, seed in students if seed in settings.seeds}
        tried = np.array([run.name in names or run.name in planned for run in runs])
        affordable = _affordable(settings, list(students.values()))
        return cls(runs, places(runs), finished, tried, tolerance, affordable, len(settings.seeds), rejection)

    def outlooks(self) -> list[Outlook]:
        """By the metric, and by rejection where the race looks for the front of both; none where too few finished."""
        found = [each.outlook() for each in (self, self.rejection) if each is not None]
        return [outlook for outlook in found if outlook is not None]

    def outlook(self) -> Outlook | None:
        """What the finished ones say of all; None where they are too few."""
        if len(self.scores) < FEWEST:
            return None
        numbers = sorted(self.scores)
        values = np.array([self.scores[number] for number in numbers])
        spread = float(values.std()) or 1.0
        regressor = fitted(self.x[numbers], (values - values.mean()) / spread)
        mean, error = smooth_part(regressor, self.x)
        mean, error = values.mean() + spread * mean, spread * error
        leader = numbers[int(np.argmax(mean[numbers]))]
        apart = np.hypot(error, error[leader])  # their correlation is left out: it would make it smaller
        chance = stats.norm.sf((mean[leader] + self.tolerance - mean) / apart)
        chance[self.tried] = 0.0
        return Outlook(mean, error, leader, self.tolerance, chance, regressor.kernel_)


def on_front(outlooks: Sequence[Outlook], finished: Iterable[int]) -> list[int]:
    """Those of the finished candidates that are on the Pareto front of what is expected of them by several
    metrics, the best by the first metric first."""
    numbers = sorted(finished, key=lambda number: -outlooks[0].mean[number])
    means = np.array([[outlook.mean[number] for outlook in outlooks] for number in numbers])
    return [number for number, best in zip(numbers, records.on_front(means), strict=True) if best]


def joins_front(outlooks: Sequence[Outlook], reached: Sequence[int]) -> Floats:
    """[N]: probability that a candidate is better than each of those reached by more than the tolerance, in
    one metric or another.

    That of the one that is hardest to beat, with independent errors of the metrics. Both make it too large
    rather than too small, as the errors of the metrics rise and fall together.
    """
    below = np.ones((len(outlooks[0].mean), len(reached)))
    for outlook in outlooks:
        apart = np.hypot(outlook.error[:, None], outlook.error[reached])
        below *= stats.norm.cdf((outlook.mean[reached] + outlook.tolerance - outlook.mean[:, None]) / apart)
    return 1.0 - below.max(axis=1)


def front_chance(found: Candidates, outlooks: Sequence[Outlook]) -> Floats:
    """[N]: that a candidate which is not tried joins the Pareto front of the finished ones; 0 for others."""
    return np.where(found.tried, 0.0, joins_front(outlooks, on_front(outlooks, found.scores)))


def validation_scores(
    results: Iterable[StoredResult], runs: Sequence[RunConfig], seeds: Sequence[int], metric: str
) -> Floats:
    """[N, seeds] scores on the validation jets, on the metric's scale (see `Outlook`); NaN of what has not finished."""
    rows = {run.name: number for number, run in enumerate(runs)}
    scores = np.full((len(rows), len(seeds)), np.nan)
    for result in results:
        if result.kind == "student" and result.status == "done" and result.name in rows and result.seed in seeds:
            value = float(result.metrics[f"{metric}_val"])
            scores[rows[result.name], seeds.index(result.seed)] = value if metric == "auc" else math.log(value)
    return scores


def _affordable(settings: StudySettings, students: Sequence[StoredResult]) -> float:
    """How many trainings the budget has room for after these. One takes as many epochs as any may, and the
    hours that these took on average."""
    search = settings.search
    assert search is not None
    left = math.inf
    if search.max_epochs is not None:
        each = max(settings.recipe.student(run.settings).epochs for run in settings.runs())
        left = (search.max_epochs - sum(result.metrics["epochs"] for result in students)) // each
    seconds = [result.metrics["seconds"] for result in students if result.status == "done"]
    if search.max_hours is not None and seconds:
        left = min(left, (3600 * search.max_hours - sum(seconds)) // np.mean(seconds))
    return max(0.0, left)


def _resolution(results: Sequence[StoredResult], test: Mapping[str, NDArray[Any]], metric: str) -> float:
    """The standard error of the difference of two networks that the test jets allow: the median over pairs."""
    if len(results) < 2:
        return math.nan
    scores = np.stack([np.asarray(result.arrays["scores_test"], np.float64) for result in results])
    weights = np.asarray(test["weights"], np.float64)
    if metric == "auc":
        factor = auc_estimates(test["labels"], scores, weights).factor
    else:
        factor = rejection_estimates(test["labels"], scores, weights, points=[50])[50].factor
    pairs = itertools.combinations(range(len(factor)), 2)
    return float(np.median([np.linalg.norm(factor[i] - factor[j]) for i, j in pairs]))


def race(study: StudyNetworks) -> Race | None:
    """How the study's race ended, or where it is; None where there is none, or too few configurations have finished."""
    settings = study.planned
    if settings is None or settings.search is None or study.done.empty:
        return None
    found = Candidates.of(settings, study.results, (), study.store.shared("test"))
    outlooks = found.outlooks()
    if not outlooks:
        return None
    outlook = outlooks[0]
    front = on_front(outlooks, found.scores) if found.rejection else []
    better = front_chance(found, outlooks) if found.rejection else outlook.chance
    expected = [
        Expected(
            run_name=run.name,
            score=found.scores.get(number),
            expected=float(outlook.mean[number]),
            error=float(outlook.error[number]),
        )
        for number, run in enumerate(found.runs)
    ]
    return Race(
        metric=settings.search.metric,
        trained=int(found.tried.sum()),
        candidates=len(found.runs),
        leader=found.runs[outlook.leader].name,
        tolerance=outlook.tolerance,
        expected_better=float(better.sum()),
        front=[found.runs[number].name for number in front],
        outlook=sorted(expected, key=lambda each: -each.expected),
    )
