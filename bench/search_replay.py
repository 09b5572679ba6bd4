"""What a race and Optuna's pruners and samplers would have chosen, for how many epochs: replays on whole grids.

A study whose grid is trained to the end has every curve, so any search over it can be replayed without training. Each
seed of which all configurations are stored is a table of its own. A search is replayed many times: pruners with the
configurations in random orders, samplers with other seeds, the race with the grid in random orders and first rounds of
10 to 24 configurations. A search's choice is the finished run with the best validation AUC; the race's is its leader,
the finished run with the largest expected one. What it loses is counted in test AUC, the mean over the seeds of the
study, relative to the choice of the whole grid, and in validation AUC.

    python -m bench.search_replay STUDY… --write docs/explanation/search.md --figure docs/figures/search.svg
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

import kdfast
from bench.growth import write_table
from kdfast.distill.schedules import RunConfig
from kdfast.report.outlook import Candidates, places
from kdfast.store.settings import SearchSettings, StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.search import next_round

# The axes of the grid "study", in the order of their values; a constant schedule ends where it begins, so None is last.
AXES: dict[str, list[Any]] = {
    "temperature": [3.0, 5.0, 7.0, 10.0],
    "alpha": [0.3, 0.5, 0.7, 0.9],
    "temperature_final": [1.0, 2.0, None],
    "alpha_final": [0.1, 0.3, None],
}
BY_SCORE = "race, best score"  # the same races with the choice of the other searches
SHARES = (1 / 30, 0.1, 0.2, 1 / 3, 0.5, 2 / 3, 0.8, 0.9, 1.0)  # of the epochs, in the table of ranks


@dataclass(frozen=True)
class Table:
    """A seed of a study, all of whose N configurations are trained.

    validation, test [N]: AUC; test: mean over the complete seeds. curves: [N] of the validation AUC by epoch.
    tolerance: the race's, a difference of AUC that does not matter.
    """

    name: str
    runs: Sequence[RunConfig]
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    curves: Sequence[NDArray[np.float64]]
    tolerance: float

    @property
    def epochs(self) -> NDArray[np.int64]:
        """[N] that were trained."""
        return np.array([len(curve) for curve in self.curves])


@dataclass(frozen=True)
class Replay:
    """A search on a table: which configurations it trained, in order, for how many epochs, and whether to the end.

    leader: the one that the race expects most of.
    """

    table: Table
    numbers: Sequence[int]
    epochs: Sequence[int]
    ended: Sequence[bool]
    leader: int | None = None

    @property
    def spent(self) -> NDArray[np.float64]:
        """After each configuration, as a share of the grid's epochs."""
        return np.cumsum(self.epochs) / self.table.epochs.sum()

    def choice(self, share: float = np.inf) -> int | None:
        """The race's leader, or the best finished configuration when a share of the epochs is spent; None: none has."""
        if self.leader is not None:
            return self.leader
        known = [n for n, ended, at in zip(self.numbers, self.ended, self.spent, strict=True) if ended and at <= share]
        return max(known, key=lambda number: self.table.validation[number], default=None)

    def regret(self, share: float = np.inf) -> float:
        """Test AUC of the whole grid's choice minus that of this one."""
        choice = self.choice(share)
        chosen = np.nan if choice is None else self.table.test[choice]
        return float(self.table.test[np.argmax(self.table.validation)] - chosen)

    @property
    def validation_loss(self) -> float:
        """Best validation AUC of the whole grid minus that of the choice."""
        return float(self.table.validation.max() - self.table.validation[self.choice()])


