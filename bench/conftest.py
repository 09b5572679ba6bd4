import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The tests' limit of time is none of the benchmarks': they measure, and compilation alone may take longer."""
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(autouse=True, scope="session")
def threads() -> Iterator[int]:
    """How many threads both sides get: KDFAST_BENCH_THREADS (`kdfast bench --threads`), or 2, as the floors assume."""
    before, now = torch.get_num_threads(), int(os.environ.get("KDFAST_BENCH_THREADS", "2"))
    torch.set_num_threads(now)
    yield now
    torch.set_num_threads(before)
