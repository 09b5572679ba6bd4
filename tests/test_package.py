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


def test_import_waits_for_no_torch():
    code = "import sys, kdfast, kdfast.cli; print([m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
