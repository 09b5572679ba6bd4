"""Commands for many processes at one study: worker, script."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kdfast.cli.common import Quiet, app
from kdfast.messages import drop

__all__ = ["htcondor", "slurm", "worker"]

script = typer.Typer(rich_markup_mode=None)
app.add_typer(script, name="script", help="Print what submits a planned study to a batch system.")

Planned = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a planned study.")]
Retry = Annotated[bool, typer.Option("--retry", help="Try packs again that have failed three times.")]
Cpus = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPUs of a job.  [as planned]")]


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
    retry: Retry = False,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.  [all cores]")] = None,
    lease: Annotated[
        float,
        # claims.BEAT twice: less would take packs from workers that live
        typer.Option(min=30, metavar="SECONDS", help="Silence after which another worker's pack is taken over."),
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
    from kdfast.study.interrupt import stoppable

    with stoppable(typer.echo, store, ends=True) as stop:  # a batch system may stop it before torch is imported
        from kdfast.study.worker import work

        stop.check()  # an import may have swallowed it
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
        parts = [f"{len(outcome.done)} pack{'' if len(outcome.done) == 1 else 's'} done"]
        if outcome.elsewhere:
            parts.append(f"{len(outcome.elsewhere)} with other workers")
        if outcome.left:
            parts.append(f"{len(outcome.left)} left")
        all_done = pack is None and array_index is None and outcome.done and not (parts[1:] or outcome.failed)
        more = f"; `kdfast report {store}` writes the report" if all_done else ""
        try:
            typer.echo(f"{store}: {', '.join(parts)}{more}")
        except OSError:  # a log's disk is full, or its reader gone: the exit status still says what became of the packs
            drop(sys.stdout)
    for name, error in outcome.failed.items():
        typer.echo(f"kdfast: pack {name} failed: {error}", err=True)
    raise typer.Exit(1 if outcome.failed else 0)


@script.command()
def slurm(
    study: Planned,
    time: Annotated[
        str | None, typer.Option(metavar="LIMIT", help="Time limit of a job, as sbatch takes it.  [as planned]")
    ] = None,
    cpus: Cpus = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a job, e.g. 4G.  [the cluster's default]")
    ] = None,
    partition: Annotated[str | None, typer.Option(metavar="NAME", help="[the cluster's default]")] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="[your default]")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTIONS", help="More options of sbatch, quoted as for a shell. May be repeated."),
    ] = None,
    retry: Retry = False,
) -> None:
    """Print a file that submits a planned study to SLURM.

    Run outside a job, the file submits three: the teacher, an array with a task for each pack that is not done, and
    the report. A task that comes near its time limit saves checkpoints and goes back into the queue. A time limit may
    thus be shorter than a pack takes.

    \b
    Examples:
      kdfast sweep train*.h5 --out mine --plan-only --workers 20 --threads 8
      kdfast script slurm mine --partition short --time 2:00:00 > mine.slurm
      bash mine.slurm
      kdfast script slurm mine --sbatch '--mail-type=END --exclude=node7' > mine.slurm
    """
    from kdfast.study.batch_script import slurm_script

    text = slurm_script(
        study,
        time=time,
        cpus=cpus,
        memory=memory,
        partition=partition,
        account=account,
        sbatch=sbatch or (),
        retry=retry,
    )
    typer.echo(os.fsencode(text), nl=False)  # names of files need not be text


@script.command()
def htcondor(
    study: Planned,
    cpus: Cpus = None,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Of a job.")] = "2GB",
    submit: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="One more line of the submit description. May be repeated."),
    ] = None,
    retry: Retry = False,
) -> None:
    """Print a file that submits a planned study to HTCondor, for condor_submit_dag.

    The teacher first, then a job for each pack that is not done, then the report. A job that is evicted saves
    checkpoints and runs again. The study's folder must be on a file system that all machines share.

    \b
    Examples:
      kdfast script htcondor mine --cpus 4 > mine.dag
      condor_submit_dag mine.dag
      kdfast script htcondor mine --submit '+JobFlavour = "workday"' > mine.dag
    """
    from kdfast.study.batch_script import htcondor_dag

    text = htcondor_dag(study, cpus=cpus, memory=memory, submit=submit or (), retry=retry)
    typer.echo(os.fsencode(text), nl=False)
