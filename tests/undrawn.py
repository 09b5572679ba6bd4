"""Reports whose figures are made but not drawn: drawing a dozen in three formats is most of a small sweep's time.
Figures are drawn by tests/report/test_figures.py, test_page.py, test_browser.py and a report of tests/test_cli.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from kdfast.report.figures import Drawing


@contextmanager
def undrawn_figures() -> Iterator[None]:
    with patch("kdfast.report.page.exports", _names):
        yield


def _names(drawing: Drawing) -> dict[str, bytes]:
    return {kind: f"{drawing.name} as {kind}".encode() for kind in ("svg", "pdf", "png")}
