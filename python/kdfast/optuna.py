"""A bridge to Optuna: the runs of a study as trials, and configurations that Optuna's samplers propose.

`ask` gives a batch of configurations for `kdfast.sweep`, `tell` returns what they reached. Samplers, storages
and the dashboard are Optuna's. It needs the extra [optuna].
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfast.distill.recipe import AXES
from kdfast.distill.schedules import RunConfig
from kdfast.errors import BackendError, ConfigError, KdfastWarning, suggest
from kdfast.store.grid import Range, Space, space
from kdfast.store.packs import planned
from kdfast.store.result import StoredResult
from kdfast.store.store import StudyStore
from kdfast.study.results import StudyResults

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["ask", "tell"]

METRICS = ("auc", "bkg_rej_30", "bkg_rej_50", "bkg_rej_80")
Distributions = dict[str, Any]  # of Optuna, by the names of parameters
RUN = "run"  # the user attribute with a run's name
_ATTEMPTS = 10  # proposals per configuration asked for, before a batch stays smaller


def ask(optuna_study: Study, space: Space, n: int, *, resume: bool = True) -> list[RunConfig]:
    """Return a batch of configurations that the Optuna study's sampler proposes, as trials that are running.

    Parameters
    ----------
    optuna_study
        With any of Optuna's samplers. TPE takes the running trials of a batch into account with
        ``constant_liar=True``.
    space
        What to choose from; its free axes are the trials' parameters.
    n
        Number of configurations.
    resume
        First return the configurations that were asked for earlier and never told, for example by a process that was
        killed. Set it to False if several processes ask at once.

    Returns
    -------
    list of RunConfig
        A grid for `kdfast.sweep`. There are fewer than n if the sampler proposes known ones alone. Each is new: a
        proposal that is known already becomes a trial with the known result.

    Raises
    ------
    BackendError
        Without the extra [optuna].
    ConfigError
        For a space without a free axis, or n < 1.
    """
    optuna = _optuna()
    if not space.free:
        raise ConfigError("has no free axis", where="space", hint="give a range or a list of choices")
    if n < 1:
        raise ConfigError(f"must be at least 1, is {n}", where="n")
    states = optuna.trial.TrialState
    known = _trials(optuna_study)
    running = [name for name, trial in known.items() if trial.state == states.RUNNING]
    batch = [RunConfig.from_name(name) for name in running[:n]] if resume else []
    distributions = _of_space(space)
    unnamed = _unnamed(optuna_study, distributions) if resume else []
    for _ in range(_ATTEMPTS * n):
        if len(batch) == n:
            break
        trial = unnamed.pop(0) if unnamed else optuna_study.ask(distributions)
        run = space.run(trial.params)
        earlier = known.get(run.name)
        if earlier is None:
            trial.set_user_attr(RUN, run.name)
            known[run.name] = optuna_study.trials[trial.number]
            batch.append(run)
        elif earlier.state == states.COMPLETE:
            optuna_study.tell(trial, earlier.values)
        else:
            optuna_study.tell(trial, state=states.FAIL)
    return batch


def tell(
    optuna_study: Study,
    study: StudyResults | str | PathLike[str],
    metric: str | Sequence[str] = "auc",
    *,
    space: Space | None = None,
) -> int:
    """Add the finished runs of a kdfast study to an Optuna study, and complete those that `ask` proposed.

    A run is finished when it is stored with all seeds that it is planned with. It becomes a trial with the
    parameters and distributions of the search space; its value is the metric of the validation jets, the mean
    over the seeds that all such runs have (the geometric mean, of a rejection). With one metric, the curve of
    the validation AUC gives the intermediate values, by epoch (counted from 0). User attributes are ``run``,
    the run's name, and ``auc_test``. A run that has diverged with any seed becomes a failed trial. Runs that
    the Optuna study knows are not added again.

    Parameters
    ----------
    optuna_study
        It must maximize as many objectives as there are metrics.
    study
        The study, or its folder.
    metric
        ``"auc"``, ``"bkg_rej_30"``, ``"bkg_rej_50"`` or ``"bkg_rej_80"``, or several of these.
    space
        The search space of the trials. By default it is that of the trials before, or else the ranges of this study's
        runs. A run outside it can't be a trial, and a warning names it.

    Returns
    -------
    int
        Number of trials that were added or completed.

    Raises
    ------
    BackendError
        Without the extra [optuna].
    ConfigError
        For an unknown metric, or an Optuna study with other objectives.
    StudyError
        For a study that is damaged.
    """
    optuna = _optuna()
    metrics = [metric] if isinstance(metric, str) else list(metric)
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}", where="metric", hint=suggest(str(name), list(METRICS)))
    if optuna_study.directions != [optuna.study.StudyDirection.MAXIMIZE] * len(metrics):
        hint = f"optuna.create_study(directions={['maximize'] * len(metrics)})"
        raise ConfigError(f"must maximize {len(metrics)} objective(s)", where="optuna_study", hint=hint)
    store = StudyStore.open(study.path if isinstance(study, StudyResults) else Path(study))
    finished = _finished(store, metrics)
    recipe = store.settings.get("recipe", {})
    distributions, inside = _search_space(optuna_study, space, [run.config for run in finished], recipe)
    rest = None if inside is None else _rest(inside, recipe, distributions)
    known = _trials(optuna_study)
    told = 0
    outside: list[str] = []
    for run in finished:
        trial = known.get(run.config.name)
        if trial is not None:
            if trial.state == optuna.trial.TrialState.RUNNING:
                _complete(optuna_study, trial, run)
                told += 1
            continue
        params = _params(run.config, recipe, distributions)
        if params is None or rest not in (None, _rest(run.config, recipe, distributions)):
            outside.append(run.config.name)
            continue
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE if run.values else optuna.trial.TrialState.FAIL,
            values=run.values or None,
            params=params,
            distributions={name: distributions[name] for name in params},
            user_attrs=run.attributes,
            intermediate_values=run.curve,
        )
        optuna_study.add_trial(trial)
        told += 1
    if outside:
        what = f"{len(outside)} runs are outside the search space and were not added, the first is {outside[0]}"
        warnings.warn(
            f"{what}: give tell a new Optuna study, or a space that contains them", KdfastWarning, stacklevel=2
        )
    return told


@dataclass(frozen=True)
class _Run:
    """What a finished run has reached. values: one for each metric; none of a run that has diverged."""

    config: RunConfig
    values: list[float]
    curve: dict[int, float]
    attributes: dict[str, Any]


def _finished(store: StudyStore, metrics: Sequence[str]) -> list[_Run]:
    """The finished runs in the order in which they were planned. Those without validation metrics are left out."""
    keys = [key for pack in planned(store) for key in pack.keys]
    seeds: dict[str, set[int]] = {}
    for key in keys:
        seeds.setdefault(key.name, set()).add(key.seed)
    results: dict[str, dict[int, StoredResult]] = {name: {} for name in seeds}
    for result in store.results():
        if isinstance(result.config, RunConfig):
            results.setdefault(result.name, {})[result.seed] = result
    results = {name: found for name, found in results.items() if found and found.keys() >= seeds.get(name, set())}
    done = {name for name, found in results.items() if all(result.status == "done" for result in found.values())}
    common = set.intersection(*(set(results[name]) for name in done)) if done else set()
    runs = []
    for name, by_seed in results.items():
        config = next(iter(by_seed.values())).config
        assert isinstance(config, RunConfig)
        chosen = [result for seed, result in sorted(by_seed.items()) if seed in common or not common]
        if name not in done:
            runs.append(_Run(config, [], {}, {RUN: name}))
        elif all(f"{metric}_val" in result.metrics for result in chosen for metric in metrics):
            values = [_mean(metric, [result.metrics[f"{metric}_val"] for result in chosen]) for metric in metrics]
            attributes = {RUN: name, "auc_test": _mean("auc", [result.metrics["auc"] for result in chosen])}
            runs.append(_Run(config, values, _curve(chosen) if len(metrics) == 1 else {}, attributes))
    return runs


def _mean(metric: str, values: Sequence[float]) -> float:
    """Over seeds; of a rejection the geometric mean."""
    return float(np.mean(values) if metric == "auc" else np.exp(np.mean(np.log(values))))


def _curve(results: Sequence[StoredResult]) -> dict[int, float]:
    """The mean validation AUC by epoch (counted from 0), of the epochs that all seeds have."""
    curves = []
    for result in results:
        values = result.curves.get("auc_val", [])
        numbers = result.curves.get("epoch", range(1, len(values) + 1))  # of an imported run, which need not have all
        curves.append({int(number) - 1: value for number, value in zip(numbers, values, strict=True)})
    epochs = sorted(set.intersection(*map(set, curves)))
    means = {epoch: float(np.mean([curve[epoch] for curve in curves])) for epoch in epochs}
    return {epoch: value for epoch, value in means.items() if np.isfinite(value)}


def _trials(optuna_study: Study) -> dict[str, FrozenTrial]:
    """The trials that are runs, by the run's name: repetitions of a known run have none."""
    return {str(trial.user_attrs[RUN]): trial for trial in optuna_study.trials if RUN in trial.user_attrs}


