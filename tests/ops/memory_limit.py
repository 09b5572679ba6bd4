"""A process that may not grow, for tests of what happens where memory is lacking."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

needs_memory_limit = pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "ASAN_OPTIONS" in os.environ,
    reason="reads the process's size as Linux tells it; AddressSanitizer ends the process where memory is lacking",
)


@contextmanager
def few_more_bytes(number: int) -> Iterator[None]:
    """The process may grow by so much at most."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
