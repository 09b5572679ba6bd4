"""Two studies side by side: which runs and jets are the same in both."""

import numpy as np
import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.metrics import roc_auc
from kdfast.store.store import StoredResult, StudyStore
from kdfast.study.imports import import_study
from kdfast.study.results import open_study
from tests.report.study_logs import Job, write_logs
from tests.study.small_sweep import GRID, small_jets, small_sweep
from tests.undrawn import undrawn_figures

A, B, C = RunConfig(3.0, 0.5), RunConfig(7.0, 0.5), RunConfig(7.0, 0.9)


def study(path, configs, index, *, data="f" * 64, seed=42, weights=None, labels=None):
    """A study whose scores are a function of jet and run, so that it is known which belongs to which."""
    provenance = {"decisive": {"data": {"fingerprint": data}}} if data else {}
    store = StudyStore.create_or_open(path, {"grid": [c.name for c in configs], "seeds": [seed]}, provenance)
    index = np.asarray(index, np.int64)
    labels = index % 2 if labels is None else labels
    weights = np.ones(len(index), np.float32) if weights is None else weights
    store.write_shared("test", {"labels": labels, "weights": weights, "index": index})
    for config in configs:
        scores = {"scores_test": score(config, index)}
        store.write(StoredResult("student", config.name, seed, config, metrics={"auc": 0.8}, arrays=scores))
    return open_study(path)


def score(config, index):
    return 1000.0 * config.temp_init + 100.0 * config.alpha_init + 1e-3 * index


def test_runs_and_jets_are_matched_by_what_they_are(tmp_path):
    rng = np.random.default_rng(1)
    first = study(tmp_path / "a", [A, B], rng.permutation(60))
    second = study(tmp_path / "b", [C, B], 20 + rng.permutation(60))
    paired = first.paired_with(second)
    np.testing.assert_array_equal(paired.index, np.arange(20, 60))
    np.testing.assert_array_equal(paired.labels, np.arange(20, 60) % 2)
    (run,) = paired.runs
    assert run.key == ("student", B.name, 42)
    np.testing.assert_array_equal(run.first, score(B, paired.index))
    np.testing.assert_array_equal(run.second, score(B, paired.index))
    assert [key.name for key in paired.only_first] == [A.name]
    assert [key.name for key in paired.only_second] == [C.name]
    assert (paired.shared, paired.reasons) == ((run.key,), ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": "e" * 64}, "made of different data (fingerprints ffffffff… and eeeeeeee…)"),
        ({"data": None}, "does not record which jets it was made with"),
        ({"index": np.arange(60, 120)}, "share 0 test jets: their splits differ"),
        ({"index": np.arange(1, 120, 2)}, "share 30 test jets of one class: their splits differ"),
        ({"weights": np.full(60, 2.0, np.float32)}, "have different labels or weights"),
        ({"labels": 1 - np.arange(60) % 2}, "have different labels or weights"),
        ({"seed": 43}, "no run of the same kind, name and seed"),
    ],
)
def test_what_can_not_be_paired_is_said(tmp_path, changes, reason):
    first = study(tmp_path / "a", [A], np.arange(60))
    second = study(tmp_path / "b", [A], **({"index": np.arange(60)} | changes))
    paired = first.paired_with(second)
    (text,) = paired.reasons
    assert reason in text
    assert paired.runs == ()
    assert len(paired.index) == len(paired.labels) == len(paired.weights) == 0
    assert len(paired.shared) == (0 if "seed" in changes else 1)


@pytest.mark.parametrize("data", ["f" * 64, "e" * 64])
def test_scores_that_can_not_be_used_are_named(tmp_path, data):
    """Not paired by position, not an error, and not left out without a word. data: of the second study."""
    first = study(tmp_path / "a", [A, B, C], np.arange(60))
    second = study(tmp_path / "b", [A], np.arange(60), data=data)
    store = StudyStore.open(second.path)
    wrong = {B: np.zeros(50), C: score(C, np.arange(60))}
    wrong[C][[3, 4]] = np.nan, np.inf
    for config, scores in wrong.items():
        store.write(StoredResult("student", config.name, 42, config, arrays={"scores_test": scores}))
    paired = open_study(second.path).paired_with(first)
    assert [run.key.name for run in paired.runs] == ([A.name] if data == "f" * 64 else [])
    assert {key.name for key in paired.shared} == {A.name, B.name, C.name}
    assert paired.reasons[:2] == (
        f"{second.path}: {B.name}, seed 42, is left out: it has 50 scores for 60 test jets.",
        f"{second.path}: {C.name}, seed 42, is left out: 2 of its 60 test scores are not finite.",
    )
    assert len(paired.reasons) == (2 if data == "f" * 64 else 3)


def test_an_imported_study_has_no_jets(tmp_path):
    first = study(tmp_path / "a", [A, B], np.arange(60))
    second = import_study(write_logs(tmp_path / "logs", [Job(B), Job(C)]), tmp_path / "b", seed=42)
    paired = first.paired_with(second)
    assert paired.reasons == (
        "The shared runs have no scores per jet in both studies: a run imported from a log has none.",
    )
    assert [key.name for key in paired.shared] == [B.name]
    assert {key.kind for key in paired.only_second} == {"teacher", "baseline", "student"}


@pytest.fixture
def _undrawn():
    with undrawn_figures():
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_undrawn")
def test_two_sweeps(tmp_path):
    """The same jets, another split and other runs: paired AUCs are those of the shared test jets."""
    jets = small_jets()
    first = small_sweep(tmp_path / "a", jets, grid=GRID[:2])
    second = small_sweep(tmp_path / "b", jets, grid=GRID[1:3], epochs=1)
    third = small_sweep(tmp_path / "c", jets, grid=GRID[:1], config={"data": {"seed": 7}})
    paired = first.paired_with(second)
    assert [run.key.kind for run in paired.runs] == ["teacher", "baseline", "student"]
    assert paired.reasons == ()
    name = GRID[1].name
    for whole, scores in ((first, paired.runs[2].first), (second, paired.runs[2].second)):
        row = whole.results.set_index("run_name").loc[name]
        assert roc_auc(paired.labels, scores, paired.weights) == pytest.approx(row["auc_student"], abs=1e-12)
    partly = first.paired_with(third)
    tests = [set(StudyStore.open(s.path).shared("test")["index"].tolist()) for s in (first, third)]
    assert set(partly.index.tolist()) == tests[0] & tests[1]
    assert 0 < len(partly.index) < len(tests[0])
    assert small_sweep(tmp_path / "d", jets[:300], grid=GRID[:1]).paired_with(first).runs == ()
