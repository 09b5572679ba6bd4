"""report.html: the whole report as one file that needs neither network nor scripts; scripts only sort its tables."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

import tomli_w
from markupsafe import Markup

from kdfast.metrics import WORKING_POINTS
from kdfast.report.figures import Drawing, draw, draw_differences, exports, figure_style
from kdfast.report.figures.style import STRATEGIES
from kdfast.report.layout import WISHES, counted
from kdfast.report.records import planned_settings
from kdfast.report.rendering import TEMPLATES, environment, text_of
from kdfast.report.schema import Analysis, Comparison, Estimate
from kdfast.report.two_studies import StudyComparison
from kdfast.report.view import ReportView
from kdfast.store.store import StudyStore

__all__ = ["comparison_files", "page", "page_files"]

_GROUPS = {
    "temp_init": ("By initial temperature", "Initial T"),
    "alpha_init": ("By initial α", "Initial α"),
    "strategy": ("By strategy", "Strategy"),
    "temp_range": ("By range of T", "T"),
    "alpha_range": ("By range of α", "α"),
}


def page_files(analysis: Analysis, store: StudyStore) -> dict[str, bytes]:
    """By name: figures/NAME.pdf and .png, and report.html with the same figures inside."""
    files: dict[str, bytes] = {}
    inline = []
    with figure_style():
        for drawing in draw(analysis, store):
            kinds = exports(drawing)
            inline.append((drawing, kinds.pop("svg").decode()))
            files |= {f"figures/{drawing.name}.{kind}": content for kind, content in kinds.items()}
    return files | {"report.html": page(analysis, inline).encode()}


def page(analysis: Analysis, figures: Sequence[tuple[Drawing, str]]) -> str:
    """The page for an analysis and its figures, each with its inline SVG. The same analysis gives the same page."""
    view, study = ReportView(analysis), analysis.study
    sections = [("result", "Result"), ("figures", "Figures"), ("configurations", "Configurations"), ("runs", "Runs")]
    there = {"figures": bool(figures), "configurations": bool(view.rows), "runs": bool(analysis.runs)}
    data = study.settings.get("data", {})
    rejections = [e for network in analysis.networks for e in network.rejection.values()]
    return _rendered(
        "report.html",
        sections=[(i, title) for i, title in sections if there.get(i, True)] + [("reproduce", "To reproduce it")],
        study=study,
        counts=", ".join(
            f"{count if i else counted(count, 'run')} {status}"
            for i, (status, count) in enumerate(study.counts.items())
        ),
        networks=analysis.networks,
        limits=any(estimate.lower_limit for estimate in rejections),
        winners=[(winner, view.rows[winner.configuration]) for winner in analysis.winners],
        findings=analysis.findings,
        missing=view.missing,
        errors=any(network.auc is not None and network.auc.error is not None for network in analysis.networks),
        compared=view.compared,
        student_on=view.student_on,
        adjusted=view.adjusted,
        figures=[(drawing, Markup(svg)) for drawing, svg in figures],
        configurations=analysis.configurations,
        groups=[table for table in analysis.groups if table.groups],
        runs=analysis.runs,
        imported=study.provenance.get("imported"),
        environment=study.provenance.get("environment", {}),
        data="".join(f"{shlex.quote(path)} " for path in data.get("paths", ())),
        settings=tomli_w.dumps(study.settings),
        added=_added(analysis),
        provenance=json.dumps(study.provenance, indent=1, ensure_ascii=False),
        points=[str(point) for point in WORKING_POINTS],
        strategies={name: label for name, (label, _, _) in STRATEGIES.items()},
        wishes=WISHES,
        group_titles={setting: title for setting, (title, _) in _GROUPS.items()},
        group_heads={setting: head for setting, (_, head) in _GROUPS.items()},
    )


def _added(analysis: Analysis) -> list[str]:
    """What takes the place of grid and seeds in study.toml for the students that it does not ask for, as a refinement
    adds some: lines of TOML, for each set of seeds."""
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
    files: dict[str, bytes] = {}
    inline = []
    with figure_style():
        for drawing in draw_differences(comparison):
            kinds = exports(drawing)
            inline.append((drawing, Markup(kinds.pop("svg").decode())))
            files |= {f"figures/{drawing.name}.{kind}": content for kind, content in kinds.items()}
    files["comparison.txt"] = text_of("comparison.txt.j2", c=comparison).encode()
    html = _rendered("comparison.html", c=comparison, figures=inline)
    return files | {"comparison.html": html.encode()}


def _rendered(template: str, **values: Any) -> str:
    return (
        environment(html=True)
        .get_template(template)
        .render(
            css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup((TEMPLATES / "report.js").read_text(encoding="utf-8")),
            number=_number,
            decimals=_decimals,
            difference=_difference,
            mark=_mark,
            **values,
        )
    )


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


def _difference(comparison: Comparison | None, digits: int) -> Markup:
    """Two cells: a difference, and its p value."""
    if comparison is None:
        return Markup('<td data-value="">–</td><td data-value="">–</td>')
    value = comparison.difference.value
    return Markup('<td data-value="{}">{}</td>').format(value, _number(value, digits, "+")) + _p_cell(comparison)


def _p_cell(comparison: Comparison) -> Markup:
    p = comparison.p_value if comparison.p_holm is None else comparison.p_holm
    return Markup('<td data-value="{}">{}</td>').format(p, "< 0.001" if p < 0.001 else f"{p:.3f}")


def _mark(member: bool | None) -> str:
    return "–" if member is None else "yes" if member else "no"
