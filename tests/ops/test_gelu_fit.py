"""The polynomial of csrc/core/gelu.h for 16-bit types: what it is fitted to, and how far it misses it."""

import re
from pathlib import Path

import numpy as np
import pytest

from bench.gelu_fit import Array, fit, largest_error

SOURCE = Path(__file__).parents[2] / "csrc/core/gelu.h"

pytestmark = pytest.mark.skipif(not SOURCE.exists(), reason="needs the source tree")


def coefficients() -> Array:
    """That of t^0 first: the source evaluates from the highest power on."""
    code = "".join(re.findall(r"\bq = fmaf\(.*", SOURCE.read_text()))
    return np.array([float.fromhex(x) for x in re.findall(r"-?0x1[.\w]*p[-+]\d+", code)][::-1])


def test_the_value_is_as_near_as_is_said() -> None:
    assert largest_error(coefficients()) <= 3.2e-6


def test_the_source_has_the_fit() -> None:
    """A solver of linear programs may find other last bits; the error that it makes least is the same."""
    q = fit()
    assert coefficients().shape == q.shape
    assert largest_error(coefficients()) == pytest.approx(largest_error(q), rel=0.02)
