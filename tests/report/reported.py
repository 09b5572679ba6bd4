"""Reports of small studies, and how tests read them."""

import re

from kdfast.report.analysis import analyse
from kdfast.report.rendering import report_texts
from kdfast.store.grid import grid
from kdfast.store.store import StudyStore
from kdfast.study.imports import import_study
from tests.report.fake_study import make_study


def small(path, **options):
    return make_study(path, grid(temperature=[3.0, 7.0], alpha=[0.5], temperature_final=[1.0]), **options)


def reported(store):
    """The object and the texts, without figures."""
    whole = analyse(StudyStore.open(store.path))
    return whole, report_texts(whole)


def in_one_line(text):
    return re.sub(r"\s+", " ", text)


def section(text, title):
    """The lines below a heading."""
    match = re.search(rf"=+\n{re.escape(title)}\n=+\n\n((?:.*\n)*?)(?=={{50}}|\Z)", text)
    assert match, title
    return match[1].rstrip()


def imported(folder):
    import_study(folder / "runs.csv", folder / "study")
    return StudyStore.open(folder / "study")
