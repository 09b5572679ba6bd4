"""The race of a grid's configurations: which ones each round trains, and when the rest need not be trained.

The first round is spread over the grid. Each further round takes those with the largest expected improvement
over the leader [Jones, Schonlau and Welch, J. Global Optim. 13 (1998) 455], one after the other, as if those
before it had reached what is expected of them. The race is over when the candidates left are, taken together,
expected to hold fewer than `error` configurations that are better than the leader by more than the tolerance.
It has two rounds at least: what a first round alone lets expect is sometimes far too sure.

A race for the Pareto front of AUC and rejection trains those that most probably join it, and is over when
fewer than `error` of the others are expected to.

Once the race is over, those that may be the best (`survivors` at most) and the baseline are trained with
`replicates` further seeds, one after the other. The race's own seeds have chosen them and are no evidence for
them, so only the further seeds decide which one is the best. [Boesel, Nelson and Kim, Oper. Res. 51 (2003)
814, "clean up" after a search]

A round follows from the settings and the stored results alone: a race that was interrupted resumes with the
same decisions, and any process may plan the next round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdfast.distill.schedules import RunConfig, shown
from kdfast.errors import ConfigError, StudyError
from kdfast.store.folders import AlreadyStored
from kdfast.store.identity import differing, shown_setting
from kdfast.store.key import RunKey
from kdfast.store.packs import PlannedPack, asked_runs, missing, planned
from kdfast.store.settings import SearchSettings, StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.plan import plan

if TYPE_CHECKING:
    from kdfast.report.outlook import Candidates, Outlook

__all__ = ["candidates", "check_search", "next_round", "plan_next_round", "refuse_other_search", "runs_to_train"]

PER_SETTING = 4  # configurations of the first round for each setting that differs


def runs_to_train(
    store: StudyStore, settings: StudySettings, say: Callable[[str], None]
) -> tuple[Sequence[int], list[RunConfig]]:
    """The seeds and configurations that the study is to train as far as its search has come, with a new round
    where those before are finished: none are new where the search is over. Without a search: the grid's.

    say: shows a line about the round. The caller holds the study (StudyStore.writing), and plans what is new
    before it gives it up.
    """
    search = settings.search
    if search is None:
        return settings.seeds, settings.runs()
    stored = store.keys()
    names = {run.name for run in asked_runs(settings, planned(store), stored)}
    if _are_stored(names, settings.seeds, stored):  # no round is under way
        found = candidates(store, settings)
        chosen, said = next_round(found, search)
        say(shown(said))
        if not chosen and search.replicates:
            return _replicates(store, settings, found, say)
        names |= {found.runs[number].name for number in chosen}
    return settings.seeds, [run for run in settings.runs() if run.name in names]


def _are_stored(names: Iterable[str], seeds: Iterable[int], stored: Container[RunKey]) -> bool:
    return all(RunKey("student", name, seed) in stored for seed in seeds for name in names)


def _replicates(
    store: StudyStore, settings: StudySettings, found: Candidates, say: Callable[[str], None]
) -> tuple[list[int], list[RunConfig]]:
    """The further seeds of the survivors, as far as they have come, and one more unless these are enough."""
    from kdfast.report.outlook import validation_scores

    search = settings.search
    assert search is not None
    runs = [found.runs[number] for number in survivors(found, search)]
    names = {run.name for run in runs}
    stored = store.keys()
    first = max(settings.seeds) + 1
    seeds = list(range(first, first + search.replicates))
    scores = validation_scores(store.results(), runs, seeds, search.metric)
    count = next((k for k, seed in enumerate(seeds) if not _are_stored(names, [seed], stored)), len(seeds))
    best = confidence_set(scores[:, :count], search.error / search.replicates)
    said = f"race: {len(runs)} configurations with {count} of {len(seeds)} further seeds, {len(best)} may be the best"
    begun = any(RunKey("student", name, seed) in stored for name in names for seed in seeds[count : count + 1])
    if search.confidence_set is not None and len(best) <= search.confidence_set:
        say(f"{said}: enough")
    elif count < len(seeds) and not begun and found.affordable < len(runs):
        say(f"{said}: the budget has no room for more")
    elif runs:
        count = min(count + 1, len(seeds))
        say(said)
    return seeds[:count], runs


def survivors(found: Candidates, search: SearchSettings) -> list[int]:
    """Numbers of the finished configurations that may be the best, given all finished ones; best first."""
    from scipy import stats

    outlook = found.outlook()
    if outlook is None:
        return sorted(found.scores, key=lambda number: -found.scores[number])[: search.survivors]
    ordered = sorted(found.scores, key=lambda number: -outlook.mean[number])
    leader = ordered[0]
    reach = float(stats.norm.isf(search.error)) * np.hypot(outlook.error, outlook.error[leader]) + outlook.tolerance
    near = [number for number in ordered if outlook.mean[leader] - outlook.mean[number] <= reach[number]]
    return near[: search.survivors]


def confidence_set(scores: NDArray[np.float64], error: float) -> list[int]:
    """Rows of scores [configurations, seeds] that may be the best.

    One is not if it is below the best mean by Student's t of the differences at each seed, with Bonferroni's
    correction for the comparisons. NaN: a run that did not finish; its configuration takes no part.
    """
    from scipy import stats

    finished = np.flatnonzero(~np.isnan(scores).any(axis=1))
    seeds = scores.shape[1]
    if seeds < 2 or len(finished) < 2:
        return [*map(int, finished)] if seeds else list(range(len(scores)))
    best = scores[finished[np.argmax(scores[finished].mean(axis=1))]]
    behind = best - scores[finished]
    reach = stats.t.isf(error / (len(finished) - 1), seeds - 1) * behind.std(axis=1, ddof=1) / np.sqrt(seeds)
    return [int(row) for row, apart in zip(finished, behind.mean(axis=1) <= reach, strict=True) if apart]


def plan_next_round(
    store: StudyStore, settings: StudySettings, threads: int, say: Callable[[str], None]
) -> list[PlannedPack]:
    """Packs with runs that are not stored, with those of a new round where there were none; of a worker with threads.

    Raises BusyError where another process holds the study, and plans its rounds.
    """
    with store.writing():
        seeds, runs = runs_to_train(store, settings, say)
        packs = planned(store)
        size = max((len(pack.runs) for pack in packs), default=threads)
        with suppress(AlreadyStored):  # by another process, on a file system without locks
            packs, _ = plan(store, seeds, runs, size, threads=threads)
    return [pack for pack in packs if missing(store, pack).runs]


def refuse_other_search(store: StudyStore, settings: StudySettings) -> None:
    """Raises StudyError where the study was begun with another search. A call without one is none: it adds runs."""
    if settings.search is None:
        return
    before = {"method": "grid"}
    if "search" in store.settings:  # with the defaults of settings that are younger than the study
        before = SearchSettings.model_validate(store.settings["search"]).model_dump(exclude_none=True)
    listing = ", ".join(
        f"{name} {shown_setting(old)} → {shown_setting(new)}"
        for name, old, new in differing(before, settings.table()["search"])
    )
    if listing:
        hint = "give the same search or another folder; without a search, the grid's further runs are trained"
        raise StudyError(f"was begun with another search: {listing}", where=str(store.path), hint=hint)


def candidates(store: StudyStore, settings: StudySettings) -> Candidates:
    """What is known of the grid's configurations."""
    from kdfast.report.outlook import Candidates  # and SciPy, which only a search needs

    names = {member.name for pack in planned(store) if pack.seed in settings.seeds for member in pack.members}
    return Candidates.of(settings, store.results(), names, store.shared("test"))


