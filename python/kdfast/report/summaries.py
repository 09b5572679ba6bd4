"""Tables by setting, effects of settings, and the distribution of the results."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdfast.distill.recipe import AXES
from kdfast.report import effects
from kdfast.report.effects import group_labels, numeric, questions
from kdfast.report.networks import COLUMNS, METRICS, StudyNetworks
from kdfast.report.records import comparison_of, number, summary
from kdfast.report.schema import settings as schema
from kdfast.report.schema.choices import Convergence
from kdfast.report.schema.values import Comparison, Estimate, Metric
from kdfast.store.table import STRATEGIES

__all__ = [
    "convergence",
    "correlations",
    "distribution",
    "grid_of_settings",
    "group_tables",
    "importance",
    "linear_models",
    "planned",
    "top_quartile",
    "variance_shares",
]


def group_tables(study: StudyNetworks) -> list[schema.GroupTable]:
    return [_group_table(study, setting, groups) for setting, groups in group_labels(study.settings).items()]


def _group_table(study: StudyNetworks, setting: str, groups: pd.Series) -> schema.GroupTable:
    runs = study.done.assign(group=study.done["run_name"].map(groups)).dropna(subset=["group"])
    means = runs.groupby("group", sort=False)[["auc_student", "bkg_rej_50"]].mean()
    constant = means.loc["baseline"] if setting == "strategy" and "baseline" in means.index else None
    references = {metric: str(means[COLUMNS[metric]].idxmax()) for metric in study.modelled}
    rows = []
    order = [s for s in STRATEGIES if s in means.index] if setting == "strategy" else _in_order(means, setting)
    for label in order:
        own = runs[runs["group"] == label]
        auc = summary(own["auc_student"])
        numbers: dict[str, Any] = {"auc": auc, "rejection": summary(own["bkg_rej_50"], _limits(own))}
        numbers |= {"auc_over_constant": None, "rejection_over_constant": None}
        for metric, reference in references.items():
            column = COLUMNS[metric]
            highest = float(means.loc[reference, column])
            numbers[f"{metric}_difference"] = _effect(study, metric, ("pair", setting, label, reference), highest)
            if constant is not None:
                numbers[f"{metric}_over_constant"] = numbers[metric].mean - float(constant[column])
        consistency = None if auc.std is None else 1.0 / (auc.std + 0.001)
        rows.append(schema.Group(label=label, runs=len(own), consistency=consistency, **numbers))
    second = references.get("rejection")
    return schema.GroupTable(setting=setting, reference=references["auc"], reference_rejection=second, groups=rows)


def _effect(study: StudyNetworks, metric: Metric, key: tuple[str, ...], reference: float) -> Comparison | None:
    """An effect by its key (`Effects`), tested where errors are known; of a pair in either order."""
    found = study.effects[metric].found
    sign = 1.0
    if key not in found and key[0] == "pair":
        key, sign = (*key[:2], key[3], key[2]), -1.0
    if key not in found:
        return None
    if metric in study.comparable:
        tested = study.effects[metric].adjusted[key].times(sign)
        return comparison_of(tested.contrast, reference, True, tested)
    return comparison_of(found[key].contrast.times(sign), reference, True)


def planned(study: StudyNetworks) -> list[schema.PlannedContrast]:
    """The contrasts that a reader expects: high against low, scheduled against constant, at equal other settings."""
    found = []
    for question, (_, one, other) in questions(study.settings).items():
        for metric in study.modelled:
            compared = _effect(study, metric, ("planned", question), 0.0)
            if compared is not None:
                sides = {"one": one, "other": other}
                found.append(schema.PlannedContrast(question=question, metric=metric, **sides, comparison=compared))
    return found


def grid_of_settings(study: StudyNetworks) -> tuple[schema.SettingTable, list[schema.Pair]]:
    by = study.done.groupby(["temp_init", "alpha_init"])
    cells = by[["auc_student", "bkg_rej_50"]].mean()
    cells["runs"] = by.size()
    cells["limits"] = by.apply(_limits, include_groups=False)

    def rows(column: str) -> list[list[float | None]]:
        return [[number(value) for value in row] for row in cells[column].unstack().to_numpy()]

    limits = cells["limits"].unstack(fill_value=0)
    table = schema.SettingTable(
        temp_init=limits.index.tolist(),
        alpha_init=limits.columns.tolist(),
        auc=rows("auc_student"),
        rejection=rows("bkg_rej_50"),
        rejection_limits=limits.to_numpy().tolist(),
    )
    pairs = []
    for (t, a), row in cells.iterrows():
        counts = {"runs": int(row["runs"]), "rejection_limits": int(row["limits"])}
        pairs.append(
            schema.Pair(temp_init=t, alpha_init=a, auc=row["auc_student"], rejection=row["bkg_rej_50"], **counts)
        )
    return table, sorted(pairs, key=lambda pair: -pair.auc)


def correlations(study: StudyNetworks) -> list[schema.Correlation]:
    found = []
    for setting, (symbol, values) in numeric(study.settings).items():
        of_runs = study.done["run_name"].map(pd.Series(values, study.settings.index)).to_numpy(np.float64)
        for metric in study.modelled:
            own = effects.correlation(values, study.students[metric].values)
            runs = effects.correlation(of_runs, study.done[COLUMNS[metric]].to_numpy(np.float64))
            slope = _effect(study, metric, ("slope", setting), 0.0)
            if own is not None and runs is not None and slope is not None:
                numbers: dict[str, Any] = {"r_runs": runs["r"], **own, "points": len(values), "slope": slope}
                found.append(schema.Correlation(setting=setting, symbol=symbol, metric=metric, **numbers))
    return found


def importance(study: StudyNetworks) -> list[schema.Importance]:
    found = []
    symbols = {name: symbol for name, (symbol, _) in numeric(study.settings).items()}
    for other, one in combinations(symbols, 2):
        for metric in study.modelled:
            c = _effect(study, metric, ("importance", one, other), 0.0)
            if c is not None:
                found.append(schema.Importance(metric=metric, one=symbols[one], other=symbols[other], difference=c))
    return found


def linear_models(study: StudyNetworks) -> list[schema.LinearModel]:
    found = []
    for metric in study.modelled:
        fitted = effects.linear_model(study.students[metric], study.settings, metric)
        if fitted is None:
            reason = "too few configurations, or T and α do not vary, or only together"
            study.add_missing(f"linear model of {metric}", reason)
            continue
        if fitted.undetermined:
            reason = "these settings change together with others in this grid"
            study.add_missing(f"slopes of {metric} with {', '.join(fitted.undetermined)}", reason)
        found.append(fitted)
    return found


def variance_shares(study: StudyNetworks) -> list[schema.VarianceShares]:
    found = []
    for metric in study.modelled:
        shares = effects.variance_shares(study.students[metric], study.settings)
        if isinstance(shares, str):
            study.add_missing(f"shares of the variance of {metric}", shares)
        else:
            taken = {name: share for name, (share, _) in shares.items()}
            noise = {name: expected for name, (_, expected) in shares.items()}
            found.append(schema.VarianceShares(metric=metric, shares=taken, noise=noise))
    return found


def distribution(study: StudyNetworks) -> schema.Distribution:
    """The numbers of a metric that does not put all configurations in order are null."""
    found: dict[str, float | None] = {}
    for metric in METRICS:
        modelled = metric in study.modelled
        error = paired = own = common = None
        if study.have_scores and modelled:
            error = float(np.median(study.metric(metric).errors[: len(study.done)]))
            paired = _typical_difference(study.students[metric].noise())
        if modelled and study.students[metric].seeds_known and len(study.students[metric].names) > 1:
            own = math.sqrt(study.students[metric].model.run_variance)
            common = math.sqrt(study.students[metric].common_variance)
        found |= {f"{metric}_error": error, f"{metric}_paired_error": paired}
        found |= {f"{metric}_seed_std": own, f"{metric}_seed_common_std": common}
    return schema.Distribution(
        runs=len(study.done),
        auc=summary(study.done["auc_student"]),
        rejection=summary(study.done["bkg_rej_50"], _limits(study.done)),
        seed_df=study.students["auc"].seed_df,
        **found,
    )


def _typical_difference(noise: NDArray[np.float64]) -> float | None:
    """Median standard error of a difference of two configurations; None for a single one."""
    if len(noise) < 2:
        return None
    variance = np.diag(noise)[:, None] + np.diag(noise)[None, :] - 2.0 * noise
    return math.sqrt(max(0.0, float(np.median(variance[np.triu_indices(len(noise), 1)]))))


def top_quartile(study: StudyNetworks) -> schema.TopQuartile:
    done = study.done
    top = done.sort_values("auc_student", ascending=False, kind="stable").head(math.ceil(len(done) / 4))
    axes = {name: labels for name, labels in group_labels(study.settings).items() if name in AXES}

    everything = {f"all_{name}": value for name, value in _described(done, axes).items()}
    return schema.TopQuartile(runs=len(top), **_described(top, axes), **everything)


def _described(runs: pd.DataFrame, axes: Mapping[str, pd.Series]) -> dict[str, Any]:
    """Mean settings of runs, and their shares by setting. axes: labels of configurations by further axis."""
    shares = {
        "α_init ≥ 0.7": float((runs["alpha_init"] >= 0.7).mean()),
        "T_init ≥ 7": float((runs["temp_init"] >= 7).mean()),
    }
    shares |= {name: float((runs["strategy"] == name).mean()) for name in STRATEGIES}
    for name, labels in axes.items():
        own = runs["run_name"].map(labels)
        shares |= {f"{AXES[name].label.lower()} {label}": float((own == label).mean()) for label in labels.unique()}
    means = {f"mean_{name}": float(runs[name].mean()) for name in ("temp_init", "alpha_init")}
    return {**means, "shares": shares}


def _limits(runs: pd.DataFrame) -> int:
    """Runs whose rejection at 50 % is a lower limit."""
    return int((runs["n_bkg_50"] == 0).sum())


def _in_order(means: pd.DataFrame, setting: str) -> list[str]:
    """Values rising, then words; ranges by mean AUC, the highest first."""
    if setting.endswith("range"):
        return [str(label) for label in means["auc_student"].sort_values(ascending=False, kind="stable").index]

    def place(label: str) -> tuple[float, str]:
        try:
            return float(label), ""
        except ValueError:
            return math.inf, label

    return sorted((str(label) for label in means.index), key=place)


def convergence(study: StudyNetworks) -> Convergence | None:
    """None where no run has its epochs, as imported ones."""
    runs = study.done.dropna(subset=["best_epoch", "epochs"])
    if runs.empty:
        return None
    settings = study.planned
    asked = None if settings is None else settings.recipe.epochs
    if "planned_epochs" in runs:
        asked = runs["planned_epochs"].astype("Float64").fillna(asked if asked is not None else runs["epochs"])
    possible = runs["epochs"] if asked is None else np.maximum(runs["epochs"], asked)
    late = runs["best_epoch"] + 1 > possible - np.maximum(1, np.floor(possible / 10))
    curves = {(r.name, r.seed): np.asarray(r.curves.get("auc_val", ()), np.float64) for r in study.networks}
    slopes = []
    for name, seed in zip(runs["run_name"], runs["seed"], strict=True):
        curve = curves[name, int(seed)]
        last = curve[-max(3, len(curve) // 4) :]
        if len(last) >= 3 and np.isfinite(last).all():
            slopes.append(np.polyfit(np.arange(len(last)), last, 1)[0])
    slope = None
    if len(slopes) > 1:
        error = float(np.std(slopes, ddof=1)) / math.sqrt(len(slopes))
        slope = Estimate(value=float(np.mean(slopes)), error=error)
    by_strategy = late.groupby(runs["strategy"]).agg(["sum", "size"])
    counts = {name: (int(own["sum"]), int(own["size"])) for name, own in by_strategy.iterrows()}
    return Convergence(
        runs=len(runs),
        late=int(late.sum()),
        stopped=int((runs["epochs"] < possible).sum()),
        slope=slope,
        groups={name: counts[name] for name in STRATEGIES if name in counts},
    )