def _unnamed(optuna_study: Study, distributions: Distributions) -> list[Any]:
    """Running trials of these parameters that a process was given when it was killed, before it named them."""
    optuna = _optuna()
    running = [each for each in optuna_study.trials if each.state == optuna.trial.TrialState.RUNNING]
    cut_off = [each for each in running if RUN not in each.user_attrs and each.params.keys() == distributions.keys()]
    return [optuna.trial.Trial(optuna_study, each._trial_id) for each in cut_off]


def _complete(optuna_study: Study, frozen: FrozenTrial, run: _Run) -> None:
    """Ends a running trial. If it is interrupted, the next call does the rest."""
    optuna = _optuna()
    trial = optuna.trial.Trial(optuna_study, frozen._trial_id)
    for name, value in run.attributes.items():
        trial.set_user_attr(name, value)
    for epoch, value in run.curve.items():
        if epoch not in frozen.intermediate_values:
            trial.report(value, epoch)
    state = optuna.trial.TrialState.COMPLETE if run.values else optuna.trial.TrialState.FAIL
    optuna_study.tell(frozen.number, run.values or None, state)


def _search_space(
    optuna_study: Study, given: Space | None, runs: Sequence[RunConfig], recipe: Mapping[str, Any]
) -> tuple[Distributions, RunConfig | None]:
    """Distributions, and a run that is inside: of a given space, or of the trials before. Without both, the
    narrowest distributions for these runs."""
    if given is not None:
        last = {name: axis.high if isinstance(axis, Range) else axis[-1] for name, axis in given.free.items()}
        return _of_space(given), given.run(last)
    known = {name: value for trial in optuna_study.trials for name, value in trial.distributions.items()}
    for name in _trials(optuna_study):
        return known, RunConfig.from_name(name)
    return known or _of_space(_space_of(_values(run, recipe) for run in runs)), None


