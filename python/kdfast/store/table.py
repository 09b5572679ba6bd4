"""The results of a study as a table: a row per student, and which one is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdfast.distill.recipe import AXES
from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError, StudyError, suggest
from kdfast.metrics import WORKING_POINTS
from kdfast.store.documents import INTEGER_METRICS
from kdfast.store.key import run_name
from kdfast.store.store import StoredResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLUMNS",
    "FEW_SURVIVORS",
    "METRICS",
    "NEED_SCORES",
    "SCHEDULES",
    "STRATEGIES",
    "axis_column",
    "axis_columns",
    "combined_score",
    "csv_text",
    "in_order",
    "is_limited",
    "results_table",
    "select_best",
    "selected_on",
]

# Strategies in the order of the grid: constant, T annealed, α scheduled, both.
STRATEGIES = ("baseline", "tempanneal", "alphasched", "combined")

# A schedule's values at both ends.
SCHEDULES = ("temp_init", "temp_final", "alpha_init", "alpha_final")

# Columns of results_summary.csv: new ones come last. Test jets, unless the name ends in _val. An empty
# *_final: the value is constant. flag_*: of the rejection at this working point, see `_flag`.
COLUMNS = (
    "run_name",
    "strategy",
    *SCHEDULES,
    "seed",
    "auc_student",
    *(f"bkg_rej_{point}" for point in WORKING_POINTS),
    "n_bkg_50",
    "auc_val",
    "bkg_rej_50_val",
    "n_bkg_50_val",
    "best_epoch",
    "epochs",
    "auc_baseline",
    "auc_teacher",
    "status",
    "n_bkg_30",
    "n_bkg_80",
    "bkg_rej_30_val",
    "n_bkg_30_val",
    "bkg_rej_80_val",
    "n_bkg_80_val",
    *(f"flag_{point}" for point in WORKING_POINTS),
)

# Fewer background jets that pass make a rejection uncertain by more than 1/√10, a third.
FEW_SURVIVORS = 10

# What a run can be best in, and how the text names it.
METRICS = {
    "auc": "AUC",
    **{f"bkg_rej_{point}": f"background rejection at {point} %" for point in WORKING_POINTS},
    "combined": "combined score",
}

# Analyses that need the scores of each jet, in the words of a report.
NEED_SCORES = (
    "standard errors and intervals of AUC and rejection",
    "paired comparisons on shared test jets, and which runs are statistically indistinguishable from the best",
    "ROC curves and rejection against efficiency",
    "rejection at other efficiencies than those given",
    "score distributions and calibration",
    "AUC and rejection by jet pT",
    "mass sculpting",
    "jet by jet comparison with another study",
)


def results_table(results: Sequence[StoredResult]) -> pd.DataFrame:
    """A row per student in the order of the grid, with the columns COLUMNS, and further axes where a run has any.

    A diverged run has its status and no metrics. auc_baseline: of the same seed and further settings.
    """
    import pandas as pd

    baselines = {(result.name, result.seed): result.metrics for result in results if result.kind == "baseline"}
    teachers = [result.metrics for result in results if result.kind == "teacher"]
    rows = []
    for result in results:
        config = result.config
        if result.kind != "student" or not isinstance(config, RunConfig):
            continue
        baseline = baselines.get((run_name(config.baseline), result.seed), {})
        rows.append(
            {
                **result.metrics,
                "run_name": result.name,
                "strategy": config.strategy,
                **{name: getattr(config, name) for name in SCHEDULES},
                "seed": result.seed,
                "auc_student": result.metrics.get("auc"),
                "auc_baseline": baseline.get("auc"),
                "auc_teacher": teachers[0].get("auc") if teachers else None,
                "status": result.status,
            }
            | {axis_column(name): value for name, value in config.settings.items()}
        )
    axes = [column for column in map(axis_column, AXES) if any(column in row for row in rows)]
    for row in rows:
        row |= {f"flag_{point}": _flag(row.get(f"n_bkg_{point}")) for point in WORKING_POINTS}
    columns = [*COLUMNS, *axes]
    table = pd.DataFrame([[row.get(column) for column in columns] for row in rows], columns=columns)
    kinds: dict[str, Any] = dict.fromkeys(columns, np.float64)
    kinds |= dict.fromkeys(("seed", *INTEGER_METRICS), "Int64")
    kinds |= {name: str for name in COLUMNS if name in ("run_name", "strategy", "status") or name.startswith("flag")}
    kinds |= {column: _kind(value for row in rows if (value := row.get(column)) is not None) for column in axes}
    order = ["strategy", *SCHEDULES, *axes, "run_name", "seed"]
    # A constant value (NaN as the final one) comes before one that is scheduled.
    return table.astype(kinds).sort_values(order, key=_places, na_position="first", ignore_index=True)


def _places(values: pd.Series) -> pd.Series:
    """What a column is sorted by: a strategy's place in the order of the grid, other values themselves."""
    return values.map(STRATEGIES.index) if values.name == "strategy" else values


