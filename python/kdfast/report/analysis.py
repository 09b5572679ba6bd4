"""From a study's stored results to the one object that every part of a report reads (schema).

networks.py says which networks are usable and gives their numbers, sampling.py and fitting.py their errors;
ranking.py and comparisons.py compare configurations, summaries.py and effects.py settings; physics.py makes
the tables by pT, of mass and of calibration, findings.py the sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.distill import schedules
from kdfast.files import as_text
from kdfast.metrics import WORKING_POINTS as POINTS
from kdfast.report import physics, ranking, summaries
from kdfast.report.families import PHYSICS_LEVEL, alone
from kdfast.report.findings import findings
from kdfast.report.fitting import Contrast
from kdfast.report.latencies import latencies
from kdfast.report.networks import StudyNetworks
from kdfast.report.outlook import race
from kdfast.report.physics import TestJets
from kdfast.report.records import comparison_of, integer, jet_counts, number, setting_fields
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import Refinement
from kdfast.report.schema.physics import PtBin, PtDifference
from kdfast.report.schema.runs import Network, Run, Study
from kdfast.report.verdict import verdict
from kdfast.store.key import RunKey
from kdfast.store.packs import asked_keys, planned
from kdfast.store.store import StudyStore
from kdfast.store.table import STRATEGIES, combined_score, select_best

__all__ = ["analyse", "analyse_networks"]


def analyse(store: StudyStore) -> Analysis:
    """Everything that the stored results of a study support, finished or not.

    Parameters
    ----------
    store : StudyStore
        The study. A run whose scores are not finite or all equal takes no part, and is named in `missing`.

    Raises
    ------
    StudyError
        For a damaged result or study, and for test jets of one class.
    """
    return analyse_networks(StudyNetworks(store, store.results()))


def analyse_networks(study: StudyNetworks) -> Analysis:
    """The same of results that have been read; their table is `study.table`.

    Where configurations that lead were given further seeds (`kdfast refine`), the seeds that chose them are
    no evidence for them: everything about the sweep rests on the sweep's own seeds, and the leaders are
    judged by the further ones.
    """
    described = _study(study)
    runs = _runs(study)
    shown = _shown(study, described)
    sweep, leaders = _stages(study)
    if study.done.empty:
        study.add_missing("tables, comparisons and effects", "no student has finished yet")
        return Analysis(
            study=described, runs=runs, networks=[n for n, _ in shown], missing=study.missing, **_physics(study, shown)
        )
    if not described.seeds_given:
        why = "the imported files name none: how many there are, and which runs share one, is not known"
        sweep.add_missing("seeds", why)
    elif not sweep.students["auc"].seeds_known:
        why = "too few runs share configurations and seeds" if sweep.seeds[1:] else "the study has one seed"
        more = "`kdfast refine` adds seeds"
        if "imported" in study.store.provenance:  # nothing can be added to it
            more = "a sweep of the leaders with several seeds would tell more"
        why += f": its numbers compare trained networks, not configurations; {more}"
        sweep.add_missing("variance between seeds", why)
    if study.find("baseline") is None:
        study.add_missing("improvements over the baseline", "no baseline has finished")
    rows = ranking.configuration_rows(sweep)
    groups = summaries.group_tables(sweep)
    grid, pairs = summaries.grid_of_settings(sweep)
    whole = Analysis(
        study=described,
        networks=[network for network, _ in shown],
        runs=runs,
        configurations=rows,
        mean_vs_baseline=ranking.mean_versus_baseline(sweep),
        distribution=summaries.distribution(sweep),
        groups=groups,
        planned=summaries.planned(sweep),
        grid=grid,
        pairs=pairs,
        correlations=summaries.correlations(sweep),
        importance=summaries.importance(sweep),
        models=summaries.linear_models(sweep),
        variance_shares=summaries.variance_shares(sweep),
        top_quartile=summaries.top_quartile(sweep),
        strategies={name: int((sweep.done["strategy"] == name).sum()) for name in STRATEGIES},
        latencies=latencies(study, rows, [network for network, _ in shown]),
        winners=ranking.winners(sweep, rows, groups),
        top_two=ranking.top_two(sweep, rows),
        rank_agreement=ranking.rank_agreement(sweep),
        convergence=summaries.convergence(study),
        refinement=None if leaders is None else _refinement(leaders),
        race=race(sweep),
        **_physics(study, shown),
        missing=list(dict.fromkeys([*study.missing, *sweep.missing, *(leaders.missing if leaders else ())])),
    )
    whole = whole.model_copy(update={"findings": findings(whole)})
    return whole.model_copy(update={"verdict": verdict(whole)})


def _stages(study: StudyNetworks) -> tuple[StudyNetworks, StudyNetworks | None]:
    """The networks of the sweep's own seeds, and those of seeds that were added for some of its configurations."""
    settings = study.planned
    if settings is None or study.done.empty:
        return study, None
    names = study.done.groupby("seed")["run_name"].nunique()
    everything = study.done["run_name"].nunique()
    added = {int(seed) for seed, number in names.items() if seed not in settings.seeds and number < everything}
    if not added or added == set(study.seeds):
        return study, None

    def part(is_added: bool) -> StudyNetworks:
        results = (r for r in study.results if r.kind == "teacher" or (r.seed in added) == is_added)
        return study.part(results, stages=2)

    return part(False), part(True)


