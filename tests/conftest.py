"""Settings of every test."""

import os

import pytest
from hypothesis import settings

# Hypothesis draws other examples on every run, so a run may find what the last one missed; what has to pass before a
# change lands (ci/) draws the same ones each time, so that it fails for what was changed only.
settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda_kernels") is not None:
        from tests.ops.backends import why_no_cuda_kernels

        if why_no_cuda_kernels is not None:
            pytest.skip(why_no_cuda_kernels)
