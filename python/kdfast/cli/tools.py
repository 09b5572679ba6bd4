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

    console().print(ratio_table(run_benchmarks(select, threads=threads, save=save)))


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
