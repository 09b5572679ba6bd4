import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdfast.study.results import StudyResults
from tests.study.small_sweep import small_sweep
from tests.undrawn import undrawn_figures


@pytest.fixture(scope="module", autouse=True)
def _undrawn() -> Iterator[None]:
    with undrawn_figures():
        yield


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> StudyResults:
    """The small sweep, whole; tests change only copies."""
    with undrawn_figures():
        return small_sweep(tmp_path_factory.mktemp("swept") / "study")


@pytest.fixture(scope="session")
def plan_in(tmp_path_factory) -> Callable[[Path], Path]:
    """Makes a study of the small sweep as it is planned: three packs, for workers of three threads."""
    planned = tmp_path_factory.mktemp("planned") / "study"
    small_sweep(planned, plan_only=True, pack_size=2, threads=3)
    return lambda out: shutil.copytree(planned, out)
