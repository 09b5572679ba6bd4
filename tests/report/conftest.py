"""One small study with its analysis and page, for all tests of figures and page."""

import pytest

from kdfast.report.analysis import analyse
from kdfast.report.page import page_files
from tests.report.fake_study import SMALL_GRID, make_study


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Sixteen configurations, two seeds, one configuration diverged. Its name has to be escaped in HTML."""
    path = tmp_path_factory.mktemp("studies") / "a <b>bold & study"
    return make_study(path, SMALL_GRID, seeds=(1, 2), jets=1200, diverged=(SMALL_GRID[3].name,), latency=True)


@pytest.fixture(scope="session")
def analysis(store):
    return analyse(store)


@pytest.fixture(scope="session")
def report_page(analysis, store, tmp_path_factory):
    """The path of its report.html."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(page_files(analysis, store)["report.html"])
    return path
