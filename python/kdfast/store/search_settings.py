"""[search]: which candidates of a grid are trained, instead of all. They are a part of store/settings.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kdfast.errors import ConfigError
from kdfast.validation import SettingsTable

__all__ = ["SearchSettings", "as_search"]


class SearchSettings(SettingsTable):
    """[search]: a race between the grid's configurations, in rounds. docs/how-to/search.md says how it decides."""

    method: Literal["race"] = "race"
    """How candidates are chosen: race."""
    metric: Literal["auc", "bkg_rej_50"] = "auc"
    """What they are compared by, on the validation jets: auc, or bkg_rej_50."""
    keep: Literal["best", "pareto"] = "best"
    """What the race looks for: the best by the metric, or the Pareto front of AUC and rejection (pareto)."""
    tolerance: float | None = Field(default=None, gt=0)
    """Difference of the metric (of ln bkg_rej_50) that does not matter; the test jets' standard error by default."""
    error: float = Field(default=0.05, gt=0, lt=1)
    """Probability that a candidate left out is better by more than the tolerance."""
    first: int | None = Field(default=None, ge=4)
    """Configurations of the first round, spread over the grid."""
    batch: int = Field(default=8, ge=1)
    """Configurations of each further round."""
    max_runs: int | None = Field(default=None, ge=1)
    """Configurations to train at most."""
    max_epochs: int | None = Field(default=None, ge=1)
    """Epochs to train at most, added up over the students."""
    max_hours: float | None = Field(default=None, gt=0)
    """Hours to train at most, added up over the students; what a round takes is known from those before."""
    replicates: int = Field(default=0, ge=0)
    """Further seeds of the leading configurations once the race is over, at most."""
    survivors: int = Field(default=10, ge=1)
    """Leading configurations that get further seeds at most: those that may be the best."""
    confidence_set: int | None = Field(default=None, ge=1)
    """No further seed where at most this many configurations may be the best by the further seeds; all by default."""


def as_search(value: Any) -> SearchSettings | None:
    """A method's name, or a table; "grid" or None: no search."""
    if value is None or value == "grid" or isinstance(value, SearchSettings):
        return None if value == "grid" else value
    if isinstance(value, str):
        value = {"method": value}
    if not isinstance(value, Mapping):
        hint = 'e.g. search = "race", or search = { method = "race", max_runs = 40 }'
        raise ConfigError(f"must be a method's name or a table, is {value!r}", hint=hint)
    return SearchSettings.model_validate(value)
