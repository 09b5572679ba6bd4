"""The templates of the report: plain texts (*.txt.j2), the sentences of findings (findings.j2), and pages
(*.html).

In a plain text `{% call section("…") %}` sets a heading over its content, `{% filter columns %}` aligns
lines whose cells are separated by │, `{% filter paragraph %}` fills lines, and `findings | sentences` lists
statements. Numbers go through the filters of layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdfast.distill.recipe import AXES
from kdfast.distill.schedules import shown
from kdfast.report import layout
from kdfast.report.schema import Analysis
from kdfast.report.schema.values import Finding
from kdfast.report.view import ReportView

__all__ = ["TEMPLATES", "TEXTS", "environment", "report_texts", "text_of"]

TEMPLATES = Path(__file__).parent / "templates"

# The report's plain texts, each from the template of its name.
TEXTS = ("results_summary.txt", "hyperparameter_analysis.txt", "detailed_comparison.txt", "ANALYSIS_SUMMARY.txt")


@cache
def environment(*, html: bool = False) -> Environment:
    """The environment of all templates; values are escaped in HTML, and not in plain text."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.globals |= {
        "axes": {name: axis.label for name, axis in AXES.items()},
        "counted": layout.counted,
        "section": _section,
        "strategies": layout.STRATEGY_NAMES,
        "title": layout.title,
        "goals": layout.GOALS,
    }
    found.filters |= {name: function for name in layout.__all__ if callable(function := getattr(layout, name))}
    found.filters |= {"columns": _columns, "numbered": _numbered, "paragraph": _paragraph, "sentences": _sentences}
    return found


def report_texts(analysis: Analysis) -> dict[str, str]:
    """The texts of an analysis by file name."""
    view = ReportView(analysis)
    return {name: text_of(f"{name}.j2", a=analysis, view=view) for name in TEXTS}


def text_of(template: str, **values: Any) -> str:
    """A plain text from its template and values."""
    return shown(environment().get_template(template).render(**values).rstrip("\n") + "\n")


def _section(heading: str, caller: Callable[[], str]) -> str:
    content = caller().rstrip("\n")
    return f"{layout.title(heading)}{content}\n\n"


def _columns(block: str, left: Collection[int] = (0,)) -> str:
    """A table of lines, the first of which is its head; columns in `left` are flush left, others flush right."""
    rows = [[cell.strip() for cell in line.split("│")] for line in block.strip("\n").split("\n")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=False)]
    lines = []
    for row in rows:
        cells = enumerate(zip(row, widths, strict=False))
        padded = [cell.ljust(width) if i in left else cell.rjust(width) for i, (cell, width) in cells]
        lines.append("  " + "  ".join(padded).rstrip() + "\n")
    rule = "  " + "-" * (sum(widths) + 2 * len(widths) - 2) + "\n"
    return "".join([lines[0], rule, *lines[1:]])


def _paragraph(block: str, first: str = "  ", rest: str | None = None) -> str:
    return layout.wrapped(block, first, rest) + "\n"


def _numbered(block: str) -> str:
    lines = enumerate(filter(None, block.split("\n")), start=1)
    return "".join(layout.wrapped(line, f"  {number}. ") + "\n" for number, line in lines)


def _sentences(
    findings: Sequence[Finding], indent: int = 2, otherwise: str = "The data do not allow a statement."
) -> str:
    """A list of statements, the same one once: two goals may choose the same configuration."""
    bullet = " " * indent + "- "
    different = [
        f for i, f in enumerate(findings) if all(f.numbers != g.numbers or f.code != g.code for g in findings[:i])
    ]
    lines = [layout.wrapped(finding.text, bullet) for finding in different]
    return "\n".join(lines) or " " * indent + otherwise
