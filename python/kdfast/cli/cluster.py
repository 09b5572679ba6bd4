"""Commands for many processes at one study: worker, script."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdfast.cli.common import OwnModelOption, OwnTeacherOption, Quiet, Threads, app
from kdfast.cli.options import pack_names
from kdfast.messages import drop

if TYPE_CHECKING:
    from kdfast.study.worker import Outcome

__all__ = ["htcondor", "slurm", "worker"]

script = typer.Typer(rich_markup_mode=None)
app.add_typer(script, name="script", help="Print a submit file for a batch system.")

Planned = Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a planned study.")]
Retry = Annotated[bool, typer.Option("--retry", help="Also retry packs that have failed three times.")]
Lease = Annotated[
    float,
    typer.Option(
        min=30,  # twice claims.BEAT: with less, packs of live workers would be taken over
        metavar="SECONDS",
        help="Time without a sign of life after which another worker's pack is taken over.",
    ),
]
Cpus = Annotated[int | None, typer.Option(min=1, metavar="N", help="CPUs per job.", show_default="as planned")]


@app.command()
def worker(
    store: Annotated[Path, typer.Option(metavar="STUDY", help="Folder of a planned study.")],
    pack: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Train only this pack, e.g. seed42.003; `teacher` trains only the teacher.",
            autocompletion=pack_names,
        ),
    ] = None,
    array_index: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Train only the pack with this number, counted from 0."),
    ] = None,
    max_packs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Stop after N packs.")] = None,
    retry: Retry = False,
    threads: Threads = None,
    lease: Lease = 180,
    model: OwnModelOption = None,
    teacher_model: OwnTeacherOption = None,
    quiet: Quiet = False,
) -> None:
    """Train the packs of a planned study, alongside other workers.

    `kdfast sweep --plan-only` plans a study; its folder is all that a worker needs. Workers share the packs,
    and stored results are not trained again, so that you may start workers at any time and as many as you
    like. SIGTERM or SIGUSR1 (a batch system's warning) stops a worker after it has saved checkpoints.

    \b
    Exit status:
      0    nothing left to do (or --max-packs are done); other workers may still be training their packs
      1    a pack failed: `kdfast status STUDY` gives the reason
      2    the study or an option can't be used
      75   stopped by SIGTERM or SIGUSR1: rerun the same command to resume
      130  stopped by Ctrl-C

    \b
    Examples:
      kdfast sweep train*.h5 --out mine --plan-only --workers 20
      kdfast worker --store mine
      kdfast worker --store mine --array-index $SLURM_ARRAY_TASK_ID --threads 8
    """
    from kdfast.interrupt import stoppable

    with stoppable(typer.echo, store, ends=True):  # a batch system may stop it before torch is imported
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
            model=model,
            teacher_model=teacher_model,
        )
    if not quiet:
        complete = pack is None and array_index is None
        _print_outcome(store, outcome, complete)
    for name, error in outcome.failed.items():
        typer.echo(f"kdfast: pack {name} failed: {error}", err=True)
    raise typer.Exit(1 if outcome.failed else 0)


def _print_outcome(store: Path, outcome: Outcome, complete: bool) -> None:
    """complete: the worker was asked for all packs of the study."""
    parts = [f"{len(outcome.done)} pack{'' if len(outcome.done) == 1 else 's'} done"]
    if outcome.elsewhere:
        parts.append(f"{len(outcome.elsewhere)} with other workers")
    if outcome.left:
        parts.append(f"{len(outcome.left)} left")
    all_done = complete and outcome.done and not (parts[1:] or outcome.failed)
    more = f"; run `kdfast report {store}` to write the report" if all_done else ""
    try:
        typer.echo(f"{store}: {', '.join(parts)}{more}")
    except OSError:  # the log's disk is full, or its reader gone: the exit status still tells the outcome
        drop(sys.stdout)


@script.command()
def slurm(
    study: Planned,
    time: Annotated[
        str | None,
        typer.Option(metavar="LIMIT", help="Time limit per job, in sbatch's format.", show_default="as planned"),
    ] = None,
    cpus: Cpus = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory per job, e.g. 4G.", show_default="the cluster's"),
    ] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Partition.", show_default="the cluster's")
    ] = None,
    account: Annotated[str | None, typer.Option(metavar="NAME", help="Account.", show_default="yours")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTIONS", help="Further options of sbatch, quoted as for a shell. Repeatable."),
    ] = None,
    retry: Retry = False,
) -> None:
    """Print a file that submits a planned study to SLURM.

    Running the file submits three jobs: the teacher, an array with one task for each unfinished pack, and
    the report. A task that approaches its time limit saves checkpoints and is requeued, so the limit may be
    shorter than a pack takes.

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
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory per job.")] = "2GB",
    submit: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="A further line of the submit description. Repeatable."),
    ] = None,
    retry: Retry = False,
) -> None:
    """Print a file that submits a planned study to HTCondor.

    condor_submit_dag then runs the teacher, one job for each unfinished pack, and the report. An evicted job
    saves checkpoints and runs again. The study's folder must be on a file system that all machines share.

    \b
    Examples:
      kdfast script htcondor mine --cpus 4 > mine.dag
      condor_submit_dag mine.dag
      kdfast script htcondor mine --submit '+JobFlavour = "workday"' > mine.dag
    """
    from kdfast.study.batch_script import htcondor_dag

    text = htcondor_dag(study, cpus=cpus, memory=memory, submit=submit or (), retry=retry)
    typer.echo(os.fsencode(text), nl=False)
