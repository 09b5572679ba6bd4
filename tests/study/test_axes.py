"""A sweep over further axes, end to end: packs, baselines, workers, resuming, results, report."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdfast.cli import main
from kdfast.distill.recipe import Settings
from kdfast.store.grid import grid, with_baselines
from kdfast.store.packs import planned
from kdfast.store.settings import StudySettings
from kdfast.store.status import study_status
from kdfast.store.store import StudyStore
from kdfast.study.batch_script import slurm_script
from kdfast.study.dask_engine import connected
from kdfast.study.plan import shared_groups
from kdfast.study.results import StudyResults, open_study
from tests.study.processes import finish, start, wait_until
from tests.study.small_sweep import SIZES, small_sweep

LARGER = SIZES | {"width": 32}
AXES = {"model": [SIZES, LARGER], "learning_rate": [1e-3, 1e-2]}
GRID = {"temperature": [2.0], "alpha": [0.3, 0.7], **AXES}


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Path:
    study = tmp_path_factory.mktemp("planned") / "study"
    small_sweep(study, grid=GRID, plan_only=True, pack_size=4)
    return study


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> StudyResults:
    """By one process."""
    return small_sweep(tmp_path_factory.mktemp("swept") / "study", grid=GRID)


def test_runs_of_a_pack_share_model_and_batches_and_each_combination_has_a_baseline(plan):
    store = StudyStore.open(plan)
    packs = planned(store)
    assert [len(pack.runs) for pack in packs] == [4, 2, 4, 2]
    assert len({pack.shared for pack in packs}) == 2
    assert all(len({dict(run.settings)["model"] for run in pack.runs}) == 1 for pack in packs)
    baselines = [key for pack in packs for key in pack.keys if key.kind == "baseline"]
    assert len(baselines) == 4
    assert study_status(store).counts == {"missing": 1 + 4 + 8}


def test_groups_of_a_pack():
    runs = grid(temperature=3, alpha=0.5, batch_size=[64, 128], learning_rate=[1e-3, 1e-2], attention_weight=[0, 1])
    groups = shared_groups(runs)
    assert list(groups) == [Settings({"batch_size": 64}), Settings({"batch_size": 128})]
    assert [len(group) for group in groups.values()] == [2 + 4, 2 + 4]  # one attention weight is as good as another
    assert list(shared_groups(grid("study")).values()) == [with_baselines(grid("study"))]


@pytest.mark.slow
def test_two_workers_one_of_them_stopped_leave_what_one_process_does(plan, swept, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(plan, study)
    first = start("-m", "kdfast", "worker", "--store", str(study))
    wait_until(lambda: len(list((study / "results").glob("student.*"))) >= 1, "a student is stored")
    first.terminate()
    finish(first)
    ended = [finish(each) for each in [start("-m", "kdfast", "worker", "--store", str(study)) for _ in range(2)]]
    assert [status for status, *_ in ended] == [0, 0], ended
    open_study(study).report()
    for name in ("results_summary.csv", "ANALYSIS_SUMMARY.txt"):
        assert (study / name).read_text() == (swept.path / name).read_text()


@pytest.mark.slow
def test_a_dask_cluster_trains_the_same(swept, tmp_path):
    with connected("local", threads=2) as client:
        small_sweep(tmp_path / "study", grid=GRID, client=client)
    assert (tmp_path / "study" / "results_summary.csv").read_text() == (swept.path / "results_summary.csv").read_text()


def test_a_batch_system_gets_every_pack(plan):
    script = slurm_script(plan)
    assert all(pack.id in script for pack in planned(StudyStore.open(plan)))


def test_results_have_their_axes_and_matching_baselines(swept):
    table = swept.results
    assert list(table.columns[-2:]) == ["learning_rate", "model"]
    assert sorted(set(table["learning_rate"])) == [1e-3, 1e-2]
    for (_, _), rows in table.groupby(["learning_rate", "model"]):
        rate, model = rows[["learning_rate", "model"]].iloc[0]
        name = f"baseline_lr{rate}_m-{model}"
        (baseline,) = [r for r in StudyStore.open(swept.path).results() if r.name == name]
        assert (rows["auc_baseline"] == baseline.metrics["auc"]).all()
        assert len(swept.scores(name)) > 0
    assert table["auc_baseline"].nunique() > 1
    one = table["run_name"][0]
    assert swept.scores(one.replace("baseline_", "constant_")).equals(swept.scores(one))


def test_a_run_is_the_same_alone(swept, tmp_path):
    run = grid(temperature=2.0, alpha=0.7, model=[LARGER], learning_rate=1e-2)[0]
    alone = small_sweep(tmp_path / "alone", grid=[run], pack_size=1)
    for name in (run.name, run.baseline.name):
        assert np.array_equal(swept.scores(name)["score"], alone.scores(name)["score"])


def test_a_baseline_is_that_of_a_study_with_its_settings(swept, tmp_path):
    """A student is not: the teacher has the study's learning rate, too."""
    other = small_sweep(
        tmp_path / "other", model=LARGER, learning_rate=1e-2, grid=grid(temperature=2.0, alpha=0.7), epochs=2
    )
    name = grid(temperature=2.0, alpha=0.7, model=[LARGER], learning_rate=1e-2)[0].baseline.name
    assert np.array_equal(swept.scores(name)["score"], other.scores("baseline")["score"])


def test_axes_on_the_command_line(tmp_path, capsys):
    sizes = ["--model", "tiny", "--teacher-model", "tiny", "--max-jets", "400", "--plan-only", "--pack-size", "9"]
    axes = ["--axis", "model=tiny,small", "--axis", "learning-rate=1e-3,2e-3", "--axis", "shuffle_window=all"]
    grids = {"lists": ["--temperature", "3", "--alpha", "0.5"], "preset": ["--grid", "study"]}
    for name, options in grids.items():
        assert main(["sweep", "--out", str(tmp_path / name), "--quiet", *sizes, *options, *axes]) == 0
    runs = {name: StudySettings.resolve(tmp_path / name / "study.toml").runs() for name in grids}
    axes = {"model": ["tiny", "small"], "learning_rate": [1e-3, 2e-3], "shuffle_window": "all"}
    assert runs == {"lists": grid(temperature=3, alpha=0.5, **axes), "preset": grid("study", **axes)}
    for wrong, message in {
        "model": "--axis model: give a name and values, as in --axis model=small,medium",
        "batch_siz=3": "unknown axis 'batch_siz' did you mean 'batch_size'",
        "batch_size=x": "--axis: must be a whole number, is 'x'",
    }.items():
        capsys.readouterr()
        assert main(["sweep", "--out", str(tmp_path / "wrong"), "--grid", "study", "--axis", wrong]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert main(["sweep", "--help"]) == 0
    assert "--axis NAME=V,V" in capsys.readouterr().out
