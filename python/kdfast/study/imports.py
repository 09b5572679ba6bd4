"""Other people's results as a study."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

from kdfast.importers import import_results
from kdfast.study.results import StudyResults

__all__ = ["import_study"]


def import_study(
    paths: str | PathLike[str] | Sequence[str | PathLike[str]], out: str | PathLike[str], *, seed: int | None = None
) -> StudyResults:
    """Make a study of other jobs' run logs, summary files or CSV files.

    Parameters
    ----------
    paths
        Files, or folders (their ``*.out``, ``*.csv`` and summary files, at any depth).
    out
        A new or empty folder for the study; it appears completely or not at all.
    seed
        Of runs whose file does not give one. None leaves it unknown: these runs are stored under the number 0, and the
        report names no seed.

    Returns
    -------
    StudyResults
        Damage that leaves the rest usable (a log cut short, a block mixed with another, a run given twice,
        a name that contradicts its numbers) is a KdfastWarning with file and line, also kept in the study's
        provenance.

    Raises
    ------
    DataError
        With file and line, for a file that is empty, binary or of no known kind, and if no run is left.
    StudyError
        If ``out`` contains something already or can't be written.
    """
    return StudyResults(import_results(paths, out, seed=seed))
