"""What a study's results say: analysis, texts, figures, and the networks worth keeping as model files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdfast._files import write_content, writing_errors

if TYPE_CHECKING:
    from kdfast.study.store import StudyStore

__all__ = ["rebuild"]


def rebuild(store: StudyStore, out: Path | None = None) -> dict[str, Path]:
    """Writes the report of a study, finished or not, from its stored results alone; returns the files by name.

    report.json (the analysis, see schema.py), results_summary.csv and .txt, hyperparameter_analysis.txt,
    detailed_comparison.txt, ANALYSIS_SUMMARY.txt, report.html and its figures/*.pdf and .png, and as model files
    models/teacher, models/baseline and models/best_student (the networks that the report shows).
    out: the folder; None: the study's own. Everything is made before the first file is written, and each file appears
    whole or not at all. What can't be made yet, as no student or no teacher is there, is left out and named in the
    texts. Raises StudyError for a damaged result, test jets of one class, or a folder that can't be written.
    """
    from kdfast.report.analysis import analyse
    from kdfast.report.page import page_files
    from kdfast.report.table import csv_text, results_table
    from kdfast.report.texts import report_texts

    folder = store.path if out is None else out
    analysis = analyse(store)
    texts = {
        "report.json": analysis.model_dump_json(indent=1),
        "results_summary.csv": csv_text(results_table(store.results())),
    } | report_texts(analysis)
    contents = {name: text.encode() for name, text in texts.items()} | page_files(analysis, store)
    models = {}
    for network in analysis.networks:
        result = store.get(network.role, network.run_name, network.seed)
        if result.card is not None:
            models["best_student" if network.role == "student" else network.role] = store.model_file(result)
    written = {name: folder / name for name in contents}
    written |= {name: folder / "models" / f"{name}.safetensors" for name in models}
    with writing_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (contents | models).items():
            written[name].parent.mkdir(exist_ok=True)
            write_content(written[name], content)
    return written
