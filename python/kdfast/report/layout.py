"""How a report's plain texts are laid out: headings, tables, numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from kdfast.report.schema import Analysis, Comparison, Estimate, MetricSummary, Setting

__all__ = [
    "ADJUSTED_MEANS",
    "FILTERS",
    "STRATEGY_NAMES",
    "WIDTH",
    "WISHES",
    "at_least",
    "auc",
    "best_student",
    "columns",
    "counted",
    "ends",
    "fixed",
    "interval",
    "means_are_adjusted",
    "p_text",
    "p_value",
    "percent",
    "rejection",
    "section",
    "spans",
    "student_chosen_on",
    "summary_cells",
    "title",
    "with_error",
    "wrapped",
]

WIDTH = 100

# What templates may use as filters.
FILTERS = ("at_least", "ends", "fixed", "interval", "p_text", "p_value", "percent", "with_error", "wrapped")

STRATEGY_NAMES = {
    "baseline": "Constant (baseline)",
    "tempanneal": "Temperature annealing",
    "alphasched": "Alpha scheduling",
    "combined": "Combined (temp + alpha)",
}

# What a configuration is chosen for: schema.Winner.wish, in words.
WISHES = {
    "auc": "Highest AUC",
    "rejection": "Highest rejection at 50 %",
    "combined": "Best combined score",
    "constant": "Simplest: T and α constant",
    "consistent": "Best of the most consistent strategy",
}

# Beside numbers of configurations, where `means_are_adjusted`.
ADJUSTED_MEANS = (
    "Configurations have different seeds: a configuration's number is what its mean over all seeds would be if a seed "
    "moved all alike (least-squares mean), so that lucky seeds favour nobody. Tables by setting, and the CSV file, go "
    "over all runs as they are."
)


def title(*lines: str) -> str:
    return "\n".join(["=" * WIDTH, *lines, "=" * WIDTH, "", ""])


def section(heading: str, lines: Iterable[str]) -> str:
    return "\n".join(["=" * WIDTH, heading, "=" * WIDTH, "", *lines, ""])


def counted(number: int, noun: str) -> str:
    """ "1 run", "2 runs"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """A table; columns in `left` are flush left, the others flush right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  " + "  ".join(padded).rstrip()

    return "\n".join([line(heads), "  " + "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, rows)])


def wrapped(text: str, first: str = "  ", rest: str | None = None) -> str:
    """A sentence over several lines; rest: the indent of all but the first (None: blanks as long as it)."""
    import textwrap

    indent = " " * len(first) if rest is None else rest
    bound = " ".join(text.split()).replace(" %", "\u00a0%")  # a number and its % stay on one line
    filled = textwrap.fill(
        bound, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return filled.replace("\u00a0", " ")


# ---- numbers


def fixed(value: float | None, digits: int, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def ends(estimate: Estimate, digits: int, sign: str = "") -> str:
    """ "+0.0012 [-0.0003, +0.0027]", as far as known."""
    text = fixed(estimate.value, digits, sign)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]"


def p_value(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def auc(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def rejection(value: Estimate | float | None) -> str:
    """A rejection, marked as a lower limit where no background survives."""
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return f"{'>' if value.lower_limit else ''}{value.value:.2f}"
    return f"{value:.2f}"


def at_least(value: float, limits: int, digits: int = 2) -> str:
    """A mean or maximum of rejections, marked where some of them are lower limits."""
    return f"{'>' if limits else ''}{value:.{digits}f}"


def interval(estimate: Estimate, digits: int, *, sign: bool = False) -> str:
    """ "0.9209 ± 0.0055 [0.9093, 0.9310]", as far as known."""
    form = f"{'+' if sign else ''}.{digits}f"
    text = f"{'>' if estimate.lower_limit else ''}{estimate.value:{form}}"
    if estimate.error is not None:
        text += f" ± {estimate.error:.{digits}f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:{form}}, {estimate.high:{form}}]"
    return text


def with_error(estimate: Estimate, digits: int) -> str:
    """ "0.9209 ± 0.0055", as far as known."""
    text = f"{'>' if estimate.lower_limit else ''}{estimate.value:.{digits}f}"
    return text if estimate.error is None else f"{text} ± {estimate.error:.{digits}f}"


def p_text(comparison: Comparison) -> str:
    """The p-value that a sentence goes by: the adjusted one where there is one, beside its own where they disagree."""

    def shown(p: float) -> str:
        return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"

    if comparison.p_holm is None:
        return shown(comparison.p_value)
    own = f"{shown(comparison.p_value)} by itself, " if comparison.p_value < 0.05 <= comparison.p_holm else ""
    return f"{own}{shown(comparison.p_holm)} after Holm's correction"


def percent(share: float) -> str:
    """ "-8 %"; never "-0 %"."""
    return f"{round(100 * share) + 0:d} %"


def spans(setting: Setting) -> tuple[str, str]:
    """T and α: "10.0 → 1.0 (annealing)", "0.9 (constant)"."""

    def span(first: float, last: float | None, scheduled: str) -> str:
        return f"{first} (constant)" if last is None else f"{first} → {last} ({scheduled})"

    return (
        span(setting.temp_init, setting.temp_final, "annealing"),
        span(setting.alpha_init, setting.alpha_final, "scheduling"),
    )


def best_student(analysis: Analysis) -> str:
    """ "NAME, seed N" of the network shown as the best student; empty where there is none."""
    names = (f"{n.run_name}, seed {n.seed}" for n in analysis.networks if n.role == "student")
    return next(names, "")


def student_chosen_on(analysis: Analysis) -> str:
    """The jets by which the best student is: "validation", or "test" where a run has no validation AUC."""
    done = (run for run in analysis.runs if run.status == "done")
    return "validation" if all(run.auc_validation is not None for run in done) else "test"


def means_are_adjusted(analysis: Analysis) -> bool:
    """Whether a configuration's number is another than its runs' mean, as configurations have different seeds."""
    values: dict[str, list[float]] = {}
    for run in analysis.runs:
        if run.auc is not None:
            values.setdefault(run.run_name, []).append(run.auc.value)
    return any(abs(sum(v := values[r.run_name]) / len(v) - r.auc.value) > 1e-9 for r in analysis.configurations)


def summary_cells(of_auc: MetricSummary, of_rejection: MetricSummary) -> list[str]:
    """mean, std, max of AUC; mean, std, max of rejection."""

    def std(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return [
        f"{of_auc.mean:.4f}",
        std(of_auc.std, 4),
        f"{of_auc.max:.4f}",
        at_least(of_rejection.mean, of_rejection.limits),
        std(of_rejection.std, 2),
        at_least(of_rejection.max, of_rejection.limits),
    ]