def next_round(found: Candidates, search: SearchSettings) -> tuple[list[int], str]:
    """Numbers of the candidates to train next, none where the race is over, and why, in words."""
    left = np.flatnonzero(~found.tried)
    tried = len(found.runs) - len(left)
    room = math.inf if search.max_runs is None else max(0, search.max_runs - tried)
    most = int(min(len(left), room, found.affordable / found.seeds))
    shown = f"race: {tried} of {len(found.runs)} configurations trained"
    if not tried:
        size = min(_first(search, found.x.shape[1]), most)
        return _spread(found.x, size), f"race: {size} of {len(found.runs)} configurations first"
    if not most:
        why = "the budget has no room for more" if room else f"max_runs is {search.max_runs}"
        return [], f"{shown}: {why if len(left) else 'all'}"
    from kdfast.report.outlook import front_chance

    outlooks = found.outlooks()
    if not outlooks:  # too few have finished
        return _spread(found.x, min(search.batch, most), found.tried), f"{shown}, too few of them finished"
    outlook = outlooks[0]
    if found.rejection is None:
        choose, chance = _most_promising, outlook.chance
        what = f"more than {outlook.tolerance:.2g} above {found.runs[outlook.leader].name}"
    else:
        choose, chance = _likely_on_front, front_chance(found, outlooks)
        what = "on the front of AUC and rejection"
    expected = float(chance.sum())
    shown += f"; {what}: {expected:.2g} of the others expected"
    tested = tried > min(_first(search, found.x.shape[1]), len(found.runs))
    if expected <= search.error and tested:
        return [], f"{shown}, so the race is over"
    chosen = choose(found, outlooks, min(search.batch, most))
    return chosen, f"{shown}, {len(chosen)} next"


