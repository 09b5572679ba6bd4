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
        typer.Option("--watch", help="Keep showing it until the study is finished or nothing is running."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, for scripts.")] = False,
    quiet: Quiet = False,
) -> None:
    """Show which runs of a study are done and what is running.

    Lists runs that failed, diverged, are damaged or missing, what is running where, and the time left; also
    during a sweep. It computes no checksums: `kdfast verify` does. Exit status: 0 if all runs are done, 1 if
    not, 2 if the study can't be read.

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
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study, or a packed store.")],
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Repair what can be repaired. Only caches and leftovers are deleted."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare every file of a study, or of a packed store, with its checksum.

    Files that do not belong there are reported too. --repair moves damaged results into damaged/, each with
    a note of the reason, so that the next sweep trains them again; it removes damaged caches, leftovers of
    killed processes and damaged files of the report. It can't run during a sweep. Exit status: 0 if the
    study is intact or everything was repaired, otherwise 1.

    \b
    Examples:
      kdfast verify demo
      kdfast verify demo --repair
    """
    from kdfast.jets.jet_store import is_store, verify_store
    from kdfast.store import verify as module

    if is_store(study):
        jets = sum(verify_store(study))
        if not quiet:
            typer.echo(f"{study}: {jets:,} jets, all as written")
        return

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
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder of the report.  [default: the study's; of two: comparison]",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write the report of a study, or compare two studies.

    The report (tables, texts, report.json, page, figures and models) is made from the stored results.
    Whatever is impossible with the results so far is left out, and the texts give the reason. For two
    studies: a table of paired differences of the runs that both have.

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
            metavar="PATH...",
            help="Run logs (.out), hyperparameter_search_results.txt, CSV files, or folders of them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="STUDY", help="A new folder for the study.")],
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Seed of runs whose file gives none.", show_default="unknown")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Import the results of other jobs as a study.

    Reads run logs, their summary file, or a CSV with columns for the run's name (or T and α), the student's
    AUC, and its background rejection. A damaged, repeated or contradictory entry is an error that names file
    and line, and no study is written. Imported studies have no scores per jet; the command lists the
    analyses that need them.

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
        typer.echo("Impossible without scores per jet:")
        for analysis in results.impossible:
            typer.echo(f"  {analysis}")
        typer.echo(f"run `kdfast report {out}` to write its report")
