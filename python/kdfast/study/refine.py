"""More seeds for a study's leaders: what part of their lead is the luck of a seed."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from kdfast.errors import ConfigError, StudyError
from kdfast.jets.packed import PackedJets
from kdfast.models.tagger import Tagger
from kdfast.report.table import combined_score, selected_on
from kdfast.study.driver import run_study
from kdfast.study.inputs import Given, stored_inputs
from kdfast.study.results import StudyResults, open_study
from kdfast.study.settings import StudySettings, check_counts
from kdfast.study.store import StudyStore

__all__ = ["leaders", "refine"]


def refine(
    study: str | PathLike[str],
    *,
    top: int = 10,
    seeds: int = 5,
    metric: str = "auc",
    data: PackedJets | None = None,
    hlt: PackedJets | None = None,
    teacher: Tagger | ArrayLike | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> StudyResults:
    """Trains the leading configurations of a study, and its baseline, with more seeds, and writes its report anew.

    top: how many leaders (see `leaders`). seeds: how many each has in the end; those of the study count, and the new
    ones follow its highest. Stopped half-way, the same call goes on. metric: "auc", "bkg_rej_50" or "combined".
    data, hlt, teacher: what the study's sweep was given in Python (jets, HLT jets, Tagger or logits), as no settings
    hold them; a study that was planned for workers holds them itself. progress, threads: as for kdfast.sweep.

    Raises ConfigError, StudyError (an imported study, none finished, other data), and what kdfast.sweep raises.
    """
    results = open_study(Path(study))
    if results.imported is not None:
        what = "was imported: how its runs were trained is not known, so no seed can be added"
        raise StudyError(what, where=fspath(study), hint="run a sweep of these configurations with `kdfast sweep`")
    check_counts(top=top, seeds=seeds)
    names, known = leaders(results.results, top, metric)
    more = max(known) + 1
    wanted = [*known, *range(more, more + max(0, seeds - len(known)))]
    store = StudyStore.open(Path(study))
    given = stored_inputs(store, Given(data, hlt, teacher))
    settings: dict[str, Any] = {**results.settings, "grid": names, "seeds": wanted}
    return run_study(
        StudySettings.resolve(settings, data_given=True),
        Path(study),
        given,
        progress=progress,
        threads=threads,
    )


def leaders(table: pd.DataFrame, top: int, metric: str = "auc") -> tuple[list[str], list[int]]:
    """The best configurations of a results table by their mean on the validation jets, best first, and the seeds that
    it goes over.

    These are the seeds that every finished configuration has, so that seeds added to some do not change the choice.
    metric: "auc", "bkg_rej_50" or "combined". Raises StudyError where no configuration has finished.
    """
    columns = {"auc": "auc_val", "bkg_rej_50": "bkg_rej_50_val", "combined": "combined_val"}
    if metric not in columns:
        raise ConfigError(f"unknown metric {metric!r}", where="metric", hint=f"known: {', '.join(columns)}")
    done = table[table["status"] == "done"]
    if done.empty:
        raise StudyError("no student of this study has finished yet", hint="run the sweep to its end")
    if selected_on(table, "combined") != "validation":
        raise StudyError("runs of this study have no validation numbers to choose leaders by")
    by_seed = done.groupby("seed")["run_name"].nunique()
    full = by_seed[by_seed == by_seed.max()].index
    common = done[done["seed"].isin(full)]
    means = common.groupby("run_name", sort=False)[["auc_val", "bkg_rej_50_val"]].mean()
    means["combined_val"] = combined_score(means, "_val")
    ordered = means[columns[metric]].sort_values(ascending=False, kind="stable")
    return [str(name) for name in ordered.index[:top]], sorted(int(seed) for seed in full)
