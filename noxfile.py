#!/usr/bin/env -S uv run --script
# /// script
# dependencies = ["nox>=2025.2.9"]
# ///
"""The scripts of ci/ as sessions of nox: `nox -s tests -- tests/ops`. They make their own environment, .venv."""

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"


def run_script(session: nox.Session, name: str) -> None:
    session.run("bash", f"ci/{name}", *session.posargs, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy, import-linter, clang-format."""
    run_script(session, "lint")


@nox.session
def tests(session: nox.Session) -> None:
    """The tests; options of pytest follow after --."""
    run_script(session, "test")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The documentation, into docs/_build/html."""
    run_script(session, "docs")


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """The examples and the notebook."""
    run_script(session, "examples")


if __name__ == "__main__":
    nox.main()
