"""The lock-step engine trains what the reference engine trains: in PyTorch on a CPU, and on a GPU if there is one."""

import contextlib
import threading
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from kdfast import backend
from kdfast.distill import cuda_engine, cuda_plan, cuda_step
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, Targets
from kdfast.distill.schedules import RunConfig
from kdfast.distill.trainer import train_pack
from kdfast.errors import BackendError, KdfastWarning
from kdfast.models.packed import dropout_seeds
from kdfast.ops.packed_rows import PackedRows
from kdfast.ops.philox import derive_seed, fold_seed
from tests.cuda_kernels import needs_gpu
from tests.distill.packs import DEEP_SETS, MODEL, pack, students
from tests.ops.backends import cuda_kernels

DEVICES = ["cpu", pytest.param("cuda:0", marks=needs_gpu)]  # on a GPU all but the first steps are a graph's


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def lock_step(a_pack: Pack, reports: list[EpochReport] | None = None) -> dict[str, MemberResult]:
    on_epoch = None if reports is None else reports.append
    return {result.name: result for result in cuda_engine.train(a_pack, 0, on_epoch, threading.Event())}


def reference(a_pack: Pack) -> dict[str, MemberResult]:
    with backend("reference"):
        return {result.name: result for result in train_pack(replace(a_pack, device="cpu"))}


@pytest.mark.parametrize("model", [MODEL, DEEP_SETS], ids=["transformer", "deepsets"])
def test_a_baseline_and_two_students_train_as_by_the_reference(device, model):
    """Same initial weights, batches, dropout and stops: the curves agree but for rounding."""
    a_pack = pack([Member("baseline"), *students(2)], device=device, epochs=4, learning_rate=1e-3, patience=2)
    a_pack = replace(a_pack, model=model)
    reports: list[EpochReport] = []
    ours, expected = lock_step(a_pack, reports), reference(a_pack)
    assert ours.keys() == expected.keys()
    for name, result in ours.items():
        assert result.status == "done"
        assert result.epochs == expected[name].epochs == sum(report.member == name for report in reports)
        assert result.state.keys() == expected[name].state.keys()
        for curve, values in result.curves.items():
            # Of 64 jets' AUC, each pair that changes places is a thousandth.
            tolerance = {"atol": 5e-3} if curve == "auc_val" else {"rtol": 1e-4, "atol": 1e-6}
            np.testing.assert_allclose(values, expected[name].curves[curve], **tolerance, err_msg=f"{name} {curve}")
        assert np.argmax(result.curves["auc_val"]) == result.best_epoch
        # A bias before a BatchNorm has no gradient but rounding, which AdamW makes steps of: of those the scores know.
        torch.testing.assert_close(result.scores_test, expected[name].scores_test, rtol=5e-2, atol=2e-2)


