from collections.abc import Iterator

import pytest

from tests.undrawn import undrawn_figures


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    with undrawn_figures():
        yield
