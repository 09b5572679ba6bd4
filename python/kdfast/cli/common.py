"""What the commands share: the application they register with, --quiet, and how results are printed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kdfast._version import __version__
from kdfast.distill import schedules

if TYPE_CHECKING:
    from kdfast.study.results import StudyResults

__all__ = ["OwnModelOption", "OwnTeacherOption", "Quiet", "Threads", "app", "console", "given", "print_results"]

app = typer.Typer(
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Threads = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.", show_default="all cores")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and warnings.")]
OwnModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODULE:FUNCTION", help="Function that makes the study's own students."),
]
OwnTeacherOption = Annotated[
    str | None,
    typer.Option("--teacher-model", metavar="MODULE:FUNCTION", help="Function that makes its own teacher."),
]


@app.callback(invoke_without_command=True)
def kdfast(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train and compare many distilled jet taggers as one job.

    A teacher sees the offline view of a jet, its students the coarse view of a trigger. A sweep trains one
    student for each temperature T and mixing weight α of a grid, and a baseline without a teacher.

    \b
    Start here:
      kdfast sweep --out demo             the 132 configurations of the study, on the bundled jets
      kdfast sweep train*.h5 --out mine   the same on your own files, with the study's settings
      kdfast predict mine/models/best_student.safetensors new.h5 --out scores.h5

    `kdfast COMMAND --help` explains a command, with examples.
    """
    if version:
        typer.echo(f"kdfast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; the others keep the defaults of the function that takes them."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def console() -> Console:
    # Without a terminal: wide enough that no line is cut.
    return Console() if sys.stdout.isatty() else Console(width=140)


def print_results(results: StudyResults, written: Sequence[Path] = ()) -> None:
    """Print the best networks and the files of the report (`written`; empty: those in the study's folder)."""
    import pandas as pd

    from kdfast.store.table import selected_on

    table = results.results
    done = table[table["status"] == "done"]
    status = results.status()
    asked = int((status["kind"] == "student").sum())  # by this and earlier calls, stored or not
    usual = ("report.html", "ANALYSIS_SUMMARY.txt", "results_summary.csv", "report.json", "figures", "models")
    paths = written or [results.path / name for name in usual]
    folder = min((path.parent for path in paths), key=lambda parent: len(parent.parts))
    typer.echo(f"{len(done)} of {asked} students are done")
    if not done.empty:
        chosen_on = " and ".join(dict.fromkeys(selected_on(table, metric) for metric in ("auc", "bkg_rej_50")))
        several = table["seed"].nunique() > 1
        heading = f"Best single networks, chosen on {chosen_on} jets; numbers from test jets"
        shown = Table(title=heading, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        shown.padding = (0, 1, 0, 0)
        shown.add_column("best by", no_wrap=True)
        shown.add_column("configuration", overflow="fold")  # the only one that a narrow terminal folds
        for heading in ("AUC", "rejection\nat 50 %", "AUC of\nbaseline", "AUC of\nteacher"):
            shown.add_column(heading, justify="right", no_wrap=True)
        for metric, label in (("auc", "AUC"), ("bkg_rej_50", "rejection"), ("combined", "combined")):
            best = results.best(metric)
            name = schedules.shown(best["run_name"]) + (f", seed {best['seed']}" if several else "")
            limit = ">" if pd.notna(best["n_bkg_50"]) and best["n_bkg_50"] == 0 else ""
            numbers = [f"{best['auc_student']:.4f}", f"{limit}{best['bkg_rej_50']:.2f}"]
            for column in ("auc_baseline", "auc_teacher"):
                numbers.append("-" if pd.isna(best[column]) else f"{best[column]:.4f}")
            shown.add_row(label, name, *numbers)
        console().print(shown)
        if (folder / "models" / "best_student.safetensors").exists():
            typer.echo("models/best_student.safetensors is the best by AUC")
        if several:
            typer.echo("ANALYSIS_SUMMARY.txt ranks the configurations by their means over seeds")
    for path in dict.fromkeys(path if path.parent == folder else path.parent for path in paths):  # a folder once
        if path.exists():
            typer.echo(path)
