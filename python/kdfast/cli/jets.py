"""Commands on files of jets: prepare, predict, generate."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from kdfast.cli.common import OwnModelOption, Quiet, app, given
from kdfast.cli.options import with_options
from kdfast.errors import ConfigError

__all__ = ["generate", "predict", "prepare"]


@app.command()
@with_options("validation_data", "test_data", "max_constituents", "on_bad", "columns", "unit", "sort", before="split")
def prepare(
    data: Annotated[list[str], typer.Argument(metavar="DATA", help="Files of jets, or patterns of them.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="The store to write, for example jets.store.")
    ],
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="COLUMN", help="Keep a column, by which kdfast sweep --split splits the jets."),
    ] = None,
    no_labels: Annotated[
        bool, typer.Option("--no-labels", help="The jets are only to be scored: labels are not needed.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes.", show_default="all cores")] = None,
    quiet: Quiet = False,
    **settings: Any,
) -> None:
    """Write files of jets into a packed store, for data larger than memory.

    `kdfast sweep` and `kdfast predict` take the store in place of files. They read it in place, so that it
    need not fit into memory. Many processes can share it. `kdfast verify` checks it. If interrupted, rerun
    the same command to resume.

    \b
    Example:
      kdfast prepare train_*.h5 --out jets.store
      kdfast sweep jets.store --out mine
    """
    from kdfast.jets.jet_store import StoreCard
    from kdfast.jets.prepare import prepare as write_store
    from kdfast.store.settings import DataSettings

    kept = DataSettings.model_validate(given({"max_constituents": settings.pop("max_constituents")}))
    write_store(
        data,
        out,
        max_constituents=kept.max_constituents,
        exactly=kept.asks_for_constituents,
        require_labels=not no_labels,
        split=split,
        progress=not quiet,
        **given(settings | {"jobs": jobs}),
    )
    if not quiet:
        card = StoreCard.read(out)
        typer.echo(f"{out}: {card.jets:,} jets with {card.constituents:,} constituents")


@app.command()
@with_options("max_jets", "on_bad", "columns", "unit", "sort", before="prepared")
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Model file written by kdfast (.safetensors).")],
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA", help="Files of jets; labels are not needed."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="File to write: CSV if it ends in .csv, else HDF5. Replaced if it exists and is not an input.",
        ),
    ],
    prepared: Annotated[
        bool,
        typer.Option("--prepared", help="Apply no HLT emulation: the jets are as a real trigger saw them."),
    ] = False,
    own_model: OwnModelOption = None,
    quiet: Quiet = False,
    **settings: Any,
) -> None:
    """Score jets with a trained model.

    The model's file determines how jets are prepared (HLT emulation, features, standardisation). The output
    has the datasets or columns index (row in the input, counted across files), label if the input has labels,
    score (logit) and probability (of signal).

    \b
    Example:
      kdfast predict demo/models/best_student.safetensors test.h5 --out scores.h5
      kdfast predict demo/models/best_student.safetensors test.h5 --out scores.csv
    """
    from kdfast.jets.readers import load_jets
    from kdfast.jets.sources import expand

    for used in [model, *expand(data)]:
        if out.exists() and used.exists() and out.samefile(used):
            hint = "give another name: the scores would replace it"
            raise ConfigError("is one of the input files", where=f"--out {out}", hint=hint)
    with ThreadPoolExecutor(1) as pool:  # in a process of its own, while this one imports torch
        reading = pool.submit(load_jets, data, require_labels=False, isolate=True, **given(settings))
        from kdfast.models import load_model
        from kdfast.models.scoring import write_scores

        tagger = load_model(model, model=own_model)
        jets = reading.result()
    write_scores(out, tagger, jets, prepared=prepared)
    if not quiet:
        typer.echo(f"{out}: scores of {len(jets):,} jets")


@app.command()
def generate(
    jets: Annotated[
        int, typer.Option(metavar="N", help="Number of jets, even: half top (label 1), half QCD (label 0).")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="FILE", help="HDF5 file to write, in the ATLAS layout (MeV)."),
    ],
    seed: Annotated[int, typer.Option(metavar="N", help="Seed; equal seeds give equal files, for any --jobs.")],
    jobs: Annotated[int | None, typer.Option(min=1, metavar="N", help="Processes.", show_default="all cores")] = None,
    quiet: Quiet = False,
) -> None:
    """Generate top and QCD jets with Pythia 8.

    Needs `pip install 'kdfast[generate]'`. Anti-kT jets with R = 1.0 and pT from 450 to 1200 GeV, with the
    same pT spectrum in both classes; about 40 jets per second and core. If interrupted, rerun the same
    command to resume.

    \b
    Example:
      kdfast generate --jets 30000 --out jets.h5 --seed 1
    """
    from kdfast.jets import generator

    generator.generate(jets, out, seed=seed, jobs=jobs, progress=not quiet)
    if not quiet:
        typer.echo(f"{out}: {jets:,} jets")
