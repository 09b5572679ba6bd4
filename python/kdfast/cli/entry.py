"""The entry: options to a command, errors to lines and exit status."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import TextIOWrapper
from typing import Any, TextIO, cast

import typer

from kdfast.cli.common import app
from kdfast.cli.options import in_options
from kdfast.errors import KdfastError, KdfastWarning
from kdfast.interrupt import Interrupted, interruptible
from kdfast.messages import Messages, drop

__all__ = ["main"]


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, KdfastWarning):
        print(f"kdfast: warning: {message}", file=sys.stderr)
    else:
        print(warnings.formatwarning(message, category, *where[:2]), end="", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `kdfast`. Returns the exit status.

    0: success. 1: a study that is not finished or not intact, a failed pack. 2: an error, one or two lines
    on stderr (--debug, anywhere, raises it instead). 130: Ctrl-C. 75: a sweep stopped by SIGTERM or SIGUSR1;
    rerun the same command to resume.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [argument for argument in words if argument != "--debug"]
    messages = Messages(sys.stderr)
    with ExitStack() as here:
        here.callback(messages.end)
        here.enter_context(redirect_stderr(cast(TextIO, messages)))
        # Printing must not fail: what stdout can't encode becomes escapes; a closed one discards all.
        if sys.stdout is None:
            nowhere = here.enter_context(open(os.devnull, "w", encoding="utf-8"))
            here.enter_context(redirect_stdout(nowhere))
        elif isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        here.enter_context(warnings.catch_warnings())
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        command = typer.main.get_command(app)
        if "_KDFAST_COMPLETE" in os.environ:  # a shell asks how to complete a line
            command.main(prog_name="kdfast")
        return _run(command, words, debug)


def _run(command: Any, words: list[str], debug: bool) -> int:
    """Runs the command; errors become lines on stderr and the exit status, or with `debug` go through."""
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, which typer bundles and does not export
    try:
        with interruptible(), command.make_context("kdfast", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as exit_:
        return exit_.exit_code
    except (KeyboardInterrupt, typer.Abort) as interrupt:
        if debug:
            raise
        after_echo = "\n" if sys.stderr.isatty() else ""  # a terminal shows ^C
        print(f"{after_echo}kdfast: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return getattr(interrupt, "exit_code", Interrupted.exit_code)
    except BrokenPipeError:  # e.g. `kdfast status demo | head -1`
        drop(sys.stdout)
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
        text = in_options(error) if isinstance(error, KdfastError) else error
        print(f"kdfast: {text}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    return 0
