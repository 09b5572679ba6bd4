"""How numbers, tables and headings look in the report's texts; most of these functions are filters of its
templates."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from kdfast.report.schema.values import Estimate

__all__ = [
    "GOALS",
    "STRATEGY_NAMES",
    "WIDTH",
    "at_least",
    "counted",
    "ends",
    "first_upper",
    "fixed",
    "interval",
    "p_text",
    "p_value",
    "percent",
    "span",
    "thousands",
    "title",
    "with_error",
    "wrapped",
]

WIDTH = 100

STRATEGY_NAMES = {
    "baseline": "Constant T and α",
    "tempanneal": "Temperature annealing",
    "alphasched": "Alpha scheduling",
    "combined": "Combined (temp + alpha)",
}

# What a configuration is chosen for: schema.Winner.goal, in words.
GOALS = {
    "auc": "Highest AUC",
    "rejection": "Highest rejection at 50 %",
    "combined": "Best combined score",
    "constant": "Simplest: T and α constant",
    "consistent": "Best of the most consistent strategy",
}


# ---- lines


def title(*lines: str) -> str:
    return "\n".join(["=" * WIDTH, *lines, "=" * WIDTH, "", ""])


def wrapped(text: str, first: str = "  ", rest: str | None = None) -> str:
    """A sentence over several lines; rest: the indent of all but the first (None: blanks as long as it)."""
    bound = " ".join(text.split()).replace(" %", "\u00a0%")  # a number and its % stay on one line
    filled = textwrap.fill(
        bound,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first) if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace("\u00a0", " ")


# ---- words


def counted(number: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def first_upper(text: str) -> str:
    """A symbol of a setting, as α, stays as it is."""
    return text if text[0] in "α" else text[0].upper() + text[1:]


# ---- numbers


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def thousands(value: float) -> str:
    return f"{value:,.0f}"


def percent(share: float, digits: int = 0, sign: str = "") -> str:
    """ "-8 %"; never "-0 %"."""
    return f"{round(100 * share, digits) + 0:{sign}.{digits}f} %"


def at_least(value: float | None, limits: int, digits: int = 2) -> str:
    """A rejection, or a mean or maximum of several; ">" marks a lower limit, or one among them."""
    return f"{'>' if limits else ''}{fixed(value, digits)}"


def with_error(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """ "0.9209 ± 0.0055", as far as known."""
    if estimate is None:
        return "-"
    text = at_least(estimate.value, estimate.lower_limit, digits)
    if sign:
        text = fixed(estimate.value, digits, sign)
    return text if estimate.error is None else f"{text} ± {estimate.error:.{digits}f}"


def interval(estimate: Estimate | None, digits: int, sign: str = "") -> str:
    """ "0.9209 ± 0.0055 [0.9093, 0.9310]", as far as known."""
    return with_error(estimate, digits, sign) + _ends(estimate, digits, sign)


def ends(estimate: Estimate, digits: int, sign: str = "") -> str:
    """ "+0.0012 [-0.0003, +0.0027]", as far as known."""
    return fixed(estimate.value, digits, sign) + _ends(estimate, digits, sign)


def _ends(estimate: Estimate | None, digits: int, sign: str) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f" [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"


def p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_text(numbers: Mapping[str, Any]) -> str:
    """The p-value that decides, adjusted for all statements of the report."""
    p = numbers["p_adjusted"]
    return "adjusted p < 0.0001" if p < 1e-4 else f"adjusted p = {p:.2g}"


# ---- settings


def span(first: float, last: float | None, scheduled: str) -> str:
    """ "10.0 → 1.0 (annealing)" or "3.0 (constant)"."""
    return f"{first} (constant)" if last is None else f"{first} → {last} ({scheduled})"
