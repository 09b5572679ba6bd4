"""Templates of the report: the plain texts (*.txt.j2), the sentences of findings, and the pages (*.html).

In a plain-text template `{% call section("…") %}` sets a heading over its content, `{% filter columns %}` aligns lines
whose cells are separated by │, and `{% filter paragraph %}` fills lines; numbers go through the filters of layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdfast.report import layout

__all__ = ["TEMPLATES", "environment", "text_of"]

TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment(*, html: bool = False) -> Environment:
    """The environment of all templates; values are escaped for HTML, or not for plain text."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.globals |= {"counted": layout.counted, "section": _section, "title": layout.title}
    found.filters |= {name: getattr(layout, name) for name in layout.FILTERS}
    found.filters |= {"columns": _columns, "paragraph": _paragraph}
    return found


def text_of(template: str, **values: Any) -> str:
    """A plain-text template with its values."""
    return environment().get_template(template).render(**values).rstrip("\n") + "\n"


def _section(heading: str, caller: Callable[[], str]) -> str:
    content = caller().rstrip("\n")
    return f"{layout.title(heading)}{content}\n\n"


def _columns(block: str, left: Collection[int] = (0,)) -> str:
    heads, *rows = ([cell.strip() for cell in line.split("│")] for line in block.strip("\n").split("\n"))
    return layout.columns(heads, rows, left) + "\n"


def _paragraph(block: str, first: str = "  ", rest: str | None = None) -> str:
    return layout.wrapped(block, first, rest) + "\n"
