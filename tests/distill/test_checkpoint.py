"""A member that goes on from a checkpoint ends as one that was never interrupted."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfast import backend
from kdfast.distill import cpu_engine, cuda_engine, reference_engine
from kdfast.distill.checkpoint import MemberCheckpoint, copy_tensors
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, Targets
from kdfast.distill.schedules import RunConfig
from kdfast.distill.trainer import train_on_gpus
from kdfast.models import evaluation
from kdfast.models.config import NetworkConfig
from kdfast.ops import backend as backends
from tests.distill.packs import DEEP_SETS, MODEL, pack, students

needs_kernels = pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))
ENGINES = [
    pytest.param(cpu_engine.train, "fp32", MODEL, id="cpu-fp32", marks=needs_kernels),
    pytest.param(cpu_engine.train, "bf16", MODEL, id="cpu-bf16", marks=needs_kernels),
    pytest.param(cpu_engine.train, "fp32", DEEP_SETS, id="cpu-deepsets", marks=needs_kernels),
    pytest.param(reference_engine.train, "fp32", MODEL, id="reference-fp32", marks=pytest.mark.slow),
]
Train = Callable[..., Iterable[MemberResult]]


class Kept:
    """Checkpoints in memory: all that were saved, by member; the last one is loaded."""

    def __init__(self, interval: float = float("inf"), saved: dict[str, list[MemberCheckpoint]] | None = None) -> None:
        self.interval, self.saved = interval, saved or {}

    def load(self, member: str) -> MemberCheckpoint | None:
        return copy.deepcopy(self.saved[member][-1]) if member in self.saved else None

    def save(self, member: str, checkpoint: MemberCheckpoint) -> None:
        self.saved.setdefault(member, []).append(copy.deepcopy(checkpoint))


class StopAtCall(threading.Event):
    """Set from its n-th look on: engines look between steps and between batches of an evaluation."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(autouse=True)
def small_batches_of_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_engine, "_EVALUATED", 16)
    monkeypatch.setattr(evaluation, "_BATCH", 16)


def run(
    train: Train, a_pack: Pack, kept: Kept | None = None, stop: threading.Event | None = None, threads: int = 1
) -> dict[str, MemberResult]:
    with backend("reference" if train is reference_engine.train else "cpu"):
        return {result.name: result for result in train(a_pack, threads, None, stop or threading.Event(), kept)}


def assert_same(result: MemberResult, expected: MemberResult) -> None:
    for name in ("name", "status", "message", "best_epoch", "epochs", "curves"):
        assert getattr(result, name) == getattr(expected, name), name
    assert torch.equal(result.scores_validation, expected.scores_validation)
    assert torch.equal(result.scores_test, expected.scores_test)
    assert result.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        assert torch.equal(result.state[name], tensor), name


def early_stopping_pack(precision: str, model: NetworkConfig) -> Pack:
    """A student that stops before its last epoch; dropout, clipping, weight decay and schedules act."""
    config = RunConfig(3.0, 0.8, temp_final=1.0, alpha_final=0.2)
    recipe = {"epochs": 25, "patience": 2, "learning_rate": 1e-2, "weight_decay": 0.1, "clip_norm": 0.5}
    a_pack = pack([Member("s", config)], model=model, **recipe)
    return replace(a_pack, precision=precision)


@pytest.mark.parametrize(("train", "precision", "model"), ENGINES)
def test_from_every_step_of_a_member_to_the_same_bits(train: Train, precision: str, model: NetworkConfig):
    a_pack = early_stopping_pack(precision, model)
    every = Kept(interval=0.0)
    expected = run(train, a_pack)["s"]
    assert_same(run(train, a_pack, every)["s"], expected)  # taking checkpoints changes nothing
    steps = [checkpoint.step for checkpoint in every.saved["s"]]
    assert steps == list(range(1, 3 * expected.epochs))
    assert expected.epochs == expected.best_epoch + 3 < 25
    for checkpoint in every.saved["s"]:
        again = run(train, a_pack, Kept(saved={"s": [checkpoint]}))["s"]
        assert_same(again, expected)
        assert again.seconds > checkpoint.seconds > 0


