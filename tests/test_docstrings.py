"""The examples in docstrings run, and give what they show."""

import doctest
import importlib
from pathlib import Path

import pandas as pd
import pytest

import kdfast
from tests.report.fake_study import SMALL_GRID, make_study

PACKAGE = Path(kdfast.__file__).parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small study, for the examples that open one."""
    folder = tmp_path_factory.mktemp("docstrings")
    make_study(folder / "study", SMALL_GRID)
    return folder


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples(path, folder, monkeypatch):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    module = importlib.import_module(".".join(parts))
    monkeypatch.chdir(folder)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with pd.option_context("display.width", 100):
        for test in doctest.DocTestFinder().find(module):
            test.globs |= {"kdfast": kdfast, "study": kdfast.open_study("study")}
            runner.run(test)
    assert runner.failures == 0, f"{runner.failures} examples fail: see the output"
