"""Commands that train: sweep, refine."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from kdfast.cli.common import Data, MaxJets, OnBad, Quiet, app, given, print_results

__all__ = ["refine", "sweep"]


@app.command()
def sweep(
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the study.")] = Path("study"),
    config: Annotated[
        Path | None, typer.Option(metavar="TOML", help="File of settings; options given here go over them.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Grid: study (132 runs) or wide (378).  [study]")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option(metavar="T", help="Own grid: an initial temperature > 0. May be repeated.")
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(metavar="α", help="Own grid: an initial weight of the teacher's term, 0 to 1. May be repeated."),
    ] = None,
    temperature_final: Annotated[
        list[float] | None, typer.Option(metavar="T", help="Own grid: T of the last epoch. May be repeated.")
    ] = None,
    alpha_final: Annotated[
        list[float] | None, typer.Option(metavar="α", help="Own grid: α of the last epoch. May be repeated.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="Students' size: study, medium or small.  [study; demo: small]"),
    ] = None,
    teacher_model: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="Teacher's size: study, medium or small.  [study; demo: medium]"),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A trained teacher (.safetensors) or its logits (.npy).  [train one]"),
    ] = None,
    hlt: Annotated[
        str | None, typer.Option(metavar="PRESET", help="HLT emulation: mild, nominal, severe or study.  [nominal]")
    ] = None,
    hlt_data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Instead of --hlt: the same jets, in the same order, as a trigger saw them. May be repeated.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of students and baseline.  [50; demo: 5]")
    ] = None,
    teacher_epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of the teacher.  [as --epochs; demo: 6]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, metavar="N", help="Jets.  [512; demo: 128]")] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Of weights, batches, dropout. Repeated: a whole grid each.  [42]"),
    ] = None,
    max_jets: MaxJets = None,
    max_constituents: Annotated[
        str | None, typer.Option(metavar="N|all", help="The hardest so many of each jet.  [40]")
    ] = None,
    on_bad: OnBad = None,
    precision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of matrix products: fp32, or bf16, which is faster.  [fp32]")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the training: cpu, cuda (all GPUs) or cuda:1 (one of them).  [cpu]"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.  [all cores]")] = None,
    checkpoint_every: Annotated[
        float | None, typer.Option(min=0, metavar="S", help="Seconds between checkpoints of a running member.  [300]")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with a study that is there, or refuse it.")] = True,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Train nothing; write the packs that `kdfast worker` then trains.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Plan packs for so many workers, of --threads each.")
    ] = None,
    pack_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs of a pack.  [by a short calibration]")
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Train on the workers of this Dask scheduler, or of one that is started on this machine.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Train a teacher, a baseline and a grid of distilled students.

    Without DATA it runs the demo: small models on the bundled sample, minutes on two cores. With DATA the defaults are
    those of the published study. Each result is stored when it is finished, and members that run have checkpoints;
    stopped by Ctrl-C, a batch system, a kill or a full disk, the same command goes on. Exit status: 130 after Ctrl-C,
    75 after SIGTERM or SIGUSR1 (run it again). Files are in MeV, everything else is in GeV.

    \b
    Examples:
      kdfast sweep --out demo
      kdfast sweep 'atlas/train_*.h5' --out mine --max-jets 30000
      kdfast sweep --temperature 3 --temperature 7 --alpha 0.5 --alpha 0.9 --temperature-final 1 --out small
      kdfast sweep train.h5 --config mine/study.toml --seed 42 --seed 43 --out again
      kdfast sweep train.h5 --out /shared/mine --dask tcp://scheduler:8786

    \b
    In the folder afterwards:
      ANALYSIS_SUMMARY.txt         what came out, in words and tables; three more texts hold the details
      results_summary.csv          a row a run; report.json: every number of the report
      report.html                  the report as one page, with its figures
      figures/                     these as PDF and PNG
      models/*.safetensors         teacher, baseline and best student, for `kdfast predict`
      study.toml                   the settings
      results/                     scores, curves and weights of every run
    """
    own_grid = given(
        {
            "temperature": temperature,
            "alpha": alpha,
            "temperature_final": temperature_final,
            "alpha_final": alpha_final,
        }
    )
    if grid is not None and own_grid:
        _exclude("--grid", f"--{next(iter(own_grid)).replace('_', '-')}", "a grid is a preset or lists of one's own")
    if hlt is not None and hlt_data:
        _exclude("--hlt", "--hlt-data", "HLT jets are emulated or read from files")

    from kdfast.study.interrupt import stoppable

    options: dict[str, Any] = {
        "config": config,
        "grid": grid or own_grid or None,
        "model": model,
        "teacher_model": teacher_model,
        "teacher": teacher,
        "hlt": {"paths": hlt_data} if hlt_data else hlt,
        "epochs": epochs,
        "teacher_epochs": teacher_epochs,
        "batch_size": batch_size,
        "seeds": seed or None,
        "max_jets": max_jets,
        "max_constituents": max_constituents,
        "on_bad": on_bad,
        "precision": precision,
        "device": device,
        "threads": None if dask else threads,
        "workers": workers,
        "pack_size": pack_size,
        "checkpoint_every": checkpoint_every,
    }
    with stoppable(typer.echo, out, ends=True) as stop, ExitStack() as cluster:
        # A batch system may stop it before torch is imported, and while a cluster starts or ends.
        from kdfast import sweep as run
        from kdfast.store.settings import StudySettings
        from kdfast.study.dask_engine import connected

        stop.check()  # an import may have swallowed it
        client = None
        if dask is not None:
            settings = StudySettings.resolve(config, {"device": device})
            client = cluster.enter_context(connected(dask, threads=threads, device=settings.device))
        results = run(
            data or None,
            out,
            resume=resume,
            progress=not quiet,
            plan_only=plan_only,
            client=client,
            **given(options),
        )
    if plan_only:
        if not quiet:
            typer.echo(f"`kdfast worker --store {out}`, as often as you like, trains the packs")
    elif not quiet:
        print_results(results)


@app.command()
def refine(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study that a sweep has made.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many leading configurations.")] = 10,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Seeds that each of them has in the end; those there count.")
    ] = 5,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="Leading by validation mean of auc, bkg_rej_50 or combined.")
    ] = "auc",
    threads: Annotated[int | None, typer.Option(min=1, metavar="N", help="CPU threads.  [all cores]")] = None,
    quiet: Quiet = False,
) -> None:
    """Train the leading configurations of a study with more seeds, and write its report anew.

    With one seed a lead may be luck; the report of several says how much of it is. The baseline gets the same seeds.
    Stopped half-way, the same command goes on.

    \b
    Example:
      kdfast refine demo --top 10 --seeds 5
    """
    from kdfast.study.interrupt import stoppable

    with stoppable(typer.echo, study, ends=True) as stop:
        from kdfast.study.refine import refine as run

        stop.check()  # an import may have swallowed it
        results = run(study, top=top, seeds=seeds, metric=metric, threads=threads, progress=not quiet)
    if not quiet:
        print_results(results)


def _exclude(one: str, other: str, why: str) -> NoReturn:
    raise typer.BadParameter(f"{one} and {other} exclude each other: {why}")