def tables(path: Path) -> list[Table]:
    """The complete seeds of a study, and their mean where there are several."""
    store = StudyStore.open(path)
    students = {(r.name, r.seed): r for r in store.results() if r.kind == "student" and r.status == "done"}
    every = sorted({seed for _, seed in students})
    settings = StudySettings.resolve(dict(store.settings) | {"search": "race", "seeds": every}, data_given=True)
    runs = settings.runs()
    seeds = [seed for seed in every if all((run.name, seed) in students for run in runs)]
    test = np.mean([[students[run.name, seed].metrics["auc"] for run in runs] for seed in seeds], axis=0)
    found = []
    for seed in seeds:
        own = [students[run.name, seed] for run in runs]
        known = Candidates.of(settings.model_copy(update={"seeds": (seed,)}), own, (), store.shared("test"))
        validation = np.array([result.metrics["auc_val"] for result in own])
        curves = [np.array(result.curves["auc_val"]) for result in own]
        found.append(Table(f"{path.name}, seed {seed}", runs, validation, test, curves, known.tolerance))
    if len({len(curve) for table in found for curve in table.curves}) == 1 < len(found):  # no run has stopped early
        validation = np.mean([table.validation for table in found], axis=0)
        means = list(np.mean([table.curves for table in found], axis=0))
        tolerance = float(np.mean([table.tolerance for table in found]))  # of one seed: as a study of several has it
        found.append(Table(f"{path.name}, {len(seeds)} seeds", runs, validation, test, means, tolerance))
    return found


def race(table: Table, random: np.random.Generator) -> Replay:
    order = random.permutation(len(table.runs))
    search = SearchSettings(first=int(random.integers(10, 25)))
    x = places([table.runs[number] for number in order])
    found = Candidates([table.runs[n] for n in order], x, {}, np.zeros(len(order), np.bool_), table.tolerance)
    numbers: list[int] = []
    while True:
        chosen, _ = next_round(found, search)
        if not chosen:
            outlook = found.outlook()
            assert outlook is not None
            return replace(_whole(table, numbers), leader=int(order[outlook.leader]))
        numbers += [int(order[place]) for place in chosen]
        scores = dict(found.scores) | {place: float(table.validation[order[place]]) for place in chosen}
        tried = found.tried.copy()
        tried[chosen] = True
        found = replace(found, scores=scores, tried=tried)


def _whole(table: Table, numbers: Sequence[int]) -> Replay:
    return Replay(table, numbers, [int(table.epochs[number]) for number in numbers], [True] * len(numbers))


def at_random(table: Table, random: np.random.Generator) -> Replay:
    return _whole(table, random.permutation(len(table.runs)).tolist())


def pruned(make: Callable[[int], optuna.pruners.BasePruner]) -> Callable[[Table, np.random.Generator], Replay]:
    """make: of the planned number of epochs."""

    def replayed(table: Table, random: np.random.Generator) -> Replay:
        name = str(random.integers(2**31))  # decides a trial's bracket in HyperbandPruner
        study = optuna.create_study(study_name=name, direction="maximize", pruner=make(int(table.epochs.max())))
        numbers = random.permutation(len(table.runs)).tolist()
        epochs: list[int] = []
        ended: list[bool] = []
        for number in numbers:
            trial = study.ask()
            stopped = False
            for epoch, value in enumerate(table.curves[number], 1):
                trial.report(float(value), epoch)
                stopped = epoch < len(table.curves[number]) and trial.should_prune()
                if stopped:
                    break
            epochs.append(epoch)
            ended.append(not stopped)
            states = optuna.trial.TrialState
            value = None if stopped else float(table.validation[number])
            study.tell(trial, value, states.PRUNED if stopped else states.COMPLETE)
        return Replay(table, numbers, epochs, ended)

    return replayed


def sampled(make: Callable[[int], optuna.samplers.BaseSampler], ordered: bool, count: int) -> Any:
    """make: of a seed. ordered: an axis is the place of its value, else a choice. count: of different configurations;
    repetitions cost nothing."""
    space = kdfast.space(**AXES)
    distributions: dict[str, Any] = {}
    for name, values in AXES.items():
        last = len(values) - 1
        ranks = optuna.distributions.IntDistribution(0, last)
        distributions[name] = ranks if ordered else optuna.distributions.CategoricalDistribution(range(last + 1))

    def replayed(table: Table, random: np.random.Generator) -> Replay:
        places_of = {run.name: number for number, run in enumerate(table.runs)}
        study = optuna.create_study(direction="maximize", sampler=make(int(random.integers(2**31))))
        numbers: dict[int, None] = {}
        for _ in range(3 * count):
            trial = study.ask(distributions)
            number = places_of[space.run({name: AXES[name][place] for name, place in trial.params.items()}).name]
            study.tell(trial, float(table.validation[number]))
            numbers[number] = None
            if len(numbers) == count:
                break
        return _whole(table, list(numbers))

    return replayed


