"""The examples in the docstrings of ops, modules and models run."""

import doctest
import importlib

import pytest

NAMES = [
    "kdfast.ops.backend",
    "kdfast.ops.constituent_attention",
    "kdfast.ops.distill_loss",
    "kdfast.ops.dropout",
    "kdfast.nn.attention",
    "kdfast.nn.encoder",
    "kdfast.models.jet_transformer",
    "kdfast.models.tagger",
]


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0
