"""report.html: the whole report as one file that needs neither network nor scripts; scripts sort and filter
its tables, and draw the explorer."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w
from markupsafe import Markup

from kdfast.distill.recipe import AXES
from kdfast.distill.schedules import shown
from kdfast.metrics import WORKING_POINTS
from kdfast.report.figures import Drawing, draw, draw_differences, exports, figure_style
from kdfast.report.figures.style import STRATEGIES
from kdfast.report.records import planned_settings
from kdfast.report.rendering import TEMPLATES, environment, text_of
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import VerdictRow
from kdfast.report.schema.runs import Run
from kdfast.report.schema.values import Estimate
from kdfast.report.two_studies import StudyComparison
from kdfast.report.view import ReportView
from kdfast.store.store import StudyStore

__all__ = ["MOST_CURVES", "Explorer", "comparison_files", "explorer", "page", "page_files"]

# With more runs than this, a page holds no learning curves.
MOST_CURVES = 1000

# Decimal places of the numbers that settings and metrics are rounded to.
_SETTING = 6
_FURTHER = 12
_AUC = 5
_REJECTION = 2
_CURVE = 4

_CURVES = {"auc_val": "Validation AUC", "loss": "Training loss"}


def page_files(analysis: Analysis, store: StudyStore) -> dict[str, bytes]:
    """By name: figures/NAME.pdf and .png, and report.html with the same figures inside."""
    with figure_style():
        files, figures = _exported(draw(analysis, store))
    return files | {"report.html": page(analysis, figures).encode()}


def _exported(drawings: Iterable[Drawing]) -> tuple[dict[str, bytes], list[tuple[Drawing, str]]]:
    """The files of drawings by name, and each drawing with its inline SVG."""
    files: dict[str, bytes] = {}
    inline = []
    for drawing in drawings:
        kinds = exports(drawing)
        inline.append((drawing, kinds.pop("svg").decode()))
        files |= {f"figures/{drawing.name}.{kind}": content for kind, content in kinds.items()}
    return files, inline


def page(analysis: Analysis, figures: Sequence[tuple[Drawing, str]]) -> str:
    """The page for an analysis and its figures, each with its inline SVG. The same analysis gives the same
    page."""
    study = analysis.study
    paths = study.settings.get("data", {}).get("paths", ())
    return _rendered(
        "report.html",
        study=study,
        a=analysis,
        view=ReportView(analysis),
        explorer=explorer(analysis),
        explorer_script=_template_text("explorer.js"),
        most_curves=MOST_CURVES,
        figures=figures,
        data="".join(f"{shlex.quote(path)} " for path in paths),
        settings=tomli_w.dumps(study.settings),
        added=_added(analysis),
        forest=_forest(analysis),
        provenance=json.dumps(study.provenance, indent=1, ensure_ascii=False),
        points=[str(point) for point in WORKING_POINTS],
        labels={name: label for name, (label, _, _) in STRATEGIES.items()},
    )


def _forest(analysis: Analysis) -> list[tuple[VerdictRow, dict[str, str]]]:
    """The verdict's comparisons, each with its places in percent of the width: of 0, value, and the interval."""
    rows = [] if analysis.verdict is None else analysis.verdict.rows
    spans = []
    for row in rows:
        difference = row.comparison.difference
        first = difference.value if difference.low is None else difference.low
        last = difference.value if difference.high is None else difference.high
        spans.append((first, difference.value, last))
    ends = [0.0, *(end for span in spans for end in span)]
    low = min(ends)
    width = (max(ends) - low) * 1.1 or 1.0

    def place(value: float) -> float:
        return 100.0 * (value - low) / width + 4.5

    found = []
    for row, (first, value, last) in zip(rows, spans, strict=True):
        places = {"zero": place(0.0), "value": place(value), "low": place(first)}
        places["width"] = place(last) - place(first)
        found.append((row, {name: f"{x:.2f}" for name, x in places.items()}))
    return found


def _added(analysis: Analysis) -> list[str]:
    """What takes the place of grid and seeds in study.toml for the students that it does not ask for, as a
    refinement adds some: lines of TOML, for each set of seeds."""
    settings = planned_settings(analysis.study.settings, analysis.study.provenance)
    if settings is None:
        return []
    asked = {(config.name, seed) for config in settings.runs() for seed in settings.seeds}
    seeds: dict[str, list[int]] = {}
    for run in analysis.runs:
        if (run.run_name, run.seed) not in asked:
            seeds.setdefault(run.run_name, []).append(run.seed)
    names: dict[tuple[int, ...], list[str]] = {}
    for name, own in seeds.items():
        names.setdefault(tuple(sorted(own)), []).append(name)
    return [tomli_w.dumps({"grid": own, "seeds": list(common)}) for common, own in names.items()]


def comparison_files(comparison: StudyComparison) -> dict[str, bytes]:
    """By name: comparison.txt, comparison.html, and the figure of the differences as .pdf and .png."""
    with figure_style():
        files, figures = _exported(draw_differences(comparison))
    files["comparison.txt"] = text_of("comparison.txt.j2", c=comparison).encode()
    return files | {"comparison.html": _rendered("comparison.html", c=comparison, figures=figures).encode()}


def _rendered(template: str, **values: Any) -> str:
    document = environment(html=True).get_template(template)
    files = {"css": _template_text("report.css"), "script": _template_text("report.js")}
    return shown(document.render(number=_number, decimals=_decimals, **files, **values))


def _template_text(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _number(value: float | None, digits: int, sign: str = "") -> str:
    """With a true minus; – where it is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _decimals(estimate: Estimate | None, most: int) -> int:
    """As many as show two digits of the error."""
    if estimate is None or not estimate.error:
        return most
    return min(most, max(0, 1 - math.floor(math.log10(estimate.error))))


# ---- the explorer: the numbers of every run as compact JSON, rounded to what the page shows


@dataclass(frozen=True)
class Explorer:
    """What the page needs for its explorer.

    json: an element's content; no text in it ends the element. curves: title of each kind of learning curve
    that is there. curves_left_out: whether there are too many runs for them.
    """

    json: Markup
    curves: list[tuple[str, str]]
    curves_left_out: bool


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
            name: {"digits": _CURVE, "values": [_steps(run.curves.get(name, ())) for run in runs]} for name in there
        },
    }
    if there and any(run.curves.get("epoch") for run in runs):
        data["epochs"] = [run.curves.get("epoch") for run in runs]
    return Explorer(
        _as_element(data),
        [(name, _CURVES[name]) for name in there],
        many and any(run.curves for run in runs),
    )


def _axes(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One per setting and metric, with a value per run; null where it is not known."""
    places = {name: place for place, name in enumerate(STRATEGIES)}
    strategies = [places[run.strategy] for run in runs]
    labels = [label for label, _, _ in STRATEGIES.values()]
    rejections = [None if found is None else found.value for found in _rejections(runs)]
    found: list[dict[str, Any]] = [
        {"key": "strategy", "label": "Strategy", "digits": 0, "names": labels, "values": strategies},
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


def _steps(curve: Sequence[float | None]) -> list[int | None]:
    """A curve in units of its last decimal place, each value but the first as its difference to the one
    before: half as long as the values themselves."""
    found: list[int | None] = []
    before = 0
    for value in curve:
        if value is None or not math.isfinite(value):
            found.append(None)
            continue
        now = round(value * 10**_CURVE)
        found.append(now - before)
        before = now
    return found


def _as_element(data: Any) -> Markup:
    """As the content of a script element: ASCII, and without the signs that could end it or open a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
