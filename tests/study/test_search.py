"""The race of a grid's configurations: its choices against a known truth, and that no interruption changes them."""

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from kdfast.cli import main
from kdfast.distill.schedules import shown
from kdfast.errors import ConfigError, StudyError
from kdfast.report.analysis import analyse
from kdfast.report.outlook import Candidates, Outlook, joins_front, on_front, places
from kdfast.store.grid import grid
from kdfast.store.packs import planned
from kdfast.store.settings import SearchSettings, StudySettings
from kdfast.store.status import study_status
from kdfast.store.store import StudyStore
from kdfast.study.batch_script import slurm_script
from kdfast.study.dask_engine import connected
from kdfast.study.refine import refine
from kdfast.study.search import confidence_set, next_round, survivors
from kdfast.study.worker import work
from tests.report.fake_study import SMALL_GRID, make_study
from tests.study.small_sweep import small_jets, small_sweep

WIDE = grid(temperature=[1.0, 2.0, 4.0, 8.0, 16.0], alpha=[0.1, 0.3, 0.5, 0.7, 0.9])
# Two rounds, which every race has whatever its scores are.
RACE = {"first": 6, "batch": 3, "max_runs": 8, "tolerance": 1e-9}
FURTHER = {"replicates": 2, "survivors": 3}


def raced(x, truth, noise, tolerance, search, rng):
    """Numbers of the candidates that a race trains, with scores truth + noise."""
    runs = WIDE if len(x) == len(WIDE) else grid("study")
    scores = {}
    tried = np.zeros(len(x), np.bool_)
    while True:
        found = Candidates(runs, x, scores, tried.copy(), tolerance)
        chosen, _ = next_round(found, search)
        assert not tried[chosen].any()
        assert len(set(chosen)) == len(chosen)
        if not chosen:
            return scores
        tried[chosen] = True
        scores |= {number: truth[number] + rng.normal(0, noise) for number in chosen}


def raced_for_front(x, truth, noise, tolerance, search, rng):
    """Numbers of the candidates that a race for the front of two metrics trains."""
    known = [{}, {}]
    tried = np.zeros(len(x), np.bool_)
    while True:
        by = [Candidates(WIDE, x, dict(scores), tried.copy(), tolerance) for scores in known]
        chosen, _ = next_round(replace(by[0], rejection=by[1]), search)
        if not chosen:
            return known[0]
        assert not tried[chosen].any()
        assert len(set(chosen)) == len(chosen)
        tried[chosen] = True
        for scores, true in zip(known, truth, strict=True):
            scores |= {number: true[number] + rng.normal(0, noise) for number in chosen}


def smooth_truth(x, rng):
    """A smooth function with a spread of 1: one of a Gaussian process with random lengths."""
    lengths = rng.uniform(0.5, 2.0, x.shape[1])
    distance = ((x[:, None] - x[None]) / lengths) ** 2
    covariance = np.exp(-0.5 * distance.sum(axis=2)) + 1e-9 * np.eye(len(x))
    values = np.linalg.cholesky(covariance) @ rng.standard_normal(len(x))
    return values / values.std()


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_the_choice_is_within_the_tolerance_of_the_best(noise):
    """In at least 95 % of the races, as promised, with a quarter of the runs on average."""
    x = places(grid("study"))
    tolerance = 0.4  # of the spread of the truth, as in the demo: 0.001 of 0.0024
    lost = []
    trained = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = smooth_truth(x, rng)
        scores = raced(x, truth, noise, tolerance, SearchSettings(), rng)
        lost.append(truth.max() - truth[max(scores, key=scores.get)])
        trained.append(len(scores))
    assert np.mean(np.array(lost) > tolerance + 2 * noise) <= 0.05  # the noise of the scores that are compared at last
    assert np.mean(trained) < 132 / 3.5


@pytest.mark.slow
def test_a_race_for_the_front_finds_it():
    """In at least 95 % of the races, no configuration would extend the true front of the trained ones by more than the
    tolerance; a part of the runs is enough."""
    x = places(WIDE)
    tolerance = 0.3
    missed = []
    trained = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = np.stack([smooth_truth(x, rng), smooth_truth(x, rng)])
        scores = raced_for_front(x, truth, 0.05, tolerance, SearchSettings(first=8, batch=3, keep="pareto"), rng)
        best = truth[:, [*scores]]
        beyond = ((truth[:, :, None] > best[:, None, :] + tolerance + 0.1).any(axis=0)).all(axis=1)
        missed.append(beyond.any())
        trained.append(len(scores))
    assert np.mean(missed) <= 0.05
    assert np.mean(trained) < 0.9 * len(WIDE)


