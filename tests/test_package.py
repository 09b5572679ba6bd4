"""The package's public names, and that importing it is quick."""

import os
import subprocess
import sys

import pytest

import kdfast


@pytest.mark.parametrize("name", kdfast.__all__)
def test_public_names_are_there_and_documented(name):
    value = getattr(kdfast, name)
    assert name in dir(kdfast)
    assert name == "__version__" or value.__doc__


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'kdfast' has no attribute 'swep'"):
        kdfast.swep  # noqa: B018


# Each takes a large part of a second to import, and a sweep needs most of them only for its report.
HEAVY = ("distributed", "jinja2", "joblib", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn", "statsmodels")


@pytest.mark.parametrize(
    ("imported", "not_imported"),
    [("kdfast, kdfast.cli", ("torch", *HEAVY)), ("kdfast; kdfast.sweep, kdfast.open_study, kdfast.models", HEAVY)],
)
def test_imports_wait_for_what_is_slow(imported, not_imported):
    code = f"import sys; import {imported}; print([name for name in {not_imported} if name in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
