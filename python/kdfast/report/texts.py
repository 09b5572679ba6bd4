"""The report's plain texts, each from the template of its name."""

from __future__ import annotations

from kdfast.report.rendering import text_of
from kdfast.report.schema import Analysis
from kdfast.report.view import ReportView

__all__ = ["TEXTS", "report_texts"]

TEXTS = ("results_summary.txt", "hyperparameter_analysis.txt", "detailed_comparison.txt", "ANALYSIS_SUMMARY.txt")


def report_texts(analysis: Analysis) -> dict[str, str]:
    """The texts of an analysis by file name."""
    view = ReportView(analysis)
    return {name: text_of(f"{name}.j2", a=analysis, view=view) for name in TEXTS}