def _first(search: SearchSettings, settings_that_differ: int) -> int:
    """Configurations of the first round."""
    return search.first or max(2 * PER_SETTING, PER_SETTING * settings_that_differ)


def _spread(x: NDArray[np.float64], count: int, tried: NDArray[np.bool_] | None = None) -> list[int]:
    """Candidates far from each other and from those tried: the central one, then each time the one farthest
    from all before it."""
    tried = np.zeros(len(x), np.bool_) if tried is None else tried
    if tried.any():
        distance = np.min([((x - x[number]) ** 2).sum(axis=1) for number in np.flatnonzero(tried)], axis=0)
    else:
        distance = -((x - np.median(x, axis=0)) ** 2).sum(axis=1)
    chosen: list[int] = []
    while len(chosen) < count:
        distance[[*np.flatnonzero(tried), *chosen]] = -np.inf
        number = int(np.argmax(distance))
        own = ((x - x[number]) ** 2).sum(axis=1)
        distance = own if not chosen and not tried.any() else np.minimum(distance, own)
        chosen.append(number)
    return chosen


def _most_promising(found: Candidates, outlooks: Sequence[Outlook], count: int) -> list[int]:
    """Candidates with the largest expected improvement over the leader, one after the other."""
    from scipy import stats

    from kdfast.report.outlook import fitted, smooth_part

    outlook = outlooks[0]
    known = dict(found.scores)
    scale = float(np.std(list(known.values()))) or 1.0
    centre = float(np.mean(list(known.values())))
    chosen: list[int] = []
    while len(chosen) < count:
        numbers = sorted(known)
        values = (np.array([known[number] for number in numbers]) - centre) / scale
        mean, error = smooth_part(fitted(found.x[numbers], values, outlook.kernel), found.x)
        mean, error = centre + scale * mean, scale * error
        z = (mean - outlook.mean[outlook.leader]) / error
        improvement = error * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
        improvement[found.tried] = -1.0
        improvement[chosen] = -1.0
        number = int(np.argmax(improvement))
        chosen.append(number)
        known[number] = float(mean[number])
    return chosen


def _likely_on_front(found: Candidates, outlooks: Sequence[Outlook], count: int) -> list[int]:
    """Candidates that most probably join the Pareto front, each as if those before it had reached what is
    expected of them."""
    from kdfast.report.outlook import joins_front, on_front

    reached = on_front(outlooks, found.scores)
    chosen: list[int] = []
    while len(chosen) < count:
        chance = np.where(found.tried, -1.0, joins_front(outlooks, reached + chosen))
        chance[chosen] = -1.0
        chosen.append(int(np.argmax(chance)))
    return chosen


def check_search(settings: StudySettings) -> None:
    """Raises ConfigError for a search that has nothing to choose from, or that its budget can't begin."""
    search = settings.search
    if search is None:
        return
    from kdfast.report.outlook import places

    if search.keep == "pareto":
        given = {"metric": search.metric != "auc", "tolerance": search.tolerance, "replicates": search.replicates}
        for name in filter(given.get, given):
            hint = "leave it out: configurations are compared by AUC and rejection, and their tolerances follow"
            raise ConfigError("has no meaning in a race for the Pareto front", where=f"search.{name}", hint=hint)
    runs = settings.runs()
    if len(runs) < 2:
        raise ConfigError(f"the grid has {len(runs)} configuration", where="search", hint="give a grid to choose from")
    first = min(_first(search, places(runs).shape[1]), len(runs))
    epochs = first * len(settings.seeds) * max(settings.recipe.student(run.settings).epochs for run in runs)
    for name, needed, verb in (("max_epochs", epochs, "takes"), ("max_runs", first, "has")):
        most = getattr(search, name)
        if most is not None and most < needed:
            hint = f"give {name} ≥ {needed}, or a smaller `first`"
            raise ConfigError(f"is {most}, the first round {verb} {needed}", where=f"search.{name}", hint=hint)