def test_a_plan_is_that_of_its_steps():
    """Told step by step; jets without constituents, at the ends of batches too, among them."""
    a_pack = pack(students(1))
    counts = a_pack.train.offsets.diff()
    plan = cuda_plan.Plan(a_pack)
    found, batches = plan.steps(*plan.epoch(1)), plan.batches(1)
    assert (counts[batches] == 0).any()
    every = torch.cat([plan.batches(epoch) for epoch in range(a_pack.recipe.epochs)])
    assert plan.tiles == max(sum(((int(n) + 15) // 16) ** 2 for n in counts[jets]) for jets in every)
    for number, (step, jets) in enumerate(zip(found, batches, strict=True), start=len(batches)):
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts[jets].cumsum(0)])
        rows = PackedRows.of_constituents(offsets, plan.capacity)
        source = torch.cat(
            [
                torch.arange(int(begin), int(begin + n))
                for begin, n in zip(a_pack.train.offsets[jets], counts[jets], strict=True)
            ]
        )
        padding = (len(a_pack.train.features),) * (plan.capacity - len(source))
        seeds = dropout_seeds(fold_seed(derive_seed(a_pack.seed, "dropout"), number), a_pack.model.layers)
        expected = [*jets, *source, *padding, *rows.jet, *rows.position, *offsets, *seeds]
        assert step.tolist() == [int(x) for x in expected]


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_epoch_may_be_planned_in_parts(at_once, device, monkeypatch):
    a_pack = pack(students(1), device=device, epochs=2)
    (expected,) = lock_step(a_pack).values()
    assert len(a_pack.train) // a_pack.recipe.batch_size == 3
    row = 8 * sum(cuda_plan.Plan(a_pack).columns)
    monkeypatch.setattr(cuda_plan, "_PLAN_BYTES", at_once * row)
    assert cuda_plan.Plan(a_pack).steps_at_once == at_once
    (result,) = lock_step(a_pack).values()
    assert result.curves == expected.curves
    assert torch.equal(result.scores_test, expected.scores_test)


@pytest.mark.slow
def test_a_member_whose_last_step_blows_up_leaves_its_neighbours_alone(device, monkeypatch):
    """Nothing is wrong with the losses yet; the validation scores show it."""

    class Watched(cuda_engine.LockStep):
        def advance(self):
            super().advance()
            if self.members[0].name == "bad" and self.step_of_epoch == self.steps_of_epoch:
                self.parameters[0].fill_(float("nan"))

    bad, good = Member("bad", RunConfig(1.0, 0.0)), Member("good", RunConfig(1.0, 0.0))
    (alone,) = lock_step(pack([good], device=device)).values()
    monkeypatch.setattr(cuda_engine, "LockStep", Watched)
    together = lock_step(pack([bad, good], device=device))
    assert (together["bad"].status, together["bad"].message) == (
        "diverged",
        "logits of the validation jets not finite after epoch 0",
    )
    assert together["good"].status == "done"
    np.testing.assert_allclose(together["good"].curves["loss"], alone.curves["loss"], rtol=1e-4)


def test_a_member_whose_test_scores_are_not_finite_has_diverged(device):
    a_pack = pack([Member("baseline")], device=device, epochs=1)
    a_pack.test.features[7] = float("inf")
    (result,) = lock_step(a_pack).values()
    message = "logits of the test jets not finite with the weights of epoch 0"
    assert (result.status, result.message, result.state) == ("diverged", message, {})


def test_too_little_memory_is_told(device, monkeypatch):
    def step(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 4 MiB")

    monkeypatch.setattr(cuda_engine.LockStep, "step", step)
    with pytest.raises(
        BackendError, match=rf"device '{device}': its memory is too small \(CUDA out of memory\)"
    ) as told:
        lock_step(pack(students(1), device=device))
    assert "batch_size" in str(told.value)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total of 4 MiB")


def too_small_for(monkeypatch, where, fails):
    """Makes a method of the trainer run out of memory where fails(trainer).

    Returns lists that fill: members of each trainer made, and of each step taken.
    """
    sizes = []
    steps = []
    advance = cuda_engine.LockStep.advance
    method = getattr(cuda_engine.LockStep, where)
    begin = cuda_engine.LockStep.__init__

    def failing(self, *arguments):
        if fails(self):
            raise OUT_OF_MEMORY
        return method(self, *arguments)

    def counted(self, a_pack, members, plan):
        sizes.append(len(members))
        if where == "__init__" and len(members) > 3:
            raise OUT_OF_MEMORY
        begin(self, a_pack, members, plan)

    def stepping(self):
        advance(self)
        steps.append(len(self.members))

    if where != "__init__":
        monkeypatch.setattr(cuda_engine.LockStep, where, failing)
    monkeypatch.setattr(cuda_engine.LockStep, "__init__", counted)
    monkeypatch.setattr(cuda_engine.LockStep, "advance", stepping)
    return sizes, steps


@pytest.mark.parametrize(
    ("where", "fails", "sizes"),
    [
        ("__init__", None, [5, 3, 2]),
        # The first evaluation, that of the second epoch, and that of the end; a step, of which nothing may remain.
        ("_logits", lambda trainer: len(trainer.members) > 3, [5, 3, 2]),
        ("_logits", lambda trainer: len(trainer.members) > 3 and trainer.updates[0] > 3, [5, 3, 2]),
        ("keep_best", lambda trainer: len(trainer.members) > 3 and trainer.updates[0] > 3, [5, 3, 2]),
        ("begin_epoch", lambda trainer: len(trainer.members) > 2 and trainer.updates[0] > 3, [5, 3, 2, 2, 1]),
        ("step", lambda trainer: len(trainer.members) > 2 and trainer.updates[0] > 1, [5, 3, 2, 2, 1]),
    ],
    ids=["trainer", "first evaluation", "second evaluation", "best", "plan", "step"],
)
def test_fewer_members_train_at_once_where_memory_runs_out(device, monkeypatch, where, fails, sizes):
    """Three quarters of them, again and again; each ends as it would have, with no epoch twice in its curves."""
    a_pack = pack([Member("baseline"), *students(4)], device=device)
    expected = lock_step(a_pack)
    found, steps = too_small_for(monkeypatch, where, fails)
    with pytest.warns(KdfastWarning, match="runs at once") as warned:
        ours = lock_step(a_pack)
    assert "too small for 5 runs at once; 3 train at once" in str(warned[0].message)
    assert found == sizes
    # Nothing is trained twice but what a broken step or epoch leaves behind.
    if where in ("step", "keep_best"):
        assert sum(steps) > 5 * 3 * 3
    else:
        assert sum(steps) == 5 * 3 * 3
    assert ours.keys() == expected.keys()
    for name, result in ours.items():
        assert result.epochs == expected[name].epochs == len(result.curves["loss"])
        np.testing.assert_allclose(result.curves["loss"], expected[name].curves["loss"], rtol=1e-4)
        torch.testing.assert_close(result.scores_test, expected[name].scores_test, rtol=5e-2, atol=2e-2)


def test_members_are_evaluated_a_few_rows_at_a_time(device, monkeypatch):
    a_pack = pack(students(3), device=device, epochs=1)
    expected = lock_step(a_pack)
    rows = []
    logits = cuda_step._batches

    def watched(view, most, on):
        rows.append(most)
        return logits(view, most, on)

    monkeypatch.setattr(cuda_step, "_batches", watched)
    monkeypatch.setattr(cuda_step, "_EVALUATED_ROWS", 90)
    ours = lock_step(a_pack)
    assert set(rows) == {30}
    for name, result in ours.items():
        torch.testing.assert_close(result.scores_test, expected[name].scores_test)


def test_an_evaluation_gives_up_the_graph_before_members(monkeypatch):
    calls = []

    def evaluate(*arguments):
        calls.append(trainer.graph)
        if trainer.graph is not None:
            raise OUT_OF_MEMORY
        return torch.zeros(2, 3)

    trainer = mock.MagicMock(graph="captured", _logits=evaluate)
    assert cuda_engine.LockStep.logits(trainer, None, None).shape == (2, 3)
    assert calls == ["captured", None]


def test_errors_that_mean_too_little_memory():
    a_pack = pack(students(1))
    broken = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    broken.__context__ = OUT_OF_MEMORY
    handles = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    for error in (OUT_OF_MEMORY, broken, handles):
        assert "its memory is too small" in str(cuda_engine._too_small(a_pack, error))
    other = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal"):
        cuda_engine._too_small(a_pack, other)


def test_each_gpu_captures_on_a_stream_of_its_own(monkeypatch):
    """Torch has one for captures, on the GPU that captured first, where steps of another GPU leave no trace."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: mock.MagicMock(device=device))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: mock.MagicMock(device=device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", mock.MagicMock)
    captures = []

    @contextlib.contextmanager
    def capture(graph, stream, capture_error_mode):
        captures.append((stream.device, capture_error_mode, cuda_plan.capturing.locked()))
        yield

    monkeypatch.setattr(torch.cuda, "graph", capture)
    for number in range(2):
        plan = mock.MagicMock(device=torch.device("cuda", number))
        trainer = mock.MagicMock(plan=plan, warm=cuda_step._WARM_UP - 1, graph=None, stream=None)
        cuda_engine.LockStep._step_and_capture(trainer)
        assert trainer.step.call_count == 2
    assert captures == [(torch.device("cuda", number), "thread_local", True) for number in range(2)]
    assert not cuda_plan.capturing.locked()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_members_on_a_second_gpu_train_as_on_the_first():
    a_pack = pack(students(2), device="cuda:0", epochs=3)
    first, second = lock_step(a_pack), lock_step(replace(a_pack, device="cuda:1"))
    for name, result in second.items():
        assert result.curves == first[name].curves


def test_without_teacher_or_dropout(device):
    a_pack = pack([Member("a")], device=device, targets=False, epochs=2)
    a_pack = replace(a_pack, model=a_pack.model.model_copy(update={"dropout": 0.0}))
    np.testing.assert_allclose(lock_step(a_pack)["a"].curves["loss"], reference(a_pack)["a"].curves["loss"], rtol=1e-4)


def test_a_diverging_member_leaves_its_neighbours_alone(device):
    # With α = 0 the teacher is not read; where it is, its NaN makes a loss that is not finite.
    good, bad = Member("good", RunConfig(1.0, 0.0)), Member("bad", RunConfig(1.0, 0.0, alpha_final=0.5))
    a_pack = pack([good, bad], device=device)
    targets = Targets(a_pack.targets.logits.clone())
    targets.logits[40] = float("nan")
    a_pack = replace(a_pack, targets=targets)
    together = lock_step(a_pack)
    assert together["bad"].status == "diverged"
    assert not together["bad"].state
    assert "not finite in epoch 1, step " in together["bad"].message
    assert together["bad"].epochs == 1 == len(together["bad"].curves["loss"])
    expected = reference(replace(a_pack, members=(good,)))["good"]
    np.testing.assert_allclose(together["good"].curves["loss"], expected.curves["loss"], rtol=1e-4)


@pytest.mark.slow
def test_members_that_have_ended_cost_nothing(device, monkeypatch):
    """Half of four end early: the others go on as two, and train what they train without the first ones."""
    sizes = []

    class Watched(cuda_engine.LockStep):
        def __init__(self, a_pack, members, plan):
            sizes.append(len(members))
            super().__init__(a_pack, members, plan)

    monkeypatch.setattr(cuda_engine, "LockStep", Watched)
    good = [Member("one", RunConfig(1.0, 0.0)), Member("two", RunConfig(2.0, 0.0))]
    bad = [Member(f"bad {i}", RunConfig(1.0, 0.0, alpha_final=0.5)) for i in range(2)]  # see above
    a_pack = pack([bad[0], good[0], bad[1], good[1]], device=device, epochs=5)
    a_pack.targets.logits[40] = float("nan")
    together = lock_step(a_pack)
    assert sizes == [4, 2]
    assert [together[member.name].status for member in (*bad, *good)] == ["diverged"] * 2 + ["done"] * 2
    alone = lock_step(replace(a_pack, members=tuple(good)))
    for name, expected in alone.items():
        result = together[name]
        assert (result.epochs, result.best_epoch) == (expected.epochs, expected.best_epoch)
        np.testing.assert_allclose(result.curves["loss"], expected.curves["loss"], rtol=1e-4)
        torch.testing.assert_close(result.scores_test, expected.scores_test, rtol=5e-2, atol=2e-2)


def test_the_same_pack_gives_the_same_bits(device):
    a_pack = pack(students(2), device=device, epochs=2)
    first, second = lock_step(a_pack), lock_step(a_pack)
    for name, result in first.items():
        assert result.curves == second[name].curves
        assert torch.equal(result.scores_test, second[name].scores_test)
        assert all(torch.equal(tensor, second[name].state[key]) for key, tensor in result.state.items())


@pytest.mark.slow
def test_bf16_computes_what_fp32_computes(device):
    a_pack = pack(students(1), device=device, epochs=2, learning_rate=1e-4)  # small steps, which rounding can't turn
    (full,), (half,) = lock_step(a_pack).values(), lock_step(replace(a_pack, precision="bf16")).values()
    np.testing.assert_allclose(half.curves["loss"], full.curves["loss"], rtol=5e-3)
    assert half.curves["loss"] != full.curves["loss"]


def test_a_stop_ends_it_without_half_results(device):
    stop = threading.Event()
    assert not list(cuda_engine.train(pack(students(2), device=device), 0, lambda report: stop.set(), stop))


@pytest.mark.cuda_kernels
def test_three_members_train_over_the_cuda_kernels():
    """All that an epoch is made of: model, loss, attention transfer, clip and AdamW, evaluation."""
    a_pack = pack([Member("baseline"), *students(2)], epochs=1, learning_rate=1e-3)
    expected = lock_step(a_pack)
    with cuda_kernels():
        ours = lock_step(a_pack)
    for name, result in ours.items():
        for curve in ("loss", "auc_val"):
            tolerance = {"atol": 5e-3} if curve == "auc_val" else {"rtol": 1e-4}
            np.testing.assert_allclose(result.curves[curve], expected[name].curves[curve], **tolerance)
