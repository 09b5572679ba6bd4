"""Commands on a study's folder: status, report, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdfast.cli.common import Quiet, app, print_results

__all__ = ["import_", "report", "status"]


@app.command()
def status(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    quiet: Quiet = False,
) -> None:
    """Say which runs of a study are done, failed, damaged or missing.

    Checks every file of every result against its checksum. Exit status: 0 if all runs are done, else 1.

    \b
    Example:
      kdfast status demo
    """
    from kdfast.study.results import open_study

    table = open_study(study).status()
    if not quiet:
        counts = table["status"].value_counts()
        typer.echo(f"{study}: {len(table)} runs, " + ", ".join(f"{count} {name}" for name, count in counts.items()))
        for row in table[table["status"].isin(["diverged", "damaged"])].itertuples():
            typer.echo(f"  {row.kind} {row.run_name}, seed {row.seed}: {row.message or row.status}")
    raise typer.Exit(int((table["status"] != "done").any()))


@app.command()
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, finished or not.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second study, to put beside the first.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the report.  [the study's own; of two: comparison]"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a study's report anew from its stored results: tables, texts, report.json, page, figures and models.

    What is not there yet is left out, and named in the texts with the reason. With two studies: their differences, run
    by run and jet by jet where they share runs and test jets.

    \b
    Examples:
      kdfast report demo
      kdfast report shared/study --out my-report
      kdfast report nominal severe --out severe-against-nominal
    """
    from kdfast.study.results import open_study

    results = open_study(study)
    if other is not None:
        written = results.compare(open_study(other), out or Path("comparison"))
        if not quiet:
            for path in written.values():
                typer.echo(path)
        return
    written = results.report(out)
    if not quiet:
        print_results(results, list(written.values()))


@app.command("import")
def import_(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Run logs (.out), hyperparameter_search_results.txt, CSV files, or folders of them."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STUDY", help="A new folder for the study.")],
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of runs whose file gives none.")] = 42,
    quiet: Quiet = False,
) -> None:
    """Make a study of the results of other jobs: run logs, their summary file, or a CSV.

    A CSV needs a column with the run's name (or columns of T and α), the student's AUC, and its background rejection.
    What is damaged, repeated or contradicts itself is told with file and line; the study appears whole or not at all.
    It has no scores per jet: what its report can't hold for that is listed.

    \b
    Examples:
      kdfast import logs/transformer_*.out --out published
      kdfast import checkpoints/hyperparameter_search_results.txt --out published
      kdfast report published
    """
    from kdfast.report.importers import import_study

    results = import_study(list(paths), out, seed=seed)
    if not quiet:
        counts = results.results["status"].value_counts()
        typer.echo(f"{out}: {len(results.results)} runs, " + ", ".join(f"{n} {name}" for name, n in counts.items()))
        typer.echo("Without scores per jet these are impossible:")
        for analysis in results.impossible:
            typer.echo(f"  {analysis}")
        typer.echo(f"`kdfast report {out}` writes its report")
