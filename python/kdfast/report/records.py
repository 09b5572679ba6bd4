"""Values of the report's schema from numbers, rows and contrasts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError
from kdfast.report.families import Adjusted
from kdfast.report.fitting import ROUNDING, Contrast
from kdfast.report.sampling import effective_number
from kdfast.report.schema.runs import Jets
from kdfast.report.schema.settings import MetricSummary
from kdfast.report.schema.values import Comparison, Estimate
from kdfast.store.settings import StudySettings
from kdfast.store.table import SCHEDULES

__all__ = [
    "comparison_of",
    "estimate_of",
    "integer",
    "jet_counts",
    "number",
    "on_front",
    "planned_settings",
    "setting_fields",
    "summary",
]


def setting_fields(name: str, row: pd.Series, config: RunConfig) -> dict[str, Any]:
    schedules = {column: number(row[column]) for column in SCHEDULES}
    return {"run_name": name, "strategy": row["strategy"], **schedules, "settings": dict(config.settings)}


def planned_settings(settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> StudySettings | None:
    """The settings of a sweep; None for an imported study, and where they can't be read."""
    if "imported" in provenance:
        return None
    try:
        return StudySettings.resolve(dict(settings), data_given=True)
    except ConfigError:
        return None


def number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) or not math.isfinite(value) else float(value)


def integer(value: Any) -> int | None:
    return None if value is None or pd.isna(value) else int(value)


def jet_counts(labels: NDArray[Any], weights: NDArray[np.float64]) -> Jets:
    signal = labels == 1
    background = labels == 0
    return Jets(
        signal=int(signal.sum()),
        background=int(background.sum()),
        effective_signal=effective_number(weights[signal]),
        effective_background=effective_number(weights[background]),
        weighted=bool(np.ptp(weights) > 0),
    )


def on_front(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[n]: which rows of numbers [n, metrics] are on the Pareto front: none is as high in all metrics and
    higher in one."""
    beaten = [((numbers >= own).all(axis=1) & (numbers > own).any(axis=1)).any() for own in numbers]
    return ~np.array(beaten, bool)


def summary(values: pd.Series, limits: int = 0) -> MetricSummary:
    """limits: how many of the values are lower limits."""
    several = len(values) > 1 and not limits
    return MetricSummary(
        mean=float(values.mean()),
        std=float(values.std()) if several else None,
        variance=float(values.var()) if several else None,
        min=float(values.min()),
        max=float(values.max()),
        limits=limits,
    )


def estimate_of(contrast: Contrast, seeds_known: bool = True) -> Estimate:
    def exact(value: float) -> float:
        return 0.0 if abs(value) < ROUNDING else value

    low, high = contrast.interval
    return Estimate(
        value=exact(contrast.value),
        error=exact(contrast.error),
        low=exact(low),
        high=exact(high),
        error_test=exact(math.sqrt(contrast.test_variance)),
        error_runs=exact(math.sqrt(contrast.run_variance)) if seeds_known else None,
    )


def comparison_of(
    contrast: Contrast, reference: float, seeds_known: bool, adjusted: Adjusted | None = None
) -> Comparison:
    """adjusted: the contrast as one of its family. None: it is described and not tested, without an interval."""
    difference = estimate_of(contrast, seeds_known)
    low = high = None
    if adjusted is not None and math.isfinite(adjusted.high):
        low, high = adjusted.low, adjusted.high
    difference = difference.model_copy(update={"low": low, "high": high})
    return Comparison(
        difference=difference,
        relative=difference.value / reference if reference else None,
        p_value=None if adjusted is None else contrast.p_value,
        p_adjusted=None if adjusted is None else adjusted.p_value,
    )
