"""report.html: the whole report as one file that needs neither network nor scripts; scripts sort and filter
its tables, and draw the explorer."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import tomli_w
from markupsafe import Markup

from kdfast.distill.schedules import shown
from kdfast.metrics import WORKING_POINTS
from kdfast.report.explorer import explorer
from kdfast.report.figures import Drawing, draw, draw_differences, exports, figure_style
from kdfast.report.figures.style import STRATEGIES
from kdfast.report.records import planned_settings
from kdfast.report.rendering import TEMPLATES, environment, text_of
from kdfast.report.schema import Analysis
from kdfast.report.schema.choices import VerdictRow
from kdfast.report.schema.values import Estimate
from kdfast.report.two_studies import StudyComparison
from kdfast.report.view import ReportView
from kdfast.store.store import StudyStore

__all__ = ["comparison_files", "page", "page_files"]


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
    text = (
        environment(html=True)
        .get_template(template)
        .render(
            css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
            number=_number,
            decimals=_decimals,
            **values,
        )
    )
    return shown(text)


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
