"""Any text, and anything that jobs may write."""

import re
import warnings
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast.distill.schedules import RunConfig
from kdfast.errors import DataError, KdfastWarning
from kdfast.importers.csv_table import read_csv
from kdfast.importers.found import Notes
from kdfast.importers.run_log import read_run_log
from kdfast.importers.search_results import read_search_results
from tests.importers.imports import BOTH, CONSTANT, numbered
from tests.report.study_logs import Job, block, log_text, summary_text

NUMBERS = st.floats(allow_nan=True, allow_infinity=True).map(str) | st.decimals(0, 100, places=4).map(str)


FRAGMENTS = st.sampled_from(
    log_text(Job(BOTH, epochs=[(5, 0.7, 0.8, 0.8)], early=9)).split("\n") + block(Job(CONSTANT)).split("\n")
)


LINES = FRAGMENTS | st.tuples(FRAGMENTS, NUMBERS).map(lambda pair: re.sub(r"\d+\.\d+", pair[1], pair[0])) | st.text()


@settings(deadline=None, max_examples=300)
@given(st.lists(LINES, max_size=60), st.sampled_from([read_run_log, read_search_results]))
def test_any_lines_give_runs_or_a_typed_error(lines, reader):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KdfastWarning)
        try:
            runs = list(reader(Path("a"), numbered(lines), Notes()))
        except DataError as error:
            runs, where = [], error.where
        else:
            where = "a, line 1"
    assert where == "a, line 1"
    for run in runs:
        assert 1 <= run.place.line <= len(lines)
        if not run.diverged:
            assert 0.0 <= run.metrics["auc"] <= 1.0
            assert 1.0 <= run.metrics["bkg_rej_50"] < np.inf
        else:
            assert run.metrics.keys() <= {"epochs"}


CELLS = (
    st.sampled_from(["baseline_T7.0_A0.5", "0.81", "9.5", "nan", "", "7", '"', "a,b", "done"])
    | NUMBERS
    | st.text(max_size=8)
)


HEADS = st.permutations(["run_name", "auc", "bkg_rej_50", "T_init", "alpha", "seed", "epochs", "status", "x"])


@settings(deadline=None, max_examples=300)
@given(HEADS, st.integers(1, 9), st.lists(st.lists(CELLS, min_size=1, max_size=9), max_size=5), st.booleans())
def test_any_table_gives_runs_or_a_typed_error(heads, width, rows, fitting):
    lines = [",".join(heads[:width])]
    lines += [",".join((row * 9)[:width] if fitting else row) for row in rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KdfastWarning)
        try:
            runs = list(read_csv(Path("a"), numbered(lines), Notes()))
        except DataError as error:
            runs, where = [], error.where
        else:
            where = "a, line 1"
    assert re.match(r"a, line \d+", where)
    for run in runs:
        assert run.diverged or 0.0 <= run.metrics["auc"] <= 1.0
        assert run.metrics.get("epochs", 0) >= 0
        assert run.seed is None or 0 <= run.seed < 2**63


CONFIGS = st.builds(
    RunConfig,
    temp_init=st.decimals("0.05", 100, places=2).map(float),
    alpha_init=st.decimals(0, 1, places=2).map(float),
    temp_final=st.none() | st.decimals("0.05", 100, places=2).map(float),
    alpha_final=st.none() | st.decimals(0, 1, places=2).map(float),
).filter(lambda c: c.temp_final != c.temp_init and c.alpha_final != c.alpha_init)


JOBS = st.builds(
    Job,
    config=CONFIGS,
    auc=st.decimals(0, 1, places=4).map(float),
    rejection=st.decimals(1, 5000, places=2).map(float),
    early=st.none() | st.integers(1, 999),
    auc_val=st.decimals(0, 1, places=4).map(float),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(JOBS, min_size=1, max_size=5), st.booleans())
def test_whatever_jobs_write_comes_back(jobs, with_banner):
    """Logs of any numbers, one after the other in one file, and their blocks in a summary."""
    text = "".join(log_text(job, number, with_banner=with_banner) for number, job in enumerate(jobs))
    found = read_run_log(Path("a"), numbered(text.split("\n")), Notes())
    runs = [run for run in found if run.kind == "student"]
    assert [run.config for run in runs] == [job.config for job in jobs]
    for run, job in zip(runs, jobs, strict=True):
        expected = {"auc": job.auc, "bkg_rej_50": job.rejection, "auc_val": job.auc_val, "epochs": job.early}
        assert run.metrics == {name: value for name, value in expected.items() if value is not None}
        assert not run.diverged
    runs = list(read_search_results(Path("b"), numbered(summary_text(jobs).split("\n")), Notes()))
    assert [(run.config, dict(run.metrics)) for run in runs] == [
        (job.config, {"auc": job.auc, "bkg_rej_50": job.rejection}) for job in jobs
    ]
