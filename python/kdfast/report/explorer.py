"""What the page's explorer draws: the numbers of every run as compact JSON, rounded to what the page shows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from kdfast.distill.axes import AXES
from kdfast.report.figures.style import STRATEGIES
from kdfast.report.rendering import TEMPLATES
from kdfast.report.schema import Analysis
from kdfast.report.schema.runs import Run
from kdfast.report.schema.values import Estimate

__all__ = ["MOST_CURVES", "Explorer", "explorer"]

# With more runs than this, a page holds no learning curves.
MOST_CURVES = 1000

# Decimal places of the numbers that settings and metrics are rounded to.
_SETTING = 6
_FURTHER = 12
_AUC = 5
_REJECTION = 2
_CURVE = 4

_CURVES = {"auc_val": "Validation AUC", "loss": "Training loss"}


@dataclass(frozen=True)
class Explorer:
    """What the page needs for its explorer.

    json: an element's content; no text in it ends the element. curves: title of each kind of learning curve
    that is there. curves_left_out: whether there are too many runs for them.
    """

    json: Markup
    script: Markup
    curves: list[tuple[str, str]]
    curves_left_out: bool
    most_curves: int = MOST_CURVES


def explorer(analysis: Analysis) -> Explorer | None:
    """The explorer of a study; None where fewer than two runs have numbers."""
    runs = analysis.runs
    if sum(run.auc is not None for run in runs) < 2:
        return None
    many = len(runs) > MOST_CURVES
    there = [] if many else [name for name in _CURVES if any(run.curves.get(name) for run in runs)]
    front = {row.run_name for row in analysis.configurations if row.pareto}
    data: dict[str, Any] = {
        "names": [run.run_name for run in runs],
        "seeds": [run.seed for run in runs],
        "axes": _axes(runs),
        "pareto": [i for i, run in enumerate(runs) if run.run_name in front],
        "limits": [i for i, found in enumerate(_rejections(runs)) if found is not None and found.lower_limit],
        "curves": {
            name: {"digits": _CURVE, "values": [_steps(run.curves.get(name, ()), _CURVE) for run in runs]}
            for name in there
        },
    }
    if there and any(run.curves.get("epoch") for run in runs):
        data["epochs"] = [run.curves.get("epoch") for run in runs]
    return Explorer(
        _as_element(data),
        Markup((TEMPLATES / "explorer.js").read_text(encoding="utf-8")),
        [(name, _CURVES[name]) for name in there],
        many and any(run.curves for run in runs),
    )


def _axes(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One per setting and metric, with a value per run; null where it is not known."""
    names = list(STRATEGIES)
    labels = [label for label, _, _ in STRATEGIES.values()]
    strategies: dict[str, Any] = {"key": "strategy", "label": "Strategy", "digits": 0, "names": labels}
    rejections = [None if found is None else found.value for found in _rejections(runs)]
    found = [
        strategies | {"values": [names.index(run.strategy) for run in runs]},
        _axis("temp_init", "Initial T", _SETTING, [run.temp_init for run in runs]),
        _axis("temp_final", "Final T", _SETTING, [_last(run.temp_init, run.temp_final) for run in runs]),
        _axis("alpha_init", "Initial α", _SETTING, [run.alpha_init for run in runs]),
        _axis("alpha_final", "Final α", _SETTING, [_last(run.alpha_init, run.alpha_final) for run in runs]),
        *_further(runs),
        _axis("auc", "AUC", _AUC, [None if run.auc is None else run.auc.value for run in runs]),
        _axis("rejection", "Rejection at 50 %", _REJECTION, rejections),
    ]
    gains = [run.auc_gain for run in runs]
    if any(gain is not None for gain in gains):
        found.append(_axis("auc_gain", "Δ AUC", _AUC, gains))
    return found


def _further(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One per further axis of the grid; of words, by their number."""
    for name, axis in AXES.items():
        values = [run.settings.get(name) for run in runs]
        known = [value for value in values if value is not None]
        if not any(isinstance(value, str) for value in known):
            if known:
                yield _axis(name, axis.label, _FURTHER, [None if value is None else float(value) for value in values])
            continue
        words = sorted(set(map(str, known)))
        places = [None if value is None else words.index(str(value)) for value in values]
        yield {"key": name, "label": axis.label, "digits": 0, "names": words, "values": places}


def _axis(key: str, label: str, digits: int, values: Sequence[float | None]) -> dict[str, Any]:
    rounded = [None if value is None or not math.isfinite(value) else round(value, digits) for value in values]
    return {"key": key, "label": label, "digits": digits, "values": rounded}


def _last(first: float, last: float | None) -> float:
    """Of a schedule; a constant ends as it begins."""
    return first if last is None else last


def _rejections(runs: Sequence[Run]) -> list[Estimate | None]:
    return [run.rejection.get("50") for run in runs]


def _steps(curve: Sequence[float | None], digits: int) -> list[int | None]:
    """A curve in units of its last decimal place, each value but the first as its difference to the one
    before: half as long as the values themselves."""
    found: list[int | None] = []
    before = 0
    for value in curve:
        if value is None or not math.isfinite(value):
            found.append(None)
            continue
        now = round(value * 10**digits)
        found.append(now - before)
        before = now
    return found


def _as_element(data: Any) -> Markup:
    """As the content of a script element: ASCII, and without the signs that could end it or open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