def _flag(survivors: int | None) -> str:
    """What a rejection is worth, by the background jets that pass: "limit" (none passes: a 68 % lower limit),
    "few" (fewer than FEW_SURVIVORS pass) or "measured"; "" where their number is not known."""
    if survivors is None:
        return ""
    if survivors == 0:
        return "limit"
    return "few" if survivors < FEW_SURVIVORS else "measured"


def axis_column(name: str) -> str:
    """The column of a further axis."""
    return AXES[name].column or name


def axis_columns(table: pd.DataFrame) -> dict[str, str]:
    """The columns of further axes that the table has, by axis."""
    return {name: column for name in AXES if (column := axis_column(name)) in table.columns}


def _kind(values: Iterable[Any]) -> Any:
    kinds = set(map(type, values))
    return object if str in kinds else np.float64 if float in kinds else "Int64"


def csv_text(table: pd.DataFrame) -> str:
    """The table's COLUMNS and further axes as CSV. Each float is written so that it reads back bit for bit."""
    columns = [*COLUMNS, *axis_columns(table).values()]
    return table[columns].to_csv(index=False, lineterminator="\n")


def is_limited(table: pd.DataFrame, column: str) -> pd.Series:
    """Whether a rejection (bkg_rej_…) is a lower limit: no background survives, n_bkg_… is 0."""
    return table[column.replace("bkg_rej", "n_bkg")].eq(0).fillna(False).astype(bool)


def in_order(table: pd.DataFrame, column: str) -> pd.Series:
    """A rejection to sort by: inf for lower limits, which may lie below the rejection of one survivor."""
    return table[column].mask(is_limited(table, column), np.inf)


def combined_score(table: pd.DataFrame, suffix: str = "") -> pd.Series:
    """Mean of AUC and rejection at 50 %, each scaled to 0…1 between the table's smallest and largest.

    Lower limits of the rejection count as the largest. suffix: "" for the test jets, "_val" for validation.
    """

    def scaled(values: pd.Series) -> pd.Series:
        low = values.min()
        high = values.max()
        return (values - low) / (high - low) if high > low else values * 0.0

    auc = table[f"auc{suffix}" if suffix else "auc_student"]
    rejection = table[f"bkg_rej_50{suffix}"]
    rejection = rejection.mask(is_limited(table, f"bkg_rej_50{suffix}"), rejection.max())
    return (scaled(auc) + scaled(rejection)) / 2.0


def selected_on(table: pd.DataFrame, metric: str) -> str:
    """The jets on which the best run by a key of METRICS is chosen.

    "validation", or "test" where a run that is done has no validation numbers (an imported one).
    """
    done = table[table["status"] == "done"]
    columns = ["auc_val", "bkg_rej_50_val"] if metric == "combined" else [f"{metric}_val"]
    return "validation" if done[columns].notna().all(axis=None) else "test"


def select_best(table: pd.DataFrame, metric: str) -> pd.Series:
    """The row that is best by a key of METRICS, on the jets that `selected_on` names.

    Of equal ones, as lower limits of a rejection are, the one with the highest AUC. Raises ConfigError for an
    unknown metric, StudyError if no run has finished.
    """
    if metric not in METRICS:
        raise ConfigError(f"unknown metric {metric!r}", where="metric", hint=suggest(metric, list(METRICS)))
    done = table[table["status"] == "done"]
    if done.empty:
        raise StudyError("no student of this study has finished yet", hint="run the sweep to its end")
    suffix = "_val" if selected_on(table, metric) == "validation" else ""
    auc = done["auc_val" if suffix else "auc_student"]
    if metric == "auc":
        values = auc
    elif metric == "combined":
        values = combined_score(done, suffix)
    else:
        values = in_order(done, f"{metric}{suffix}")
    if values.isna().all():
        raise StudyError(f"no run of this study has a {METRICS[metric]}")
    highest = values == values.max()
    return done.loc[auc[highest].fillna(-np.inf).idxmax()]
