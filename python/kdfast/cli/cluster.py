"""Commands for many processes at one study: worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdfast.cli.common import Quiet, app

__all__ = ["worker"]


@app.command()
def worker(
    store: Annotated[Path, typer.Option(metavar="STUDY", help="Folder of a planned study.")],
    pack: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this pack, e.g. seed42.003; `teacher`: the teacher alone.")
    ] = None,
    array_index: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only the pack of this number, counted from 0.")
    ] = None,
    max_packs: Annotated[int | None, typer.Option(min=1, metavar="N", help="No more than so many packs.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try packs again that have failed three times.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.  [all cores]")] = None,
    lease: Annotated[
        float,
        typer.Option(min=1, metavar="SECONDS", help="Silence after which another worker's pack is taken over."),
    ] = 180,
    quiet: Quiet = False,
) -> None:
    """Train packs of a study that `kdfast sweep --plan-only` has planned, together with any other workers on it.

    Needs nothing but the study's folder. Starting it again, or twice at once, does no harm: what is stored is not
    trained again, and packs are shared through claims. Stopped by SIGTERM or SIGUSR1 (a batch system's warning), it
    keeps what its runs have reached.

    \b
    Exit status:
      0   nothing is left that this worker should do (without --pack and --array-index, other workers may still be
          at their packs; --max-packs: so many are done)
      1   a pack failed: `kdfast status STUDY` says of what
      2   the study or an option can't be used
      75  stopped by SIGTERM or SIGUSR1: the same command goes on (130: by Ctrl-C)

    \b
    Examples:
      kdfast sweep train*.h5 --out mine --plan-only --workers 20
      kdfast worker --store mine
      kdfast worker --store mine --array-index $SLURM_ARRAY_TASK_ID --threads 8
    """
    from kdfast.study.worker import work

    outcome = work(
        store,
        pack=pack,
        array_index=array_index,
        max_packs=max_packs,
        retry=retry,
        threads=threads,
        lease=lease,
        progress=not quiet,
    )
    if not quiet:
        parts = [f"{len(outcome.done)} packs done"]
        if outcome.elsewhere:
            parts.append(f"{len(outcome.elsewhere)} with other workers")
        if outcome.left:
            parts.append(f"{len(outcome.left)} left")
        typer.echo(f"{store}: {', '.join(parts)}")
    for name, error in outcome.failed.items():
        typer.echo(f"kdfast: pack {name} failed: {error}", err=True)
    raise typer.Exit(1 if outcome.failed else 0)
