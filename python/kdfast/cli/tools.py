"""Commands on kdfast itself: bench, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdfast.cli.common import app, console

__all__ = ["bench", "doctor"]


@app.command()
def bench(
    select: Annotated[
        str | None,
        typer.Option("-k", metavar="NAMES", help="Run only the benchmarks whose names match (pytest's -k)."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads, for kdfast and PyTorch alike.")] = 2,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the measurements to this JSON file.")
    ] = None,
) -> None:
    """Compare the speed of kdfast with plain PyTorch.

    Prints the ratio for each op and for whole training steps. Run it in a clone of the sources.

    \b
    Examples:
      kdfast bench
      kdfast bench -k distill_loss
    """
    from kdfast.bench import ratio_table, run_benchmarks

    console().print(ratio_table(run_benchmarks(select, threads=threads, save=save)))


@app.command()
def doctor() -> None:
    """Print what kdfast uses on this machine.

    Shows versions, processor, instruction set, GPUs and compiled modules, and the reason if a module is not
    in use.

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
