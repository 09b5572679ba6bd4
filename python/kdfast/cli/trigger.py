"""Commands that take a trained network out of kdfast: export, latency."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdfast.cli.common import OwnModelOption, Quiet, app, console, given
from kdfast.cli.options import run_names, with_options
from kdfast.distill import schedules
from kdfast.errors import ConfigError

__all__ = ["export", "latency"]

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Model file (.safetensors), or a study's folder.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of that run.")]
Jets = Annotated[
    list[str] | None,
    typer.Option("--jets", metavar="FILE", help="Jets to use. Repeatable.", show_default="the bundled sample"),
]


def _run_option(default: str) -> Any:
    text = "Run of the study."
    return typer.Option("--run", metavar="NAME", help=text, show_default=default, autocompletion=run_names)


@app.command()
@with_options("columns", "unit", "sort", before="own_model")
def export(
    model: Model,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX file, the only format so far.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write.", show_default="the model's name with .onnx"),
    ] = None,
    run: Annotated[str | None, _run_option("the student that is best by AUC")] = None,
    seed: Seed = None,
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX opset, 15 to 20.")] = 17,
    fp16: Annotated[bool, typer.Option("--fp16", help="The network in 16-bit floating-point numbers.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Matrix products in 8-bit integers (onnxruntime's dynamic quantization).")
    ] = False,
    jets: Jets = None,
    own_model: OwnModelOption = None,
    quiet: Quiet = False,
    **settings: Any,
) -> None:
    """Write a trained network for use outside Python.

    The ONNX file takes jets (pt, eta, phi, energy in GeV, padded with pt = 0) as the model's view has them
    and gives logits; features and standardisation are part of it. It is compared with `kdfast predict` on
    1,000 jets before it is written: no logit may differ by more than 1e-4. With --fp16 and --int8 the AUC
    before and after is printed instead. Needs `pip install 'kdfast[onnx]'`.

    \b
    Examples:
      kdfast export demo/models/best_student.safetensors --onnx
      kdfast export demo --run tempanneal_T7.0to1.0_A0.9 --onnx --out tagger.onnx
      kdfast export demo --onnx --int8 --jets test.h5
    """
    if not onnx:
        raise ConfigError("give a format", where="kdfast export", hint="--onnx writes an ONNX file")
    if fp16 and int8:
        raise ConfigError("give one of them", where="--fp16, --int8")
    from kdfast.jets.readers import load_jets
    from kdfast.study.trigger import export_onnx

    loaded = load_jets(jets, require_labels=False, isolate=True, **given(settings)) if jets else None
    precision = "fp16" if fp16 else "int8" if int8 else "fp32"
    which: dict[str, Any] = {"run": run, "seed": seed, "own_model": own_model}
    written = export_onnx(model, out, opset=opset, precision=precision, jets=loaded, **which)
    if not quiet:
        typer.echo(f"{written.path}: {written}")


@app.command()
@with_options("columns", "unit", "sort", before="seconds")
def latency(
    model: Model,
    run: Annotated[str | None, _run_option("one of each size of model")] = None,
    seed: Seed = None,
    jets: Jets = None,
    seconds: Annotated[float, typer.Option(min=0, metavar="S", help="Time for each measurement.")] = 1.0,
    own_model: OwnModelOption = None,
    **settings: Any,
) -> None:
    """Measure how long a trained network takes on one thread.

    Prints parameters, operations per jet, and the time of a call with 1 and with 100 jets: by onnxruntime,
    and by kdfast's own kernels. Measurements of a study's networks are stored with it. Run it on an idle
    machine. Needs `pip install 'kdfast[onnx]'`.

    \b
    Examples:
      kdfast latency demo
      kdfast latency demo/models/best_student.safetensors --jets test.h5
    """
    from rich.table import Table

    from kdfast.jets.readers import load_jets
    from kdfast.study.trigger import latency as measure

    loaded = load_jets(jets, require_labels=False, isolate=True, **given(settings)) if jets else None
    table = Table("network", "parameters", "kFLOP per jet", "engine", "jets per call", "p50 (µs)", "p99 (µs)", box=None)
    rows = measure(model, run=run, seed=seed, jets=loaded, seconds=seconds, own_model=own_model)
    for row in rows.to_dict("records"):
        cost = "-" if row["flops"] is None else f"{row['flops'] / 1e3:,.0f}"
        numbers = [str(row["batch"]), f"{row['p50_us']:,.0f}", f"{row['p99_us']:,.0f}"]
        table.add_row(schedules.shown(row["run_name"]), f"{row['parameters']:,}", cost, row["engine"], *numbers)
    console().print(table)
    typer.echo(f"jets of {rows['constituents'].mean():.1f} constituents on average, one thread")
