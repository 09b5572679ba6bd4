"""The global random numbers, which belong to the user."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Asserts that what runs inside leaves the generators of torch, numpy and random as they were."""
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state = random.getstate()
    yield
    assert torch.equal(torch.get_rng_state(), torch_state), "torch's state has changed"
    for now, before in zip(np.random.get_state(), numpy_state, strict=True):  # noqa: NPY002
        assert np.array_equal(now, before), "numpy's state has changed"
    assert random.getstate() == python_state, "random's state has changed"