@pytest.mark.parametrize(("train", "precision", "model"), ENGINES)
def test_stopped_again_and_again_anywhere(train: Train, precision: str, model: NetworkConfig):
    """Between steps, before an epoch's evaluation and in the last one."""

    @given(st.lists(st.integers(10, 60), min_size=40, max_size=40), st.booleans())
    @settings(max_examples=6, deadline=None)
    def check(looks: list[int], two_threads: bool) -> None:
        kept, results, threads = Kept(), {}, 1 + two_threads
        for number in [*looks, *itertools.repeat(60, 100)]:
            missing = tuple(member for member in a_pack.members if member.name not in results)
            if not missing:
                break
            stop = StopAtCall(number * threads)
            results |= run(train, replace(a_pack, members=missing), kept, stop, threads)
        assert results.keys() == expected.keys()
        for name, result in results.items():
            assert_same(result, expected[name])
        positions.update(at.position for saved in kept.saved.values() for at in saved)

    a_pack = replace(pack([Member("baseline"), *students(2)], model=model, epochs=3, patience=1), precision=precision)
    expected, positions = run(train, a_pack), set[tuple[int, int]]()
    check()
    assert any(step == 3 * (epoch + 1) for epoch, step in positions)  # an epoch that waits for its evaluation
    assert any(step % 3 for _, step in positions)


def test_a_member_that_never_needs_a_checkpoint_writes_none():
    kept = Kept()
    assert run(cpu_engine.train, pack(students(2), epochs=2), kept)
    assert not kept.saved
    assert not run(cpu_engine.train, pack(students(2)), kept, StopAtCall(1))  # nothing was trained
    assert not kept.saved


def test_time_adds_up():
    kept = Kept(interval=0.0)
    run(cpu_engine.train, pack(students(1)), kept, StopAtCall(5))
    ((name, saved),) = kept.saved.items()
    saved[-1].seconds = 1000.0
    assert 1000.0 < run(cpu_engine.train, pack(students(1)), Kept(saved={name: saved}))[name].seconds < 1010.0


def test_reports_count_what_this_process_trained():
    reports: list[EpochReport] = []
    kept = Kept()
    run(cpu_engine.train, pack(students(1)), kept, StopAtCall(3))  # the loop's own look, then two steps
    assert [at.step for saved in kept.saved.values() for at in saved] == [2]
    list(cpu_engine.train(pack(students(1)), 1, reports.append, threading.Event(), kept))
    assert [(report.epoch, report.jets) for report in reports] == [(0, 32), (1, 96), (2, 96)]


def diverging_pack() -> Pack:
    # With α = 0 the teacher is not read; where it is, its NaN makes a loss that is not finite.
    a_pack = pack([Member("bad", RunConfig(1.0, 0.0, alpha_final=0.5)), Member("good", RunConfig(1.0, 0.0))])
    targets = Targets(a_pack.targets.logits.clone())
    targets.logits[40] = float("nan")
    return replace(a_pack, targets=targets)


@pytest.mark.parametrize("train", [cpu_engine.train, pytest.param(cuda_engine.train, marks=pytest.mark.slow)])
def test_a_diverging_member_diverges_again(train: Train):
    a_pack, every = diverging_pack(), Kept(interval=0.0)
    expected = run(train, a_pack, every)
    assert expected["bad"].status == "diverged"
    for checkpoint in every.saved["bad"][1::2]:
        again = run(train, a_pack, Kept(saved={"bad": [checkpoint]}))
        assert (again["bad"].status, again["bad"].message) == (expected["bad"].status, expected["bad"].message)
        if train is cpu_engine.train:
            assert_same(again["bad"], expected["bad"])
        else:  # in lock-step it goes on alone, as a pack of another size
            assert again["bad"].curves["loss"] == pytest.approx(expected["bad"].curves["loss"], rel=1e-4)
        assert again["good"].status == "done"