def test_the_front_of_what_is_expected():
    """Of known means, with errors of nearly nothing and of their own size."""
    means = np.array([[3.0, 2.0, 1.0, 0.0, 2.5], [0.0, 2.0, 3.0, 1.0, 1.0]])

    def outlooks(error):
        return [Outlook(mean, np.full(5, error), 0, 0.1, np.zeros(5), None) for mean in means]

    sure, unsure = outlooks(1e-6), outlooks(1.0)
    assert on_front(sure, [0, 1, 2, 3]) == [0, 1, 2]
    assert on_front(sure, range(5)) == [0, 4, 1, 2]
    assert joins_front(sure, [0, 1, 2])[[3, 4]].tolist() == [0.0, 1.0]
    assert 0.1 < joins_front(unsure, [0, 1, 2])[3] < joins_front(unsure, [0, 1, 2])[4] < 1.0


def test_a_race_without_differences_ends_early():
    x = places(WIDE)
    rng = np.random.default_rng(1)
    scores = raced(x, np.zeros(len(x)), 1e-3, 0.01, SearchSettings(), rng)
    assert len(scores) == 16  # a first round, and one that tests what is expected


def test_the_budget_is_kept_and_a_failed_candidate_is_not_tried_again():
    x = places(WIDE)
    search = SearchSettings(first=6, batch=4, max_runs=12)
    rng = np.random.default_rng(2)
    assert len(raced(x, rng.standard_normal(len(x)), 0.0, 1e-9, search, rng)) == 12
    tried = np.zeros(len(x), np.bool_)
    tried[:6] = True
    found = Candidates(WIDE, x, {0: 1.0, 1: 1.1, 2: 0.9}, tried, 0.01)  # three of six diverged
    chosen, said = next_round(found, search)
    assert len(chosen) == 4
    assert min(chosen) >= 6
    assert "too few" in said


def test_places_take_every_axis():
    runs = grid(temperature=[1.0, 10.0], alpha=[0.5], learning_rate=[1e-4, 1e-3, 1e-2], model=["tiny", "small"])
    x = places(runs)
    assert x.shape == (12, 3)
    assert np.unique(x[:, 1].round(9)).tolist() == [0.0, 0.5, 1.0]  # a logarithm
    assert places(WIDE).shape == (25, 2)  # without schedules, both ends are one
    assert places(grid(temperature=[3.0], alpha=[0.5])).shape == (1, 0)


def test_rejections_are_compared_by_their_logarithm(tmp_path):
    store = make_study(tmp_path / "study", SMALL_GRID, seeds=(1, 2), jets=900, diverged=(SMALL_GRID[3].name,))
    table = {"grid": [run.name for run in SMALL_GRID], "seeds": [1, 2], "search": {"metric": "bkg_rej_50"}}
    found = Candidates.of(StudySettings.resolve(table), store.results(), (), store.shared("test"))
    own = [result.metrics for result in store.results() if result.name == SMALL_GRID[0].name]
    assert found.scores[0] == pytest.approx(np.mean([np.log(metrics["bkg_rej_50_val"]) for metrics in own]))
    assert 3 not in found.scores
    assert found.tried.all()
    assert 0.01 < found.tolerance < 0.5
    assert found.outlook().chance.sum() == 0


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A study that raced, and what it trained."""
    out = tmp_path_factory.mktemp("race") / "study"
    study = small_sweep(out, grid=WIDE, search=RACE)
    return out, study


def test_a_sweep_races(race):
    out, study = race
    assert len(study.results) == 8
    assert study_status(StudyStore.open(out)).finished
    text = " ".join((out / "ANALYSIS_SUMMARY.txt").read_text().split())
    assert "Race: 8 of 25 configurations trained. The leader, with the largest expected validation AUC, is " in text
    assert "Race: 8 of 25 configurations trained." in (out / "report.html").read_text()
    assert sorted(len(pack.runs) for pack in planned(StudyStore.open(out))) == [2, 7]  # with the baseline


def test_a_finished_race_trains_nothing_and_another_is_refused(race):
    out, study = race
    again = small_sweep(out, grid=WIDE, search=RACE)
    assert again.results.equals(study.results)
    with pytest.raises(StudyError, match=r"another search: tolerance 1e-09 → 0.5"):
        small_sweep(out, grid=WIDE, search=RACE | {"tolerance": 0.5})


def test_a_sweep_races_for_the_front(tmp_path):
    search = {"first": 6, "batch": 2, "max_runs": 8, "keep": "pareto"}
    study = small_sweep(tmp_path / "study", grid=WIDE, search=search)
    assert len(study.results) == 8
    front = analyse(StudyStore.open(tmp_path / "study")).race.front
    assert set(front) <= set(study.results["run_name"])
    text = " ".join((tmp_path / "study/ANALYSIS_SUMMARY.txt").read_text().split())
    assert f"front, by their expected validation scores: {shown(', '.join(front))}." in text


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [[42], [1, 2]])
def test_a_race_that_is_cut_off_decides_the_same(tmp_path, seeds):
    """Also between the seeds of a round."""
    grid, few = WIDE[::2], {"first": 4, "batch": 2, "max_runs": 6, "tolerance": 1e-9, "replicates": 1, "survivors": 2}
    study = small_sweep(tmp_path / "whole", grid=grid, search=few, seeds=seeds, pack_size=2)
    program = f"""
