"""Packs: every run in one pack, once, whatever is planned in what order; and sizes that keep workers busy."""

import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast.distill.pack import EpochReport
from kdfast.distill.recipe import Recipe
from kdfast.errors import ConfigError, StudyError
from kdfast.models.config import model_config
from kdfast.store.grid import grid
from kdfast.store.packs import PlannedPack, find, missing, planned
from kdfast.store.settings import StudySettings
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.verify import repair, verify
from kdfast.study import plan as module
from kdfast.study.plan import (
    CHECKPOINT_BYTES,
    PACK_SECONDS,
    MemberCost,
    calibrate,
    members_per_pack,
    plan,
    study_seconds,
)
from kdfast.study.prepare import prepare
from tests.study.small_sweep import SIZES, small_jets, small_sweep

RUNS = grid(temperature=[2.0, 3.0, 4.0], alpha=[0.25, 0.5, 0.75])


@pytest.fixture
def store(tmp_path) -> StudyStore:
    return StudyStore.create_or_open(tmp_path / "study", {}, {})


def test_every_run_once(store):
    packs, new = plan(store, [1, 2], RUNS, 4)
    assert packs == new == planned(store)
    assert [pack.id for pack in packs] == [f"seed{seed}.{i:03}" for seed in (1, 2) for i in range(3)]
    members = [(pack.seed, member.name) for pack in packs for member in pack.members]
    assert len(members) == len(set(members)) == 2 * (1 + len(RUNS))
    assert packs[0].members[0].config is None
    assert plan(store, [1, 2], RUNS, 2) == (packs, [])


def test_more_runs_get_packs_of_their_own_and_stored_ones_none(store):
    first, _ = plan(store, [1], RUNS[:3], 4)
    store.write(StoredResult("student", RUNS[5].name, 1, RUNS[5]))
    packs, new = plan(store, [1], RUNS, 4)
    assert packs == [*first, *new]
    names = [member.name for pack in new for member in pack.members]
    assert names == [run.name for i, run in enumerate(RUNS) if i > 2 and i != 5]
    assert missing(store, first[0]) == first[0]
    store.write(StoredResult("baseline", "baseline", 1))
    assert missing(store, first[0]).runs == first[0].runs[1:]


def test_an_unknown_pack(store):
    packs, _ = plan(store, [1], RUNS, 4)
    assert find(packs, "seed1.001") == packs[1]
    with pytest.raises(ConfigError, match=r"there is no pack 'seed1\.0o1'"):
        find(packs, "seed1.0o1")


def test_a_damaged_pack_is_named(store):
    packs, _ = plan(store, [1], RUNS, 4)
    path = store.path / "packs" / packs[1].id / "pack.json"
    document = json.loads(path.read_text())
    document["runs"].pop()
    path.write_text(json.dumps(document))
    with pytest.raises(StudyError, match=r"seed1\.001.*damaged"):
        planned(store)
    repair(store.path)
    again, new = plan(store, [1], RUNS, 4)  # what it held is in another one, of a number that was never used
    assert [pack.id for pack in again] == ["seed1.000", "seed1.002", "seed1.003"]
    assert new[0].runs == packs[1].runs


def test_packs_are_in_the_order_of_their_numbers(store):
    """So that those which are added come last, also after a thousand: a job array counts by them."""
    plan(store, [1, 2], RUNS, 4)
    for old, new in (("001", "1000"), ("002", "999")):
        (store.path / "packs" / f"seed1.{old}").rename(store.path / "packs" / f"seed1.{new}")
    numbers = ["seed1.000", "seed1.999", "seed1.1000", "seed2.000", "seed2.001", "seed2.002"]
    assert [pack.id for pack in planned(store)] == numbers
    more = grid(temperature=[9.0], alpha=[0.5])
    assert [pack.id for pack in plan(store, [1], more, 4)[0]] == [*numbers[:3], "seed1.1001", *numbers[3:]]


def test_a_pack_under_another_packs_name_is_damaged(store):
    plan(store, [1, 2], RUNS, 4)
    (store.path / "packs" / "seed2.001").rename(store.path / "packs" / "seed1.009")
    with pytest.raises(StudyError, match=r"seed1\.009.*it holds a pack of seed 2"):
        planned(store)
    assert [finding.path for finding in verify(store.path).findings] == ["packs/seed1.009/pack.json"]


def test_ten_thousand_packs_are_told_from_a_grid_at_once():
    runs = grid(temperature=[1 + i / 10 for i in range(100)], alpha=[i / 100 for i in range(100)])
    names = {run.name for run in runs}
    packs = [PlannedPack(f"seed1.{i:05}", 1, (run,)) for i, run in enumerate(runs)]
    began = time.process_time()
    assert all(pack.of(names).runs for pack in packs)
    assert time.process_time() - began < 1.0