def test_a_checkpoint_of_other_sizes_is_refused():
    tensors = {"parameters": torch.zeros(4), "updates": torch.zeros(1, dtype=torch.int64)}
    copy_tensors(tensors, {name: tensor + 1 for name, tensor in tensors.items()})
    assert tensors["parameters"].tolist() == [1.0] * 4
    for wrong, message in (
        ({"parameters": torch.zeros(1)}, r"parameters is torch.float32 \[1\], expected torch.float32 \[4\]"),
        ({"parameters": torch.zeros(4), "updates": torch.zeros(1)}, "updates is torch.float32"),
        ({"parameters": torch.zeros(4)}, "updates is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_tensors(tensors, wrong)


# ---- the lock-step engine, here without a GPU


@pytest.mark.slow
def test_a_pack_in_lock_step_goes_on_to_the_same_bits():
    """While all its members run it is the same pack, which promises the same bits."""
    a_pack = pack([Member("baseline"), *students(2)], epochs=3)
    every = Kept(interval=0.0)
    expected = run(cuda_engine.train, a_pack, every)
    assert {len(saved) for saved in every.saved.values()} == {8}
    for number in (2, 4, 7):  # at an epoch's begin, within one, before the last step
        kept = Kept(saved={name: saved[: number + 1] for name, saved in every.saved.items()})
        for name, result in run(cuda_engine.train, a_pack, kept).items():
            assert_same(result, expected[name])
            assert result.seconds > every.saved[name][number].seconds


@pytest.mark.slow
def test_a_stop_in_lock_step_saves_all_that_run():
    a_pack, kept = pack(students(3), epochs=3), Kept()
    assert not run(cuda_engine.train, a_pack, kept, StopAtCall(6))
    assert [[at.step for at in saved] for saved in kept.saved.values()] == [[5]] * 3
    expected = run(cuda_engine.train, a_pack)
    for name, result in run(cuda_engine.train, a_pack, kept).items():
        assert_same(result, expected[name])


def test_a_stop_on_several_devices_saves_the_members_of_all():
    a_pack, kept, stop = pack(students(3), epochs=8, learning_rate=1e-3), Kept(), threading.Event()
    devices = ["cpu", "cpu"]
    expected = {result.name: result for result in train_on_gpus(devices, cuda_engine.train, a_pack, None, stop)}
    seen: set[str] = set()

    def when_all_have_an_epoch(report: EpochReport) -> None:
        seen.add(report.member)
        if len(seen) == 3:
            stop.set()
        elif report.epoch > 0:
            stop.wait(60)  # until the other device has finished its first epoch, however busy the machine is

    assert not list(train_on_gpus(devices, cuda_engine.train, a_pack, when_all_have_an_epoch, stop, kept))
    assert kept.saved.keys() == expected.keys()
    ours = list(train_on_gpus(devices, cuda_engine.train, a_pack, None, threading.Event(), kept))
    assert len(ours) == 3
    for result in ours:  # in groups as they were stopped
        np.testing.assert_allclose(result.curves["loss"], expected[result.name].curves["loss"], rtol=1e-4)


@pytest.mark.slow
def test_members_at_other_steps_go_on_in_groups_of_their_own():
    """Groups have other sizes than the pack: equal but for rounding, as for another pack of the same members."""
    a_pack = pack([Member("baseline"), *students(3)], epochs=3, patience=2, learning_rate=1e-3)
    every = Kept(interval=0.0)
    expected = run(cuda_engine.train, a_pack, every)
    names = [member.name for member in a_pack.members]
    kept = Kept(saved={names[0]: every.saved[names[0]][:4], names[1]: every.saved[names[1]][:4]})
    kept.saved[names[2]] = every.saved[names[2]][:6]  # the last one is at its start
    ours = run(cuda_engine.train, a_pack, kept)
    assert ours.keys() == expected.keys()
    for name, result in ours.items():
        assert (result.status, result.epochs) == ("done", expected[name].epochs)
        np.testing.assert_allclose(result.curves["loss"], expected[name].curves["loss"], rtol=1e-4)


@needs_kernels
def test_another_engine_goes_on():
    """A checkpoint holds the same of each engine: a study can move from a CPU to a GPU, if not to the same bits."""
    a_pack = pack(students(1), epochs=2, learning_rate=1e-3)
    (member,) = a_pack.members
    kept = {train: Kept(interval=0.0) for train in (cpu_engine.train, reference_engine.train, cuda_engine.train)}
    curves = {train: run(train, a_pack, every)[member.name].curves["loss"] for train, every in kept.items()}
    for before, after in itertools.permutations(kept, 2):
        half = Kept(saved={member.name: kept[before].saved[member.name][:4]})
        curve = run(after, a_pack, half)[member.name].curves["loss"]
        np.testing.assert_allclose(curve, curves[before], rtol=1e-3)
        assert curve[0] == curves[before][0]