import os, sys
from kdfast.store.store import StudyStore
from tests.study.test_search import WIDE, small_sweep
write, left = StudyStore.write, [int(sys.argv[1])]
def dying(self, result):
    write(self, result)
    left[0] -= 1
    if not left[0]:
        os._exit(3)
StudyStore.write = dying
small_sweep({str(tmp_path / "study")!r}, grid=WIDE[::2], search={few!r}, seeds={seeds!r}, pack_size=2)
"""
    for stored in (5, 2, 7 * len(seeds) - 4):  # the last with a run of the further seed left
        assert subprocess.run([sys.executable, "-c", program, str(stored)], check=False).returncode == 3
    assert len(StudyStore.open(tmp_path / "study").keys()) == 3 + 7 * len(seeds)
    resumed = small_sweep(tmp_path / "study", grid=grid, search=few, seeds=seeds, pack_size=2)
    assert resumed.results.equals(study.results)
    first, second = ([pack.runs for pack in planned(StudyStore.open(tmp_path / name))] for name in ("whole", "study"))
    assert first == second


def test_leaders_of_a_race_are_refined(race, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(race[0], out)
    refined = refine(out, top=2, seeds=2, data=small_jets(), progress=False)
    assert len(refined.results) == 10
    assert study_status(StudyStore.open(out)).finished


@pytest.mark.slow
def test_survivors_get_further_seeds(race, tmp_path):
    out = tmp_path / "study"
    study = small_sweep(out, grid=WIDE, search=RACE | FURTHER)
    table = study.results
    own, further = table[table["seed"] == 42], table[table["seed"] > 42]
    assert own.reset_index(drop=True).equals(race[1].results)
    assert sorted(further["seed"].unique()) == [43, 44]
    assert len(further) == 2 * further["run_name"].nunique() <= 6
    assert study_status(StudyStore.open(out)).finished
    refinement = analyse(StudyStore.open(out)).refinement  # told from the race's own seed
    assert refinement.seeds == [43, 44]
    assert {row.run_name for row in refinement.configurations} == set(further["run_name"])
    assert small_sweep(out, grid=WIDE, search=RACE | FURTHER).results.equals(table)

    workers = tmp_path / "workers"
    small_sweep(workers, grid=WIDE, search=RACE | FURTHER, plan_only=True)
    assert not work(workers, progress=False, threads=2).failed
    assert StudyStore.open(workers).keys() == StudyStore.open(out).keys()


@pytest.mark.slow
def test_budgets_of_epochs_and_hours(race, tmp_path):
    """In epochs also of further seeds, as far as they go; what a race has taken is known from its results."""
    search = {name: value for name, value in RACE.items() if name != "max_runs"} | {"max_epochs": 2 * 7}
    table = small_sweep(tmp_path / "study", grid=WIDE, search=search).results
    assert len(table) == 7
    table = small_sweep(tmp_path / "more", grid=WIDE, search=RACE | FURTHER | {"max_epochs": 2 * 11}).results
    assert 8 < len(table) <= 11
    store = StudyStore.open(race[0])
    seconds = [result.metrics["seconds"] for result in store.results() if result.kind == "student"]
    for hours, affordable in {1.0: 3600 // np.mean(seconds) - 8, sum(seconds) / 3600 - 1e-6: 0}.items():
        table = {"grid": [run.name for run in WIDE], "search": RACE | {"max_hours": hours}}
        found = Candidates.of(StudySettings.resolve(table), store.results(), (), store.shared("test"))
        assert found.affordable == pytest.approx(affordable, abs=1.5 if affordable else 0)
    chosen, said = next_round(found, SearchSettings(first=6, max_hours=1e-9))
    assert not chosen
    assert said.endswith("8 of 25 configurations trained: the budget has no room for more")


def test_the_confidence_set_holds_the_best():
    """Of equal configurations too, where the correction for comparisons matters most; of different ones it is small."""
    rng = np.random.default_rng(4)
    held = [0 in confidence_set(rng.normal(size=(10, 5)), 0.05) for _ in range(4000)]
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 4000)
    apart = np.arange(10)[:, None] + 0.1 * rng.normal(size=(10, 5))
    assert confidence_set(apart, 0.05) == [9]
    apart[9, 2] = np.nan  # it diverged
    assert confidence_set(apart, 0.05) == [8]
    assert confidence_set(apart[:, :1], 0.05) == list(range(10))  # one seed does not tell
    assert confidence_set(apart[:, :0], 0.05) == list(range(10))


def test_survivors_are_near_the_leader():
    x = places(WIDE)
    truth = -((x - 0.6) ** 2).sum(axis=1)
    rng = np.random.default_rng(5)
    scores = dict(enumerate(truth + rng.normal(0, 0.005, len(x))))
    near = survivors(Candidates(WIDE, x, scores, np.ones(len(x), np.bool_), 0.02), SearchSettings(survivors=6))
    assert np.argmax(truth) in near
    assert 1 < len(near) <= 6
    assert all(truth.max() - truth[number] < 0.1 for number in near)


def test_workers_race(race, tmp_path):
    out = tmp_path / "study"
    small_sweep(out, grid=WIDE, search=RACE, plan_only=True)
    assert len(planned(StudyStore.open(out))) == 1
    with pytest.raises(StudyError, match="the packs to submit are not known yet"):
        slurm_script(out)
    outcome = work(out, progress=False, threads=2)
    assert not outcome.failed
    assert StudyStore.open(out).keys() == StudyStore.open(race[0]).keys()
    assert work(out, progress=False).failed == {}


@pytest.mark.slow
def test_a_cluster_races(race, tmp_path):
    with connected("local", threads=2) as client:
        study = small_sweep(tmp_path / "study", grid=WIDE, search=RACE, client=client)
    assert study.results.equals(race[1].results)


def test_further_runs_of_the_grid_may_be_added(race, tmp_path):
    """A sweep without the search trains the rest."""
    out = tmp_path / "study"
    small_sweep(out, grid=WIDE[:8], search=RACE | {"max_runs": 6})
    assert len(small_sweep(out, grid=WIDE[:8]).results) == 8


def test_refused_searches(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"search.max_runs: is 5, the first round has 8"):
        small_sweep(tmp_path / "a", grid=WIDE, search={"max_runs": 5})
    with pytest.raises(ConfigError, match=r"search.max_epochs: is 15, the first round takes 16"):
        small_sweep(tmp_path / "a", grid=WIDE, search={"max_epochs": 15})
    with pytest.raises(ConfigError, match=r"search.tolerance: has no meaning in a race for the Pareto front"):
        small_sweep(tmp_path / "a", grid=WIDE, search={"keep": "pareto", "tolerance": 0.1})
    with pytest.raises(ConfigError, match="the grid has 1 configuration"):
        small_sweep(tmp_path / "b", grid=WIDE[:1], search="race")
    assert main(["sweep", "--search", "halving", "--out", str(tmp_path / "c")]) == 2
    assert "--search" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_settings_are_stored_as_a_table(race):
    out, _ = race
    table = StudyStore.open(out).settings["search"]
    default = {"method": "race", "metric": "auc", "keep": "best", "error": 0.05, "replicates": 0, "survivors": 10}
    assert table == default | RACE
    assert StudySettings.resolve({"search": "grid"}).search is None