@settings(deadline=None)
@given(
    runs=st.integers(1, 400),
    seconds=st.one_of(st.just(math.nan), st.floats(1e-3, 1e5)),
    threads=st.integers(1, 64),
    workers=st.integers(1, 20),
)
def test_sizes(runs, seconds, threads, workers):
    size = members_per_pack(runs, MemberCost(seconds), threads, workers)
    count = math.ceil(runs / size)
    assert size % threads == 0
    if size > threads and seconds > 0:  # rounding up to whole rounds of the threads aside
        assert (size - threads) * seconds / threads <= PACK_SECONDS
    if workers > 1 and size > threads:
        assert count >= min(workers, runs / threads) / 2
    if size > threads:  # the last pack is not a small rest: it lacks less than a round of the threads in each pack
        assert count * size - runs < count * threads


def test_no_more_at_once_than_memory_holds():
    assert members_per_pack(100, MemberCost(1.0, memory=10), threads=8, free=50) == 4
    assert members_per_pack(100, MemberCost(1.0, memory=1000), threads=8, free=50) == 1
    assert members_per_pack(100, MemberCost(1.0, memory=1), threads=8, free=50) == 104


def test_checkpoints_of_members_that_run_at_once_stay_bounded():
    assert members_per_pack(132, MemberCost(), threads=4, checkpoint=CHECKPOINT_BYTES // 100) == 100
    assert members_per_pack(132, MemberCost(), threads=4, checkpoint=2 * CHECKPOINT_BYTES) == 1
    assert members_per_pack(132, MemberCost(), threads=4, checkpoint=1000) == 132
    assert members_per_pack(132, MemberCost(), threads=4, workers=3, checkpoint=CHECKPOINT_BYTES // 100) == 12


def test_a_members_cost_is_measured():
    recipe = Recipe(epochs=4, batch_size=32)
    prepared = prepare(small_jets(), StudySettings())
    views = prepared.hlt["train"], prepared.hlt["validation"]
    cost = calibrate(model_config(SIZES), recipe, *views, "fp32")
    assert 0 < cost.seconds < 60
    longer = calibrate(model_config(SIZES), recipe.model_copy(update={"epochs": 400}), *views, "fp32")
    assert longer.seconds > 10 * cost.seconds


def test_a_cost_is_that_of_all_epochs_and_jets(monkeypatch):
    """With reports of a clock that is known: the first epoch is slow, one of the others is disturbed."""

    def trained(pack, threads, on_epoch):
        assert (len(pack.members), threads) == (2, 2)
        jets = len(pack.train)
        for member in pack.members:
            for epoch, slower in enumerate([10.0, 1.0, 1.0, 3.0]):
                seconds = slower * 1e-3 * (jets + len(pack.validation) / 3)
                on_epoch(EpochReport(member.name, epoch, 4, 0.5, 0.8, 0.8, jets, seconds))
        return ()

    monkeypatch.setattr(module, "train_pack", trained)
    views = prepare(small_jets(), StudySettings()).hlt
    settings = (model_config(SIZES), Recipe(epochs=50, batch_size=32), views["train"], views["validation"], "fp32")
    cost = calibrate(*settings, members=2, threads=2)
    assert cost.seconds == pytest.approx(50 * 1e-3 * (len(views["train"]) + len(views["validation"]) / 3))
    assert calibrate(*settings, jets=(30_000, 3_000), members=2, threads=2).seconds == pytest.approx(50 * 31.0)


# Costs of teacher and member as they were calibrated, members, threads, and the seconds that their training then took:
# the demo's sizes, the preset small, and jets of 30 constituents; on two cores that other processes used as well.
RECORDED = [(31.4, 12.3, 4, 2, 51.8), (5.2, 6.6, 6, 2, 35.0), (21.4, 11.8, 13, 2, 77.1)]


@pytest.mark.parametrize(("teacher", "member", "members", "threads", "took"), RECORDED)
def test_the_time_of_a_study_is_right_within_a_factor_of_two(teacher, member, members, threads, took):
    assert 0.5 < study_seconds(teacher, member * members, threads) / took < 2.0


@pytest.mark.parametrize(
    ("teacher", "time"), [(None, "3 min on 2 threads (2 min of it for the teacher);"), (0, "50 s on 2 threads;")]
)
def test_the_time_that_a_plan_says_includes_the_teachers(tmp_path, monkeypatch, capsys, teacher, time):
    costs = iter([MemberCost(20.0), MemberCost(110.0)])
    monkeypatch.setattr(module, "calibrate", lambda *_, **__: next(costs))
    given = None if teacher is None else np.linspace(-1, 1, 400)
    small_sweep(tmp_path / "study", teacher=given, plan_only=True, progress=True, threads=2)
    assert f"plan: 5 runs in one pack, up to {time} checkpoints of up to 1 MB" in capsys.readouterr().err