def searches(runs: int) -> dict[str, Callable[[Table, np.random.Generator], Replay]]:
    """All but the race, by name. runs: how many configurations samplers train."""
    p, s = optuna.pruners, optuna.samplers
    return {
        "random": at_random,
        "SuccessiveHalvingPruner": pruned(lambda epochs: p.SuccessiveHalvingPruner()),
        "HyperbandPruner": pruned(lambda epochs: p.HyperbandPruner(min_resource=1, max_resource=epochs)),
        "MedianPruner": pruned(lambda epochs: p.MedianPruner()),
        "TPESampler": sampled(lambda seed: s.TPESampler(seed=seed), False, runs),
        "TPESampler, ordered": sampled(lambda seed: s.TPESampler(seed=seed), True, runs),
        "GPSampler": sampled(lambda seed: s.GPSampler(seed=seed), False, runs),
    }


def results_table(replays: dict[str, list[Replay]]) -> str:
    """A row for each search, in Markdown. At the race's epochs: its mean."""
    budget = float(np.mean([replay.spent[-1] for replay in replays["race"]]))
    heads = ["search", "epochs", "regret", "≤ δ", "in validation AUC", "from the best test AUC", "grid's choice found"]
    lines = [[*heads, "regret at the race's epochs", "≤ δ"], ["---", *["--:"] * 8]]
    for name, found in replays.items():
        within = [replay.regret() <= replay.table.tolerance for replay in found]
        best = [replay.table.test.max() - replay.table.test[replay.choice()] for replay in found]
        same = [replay.choice() == np.argmax(replay.table.validation) for replay in found]
        row = [f"{np.mean([replay.spent[-1] for replay in found]):.0%}", _milli([r.regret() for r in found])]
        lost = np.array([replay.validation_loss for replay in found])
        in_validation = np.mean(lost <= [replay.table.tolerance for replay in found])
        row += [
            f"{np.mean(within):.0%}",
            f"{1e3 * lost.mean():.2f} ({in_validation:.0%})",
            f"{1e3 * np.mean(best):.2f}",
            f"{np.mean(same):.0%}",
        ]
        if name.startswith("race"):
            row += row[1:3]
        else:
            share = budget + 0.5 / len(found[0].table.runs)  # the mean is no whole number of trainings
            at = np.array([replay.regret(share) for replay in found])
            limits = np.array([replay.table.tolerance for replay in found])
            row += [_milli(at[np.isfinite(at)]), f"{np.mean(at <= limits):.0%}"]
        lines.append([name, *row])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def seeds_table(replays: dict[str, list[Replay]], found: Sequence[Table]) -> str:
    """For each search and table: regret at the epochs that the race spends there, and the share of it within δ."""
    lines = [["regret (≤ δ) at the race's epochs", *[table.name for table in found]], ["---", *["--:"] * len(found)]]
    race_spent = [np.mean([r.spent[-1] for r in replays["race"] if r.table is table]) for table in found]
    lines.append(["(epochs)", *[f"{share:.0%}" for share in race_spent]])
    lines.append(["(correlation of validation and test AUC)"])
    lines[-1] += [f"{stats.spearmanr(table.validation, table.test).statistic:+.2f}" for table in found]
    for name, rows in replays.items():
        cells = []
        for table, spent in zip(found, race_spent, strict=True):
            share = np.inf if name.startswith("race") else float(spent) + 0.5 / len(table.runs)
            at = np.array([row.regret(share) for row in rows if row.table is table])
            cells.append(f"{1e3 * np.nanmean(at):.2f} ({np.mean(at <= table.tolerance):.0%})")
        lines.append([name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _milli(values: Any) -> str:
    """Mean and its standard error, in units of 0.001."""
    return f"{1e3 * np.mean(values):.2f} ± {1e3 * np.std(values) / np.sqrt(len(values)):.2f}"


def ranks_table(found: Sequence[Table]) -> str:
    """How much the order after some of the epochs says of the end's, for each table."""
    lines = [["epochs trained", *[f"{table.name} (δ = {1e3 * table.tolerance:.2f})" for table in found]]]
    lines.append(["---", *["--:"] * len(found)])
    for share in SHARES:
        cells = []
        for table in found:
            epoch = max(1, round(share * int(table.epochs.max())))
            at = np.array([curve[min(epoch, len(curve)) - 1] for curve in table.curves])
            rank = 1 + np.sum(at > at[np.argmax(table.validation)])
            cells.append(f"{stats.spearmanr(at, table.validation).statistic:+.2f} ({rank})")
        lines.append([f"{share:.0%}", *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw(replays: dict[str, list[Replay]], path: Path) -> None:
    """Regret against the share of the grid's epochs that is spent."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(replays, ("#D55E00", "black", *matplotlib.color_sequences["Set2"]), strict=False))
    for name, found in replays.items():
        colour = colours[name]
        ends = np.array([replay.spent[-1] for replay in found])
        if name == BY_SCORE:
            continue
        if name == "race":
            regrets = [1e3 * replay.regret() for replay in found]
            axes.plot(ends, regrets, ".", color=colour, alpha=0.25, zorder=1)
            axes.plot(ends.mean(), np.mean(regrets), "*", color=colour, ms=16, label="race (each, and mean)", zorder=5)
            continue
        shares = np.linspace(0.01, ends.max(), 80)
        curves = np.array([[replay.regret(share) for share in shares] for replay in found])
        known = np.isfinite(curves).mean(axis=0) > 0.9  # of most replays something has finished
        axes.plot(shares[known], 1e3 * np.nanmean(curves[:, known], axis=0), color=colour, label=name)
    tolerances = [1e3 * replay.table.tolerance for replay in replays["race"]]
    axes.axhline(np.mean(tolerances), color="0.5", lw=1, ls=":", label="δ (mean)")
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(xscale="log", xlabel="Epochs spent, share of the whole grid's", ylabel="Mean regret in test AUC (0.001)")
    axes.set_xticks([0.05, 0.1, 0.2, 0.5, 1], ["5 %", "10 %", "20 %", "50 %", "100 %"])
    axes.minorticks_off()
    axes.set_xlim(0.02, 1.05)
    axes.legend(frameon=False, fontsize=9)
    with matplotlib.rc_context({"svg.hashsalt": "kdfast"}):  # so that equal figures are equal files
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, nargs="+", metavar="STUDY")
    parser.add_argument("--replays", type=int, default=40, help="of each search on each seed of a study")
    parser.add_argument("--write", type=Path, help="replace the tables of this page")
    parser.add_argument("--figure", type=Path, help="draw this file")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    found = [table for study in given.studies for table in tables(study)]

    def replayed(name: str, search: Callable[[Table, np.random.Generator], Replay]) -> list[Replay]:
        rows = [
            search(table, np.random.default_rng([number, replay]))
            for number, table in enumerate(found)
            for replay in range(given.replays if "GP" not in name else -(-given.replays // 4))
        ]
        spent = np.mean([row.spent[-1] for row in rows])
        print(f"{name}: {spent:.1%}, {_milli([row.regret() for row in rows])}", flush=True)
        return rows

    replays = {"race": replayed("race", race)}
    replays[BY_SCORE] = [replace(replay, leader=None) for replay in replays["race"]]
    runs = round(float(np.mean([len(replay.numbers) for replay in replays["race"]])))
    replays |= {name: replayed(name, search) for name, search in searches(runs).items()}
    counted = f"Grids: {len(found)}. Replays of each search on each: {given.replays}, of GPSampler a quarter.\n\n"
    text = f"{counted}{results_table(replays)}\n{seeds_table(replays, found)}"
    print(f"{text}\n{ranks_table(found)}")
    if given.write is not None:
        write_table(given.write, "replays", text)
        write_table(given.write, "ranks", ranks_table(found))
    if given.figure is not None:
        draw(replays, given.figure)


if __name__ == "__main__":
    main()
