"""The command line: `kdfast sweep | status | report | refine | import | predict | generate | bench | doctor`.

A thin layer: each command turns its options into one call of the package and prints what that gives. Modules are
imported inside the commands, so that --help and --version do not wait for torch.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from kdfast._version import __version__
from kdfast.errors import DataError, KdfastError, KdfastWarning

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kdfast.study.results import StudyResults

__all__ = ["app", "main"]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Data = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="DATA", help="Jets in ATLAS Top Tagging HDF5 files, or patterns of them. None: the bundled sample."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]
MaxJets = Annotated[int | None, typer.Option(min=1, metavar="N", help="Read only the first so many jets.")]
OnBad = Annotated[
    str | None, typer.Option(metavar="error|drop", help="A bad jet is an error, or is left out and counted.  [error]")
]


@app.callback(invoke_without_command=True)
def kdfast(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where a command fails.")] = False,
) -> None:
    """Trains and compares many distilled jet taggers as one job.

    A teacher sees the offline view of a jet, students the coarse view of a trigger; a sweep trains one student for
    each temperature T and mixing weight α of a grid.

    \b
    Start here:
      kdfast sweep                                   the 132 configurations of the study on the bundled jets
      kdfast sweep train*.h5 --out mine              the same on your own files, with the study's settings
      kdfast predict mine/models/best_student.safetensors new.h5 --out scores.h5

    `kdfast COMMAND --help` explains a command, with examples.
    """
    if version:
        typer.echo(f"kdfast {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


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
        typer.Option(metavar="FILE", help="No emulation: the same jets, in the same order, as a trigger saw them."),
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
        int | None, typer.Option(min=1, metavar="N", help="The hardest so many of each jet.  [40]")
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
    resume: Annotated[bool, typer.Option(help="Go on with a study that is there, or refuse it.")] = True,
    quiet: Quiet = False,
) -> None:
    """Train a teacher, a baseline and a grid of distilled students.

    Without DATA it runs the demo: small models on the bundled sample, minutes on two cores. With DATA the defaults are
    those of the published study. Each result is stored when it is finished; stopped by Ctrl-C, a kill or a full disk,
    the same command goes on. Files are in MeV, everything else is in GeV.

    \b
    Examples:
      kdfast sweep --out demo
      kdfast sweep 'atlas/train_*.h5' --out mine --max-jets 30000
      kdfast sweep --temperature 3 --temperature 7 --alpha 0.5 --alpha 0.9 --temperature-final 1 --out small
      kdfast sweep train.h5 --config mine/study.toml --seed 42 --seed 43 --out again

    \b
    In the folder afterwards:
      ANALYSIS_SUMMARY.txt         what came out, in words and tables; three more texts hold the details
      results_summary.csv          a row a run; report.json: every number of the report
      report.html                  the report as one page, with its figures
      figures/                     these as PDF and PNG
      models/*.safetensors         these three, for `kdfast predict`
      study.toml                   the settings
      results/                     scores, curves and weights of every run
    """
    from kdfast import sweep as run
    from kdfast.jets.readers import load_jets

    own_grid = {
        "temperature": temperature,
        "alpha": alpha,
        "temperature_final": temperature_final,
        "alpha_final": alpha_final,
    }
    reading = {"max_jets": max_jets, "max_constituents": max_constituents, "on_bad": on_bad}
    options: dict[str, Any] = {
        "config": config,
        "grid": grid or _given(own_grid) or None,
        "model": model,
        "teacher_model": teacher_model,
        "teacher": _logits(teacher) if teacher is not None and teacher.suffix == ".npy" else teacher,
        "hlt": load_jets(hlt_data, **_given(reading)) if hlt_data else hlt,
        "epochs": epochs,
        "teacher_epochs": teacher_epochs,
        "batch_size": batch_size,
        "seeds": seed or None,
        "precision": precision,
        "device": device,
        "threads": threads,
        **reading,
    }
    results = run(data or None, out, resume=resume, progress=not quiet, **_given(options))
    if not quiet:
        _print_results(results)


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
        _print_results(results, list(written.values()))


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
    from kdfast.study.refine import refine as run

    results = run(study, top=top, seeds=seeds, metric=metric, threads=threads, progress=not quiet)
    if not quiet:
        _print_results(results)


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


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model that kdfast wrote (.safetensors).")],
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="Jets in ATLAS Top Tagging HDF5 files; labels are not needed."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="HDF5 file to write; one that is there is replaced.")
    ],
    max_jets: MaxJets = None,
    on_bad: OnBad = None,
    prepared: Annotated[
        bool, typer.Option("--prepared", help="The jets are as a real trigger saw them: apply no HLT emulation.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Score jets with a trained model.

    The model's file says how jets are prepared (HLT emulation, features, standardisation). OUT gets the datasets
    index (row in the input, counted through the files), score (logit), probability (of signal), and label where the
    input has labels.

    \b
    Example:
      kdfast predict demo/models/best_student.safetensors test.h5 --out scores.h5
    """
    from kdfast.jets.readers import load_jets
    from kdfast.models import load_model
    from kdfast.models.scoring import write_scores

    tagger = load_model(model)
    jets = load_jets(data, require_labels=False, **_given({"max_jets": max_jets, "on_bad": on_bad}))
    write_scores(out, tagger, jets, prepared=prepared)
    if not quiet:
        typer.echo(f"{out}: scores of {len(jets):,} jets")


@app.command()
def generate(
    jets: Annotated[
        int, typer.Option(metavar="N", help="Number of jets, an even one: half top (label 1), half QCD (label 0).")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="HDF5 file to write, in the ATLAS layout (MeV).")
    ],
    seed: Annotated[int, typer.Option(metavar="N", help="Equal seeds give equal files, whatever --jobs.")],
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes.  [all cores]")] = None,
    quiet: Quiet = False,
) -> None:
    """Generate top and QCD jets with Pythia 8 (needs `pip install 'kdfast[generate]'`).

    Anti-kT jets with R = 1.0 and 450 to 1200 GeV, the same pT spectrum in both classes; some 40 jets per second and
    core. Stopped half-way, the same command goes on.

    \b
    Example:
      kdfast generate --jets 30000 --out jets.h5 --seed 1
    """
    from kdfast.jets import generator

    generator.generate(jets, out, seed=seed, jobs=jobs, progress=not quiet)
    if not quiet:
        typer.echo(f"{out}: {jets:,} jets")


@app.command()
def bench(
    select: Annotated[
        str | None, typer.Option("-k", metavar="NAMES", help="Only benchmarks whose names match (pytest's -k).")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads of both sides.")] = 2,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the measurements in this JSON file.")] = None,
) -> None:
    """Measure how many times faster kdfast is than plain PyTorch, op by op (inside a clone of the sources).

    \b
    Examples:
      kdfast bench
      kdfast bench -k distill_loss
    """
    from kdfast.bench import ratio_table, run_benchmarks

    _console().print(ratio_table(run_benchmarks(select, threads=threads, save=save)))


@app.command()
def doctor() -> None:
    """Print versions, processor, instruction set, compiled modules in use, and why any is not.

    \b
    Example:
      kdfast doctor
    """
    from kdfast.doctor import examine

    for heading, lines in examine().items():
        typer.echo(heading)
        width = max(len(name) for name in lines)
        for name, text in lines.items():
            typer.echo(f"  {name:<{width}}  {text}")


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Options that the user gave; the others keep the defaults of the function that they go to."""
    return {name: value for name, value in options.items() if value is not None and value != []}


def _logits(path: Path) -> NDArray[Any]:
    import numpy as np

    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise DataError(f"is no array that numpy.save wrote ({error})", where=str(path)) from None


def _console() -> Console:
    # where there is no terminal, wide enough that no line is cut
    return Console() if sys.stdout.isatty() else Console(width=140)


def _print_results(results: StudyResults, written: Sequence[Path] = ()) -> None:
    """written: the report's files; none: those in the study's folder."""
    import pandas as pd

    from kdfast.report.table import METRICS, selected_on

    table = results.results
    done = table[table["status"] == "done"]
    typer.echo(f"{len(done)} of {len(table)} runs are done")
    if not done.empty:
        chosen_on = " and ".join(dict.fromkeys(selected_on(table, metric) for metric in ("auc", "bkg_rej_50")))
        shown = Table(title=f"Chosen on {chosen_on} jets, numbers from test jets", title_justify="left")
        for heading in (
            "best by",
            "configuration",
            "AUC",
            "rejection at 50 %",
            "AUC of the baseline",
            "of the teacher",
        ):
            shown.add_column(heading, justify="left" if heading in ("best by", "configuration") else "right")
        for metric in ("auc", "bkg_rej_50", "combined"):
            best = results.best(metric)
            name = best["run_name"] if table["seed"].nunique() == 1 else f"{best['run_name']}, seed {best['seed']}"
            limit = ">" if pd.notna(best["n_bkg_50"]) and best["n_bkg_50"] == 0 else ""
            numbers = (f"{best[column]:.4f}" for column in ("auc_baseline", "auc_teacher"))
            auc, rejection = f"{best['auc_student']:.4f}", f"{limit}{best['bkg_rej_50']:.2f}"
            shown.add_row(METRICS[metric], name, auc, rejection, *numbers)
        _console().print(shown)
    usual = ("report.html", "ANALYSIS_SUMMARY.txt", "results_summary.csv", "report.json", "figures", "models")
    paths = written or [results.path / name for name in usual]
    folder = min((path.parent for path in paths), key=lambda parent: len(parent.parts))
    for path in dict.fromkeys(path if path.parent == folder else path.parent for path in paths):  # a folder once
        if path.exists():
            typer.echo(path)


# ---- entry


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, KdfastWarning):
        print(f"kdfast: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *where[:2]), end="", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `kdfast`; returns the exit status: 0, 2 for an error (one or two lines on stderr; --debug, anywhere,
    adds the traceback), 128 + the signal for an interrupt (130 for Ctrl-C)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, which typer bundles and does not export
    command = typer.main.get_command(app)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            with command.make_context("kdfast", given) as context:
                command.invoke(context)
            sys.stdout.flush()
        except typer.Exit as exit_:
            return exit_.exit_code
        except (KeyboardInterrupt, typer.Abort) as interrupt:
            text = str(interrupt) or "interrupted"
            if debug:
                raise
            after_echo = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
            print(f"{after_echo}kdfast: {text}", file=sys.stderr)
            return 128 + getattr(interrupt, "signum", 2)
        except BrokenPipeError:  # e.g. `kdfast status demo | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except usage_error as error:
            if debug:
                raise
            where = getattr(getattr(error, "ctx", None), "command_path", "kdfast")
            print(f"{where}: {error.format_message()}\n`{where} --help` explains it", file=sys.stderr)
            return 2
        except (KdfastError, OSError) as error:
            if debug:
                raise
            print(f"kdfast: {error}", file=sys.stderr)
            return 2
    return 0
