"""What a study's results say: tables, text, figures, and the networks worth keeping as model files."""

from __future__ import annotations

from pathlib import Path

from kdfast._files import write_content, writing_errors
from kdfast.study.store import StoredResult, StudyStore

__all__ = ["rebuild"]


def rebuild(store: StudyStore) -> dict[str, Path]:
    """Writes, from the stored results alone, report.json, results_summary.csv and .txt, roc.pdf and .png, and as model
    files models/teacher, models/baseline and models/best_student (of the best validation AUC). Returns their paths by
    name.

    What can't be made yet, as no student or no teacher is there, is left out. Raises StudyError for a damaged result
    or a folder that can't be written.
    """
    from kdfast.report.analysis import analyse
    from kdfast.report.figures import RocLine, save_roc_figure
    from kdfast.report.summary import TestJets, summary_text
    from kdfast.report.table import csv_text, results_table, select_best

    results = store.results()
    table = results_table(results)
    chosen: dict[str, StoredResult] = {}  # what figure and models show
    for kind in ("teacher", "baseline"):
        finished = [result for result in results if result.kind == kind and result.has_scores]
        if finished:
            chosen[kind] = finished[0]
    if (table["status"] == "done").any():
        best = select_best(table, "auc")
        student = store.get("student", best["run_name"], int(best["seed"]))
        if student.has_scores:
            chosen["student"] = student
        for result in results:  # the baseline of the same seed
            if result.kind == "baseline" and result.seed == best["seed"] and result.has_scores:
                chosen["baseline"] = result

    written = {}
    with writing_errors(store.path):
        jets = store.shared("test") if chosen else {}
        summary = summary_text(
            table,
            jets=TestJets(jets["labels"], jets["weights"], chosen["student"].arrays["scores_test"])
            if "student" in chosen
            else None,
            baseline_rejection={
                r.seed: r.metrics["bkg_rej_50"] for r in results if r.kind == "baseline" and "bkg_rej_50" in r.metrics
            },
        )
        texts = {
            "report.json": analyse(store).model_dump_json(indent=1),
            "results_summary.csv": csv_text(table),
            "results_summary.txt": summary,
        }
        for name, text in texts.items():
            written[name] = store.path / name
            write_content(written[name], text.encode())
        for kind, result in chosen.items():
            if result.card is not None:
                name = "best_student" if kind == "student" else kind
                written[name] = store.path / "models" / f"{name}.safetensors"
                written[name].parent.mkdir(exist_ok=True)
                write_content(written[name], store.model_file(result))
        if chosen:
            names = {"teacher": "Teacher (offline view)", "baseline": "Baseline (no teacher)"}
            lines = [
                RocLine(kind, names.get(kind, f"Best student: {chosen[kind].name}"), chosen[kind].arrays["scores_test"])
                for kind in ("teacher", "student", "baseline")
                if kind in chosen
            ]
            written |= save_roc_figure(lines, jets["labels"], jets["weights"], store.path)
    return written
