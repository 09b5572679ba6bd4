"""The bridge to Optuna: runs become trials and trials become runs, once each, also after a kill."""

import itertools
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import kdfast
from kdfast.errors import BackendError, ConfigError, KdfastWarning
from kdfast.store.result import StoredResult
from kdfast.store.store import StudyStore
from tests.study.small_sweep import GRID, small_sweep
from tests.undrawn import undrawn_figures

optuna = pytest.importorskip("optuna")
JournalFileBackend = pytest.importorskip("optuna.storages.journal").JournalFileBackend

ROOT = Path(__file__).parents[1]
SPACE = kdfast.space(temperature=(1, 8, "log"), alpha=(0.1, 0.9), temperature_final=[None, 1.0])
STATES = optuna.trial.TrialState
SEEDS = itertools.count(1)  # a sampler that is made again with its seed proposes the same again


@pytest.fixture(autouse=True)
def _undrawn():
    with undrawn_figures():
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The four runs of a grid, with two seeds."""
    with undrawn_figures():
        return small_sweep(tmp_path_factory.mktemp("optuna") / "study", seeds=(1, 2))


@pytest.fixture
def study(swept, tmp_path):
    """A copy of it to write to."""
    shutil.copytree(swept.path, tmp_path / "study")
    return kdfast.open_study(tmp_path / "study")


def maximizing(*, storage=None, sampler=None, objectives=1):
    return optuna.create_study(
        study_name="tagger",
        storage=storage,
        sampler=sampler or optuna.samplers.RandomSampler(seed=next(SEEDS)),
        directions=["maximize"] * objectives,
        load_if_exists=True,
    )


def by_run(optuna_study):
    return {trial.user_attrs["run"]: trial for trial in optuna_study.trials if "run" in trial.user_attrs}


def test_runs_become_trials_once(study):
    found = maximizing()
    assert kdfast.optuna.tell(found, study) == 4
    assert kdfast.optuna.tell(found, study.path) == 0
    table = study.results.groupby("run_name")[["auc_val", "auc_student"]].mean()
    assert len(found.trials) == 4
    for run in GRID:
        trial = by_run(found)[run.name]
        assert trial.state == STATES.COMPLETE
        assert trial.value == table.loc[run.name, "auc_val"]
        assert trial.user_attrs["auc_test"] == table.loc[run.name, "auc_student"]
        assert trial.params["temperature"] == run.temp_init
        assert trial.params["temperature_final"] == (run.temp_final or run.temp_init)
        curves = [study.history(run.name, seed)["auc_val"] for seed in (1, 2)]
        assert trial.intermediate_values == dict(enumerate(np.mean(curves, axis=0)))
    assert found.best_trial.user_attrs["run"] == table["auc_val"].idxmax()


def test_a_given_space_holds_the_distributions(study):
    found = maximizing()
    kdfast.optuna.tell(found, study, space=SPACE)
    runs = kdfast.optuna.ask(found, SPACE, 3)
    assert len(runs) == 3
    distributions = {str(trial.distributions) for trial in found.trials}
    assert len(distributions) == 1
    assert by_run(found)[GRID[0].name].params["temperature_final"] is None


def test_runs_outside_the_space_are_named(study):
    found = maximizing()
    narrow = kdfast.space(temperature=(3, 8), alpha=[0.5, 0.6])
    with pytest.warns(KdfastWarning, match=r"3 runs are outside the search space .* first is baseline_T2.0_A0.5"):
        assert kdfast.optuna.tell(found, study, space=narrow) == 1


@pytest.mark.slow
def test_a_batch_is_trained_and_completed_in_a_journal(tmp_path):
    log = str(tmp_path / "optuna.log")

    def opened():
        return maximizing(storage=optuna.storages.JournalStorage(JournalFileBackend(log)))

    runs = kdfast.optuna.ask(opened(), SPACE, 3)
    assert kdfast.optuna.ask(opened(), SPACE, 3) == runs  # as after a kill
    small_sweep(tmp_path / "study", grid=runs[:2])
    assert kdfast.optuna.tell(opened(), tmp_path / "study") == 2
    again = kdfast.optuna.ask(opened(), SPACE, 3)
    assert again[0] == runs[2]
    assert len({*again, *runs}) == 5
    assert not set(kdfast.optuna.ask(opened(), SPACE, 2, resume=False)) & {*again, *runs}
    results = small_sweep(tmp_path / "study", grid=again)
    assert kdfast.optuna.tell(opened(), results) == 3
    assert kdfast.optuna.tell(opened(), results) == 0
    trials = opened().trials
    assert [trial.state for trial in trials] == [STATES.COMPLETE] * 5 + [STATES.RUNNING] * 2
    for trial in trials[:5]:
        assert len(trial.intermediate_values) == 2
        run = SPACE.run(trial.params)
        assert run.name == trial.user_attrs["run"]
        assert trial.value == results.results.set_index("run_name").loc[run.name, "auc_val"]


def test_completing_a_trial_may_be_interrupted(study, monkeypatch):
    found = maximizing()
    constant = kdfast.space(temperature=[2.0, 4.0], alpha=0.5)
    kdfast.optuna.ask(found, constant, 2)
    finish = optuna.study.Study.tell
    monkeypatch.setattr(optuna.study.Study, "tell", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kdfast.optuna.tell(found, study)
    monkeypatch.setattr(optuna.study.Study, "tell", finish)
    with pytest.warns(KdfastWarning, match="2 runs are outside"):  # whose T is not constant
        assert kdfast.optuna.tell(found, study) == 2
    trials = by_run(found).values()
    assert len(trials) == 2
    assert all(trial.state == STATES.COMPLETE and len(trial.intermediate_values) == 2 for trial in trials)


def test_a_diverged_run_is_a_failed_trial_and_one_in_training_waits(study):
    store = StudyStore.open(study.path)
    run = kdfast.RunConfig(3.0, 0.5)
    small_sweep(study.path, grid=[*GRID, run, kdfast.RunConfig(5.0, 0.5)], seeds=(1, 2), plan_only=True)
    store.write(StoredResult("student", run.name, 1, run, status="diverged", metrics={"epochs": 1}))
    found = maximizing()
    assert kdfast.optuna.tell(found, study.path) == 4  # seed 2 is missing
    store.write(StoredResult("student", run.name, 2, run, status="diverged", metrics={"epochs": 1}))
    assert kdfast.optuna.tell(found, study.path) == 1
    assert kdfast.optuna.tell(found, study.path) == 0
    assert by_run(found)[run.name].state == STATES.FAIL


def test_several_metrics_are_several_objectives(study):
    found = maximizing(objectives=2)
    runs = kdfast.optuna.ask(found, kdfast.space(temperature=[2.0, 4.0], alpha=0.5), 2)
    assert kdfast.optuna.tell(found, study, ["auc", "bkg_rej_50"], space=SPACE) == 4
    rejections = study.results.set_index("run_name").loc[runs[0].name, "bkg_rej_50_val"]
    assert by_run(found)[runs[0].name].values[1] == pytest.approx(np.exp(np.log(rejections).mean()))
    assert not found.trials[0].intermediate_values
    with pytest.raises(ConfigError, match=r"must maximize 1 objective"):
        kdfast.optuna.tell(found, study)
    with pytest.raises(ConfigError, match="unknown metric 'acu'"):
        kdfast.optuna.tell(found, study, "acu")
    with pytest.raises(ConfigError, match="must maximize"):
        kdfast.optuna.tell(optuna.create_study(), study)


@pytest.mark.parametrize("sampler", ["TPESampler", "GPSampler", "CmaEsSampler"])
def test_samplers_of_optuna_propose_batches(study, sampler):
    numbers = kdfast.space(temperature=(1, 8, "log"), alpha=(0.1, 0.9), temperature_final=(1, 8, "log"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = maximizing(sampler=getattr(optuna.samplers, sampler)(seed=1, n_startup_trials=2))
    kdfast.optuna.tell(found, study, space=numbers)
    runs = kdfast.optuna.ask(found, numbers, 4)
    assert len(set(runs)) == 4
    assert all(1 <= run.temp_init <= 8 for run in runs)


def test_a_trial_is_named_that_a_kill_left_without_a_name(monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    empty = maximizing()
    monkeypatch.setattr(optuna.trial.Trial, "set_user_attr", killed)
    with pytest.raises(KeyboardInterrupt):
        kdfast.optuna.ask(empty, SPACE, 2)
    monkeypatch.undo()
    (left,) = empty.trials
    assert kdfast.optuna.ask(empty, SPACE, 1, resume=False) != [SPACE.run(left.params)]
    assert SPACE.run(left.params) in kdfast.optuna.ask(empty, SPACE, 2)
    assert len(empty.trials) == 2
    assert all("run" in trial.user_attrs for trial in empty.trials)


def test_known_configurations_are_not_proposed_again(study):
    found = maximizing()
    few = kdfast.space(temperature=[2.0, 4.0], alpha=0.5, temperature_final=[None, 1.0, 3.0])
    kdfast.optuna.tell(found, study, space=few)
    names = {run.name for run in kdfast.optuna.ask(found, few, 5)}
    assert names == {"tempanneal_T2.0to3.0_A0.5", "tempanneal_T4.0to3.0_A0.5"}
    repeated = [trial for trial in found.trials if "run" not in trial.user_attrs]
    assert {trial.state for trial in repeated} == {STATES.COMPLETE, STATES.FAIL}


def test_bad_calls(monkeypatch):
    found = maximizing()
    with pytest.raises(ConfigError, match="space: has no free axis"):
        kdfast.optuna.ask(found, kdfast.space(temperature=3, alpha=0.5), 2)
    with pytest.raises(ConfigError, match="n: must be at least 1"):
        kdfast.optuna.ask(found, SPACE, 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=re.escape("pip install 'kdfast[optuna]'")):
        kdfast.optuna.ask(found, SPACE, 1)


@pytest.mark.slow
def test_the_loop_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kdfast, "sweep", lambda data, out, grid: small_sweep(out, grid=grid))
    page = (ROOT / "docs/how-to/search.md").read_text(encoding="utf-8")
    (loop,) = (block for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S) if "optuna.ask" in block)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        exec(compile(loop.replace("< 64", "< 16"), "search.md", "exec"), names)
    assert [trial.state for trial in names["study"].trials] == [STATES.COMPLETE] * 16
