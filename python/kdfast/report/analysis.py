"""From a study's stored results to the one object that every part of a report reads (schema.py).

networks.py says which networks are usable and gives their numbers, sampling.py and fitting.py their errors;
ranking.py and comparisons.py compare configurations, summaries.py and effects.py settings; physics.py makes
the tables by pT, of mass and of calibration, findings.py the sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from kdfast._version import __version__
from kdfast.distill import schedules
from kdfast.files import as_text
from kdfast.metrics import WORKING_POINTS
from kdfast.report import physics, ranking, schema, summaries
from kdfast.report.families import PHYSICS_LEVEL, alone
from kdfast.report.findings import findings
from kdfast.report.fitting import Contrast
from kdfast.report.latencies import latencies
from kdfast.report.networks import StudyNetworks
from kdfast.report.outlook import race
from kdfast.report.records import comparison_of, integer, jet_counts, number, planned_settings, setting_fields
from kdfast.report.verdict import verdict
from kdfast.store.grid import with_baselines
from kdfast.store.key import RunKey
from kdfast.store.packs import asked_runs, planned
from kdfast.store.result import StoredResult
from kdfast.store.store import StudyStore
from kdfast.store.table import STRATEGIES, combined_score, select_best

__all__ = ["analyse", "analyse_networks"]


def analyse(store: StudyStore) -> schema.Analysis:
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


def analyse_networks(study: StudyNetworks) -> schema.Analysis:
    """The same of results that have been read; their table is `study.table`.

    Where configurations that lead were given further seeds (`kdfast refine`), the seeds that chose them are no evidence
    for them: everything about the sweep rests on the sweep's own seeds, and the leaders are judged by the further ones.
    """
    described, runs = _study(study), _runs(study)
    shown = _shown(study, described)
    sweep, leaders = _stages(study)
    if study.done.empty:
        study.add_missing("tables, comparisons and effects", "no student has finished yet")
        return schema.Analysis(
            study=described, runs=runs, networks=[n for n, _ in shown], missing=study.missing, **_physics(study, shown)
        )
    if not described.seeds_given:
        sweep.add_missing(
            "seeds", "the imported files name none: how many there are, and which runs share one, is not known"
        )
    elif not sweep.students["auc"].seeds_known:
        why = "too few runs share configurations and seeds" if sweep.seeds[1:] else "the study has one seed"
        more = "`kdfast refine` adds seeds"
        if "imported" in study.store.provenance:  # nothing can be added to it
            more = "a sweep of the leaders with several seeds would tell more"
        sweep.add_missing(
            "variance between seeds",
            f"{why}: its numbers compare trained networks, not configurations; {more}",
        )
    if study.find("baseline") is None:
        study.add_missing("improvements over the baseline", "no baseline has finished")
    rows = ranking.configuration_rows(sweep)
    groups = summaries.group_tables(sweep)
    grid, pairs = summaries.grid_of_settings(sweep)
    whole = schema.Analysis(
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
    settings = planned_settings(study.store.settings, study.store.provenance)
    if settings is None or study.done.empty:
        return study, None
    names = study.done.groupby("seed")["run_name"].nunique()
    everything = study.done["run_name"].nunique()
    added = {int(seed) for seed, number in names.items() if seed not in settings.seeds and number < everything}
    if not added or added == set(study.seeds):
        return study, None
    parts: list[list[StoredResult]] = [[], []]
    for result in study.results:
        if result.kind == "teacher":
            parts[0].append(result)
            parts[1].append(result)
        else:
            parts[result.seed in added].append(result)
    sweep, leaders = (study.part(part, stages=2) for part in parts)
    return sweep, leaders


def _refinement(leaders: StudyNetworks) -> schema.Refinement:
    rows = ranking.configuration_rows(leaders)
    return schema.Refinement(
        seeds=leaders.seeds,
        configurations=rows,
        mean_vs_baseline=ranking.mean_versus_baseline(leaders),
        winners=ranking.winners(leaders, rows, summaries.group_tables(leaders)),
    )


def _study(study: StudyNetworks) -> schema.Study:
    counts = {str(status): int(n) for status, n in study.table["status"].value_counts().items()}
    there = {r.key for r in study.results}
    absent = [run for run in _asked(study) if run not in there]
    if absent:
        counts["missing"] = sum(kind == "student" for kind, _, _ in absent)
        few = ", ".join(f"{name} (seed {seed})" for _, name, seed in absent[:5])
        more = f" and {len(absent) - 5} more (`kdfast status --json` names them)" if len(absent) > 5 else ""
        study.add_missing(f"{len(absent)} runs that the settings ask for", f"not trained yet: {few}{more}")
    imported = study.store.provenance.get("imported", {})
    imported = imported if isinstance(imported, dict) else {}
    for note in imported.get("notes", ()):
        study.add_missing("import", str(note))
    return schema.Study(
        name=as_text(study.store.path.resolve().name),
        seeds=study.seeds,
        seeds_given=imported.get("seeds") != "unknown",
        configurations=int(study.done["run_name"].nunique()),
        counts=counts,
        test=None if study.jets is None else jet_counts(study.jets.labels, study.jets.weights),
        validation=_validation_jets(study),
        scored=study.have_scores,
        selected_on=study.selected_on["auc"],  # type: ignore[arg-type]
        settings=study.store.settings,
        provenance=study.store.provenance,
        kdfast=__version__,
    )


def _asked(study: StudyNetworks) -> list[RunKey]:
    """The runs that the settings ask for; none for an import, whose runs are all stored."""
    settings = planned_settings(study.store.settings, study.store.provenance)
    if settings is None:
        return []
    packs = planned(study.store) if settings.search else []
    runs = with_baselines(asked_runs(settings, packs, [result.key for result in study.results]))
    keys = [RunKey.of(run, seed) for seed in settings.seeds for run in runs]
    return [RunKey.teacher(settings.data.seed), *sorted(keys, key=lambda key: key.kind)]  # baselines first


def _validation_jets(study: StudyNetworks) -> schema.Jets | None:
    if not study.store.has_shared("validation"):
        return None
    arrays = study.store.shared("validation")
    return jet_counts(arrays["labels"], np.asarray(arrays["weights"], np.float64))


def _runs(study: StudyNetworks) -> list[schema.Run]:
    place = {(r.name, r.seed): k for k, r in enumerate(study.networks) if r.kind == "student"}
    stored = {(r.name, r.seed): r for r in study.results if r.kind == "student"}
    keyed = study.done.set_index(["run_name", "seed"])
    combined = combined_score(keyed).to_dict()
    rank = keyed["auc_student"].rank(ascending=False, method="min").to_dict()
    found = []
    for _, row in study.table.iterrows():
        key = (str(row["run_name"]), int(row["seed"]))
        result, k = stored[key], place.get(key)
        common = {
            **setting_fields(key[0], row, study.configs[key[0]]),
            "seed": key[1],
            "status": row["status"],
            "message": result.message,
            "epochs": integer(row["epochs"]),
            "curves": {n: [number(v) for v in values] for n, values in result.curves.items()},
        }
        if k is None:
            found.append(schema.Run(**common))
            continue
        baseline = study.baseline_of(*key)
        auc_there, rejection_there, survivors_there = (
            None if baseline is None else baseline.metrics.get(m) for m in ("auc", "bkg_rej_50", "n_bkg_50")
        )
        rejection = study.rejections_of(k)
        best = row["best_epoch"]
        epochs = row["epochs"]
        seconds = number(result.metrics.get("seconds"))
        share = None if pd.isna(best) or pd.isna(epochs) else (int(best) + 1) / max(int(epochs), 1)
        found.append(
            schema.Run(
                **common,
                auc=study.auc_of(k),
                rejection=rejection,
                survivors=study.counts_of(k),
                combined=float(combined[key]),
                rank=int(rank[key]),
                auc_validation=number(row["auc_val"]),
                rejection_validation=number(row["bkg_rej_50_val"]),
                auc_gain=None if auc_there is None else float(study.auc.values[k] - auc_there),
                rejection_gain=None
                if rejection_there is None or survivors_there == 0 or rejection["50"].lower_limit
                else rejection["50"].value / rejection_there - 1.0,
                mass_divergence=_mass_divergence(study, k),
                best_epoch=integer(best),
                seconds=seconds,
                seconds_to_best=None if seconds is None or share is None else seconds * share,
            )
        )
    return found


def _mass_divergence(study: StudyNetworks, k: int) -> float | None:
    jets = study.jets
    if jets is None or jets.mass is None or not study.have_scores:
        return None
    return physics.mass_divergence(jets.labels, study.scores[k], jets.weights, jets.mass)


def _shown(study: StudyNetworks, described: schema.Study) -> list[tuple[schema.Network, int]]:
    """Teacher, baseline and best student, with their places among the networks."""
    shown: list[tuple[schema.Network, int]] = []
    best = select_best(study.done, "auc") if len(study.done) else None
    seed = None if best is None else int(best["seed"])
    baseline = study.find("baseline")
    if best is not None:
        baseline = study.baseline_of(best["run_name"], seed) or study.baseline_of(best["run_name"]) or baseline

    def of_seed(number: int | None) -> str:
        return f", seed {number}" if described.seeds_given else ""

    roles = [
        ("teacher", "Teacher (offline view)", study.find("teacher")),
        ("baseline", f"{_baseline_label(baseline)}{of_seed(baseline.seed if baseline else seed)}", baseline),
    ]
    if best is not None:
        name = str(best["run_name"])
        label = f"Best student: {schedules.shown(name)}{of_seed(seed)}"
        roles.append(("student", label, study.find("student", seed, name)))
    for role, label, result in roles:
        if result is None:
            study.add_missing(f"the {role}", "no finished one is stored")
            continue
        k = next(k for k, r in enumerate(study.networks) if r is result)
        network = schema.Network(
            role=role,  # type: ignore[arg-type]
            label=label,
            run_name=result.name,
            seed=result.seed,
            auc=study.auc_of(k),
            rejection=study.rejections_of(k),
            survivors=study.counts_of(k),
            auc_validation=number(result.metrics.get("auc_val")),
        )
        shown.append((network, k))
    return shown


def _baseline_label(baseline: StoredResult | None) -> str:
    """With its name where it has further settings."""
    name = f": {baseline.name}" if baseline is not None and baseline.config is not None else ""
    return f"Baseline (no teacher){name}"


def _physics(study: StudyNetworks, shown: Sequence[tuple[schema.Network, int]]) -> dict[str, Any]:
    jets = study.jets
    if not study.have_scores or jets is None:
        return {}
    by_pt: list[schema.PtBin] = []
    sculpting: list[schema.MassSculpting] = []
    calibrations: list[schema.Calibration] = []
    too_few: list[str] = []
    bins = 0
    if jets.pt is None or jets.mass is None:
        reason = "the study does not hold pT and mass of its test jets (made by an older kdfast); "
        reason += "the same sweep again adds them"
        study.add_missing("AUC and rejection by pT", reason)
        study.add_missing("mass of the background that passes", reason)
    elif not np.isfinite(jets.pt).all():
        without = int((~np.isfinite(jets.pt)).sum())
        study.add_missing(f"{without} of {len(jets.pt)} test jets in the bins of pT", "their pT is not a finite number")
    for network, k in shown:
        scores = study.scores[k]
        calibrations.append(physics.calibration(network.role, jets.labels, scores, jets.weights))
        if jets.pt is not None and jets.mass is not None:
            if np.isfinite(jets.pt).any():
                edges = physics.pt_edges(jets.pt, jets.labels)
                bins = len(edges) - 1
                by_pt += physics.pt_bins(network.role, jets.labels, scores, jets.weights, jets.pt, edges)
            for point in WORKING_POINTS:
                found = physics.mass_sculpting(network.role, jets.labels, scores, jets.weights, jets.mass, point)
                if found is None:
                    too_few.append(f"{network.role} at {point} %")
                else:
                    sculpting.append(found)
    left_out = bins * len(shown) - len(by_pt)  # the same bins for every network
    if left_out:
        study.add_missing(
            f"AUC and rejection in {left_out // len(shown)} of {bins} bins of pT",
            f"these hold fewer than {physics.FEWEST_IN_BIN} jets of signal or background",
        )
    if too_few:
        reason = f"fewer than {physics.FEWEST_SURVIVORS} background jets pass, or their masses do not vary"
        study.add_missing(f"mass of the background that passes ({', '.join(too_few)})", reason)
    return {
        "by_pt": by_pt,
        "pt_differences": [d for n, _ in shown if (d := _pt_difference([b for b in by_pt if b.role == n.role]))],
        "pt_ratios": _pt_ratios(study, shown),
        "mass_sculpting": sculpting,
        "calibration": calibrations,
    }


def _pt_ratios(study: StudyNetworks, shown: Sequence[tuple[schema.Network, int]]) -> list[schema.PtRatio]:
    jets = study.jets
    place = {network.role: k for network, k in shown}
    if jets is None or jets.pt is None or not np.isfinite(jets.pt).any() or not {"student", "baseline"} <= set(place):
        return []
    edges = physics.pt_edges(jets.pt, jets.labels)
    scores = (study.scores[place["student"]], study.scores[place["baseline"]])
    return physics.pt_ratios(jets.labels, *scores, jets.weights, jets.pt, edges)


def _pt_difference(bins: Sequence[schema.PtBin]) -> schema.PtDifference | None:
    """Bins hold different jets, so their errors are independent."""
    if len(bins) < 2 or bins[0].auc.error is None or bins[-1].auc.error is None:
        return None
    contrast = Contrast(
        bins[-1].auc.value - bins[0].auc.value, bins[0].auc.error ** 2 + bins[-1].auc.error ** 2, 0.0, math.inf
    )
    tested = alone(contrast, PHYSICS_LEVEL)
    return schema.PtDifference(role=bins[0].role, auc=comparison_of(contrast, bins[0].auc.value, False, tested))
