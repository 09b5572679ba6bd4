"""Commands on a study's folder: status, verify, report, import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kdfast.cli.common import Quiet, app, print_results
from kdfast.errors import StudyError

__all__ = ["import_", "report", "status", "verify"]


@app.command()
def status(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Show it until nothing more is to come; off a terminal, each change."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON, for scripts.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say which runs of a study are done, failed, damaged or missing, what is running where, and the time left.

    Also while a sweep or workers are at it. It is quick: `kdfast verify` checks every file against its checksum. Exit
    status: 0 if all runs are done, 1 if not, 2 if it can't be read.

    \b
    Examples:
      kdfast status demo
      kdfast status demo --watch
      kdfast status demo --json
    """
    from kdfast.cli.status import show

    raise typer.Exit(show(study, watch=watch, as_json=json, quiet=quiet))


@app.command()
def verify(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Put right what can be; nothing but caches and leftovers is deleted.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Check every file of a study against its checksum, and look for what should not be there.

    With --repair damaged results move into damaged/, with a note why, so that the next sweep trains them anew; damaged
    caches, leftovers of killed writers and damaged files of the report are removed. Not while a sweep is at work. Exit
    status: 0 if nothing is wrong (or all of it was repaired), else 1.

    \b
    Examples:
      kdfast verify demo
      kdfast verify demo --repair
    """
    from kdfast.store import verify as module

    def told(lines: Sequence[str]) -> None:
        for line in () if quiet else lines:
            typer.echo(f"  {line}")

    done: Sequence[str] = ()
    if repair:
        try:
            found, done = module.repair(study, progress=not quiet)
        except StudyError as error:
            told(error.done)
            raise
    else:
        found = module.verify(study, progress=not quiet)
    left = [finding for finding in found.findings if not (repair and finding.remedy)]
    if not quiet:
        for note in found.notes:
            typer.echo(f"  note: {note}")
        counted = f"{found.files:,} files, {found.bytes / 1e6:,.1f} MB"
        typer.echo(f"{study}: {counted}, " + ("all as written" if found.intact else f"{len(found.findings)} wrong"))
    for finding in () if quiet and not left else found.findings:
        typer.echo(f"  {finding.path}: {finding.what}", err=quiet)
    told(done)
    raise typer.Exit(int(bool(left)))


@app.command()
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, finished or not.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="OTHER", help="A second study, to compare with the first.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder of the report.  [the study's own; of two: comparison]"),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write a study's report anew from its stored results: tables, texts, report.json, page, figures and models.

    What is not there yet is left out, and named in the texts with the reason. With two studies: a
    table of paired differences of the runs that both have.

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
    from kdfast.study.imports import import_study

    results = import_study(list(paths), out, seed=seed)
    if not quiet:
        counts = results.results["status"].value_counts()
        typer.echo(f"{out}: {len(results.results)} runs, " + ", ".join(f"{n} {name}" for name, n in counts.items()))
        typer.echo("Without scores per jet these are impossible:")
        for analysis in results.impossible:
            typer.echo(f"  {analysis}")
        typer.echo(f"`kdfast report {out}` writes its report")
