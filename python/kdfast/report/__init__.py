"""What a study's results say: analysis, texts, figures, and the networks worth keeping as model files."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kdfast.files import write_content, writing_errors
from kdfast.store.folders import refuse_link
from kdfast.store.locks import REPORT_CHECKSUMS, REPORT_LOCK, locked

if TYPE_CHECKING:
    from kdfast.store.store import StudyStore

__all__ = ["write", "write_comparison"]


def write(store: StudyStore, out: Path | None = None) -> dict[str, Path]:
    """Write the report of a study, finished or not, from its stored results alone.

    The files are report.json (the analysis, see schema), results_summary.csv, four texts, report.html with
    figures/*.pdf and .png, models/*.safetensors of the networks that the report shows, and report.sha256 with
    the checksums of all these. Everything is made before the first file is written, and each file appears
    whole or not at all; of two processes that report on one study, one waits for the other. What can't be
    made yet, as no student or no teacher has finished, is left out and named in the texts.

    Parameters
    ----------
    store : StudyStore
        The study.
    out : Path, optional
        Another folder than the study's own.

    Returns
    -------
    dict of str to Path
        The files by name.

    Raises
    ------
    StudyError
        For a damaged result, test jets of one class, or a folder that can't be written.
    """
    from kdfast.report.analysis import analyse_networks
    from kdfast.report.networks import StudyNetworks
    from kdfast.report.page import page_files
    from kdfast.report.rendering import report_texts
    from kdfast.store.key import RunKey
    from kdfast.store.table import csv_text

    with locked(store.path, fcntl.LOCK_EX, REPORT_LOCK):
        study = StudyNetworks(store, store.results())  # read once: workers may be adding some
        analysis = analyse_networks(study)
        texts = {
            "report.json": analysis.model_dump_json(indent=1),
            "results_summary.csv": csv_text(study.table),
        } | report_texts(analysis)
        contents = {name: text.encode() for name, text in texts.items()} | page_files(analysis, store)
        for network in analysis.networks:
            result = store.get(RunKey(network.role, network.run_name, network.seed))
            if result.card is not None:
                name = "best_student" if network.role == "student" else network.role
                contents[f"models/{name}.safetensors"] = store.model_file(result)
        lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
        contents[REPORT_CHECKSUMS] = "".join(lines).encode()
        written = _write(store.path if out is None else out, contents)
        del written[REPORT_CHECKSUMS]
        return written


def write_comparison(first: StudyStore, second: StudyStore, out: Path) -> dict[str, Path]:
    """Write the paired differences of two studies.

    Parameters
    ----------
    first, second : StudyStore
        Differences are second minus first.
    out : Path
        Folder for comparison.txt, comparison.html, comparison.json (`StudyComparison` of two_studies.py) and
        figures/differences.pdf and .png.

    Returns
    -------
    dict of str to Path
        The files by name.

    Raises
    ------
    StudyError
        As `write` does.
    """
    from kdfast.report.page import comparison_files
    from kdfast.report.two_studies import compare

    comparison = compare(first, second)
    contents = {"comparison.json": comparison.model_dump_json(indent=1).encode()}
    return _write(out, contents | comparison_files(comparison))


def _write(folder: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Raises StudyError where a file would land in another folder; one that is a link is replaced."""
    written = {name: folder / name for name in contents}
    for parent in {path.parent for path in written.values()} - {folder}:
        refuse_link(parent)
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if REPORT_CHECKSUMS in contents:
            (folder / REPORT_CHECKSUMS).unlink(missing_ok=True)  # else a kill would leave one that is wrong
        for name, content in contents.items():
            written[name].parent.mkdir(exist_ok=True)
            write_content(written[name], content)
    return written