def _refinement(leaders: StudyNetworks) -> Refinement:
    rows = ranking.configuration_rows(leaders)
    return Refinement(
        seeds=leaders.seeds,
        configurations=rows,
        mean_vs_baseline=ranking.mean_versus_baseline(leaders),
        winners=ranking.winners(leaders, rows, summaries.group_tables(leaders)),
    )


def _study(study: StudyNetworks) -> Study:
    counts = {str(status): int(n) for status, n in study.table["status"].value_counts().items()}
    absent = _absent(study)
    if absent:
        counts["missing"] = sum(kind == "student" for kind, _, _ in absent)
        few = ", ".join(f"{name} (seed {seed})" for _, name, seed in absent[:5])
        more = f" and {len(absent) - 5} more (`kdfast status --json` names them)" if len(absent) > 5 else ""
        study.add_missing(f"{len(absent)} runs that the settings ask for", f"not trained yet: {few}{more}")
    imported = study.store.provenance.get("imported") or {}
    for note in imported.get("notes", ()):
        study.add_missing("import", str(note))
    validation = None
    if study.store.has_shared("validation"):
        arrays = study.store.shared("validation")
        validation = jet_counts(arrays["labels"], np.asarray(arrays["weights"], np.float64))
    return Study(
        name=as_text(study.store.path.resolve().name),
        seeds=study.seeds,
        seeds_given=imported.get("seeds") != "unknown",
        configurations=int(study.done["run_name"].nunique()),
        counts=counts,
        test=None if study.jets is None else jet_counts(study.jets.labels, study.jets.weights),
        validation=validation,
        scored=study.have_scores,
        selected_on=study.selected_on["auc"],  # type: ignore[arg-type]
        settings=study.store.settings,
        provenance=study.store.provenance,
        kdfast=__version__,
    )


def _absent(study: StudyNetworks) -> list[RunKey]:
    """The runs that the settings ask for and the study does not have; none for an import."""
    settings = study.planned
    if settings is None:
        return []
    packs = planned(study.store) if settings.search else []
    teacher, *others = asked_keys(settings, packs, [result.key for result in study.results])
    asked = [teacher, *sorted(others, key=lambda key: key.kind)]  # baselines first
    there = {result.key for result in study.results}
    return [key for key in asked if key not in there]


def _runs(study: StudyNetworks) -> list[Run]:
    place = {(r.name, r.seed): k for k, r in enumerate(study.networks) if r.kind == "student"}
    stored = {(r.name, r.seed): r for r in study.results if r.kind == "student"}
    keyed = study.done.set_index(["run_name", "seed"])
    combined = combined_score(keyed).to_dict()
    rank = keyed["auc_student"].rank(ascending=False, method="min").to_dict()
    found = []
    for _, row in study.table.iterrows():
        name, seed = key = (str(row["run_name"]), int(row["seed"]))
        numbers: dict[str, Any] = {}
        if key in place:
            numbers = _measured(study, place[key], row)
            numbers |= {"combined": float(combined[key]), "rank": int(rank[key])}
        found.append(
            Run(
                **setting_fields(name, row, study.configs[name]),
                seed=seed,
                status=row["status"],
                message=stored[key].message,
                epochs=integer(row["epochs"]),
                curves={n: [number(v) for v in values] for n, values in stored[key].curves.items()},
                **numbers,
            )
        )
    return found


def _measured(study: StudyNetworks, k: int, row: pd.Series) -> dict[str, Any]:
    """The numbers of a student that is done, and relative to the baseline of the same seed."""
    result = study.networks[k]
    rejection = study.rejections_of(k)
    baseline = study.baseline_of(result.name, result.seed)
    there = {} if baseline is None else baseline.metrics
    found: dict[str, Any] = {
        "auc": study.auc_of(k),
        "rejection": rejection,
        "survivors": study.counts_of(k),
        "auc_validation": number(row["auc_val"]),
        "rejection_validation": number(row["bkg_rej_50_val"]),
        "best_epoch": integer(row["best_epoch"]),
        "seconds": number(result.metrics.get("seconds")),
    }
    if study.jets is not None and study.have_scores:
        found["mass_divergence"] = physics.mass_divergence(study.jets, study.scores[k])
    if there.get("auc") is not None:
        found["auc_gain"] = float(study.auc.values[k] - there["auc"])
    limits = there.get("n_bkg_50") == 0 or rejection["50"].lower_limit
    if there.get("bkg_rej_50") is not None and not limits:
        found["rejection_gain"] = rejection["50"].value / there["bkg_rej_50"] - 1.0
    if None not in (found["seconds"], found["best_epoch"], integer(row["epochs"])):
        found["seconds_to_best"] = found["seconds"] * ((found["best_epoch"] + 1) / max(int(row["epochs"]), 1))
    return found


