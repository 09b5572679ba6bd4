"""Commands that train: sweep, refine."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from kdfast.cli.common import OwnModelOption, OwnTeacherOption, Quiet, Threads, app, given, print_results
from kdfast.cli.options import InSections, setting_argument, with_options
from kdfast.distill.recipe import in_order
from kdfast.interrupt import stoppable
from kdfast.store.keywords import AXIS, GRID_LISTS, HLT_FILES, SETTINGS, by_option
from kdfast.store.settings import StudySettings
from kdfast.validation import SettingError

__all__ = ["refine", "sweep"]


def _running(*names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel="Running", **more)


Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the study.")]
Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="TOML", help="File of settings. Other options take precedence over it."),
]
Resume = Annotated[bool, typer.Option(help="Resume a study that exists, or refuse it.")]
SweepThreads = Annotated[int | None, _running(min=1, metavar="N", help="CPU threads.", show_default="all cores")]
PlanOnly = Annotated[
    bool,
    _running("--plan-only", help="Train nothing; write the packs of runs that `kdfast worker` then trains."),
]
Workers = Annotated[int | None, _running(min=1, metavar="N", help="Plan for this many workers, of --threads each.")]
PackSize = Annotated[
    int | None, _running(min=1, metavar="N", help="Runs in a pack.", show_default="by a short calibration")
]
Dask = Annotated[
    str | None,
    _running(
        metavar="ADDRESS|local",
        help="Train on the workers of this Dask scheduler; local: of one started on this machine.",
    ),
]

# `--hlt-data` follows `--hlt`, and lists of your own the presets.
_OPTIONS = (
    *(each for each in SETTINGS if len(each.path) == 1),
    *GRID_LISTS,
    AXIS,
    *HLT_FILES,
    *(each for each in SETTINGS if len(each.path) == 2 and each.keyword != "data"),
)

_FOLDER = """
\b
The folder then holds:
  ANALYSIS_SUMMARY.txt    the findings, in words and tables; three more texts give the details
  results_summary.csv     one row per run
  report.json             every number of the report
  report.html             the report as a page, with its figures
  figures/                the figures as PDF and PNG
  models/                 teacher, baseline and best student (.safetensors), for `kdfast predict`
  study.toml              the settings
  results/                scores, curves and weights of every run
"""


@app.command(cls=InSections, epilog=_FOLDER)
@with_options(*_OPTIONS)
def sweep(
    data: Annotated[list[str] | None, setting_argument("data")] = None,
    out: Out = Path("study"),
    config: Config = None,
    resume: Resume = True,
    quiet: Quiet = False,
    threads: SweepThreads = None,
    plan_only: PlanOnly = False,
    workers: Workers = None,
    pack_size: PackSize = None,
    dask: Dask = None,
    **settings: Any,
) -> None:
    """Train a teacher, a baseline and a grid of distilled students.

    Without DATA this is the demo: small models on the bundled sample, minutes on two cores. With DATA the
    defaults are those of the reproduced study. Files are in MeV (or GeV, see --unit), settings in GeV.

    Each result is stored as soon as it is finished, and running members save checkpoints. After Ctrl-C, a
    kill, a batch system's signal or a full disk, rerun the same command to resume. Exit status: 130 after
    Ctrl-C, 75 after SIGTERM or SIGUSR1.

    \b
    Examples:
      kdfast sweep --out demo
      kdfast sweep 'atlas/train_*.h5' --out mine --max-jets 30000
      kdfast sweep train.h5 --out mine --learning-rate 1e-3 --warmup-epochs 1
      kdfast sweep --temperature 3 --temperature 7 --alpha 0.5 --alpha 0.9 --temperature-final 1 --out small
      kdfast sweep train.h5 --grid study --axis model=small,medium --axis learning_rate=5e-4,1e-3 --out sizes
      kdfast sweep train.h5 --config mine/study.toml --seed 42 --seed 43 --out again
      kdfast sweep train.h5 --out /shared/mine --dask tcp://scheduler:8786
    """
    arguments = {
        **_keywords(settings),
        **given({"config": config, "workers": workers, "pack_size": pack_size}),
        "resume": resume,
        "progress": not quiet,
        "plan_only": plan_only,
    }
    with stoppable(typer.echo, out, ends=True), ExitStack() as cluster:
        # A batch system may stop it before torch is imported, and while a cluster starts or ends.
        from kdfast import sweep as run
        from kdfast.study.dask_engine import connected

        try:
            if dask is None:
                arguments["threads"] = threads
            else:
                device = StudySettings.resolve(config, {"device": settings["device"]}).device
                arguments["client"] = cluster.enter_context(connected(dask, threads=threads, device=device))
            results = run(data or None, out, **arguments)
        except SettingError as error:
            raise by_option(error) from None
    if quiet:
        return
    if plan_only:
        typer.echo(f"run `kdfast worker --store {out}` to train the packs, in as many processes as you like")
    else:
        print_results(results)


def _keywords(options: dict[str, Any]) -> dict[str, Any]:
    """Options of settings as keywords of `kdfast.sweep`: lists become the grid, files of HLT jets the
    emulation."""
    keywords = given(options)
    axes = _axes(keywords.pop(AXIS.keyword, ()))
    lists = {each.keyword: keywords.pop(each.keyword) for each in GRID_LISTS if each.keyword in keywords}
    if "grid" in keywords and lists:
        option = next(each.option for each in GRID_LISTS if each.keyword in lists)
        raise typer.BadParameter(f"--grid and {option} exclude each other: give a preset or lists of your own")
    if axes and "grid" in keywords:
        lists = {"preset": keywords.pop("grid")}
    if lists or axes:
        keywords["grid"] = lists | axes
    files = {each.path[1]: keywords.pop(each.keyword) for each in HLT_FILES if each.keyword in keywords}
    if "hlt" in keywords and files:
        option = next(each.option for each in HLT_FILES if each.path[1] in files)
        raise typer.BadParameter(f"--hlt and {option} exclude each other: HLT jets are emulated or read from files")
    if files:
        keywords["hlt"] = files
    return keywords


def _axes(options: Iterable[str]) -> dict[str, list[str]]:
    """The values of further axes by name, of options like learning_rate=5e-4,1e-3."""
    axes: dict[str, list[str]] = {}
    for option in options:
        name, equals, values = option.partition("=")
        if not equals or not values:
            raise typer.BadParameter(f"--axis {option}: give a name and values, as in --axis model=small,medium")
        axes.setdefault(name.strip().replace("-", "_"), []).extend(value.strip() for value in values.split(","))
    return {name: axes[name] for name in in_order(axes)}


@app.command()
def refine(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="Folder of a study that a sweep has written.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Number of leading configurations.")] = 10,
    seeds: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Final number of seeds of each, including existing ones."),
    ] = 5,
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="Rank by the mean validation auc, bkg_rej_50 or combined.")
    ] = "auc",
    model: OwnModelOption = None,
    teacher_model: OwnTeacherOption = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train the best configurations of a study with more seeds.

    With one seed a lead may be luck; with several the report gives its uncertainty. The baseline gets the
    same seeds, and the report is updated. If interrupted, rerun the same command to resume.

    \b
    Example:
      kdfast refine demo --top 10 --seeds 5
    """
    with stoppable(typer.echo, study, ends=True):
        from kdfast.study.refine import refine as run

        results = run(
            study,
            top=top,
            seeds=seeds,
            metric=metric,
            model=model,
            teacher_model=teacher_model,
            threads=threads,
            progress=not quiet,
        )
    if not quiet:
        print_results(results)
