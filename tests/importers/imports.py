"""What the tests of the importers share: jobs, and imports with and without warnings."""

import warnings
from pathlib import Path

import numpy as np

from kdfast.distill.schedules import RunConfig
from kdfast.errors import KdfastWarning
from kdfast.importers.found import Line
from kdfast.store.grid import grid
from kdfast.study.imports import import_study
from tests.report.study_logs import Job

GENUINE = Path(__file__).parent / "data" / "transformer_1000001.out"


BOTH, CONSTANT = RunConfig(10.0, 0.9, 1.0, 0.3), RunConfig(7.0, 0.5)


def jobs_of_the_study():
    """132 jobs with numbers of four and two decimals, as logs print them."""
    rng = np.random.default_rng(3)
    return [
        Job(config, auc=round(rng.uniform(0.80, 0.83), 4), rejection=round(rng.uniform(7.5, 10.0), 2))
        for config in grid("study")
    ]


def quietly(*arguments, **options):
    """An import without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return import_study(*arguments, **options)


def warned(*arguments, **options):
    """An import and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study = import_study(*arguments, **options)
    texts = [str(warning.message) for warning in caught if warning.category is KdfastWarning]
    assert study.imported["notes"] == texts  # kept in the provenance too
    return study, texts


def is_not_there(out):
    assert not out.exists()
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


def line_of(path, start):
    return line_of_text(path.read_text(), start)


def line_of_text(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def numbered(texts):
    """Lines as read_lines gives them."""
    return [Line(number, text) for number, text in enumerate(texts, 1)]
