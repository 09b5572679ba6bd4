"""The report's plain texts, one module each, named like its file. All read one `kdfast.report.schema.Analysis`."""

from __future__ import annotations

from kdfast.report.schema import Analysis
from kdfast.report.texts.analysis_summary import analysis_summary
from kdfast.report.texts.detailed_comparison import detailed_comparison
from kdfast.report.texts.hyperparameter_analysis import hyperparameter_analysis
from kdfast.report.texts.results_summary import results_summary

__all__ = ["report_texts"]


def report_texts(analysis: Analysis) -> dict[str, str]:
    """The four texts by file name."""
    return {
        "results_summary.txt": results_summary(analysis),
        "hyperparameter_analysis.txt": hyperparameter_analysis(analysis),
        "detailed_comparison.txt": detailed_comparison(analysis),
        "ANALYSIS_SUMMARY.txt": analysis_summary(analysis),
    }
