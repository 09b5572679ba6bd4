"""More seeds for a study's leaders: how much of their lead is due to the seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from kdfast.errors import ConfigError, StudyError
from kdfast.jets.packed import PackedJets
from kdfast.models.tagger import Tagger
from kdfast.store.packs import planned
from kdfast.store.settings import StudySettings, check_counts
from kdfast.store.store import StudyStore
from kdfast.store.table import combined_score, in_order, selected_on
from kdfast.study.driver import run_study
from kdfast.study.inputs import Given, joined_hlt, stored_inputs
from kdfast.study.own_models import Factory, with_own_models
from kdfast.study.plan import Budget
from kdfast.study.progress import SweepProgress
from kdfast.study.results import StudyResults

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["leaders", "refine"]


def refine(
    study: str | PathLike[str],
    *,
    top: int = 10,
    seeds: int = 5,
    metric: str = "auc",
    data: PackedJets | None = None,
    validation_data: PackedJets | None = None,
    test_data: PackedJets | None = None,
    hlt: PackedJets | Sequence[PackedJets] | None = None,
    teacher: Tagger | ArrayLike | None = None,
    model: Factory | None = None,
    teacher_model: Factory | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> StudyResults:
    """Train the leading configurations of a study, and its baseline, with more seeds, and rewrite its report.

    An interrupted call resumes when it is repeated; repeating a finished one changes nothing.

    Parameters
    ----------
    study : path
        Folder of a study that `kdfast.sweep` has made.
    top : int
        Number of leading configurations: the best by their mean on the validation jets.
    seeds : int
        Number of seeds that each is trained with in the end. Seeds that were trained or planned already
        count, even if a run diverged or failed; new ones follow the highest.
    metric : {"auc", "bkg_rej_50", "combined"}
        What the configurations are ranked by.
    data, validation_data, test_data, hlt, teacher : PackedJets, and Tagger or array, optional
        What the study's sweep was given in Python: jets, HLT jets, and a teacher or its logits. A study that
        was planned for workers holds them itself.
    model, teacher_model : callable or str, optional
        The functions that make the study's own networks, or their names ``package.module:function``.
    progress : bool
        Show progress on stderr.
    threads : int, optional
        Threads of the training on the CPU. None: `torch.get_num_threads()`.

    Returns
    -------
    StudyResults
        The study with the new runs.

    Raises
    ------
    ConfigError
        For an unknown metric, or a number below 1.
    StudyError
        For an imported study, one without a finished student, or other data than the study's.
    KdfastError
        Whatever `kdfast.sweep` raises.

    Examples
    --------
    >>> import kdfast
    >>> kdfast.refine("demo", top=10, seeds=5)  # doctest: +SKIP
    """
    store = StudyStore.open(Path(study))
    results = StudyResults(store)
    if results.imported is not None:
        what = "was imported: how its runs were trained is not known, so no seed can be added"
        raise StudyError(what, where=fspath(study), hint="run a sweep of these configurations with `kdfast sweep`")
    check_counts(top=top, seeds=seeds)
    names, known = leaders(results.results, top, metric)
    # Seeds with which some of these configurations were trained, successfully or not, or are planned.
    stored = results.results.loc[results.results["run_name"].isin(names), "seed"]
    tried = {*map(int, stored), *(pack.seed for pack in planned(store) if pack.of(names).runs)}
    wanted = _seeds(known, tried, seeds)
    table: dict[str, Any] = {**results.settings, "grid": names, "search": None, "seeds": wanted}
    settings = StudySettings.resolve(table, data_given=True)
    trains_teacher = "teacher" not in store.provenance["decisive"]
    settings = with_own_models(settings, model, teacher_model, trains_teacher=trains_teacher)
    hlt_jets = None if hlt is None else joined_hlt(hlt, settings.data)
    given = stored_inputs(store, Given(data, hlt_jets, teacher, validation_data, test_data))
    return run_study(settings, Path(study), given, Budget(threads), SweepProgress(progress))


def _seeds(known: Collection[int], tried: Collection[int], count: int) -> list[int]:
    """At least `count` seeds: those known first, then those tried, then new ones."""
    more = max(*known, *tried) + 1
    ordered = [*sorted(known), *sorted({*tried} - {*known}), *range(more, more + count)]
    return ordered[: max(count, len(known))]


def leaders(table: pd.DataFrame, top: int, metric: str = "auc") -> tuple[list[str], list[int]]:
    """The best configurations of a results table by their mean on the validation jets, best first, and the
    seeds that it goes over.

    These are the seeds that every configuration has finished with, so that all are compared on the same ones,
    and seeds added to some do not change the choice; where there is no such seed, configurations with the
    fewest take no part. metric: "auc", "bkg_rej_50" or "combined". Raises StudyError where none has finished,
    or none can be compared.
    """
    columns = {"auc": "auc_val", "bkg_rej_50": "bkg_rej_50_val", "combined": "combined_val"}
    if metric not in columns:
        raise ConfigError(f"unknown metric {metric!r}", where="metric", hint=f"known: {', '.join(columns)}")
    done = table[table["status"] == "done"]
    if done.empty:
        raise StudyError("no student of this study has finished yet", hint="run the sweep to its end")
    if selected_on(table, "combined") != "validation":
        raise StudyError("runs of this study have no validation numbers to choose leaders by")
    by_name = {name: set(map(int, seeds)) for name, seeds in done.groupby("run_name")["seed"]}
    names, seeds = _comparable(by_name)
    common = done[done["run_name"].isin(names) & done["seed"].isin(seeds)]
    runs = common.groupby("run_name", sort=False)
    means = runs[["auc_val", "bkg_rej_50_val"]].mean()
    means["n_bkg_50_val"] = runs["n_bkg_50_val"].min()  # 0: a lower limit, as one run's is
    means["combined_val"] = combined_score(means, "_val")
    means["bkg_rej_50_val"] = in_order(means, "bkg_rej_50_val")
    ordered = means.sort_values([columns[metric], "auc_val"], ascending=False, kind="stable")
    return [str(name) for name in ordered.index[:top]], sorted(seeds)


def _comparable(by_name: Mapping[str, set[int]]) -> tuple[list[str], set[int]]:
    """Configurations with seeds in common, and these; by_name: the seeds of each."""
    for fewest in sorted(set(map(len, by_name.values()))):
        kept = {name: seeds for name, seeds in by_name.items() if len(seeds) >= fewest}
        common = set.intersection(*kept.values())
        if common:
            return list(kept), common
    what = "the configurations of this study have finished with no seed in common: none can be said to lead"
    raise StudyError(what, hint="run the sweep to its end, or sweep all of them with the same seeds")
