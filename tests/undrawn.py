"""Reports whose figures are made but not drawn: drawing a dozen in three formats is most of a small sweep's time.
tests/report and tests/test_cli.py draw them."""

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