def _shown(study: StudyNetworks, described: Study) -> list[tuple[Network, int]]:
    """Teacher, baseline and best student, with their places among the networks."""
    shown = {"teacher": study.find("teacher"), "baseline": study.find("baseline")}
    labels = {"teacher": "Teacher (offline view)", "baseline": "Baseline (no teacher)"}
    if len(study.done):
        best = select_best(study.done, "auc")
        name, seed = str(best["run_name"]), int(best["seed"])
        shown["student"] = study.find("student", seed, name)
        shown["baseline"] = study.baseline_of(name, seed) or study.baseline_of(name) or shown["baseline"]
        labels["student"] = f"Best student: {schedules.shown(name)}"
    baseline = shown["baseline"]
    if baseline is not None and baseline.config is not None:  # with further settings
        labels["baseline"] += f": {baseline.name}"
    found: list[tuple[Network, int]] = []
    for role, result in shown.items():
        if result is None:
            study.add_missing(f"the {role}", "no finished one is stored")
            continue
        k = next(k for k, r in enumerate(study.networks) if r is result)
        seed_of = f", seed {result.seed}" if role != "teacher" and described.seeds_given else ""
        network = Network(
            role=role,  # type: ignore[arg-type]
            label=labels[role] + seed_of,
            run_name=result.name,
            seed=result.seed,
            auc=study.auc_of(k),
            rejection=study.rejections_of(k),
            survivors=study.counts_of(k),
            auc_validation=number(result.metrics.get("auc_val")),
        )
        found.append((network, k))
    return found


def _physics(study: StudyNetworks, shown: Sequence[tuple[Network, int]]) -> dict[str, Any]:
    jets = study.jets
    if not study.have_scores or jets is None:
        return {}
    scored = [(network.role, jets, study.scores[k]) for network, k in shown]
    found: dict[str, Any] = {"calibration": [physics.calibration(*each) for each in scored]}
    if jets.pt is None or jets.mass is None:
        reason = "the study does not hold pT and mass of its test jets (made by an older kdfast); "
        reason += "the same sweep again adds them"
        study.add_missing("AUC and rejection by pT", reason)
        study.add_missing("mass of the background that passes", reason)
        return found
    found |= _by_pt(study, jets, {network.role: study.scores[k] for network, k in shown})
    chosen = [(each, point) for each in scored for point in POINTS]
    masses = {(each[0], point): physics.mass_sculpting(*each, point) for each, point in chosen}
    found["mass_sculpting"] = [sculpting for sculpting in masses.values() if sculpting is not None]
    too_few = [f"{role} at {point} %" for (role, point), sculpting in masses.items() if sculpting is None]
    if too_few:
        reason = f"fewer than {physics.FEWEST_SURVIVORS} background jets pass, or their masses do not vary"
        study.add_missing(f"mass of the background that passes ({', '.join(too_few)})", reason)
    return found


def _by_pt(study: StudyNetworks, jets: TestJets, scores: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """scores: [B] by role."""
    pt = jets.pt
    assert pt is not None
    known = np.isfinite(pt)
    if not known.all():
        what = f"{int((~known).sum())} of {len(pt)} test jets in the bins of pT"
        study.add_missing(what, "their pT is not a finite number")
    if not known.any():
        return {}
    edges = physics.pt_edges(pt, jets.labels)
    bins = {role: physics.pt_bins(role, jets, own, edges) for role, own in scores.items()}
    left_out = sum(len(edges) - 1 - len(own) for own in bins.values())
    if left_out:  # the same bins for every network
        study.add_missing(
            f"AUC and rejection in {left_out // len(bins)} of {len(edges) - 1} bins of pT",
            f"these hold fewer than {physics.FEWEST_IN_BIN} jets of signal or background",
        )
    ratios = []
    if {"student", "baseline"} <= scores.keys():
        ratios = physics.pt_ratios(jets, scores["student"], scores["baseline"], edges)
    differences = [_pt_difference(own) for own in bins.values()]
    return {
        "by_pt": [each for own in bins.values() for each in own],
        "pt_differences": [difference for difference in differences if difference is not None],
        "pt_ratios": ratios,
    }


def _pt_difference(bins: Sequence[PtBin]) -> PtDifference | None:
    """Bins hold different jets, so their errors are independent."""
    if len(bins) < 2:
        return None
    low, high = bins[0].auc, bins[-1].auc
    if low.error is None or high.error is None:
        return None
    contrast = Contrast(high.value - low.value, low.error**2 + high.error**2, 0.0, math.inf)
    tested = alone(contrast, PHYSICS_LEVEL)
    return PtDifference(role=bins[0].role, auc=comparison_of(contrast, low.value, False, tested))