def _of_space(space: Space) -> Distributions:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: Distributions = {}
    for name, axis in space.free.items():
        if not isinstance(axis, Range):
            found[name] = CategoricalDistribution(axis)
        elif axis.whole:
            found[name] = IntDistribution(int(axis.low), int(axis.high), log=axis.log)
        else:
            found[name] = FloatDistribution(axis.low, axis.high, log=axis.log)
    return found


def _space_of(tables: Iterable[Mapping[str, Any]]) -> Space:
    """Numbers become ranges, logarithmic if they span more than a factor of 4, and texts choices."""
    every: dict[str, set[Any]] = {}
    for table in tables:
        for name, value in table.items():
            every.setdefault(name, set()).add(value)
    axes: dict[str, Any] = {"temperature": 1.0, "alpha": 0.5}
    for name, found in every.items():
        texts = any(isinstance(value, str) for value in found)
        values = sorted(found, key=str if texts else float)
        if len(values) > 1:
            log = not texts and 0 < 4 * values[0] < values[-1]
            axes[name] = values if texts else (values[0], values[-1], "log")[: 2 + log]
    return space(**axes)


def _values(run: RunConfig, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A run's values by the names of axes. A constant schedule ends where it begins."""
    values = {name: recipe[name] for name in AXES if name in recipe}
    values |= {"temperature": run.temp_init, "alpha": run.alpha_init, "shape": run.shape, **run.settings}
    values["temperature_final"] = run.temp_init if run.temp_final is None else run.temp_final
    values["alpha_final"] = run.alpha_init if run.alpha_final is None else run.alpha_final
    return values


def _rest(run: RunConfig, recipe: Mapping[str, Any], distributions: Distributions) -> dict[str, Any]:
    """What a run is apart from these parameters; but for the shape, which constant runs do not have."""
    values = _values(run, recipe) | {"temperature_final": run.temp_final, "alpha_final": run.alpha_final}
    return {name: value for name, value in values.items() if name not in distributions and name != "shape"}


def _params(run: RunConfig, recipe: Mapping[str, Any], distributions: Distributions) -> dict[str, Any] | None:
    """The run's parameters, of those that distributions are given for; None for a run that is outside."""
    constant = {"temperature_final": run.temp_final is None, "alpha_final": run.alpha_final is None}
    values = _values(run, recipe)
    params: dict[str, Any] = {}
    for name in distributions:
        if name not in values:
            continue
        value = values[name]
        choices = getattr(distributions[name], "choices", None)
        if choices is None:
            inside = not isinstance(value, str) and distributions[name].low <= value <= distributions[name].high
        else:
            value = None if constant.get(name) and None in choices else value
            inside = value in choices
        if not inside:
            return None
        params[name] = value
    return params


def _optuna() -> Any:
    if importlib.util.find_spec("optuna") is None:
        hint = "install it with: pip install 'kdfast[optuna]'"
        raise BackendError("Optuna is not installed", where="kdfast.optuna", hint=hint)
    import optuna

    return optuna
