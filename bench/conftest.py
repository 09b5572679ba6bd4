import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def threads() -> Iterator[int]:
    """How many threads both sides get: KDFAST_BENCH_THREADS (`kdfast bench --threads`), or 2, as the floors assume."""
    before, now = torch.get_num_threads(), int(os.environ.get("KDFAST_BENCH_THREADS", "2"))
    torch.set_num_threads(now)
    yield now
    torch.set_num_threads(before)
