import gc
import os
from collections.abc import Iterator

import pytest
import torch

from kdfast.ops import gpu


@pytest.fixture(scope="session")
def toy() -> bool:
    """KDFAST_BENCH_TOY=1: sizes that mean nothing, on the CPU, to test the benchmarks where there is no GPU."""
    return os.environ.get("KDFAST_BENCH_TOY") == "1"


@pytest.fixture(scope="session")
def device(toy: bool) -> torch.device:
    if toy:
        return torch.device("cpu")
    if (why := gpu.why_unusable()) is not None:
        pytest.skip(f"no GPU can be used: {why}")
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def tidy(device: torch.device) -> Iterator[None]:
    """Gives a benchmark's memory back: the next one asks how much is free."""
    yield
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
