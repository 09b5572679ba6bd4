"""Other people's results as a study."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from kdfast.importers import import_results
from kdfast.study.results import StudyResults

__all__ = ["import_study"]


def import_study(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]], out: str | PathLike[str], *, seed: int = 42
) -> StudyResults:
    """Makes a study of run logs (`transformer_*.out`), `hyperparameter_search_results.txt`, or CSV files.

    paths: files, or folders (their *.out, the summary file and *.csv, at any depth). out: a new or empty folder; it
    appears whole or not at all. seed: of runs whose file does not give one.
    Damage that leaves the rest usable (a log cut short, a block mixed with another, a run given twice, a name that
    contradicts its numbers) is told by KdfastWarnings with file and line, which the study's provenance keeps.
    Raises DataError with file and line for a file that is empty, binary, or nothing of this kind, and where no run is
    left; StudyError where out holds something already or can't be written.
    """
    return StudyResults(import_results(paths, out, seed=seed))
