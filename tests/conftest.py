"""Settings of every test."""

import hashlib
import os
from collections import defaultdict

import pytest
from hypothesis import settings

# Tests run in several processes at once, each with threads of PyTorch's. By default these spin while they wait for work
# and so take the cores from each other. To be set before anything imports torch; child processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Hypothesis draws other examples on every run, so a run may find what the last one missed; what has to pass before a
# change lands (ci/) draws the same ones each time, so that it fails for what was changed only.
settings.register_profile("fixed", derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

QUICK_CASES = 12


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick",
        action="store_true",
        help=f"leave out tests marked slow, and all but {QUICK_CASES} cases of each parametrized test",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    named = tuple(argument for argument in config.args if "::" in argument)
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.split("[")[0]].append(item)
    chosen = {item for cases in tests.values() for item in sample(cases) if item.get_closest_marker("slow") is None}
    chosen |= {item for item in items if item.nodeid.startswith(named)}
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def sample(cases: list[pytest.Item]) -> list[pytest.Item]:
    """The same cases on every run and machine, spread over a table of cases by a hash of their names."""
    return sorted(cases, key=lambda item: hashlib.sha256(item.nodeid.encode()).digest())[:QUICK_CASES]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda_kernels") is not None:
        from tests.ops.backends import why_no_cuda_kernels

        if why_no_cuda_kernels is not None:
            pytest.skip(why_no_cuda_kernels)
