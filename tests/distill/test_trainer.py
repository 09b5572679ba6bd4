import threading
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from kdfast import backend
from kdfast.distill.pack import EpochReport, Member, Targets, View
from kdfast.distill.recipe import Recipe
from kdfast.distill.schedules import RunConfig
from kdfast.distill.targets import predict_logits, teacher_targets
from kdfast.distill.trainer import train_pack
from kdfast.errors import ConfigError, DataError, ModelError
from kdfast.metrics import roc_auc
from kdfast.models import DeepSets, JetTransformer, evaluation
from tests.cuda_kernels import needs_gpu
from tests.distill.packs import MODEL, pack, students, view
from tests.ops.backends import cuda_kernels


def assert_same(a, b):
    assert (a.name, a.status, a.best_epoch, a.epochs) == (b.name, b.status, b.best_epoch, b.epochs)
    assert a.curves == b.curves
    for x, y in ((a.scores_validation, b.scores_validation), (a.scores_test, b.scores_test)):
        assert torch.equal(x, y)
    assert a.state.keys() == b.state.keys()
    assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


def results(a_pack, **options):
    return {result.name: result for result in train_pack(a_pack, **options)}


def test_a_member_does_not_depend_on_its_neighbours_or_the_threads():
    members = students(8)
    eight = results(pack(members), threads=2)
    assert len(eight) == 8
    assert_same(results(pack(members[5:6]), threads=1)[members[5].name], eight[members[5].name])
    one_thread = results(pack(members[::-1]), threads=1)
    for name, result in eight.items():
        assert_same(result, one_thread[name])


def test_members_of_a_pack_differ_and_so_do_seeds():
    members = students(2)
    a, b = results(pack(members)).values()
    assert not torch.equal(a.scores_test, b.scores_test)
    other_seed = results(pack(members, seed=6))
    assert not torch.equal(other_seed[a.name].scores_test, a.scores_test)


def test_learns_and_keeps_the_best_epoch():
    a_pack = pack([Member("baseline")], epochs=12, learning_rate=1e-2, targets=False)
    (result,) = train_pack(a_pack)
    curve = result.curves["auc_val"]
    assert result.status == "done"
    assert len(curve) == result.epochs == 12
    assert max(curve) == curve[result.best_epoch] > 0.75
    val = a_pack.validation
    kept = roc_auc(val.labels.numpy(), result.scores_validation.numpy(), val.weights.numpy())
    assert kept == curve[result.best_epoch]
    model = JetTransformer(MODEL)
    model.load_state_dict(result.state)
    assert torch.equal(predict_logits(model, a_pack.test), result.scores_test)
    assert result.curves["loss"][-1] < result.curves["loss"][0]
    assert set(result.curves["loss_kd"]) == {0.0} == set(result.curves["loss_attention"])


def test_the_parts_of_the_loss_add_up_and_schedules_are_followed():
    config = RunConfig(5.0, 0.8, 1.0, 0.2)
    (result,) = train_pack(pack([Member("student", config)], epochs=4))
    curves = result.curves
    for loss, *parts in zip(*(curves[f"loss{part}"] for part in ("", "_kd", "_label", "_attention")), strict=True):
        assert loss == pytest.approx(sum(parts), rel=1e-5)
        assert all(part > 0 for part in parts)
    assert list(zip(curves["temperature"], curves["alpha"], strict=True)) == [config.at(e, 4) for e in range(4)]


def test_early_stop():
    a_pack = pack([Member("baseline")], epochs=40, patience=2, learning_rate=1e-12)
    (result,) = train_pack(a_pack)
    assert result.epochs == result.best_epoch + 3 < 40


def test_a_diverging_member_is_isolated():
    # With α = 0 the teacher is not read; where it is, its NaN makes a loss that is not finite.
    good = [Member("a", RunConfig(1.0, 0.0)), Member("b", RunConfig(1.0, 0.0))]
    bad = Member("bad", RunConfig(1.0, 0.0, alpha_final=0.5))

    def pack_of(*members):
        a_pack = pack(members)
        targets = Targets(a_pack.targets.logits.clone())
        targets.logits[40] = float("nan")
        return replace(a_pack, targets=targets)

    alone, together = results(pack_of(*good)), results(pack_of(good[0], bad, good[1]), threads=2)
    assert together["bad"].status == "diverged"
    assert "not finite in epoch 1, step " in together["bad"].message
    assert together["bad"].epochs == 1 == len(together["bad"].curves["loss"])
    assert not together["bad"].state
    for member in good:
        assert_same(alone[member.name], together[member.name])


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_a_member_whose_logits_are_not_finite_has_diverged(engine):
    """The last step of an epoch may blow the weights up: its loss and gradient are finite still."""
    one_step = pack([Member("baseline")], epochs=1, batch_size=96, learning_rate=1e20)
    other = pack([Member("baseline")], epochs=1)
    other.test.features[7] = float("inf")
    with backend("reference") if engine == "reference" else nullcontext():
        for a_pack, message, epochs in (
            (one_step, "logits of the validation jets not finite after epoch 0", 0),
            (other, "logits of the test jets not finite with the weights of epoch 0", 1),
        ):
            (result,) = train_pack(a_pack)
            assert (result.status, result.message, result.epochs) == ("diverged", message, epochs)
            assert not result.state


def test_jets_of_weight_zero_do_not_enter_the_loss():
    a_pack = pack(students(1), epochs=1, batch_size=96)
    train = a_pack.train
    train.weights[:48] = 0
    (first,) = train_pack(a_pack)
    train.labels[:48] = 1 - train.labels[:48]
    a_pack.targets.logits[:48] = -7.0
    (second,) = train_pack(a_pack)
    assert_same(first, second)


def test_reports_each_epoch():
    reports: list[EpochReport] = []
    list(train_pack(pack(students(2)), on_epoch=reports.append))
    assert len(reports) == 6
    assert {(r.epoch, r.epochs, r.jets) for r in reports} == {(0, 3, 96), (1, 3, 96), (2, 3, 96)}
    assert all(r.best_auc_val >= r.auc_val for r in reports)


def test_stop_ends_the_pack_without_half_results():
    stop = threading.Event()
    seen = []
    for result in train_pack(pack(students(6), epochs=5), threads=1, stop=stop):
        seen.append(result)
        stop.set()
    assert len(seen) < 6
    assert all(result.epochs == 5 for result in seen)


def test_closing_the_iterator_ends_the_threads():
    before = threading.active_count(), torch.get_num_threads()
    iterator = train_pack(pack(students(6), epochs=5), threads=2)
    next(iterator)
    iterator.close()
    assert (threading.active_count(), torch.get_num_threads()) == before


def test_a_member_computes_on_one_thread():
    """Of torch's, whose sums depend on their number."""
    seen = []
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with backend("reference"):
            list(train_pack(pack(students(2)), threads=2, on_epoch=lambda _: seen.append(torch.get_num_threads())))
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 6


def test_threads_that_begin_while_a_pack_runs_compute_on_as_many_threads_as_before():
    seen = []

    def begin_another():
        seen.append(torch.get_num_threads())
        list(train_pack(pack(students(1), epochs=1)))
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        iterator = train_pack(pack(students(2), epochs=3))
        next(iterator)
        for number in range(2):
            thread = threading.Thread(target=begin_another)
            thread.start()
            thread.join()
            if number == 0:
                list(iterator)
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)
    assert seen == [3] * 5


def test_an_error_in_a_callback_reaches_the_caller():
    def fail(_):
        raise RuntimeError("from the callback")

    with pytest.raises(RuntimeError, match="from the callback"):
        list(train_pack(pack(students(2)), on_epoch=fail))


def test_packs_that_do_not_fit():
    with pytest.raises(ConfigError, match="512 jets a batch, but 96 training jets"):
        pack(students(1), batch_size=512)
    with pytest.raises(ConfigError, match="students need a teacher's targets"):
        pack(students(1), targets=False)
    with pytest.raises(ValueError, match="greater than 0"):
        Recipe(learning_rate=0)
    a_pack = pack(students(1))
    with pytest.raises(DataError, match=r"targets, logits: must be \[64, 1\] for 64 training jets, is \[96, 1\]"):
        replace(a_pack, train=view(64, 3))
    targets = a_pack.targets
    for name in ("attention_entropy", "attention_max"):
        message = rf"targets, {name}: must be \[96\] for 96 training jets, is \[10\]"
        with pytest.raises(DataError, match=message):
            replace(a_pack, targets=replace(targets, **{name: getattr(targets, name)[:10]}))
    with pytest.raises(ConfigError, match="model: 2 classes, but a pack trains one"):
        replace(a_pack, model=MODEL.model_copy(update={"num_classes": 2}))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_views_that_do_not_fit(split):
    a_pack = pack(students(1))
    good = getattr(a_pack, split)
    rows = len(good.features)
    for change, error, message in (
        ({"features": good.features[:, :5]}, ModelError, rf"features must be \[M, 7\], are \[{rows}, 5\]"),
        ({"features": good.features[:-1]}, DataError, rf"{split}, offsets: must rise from 0 to {rows - 1}"),
        ({"labels": good.labels[:-1]}, DataError, rf"{split}, labels: must be \[{len(good)}\]"),
        ({"weights": good.weights[:-1]}, DataError, rf"{split}, weights: must be \[{len(good)}\]"),
        ({"weights": good.weights.half()}, DataError, rf"{split}, weights: must be torch.float32 on the CPU"),
        ({"offsets": good.offsets.int()}, DataError, rf"{split}, offsets: must be torch.int64 on the CPU"),
        ({"labels": good.labels.to("meta")}, DataError, rf"{split}, labels: .* is torch.float32 on meta"),
    ):
        with pytest.raises(error, match=message):
            replace(a_pack, **{split: replace(good, **change)})


@pytest.mark.parametrize("split", ["validation", "test"])
def test_views_of_other_numbers_or_without_jets(split):
    a_pack = pack(students(1))
    good = getattr(a_pack, split)
    with pytest.raises(DataError, match=f"{split}, features: must be torch.float32 on the CPU, is torch.float64"):
        replace(a_pack, **{split: replace(good, features=good.features.double())})
    none = View(good.features[:0], good.offsets[:1], good.labels[:0], good.weights[:0])
    with pytest.raises(DataError, match=f"{split}: no jets"):
        replace(a_pack, **{split: none})


@pytest.mark.parametrize("change", [{"features": torch.Tensor.double}, {"offsets": torch.Tensor.int}])
def test_the_compiled_encoder_refuses_what_it_can_not_read(change):
    jets, model = view(20, 3), JetTransformer(MODEL)
    (name, convert), *_ = change.items()
    arrays = {"features": jets.features, "offsets": jets.offsets} | {name: convert(getattr(jets, name))}
    with pytest.raises(DataError, match=f"{name}: must be contiguous torch.(float32|int64) on the CPU, is torch"):
        list(evaluation.evaluate_model(model, **arrays))


@pytest.mark.parametrize("engine", ["compiled", "reference"])
@pytest.mark.parametrize("size", [-110, -40, 100])
def test_the_size_of_the_weights_changes_nothing(engine, size):
    a_pack = pack(students(1), epochs=1)
    train = replace(a_pack.train, weights=torch.ldexp(a_pack.train.weights, torch.tensor(size)))
    with backend("reference") if engine == "reference" else nullcontext():
        (expected,), (result,) = train_pack(a_pack), train_pack(replace(a_pack, train=train))
    assert result.status == "done"
    assert_same(result, expected)


def test_a_batch_of_next_to_no_weight_is_refused():
    a_pack = pack([Member("baseline")], epochs=40, batch_size=4)
    a_pack.train.weights[40:] = 1e-35
    with pytest.raises(DataError, match="weights: all jets of a batch of epoch 0 have weight 0"):
        train_pack(a_pack)


@pytest.mark.parametrize("number", [5, 12])
@pytest.mark.parametrize("reference", [False, True])
def test_features_of_another_model_are_refused(number, reference):
    """The compiled encoder reads rows of the model's length: others it would take apart wrongly, or read past them."""
    jets, model = view(20, 3), JetTransformer(MODEL, num_features=number)
    message = rf"features must be \[M, {number}\], are \[{len(jets.features)}, 7\]"
    with pytest.raises(ModelError, match=message):
        list(evaluation.evaluate_model(model, jets.features, jets.offsets, reference=reference))
    with pytest.raises(ModelError, match=message):
        list(evaluation.evaluate_on_device(model, jets.features, jets.offsets, "cpu"))


@pytest.mark.parametrize("engine", ["compiled", "reference"])
def test_jets_of_weight_zero_alone_in_a_batch_are_refused_before_training(engine):
    a_pack = pack([Member("baseline")], epochs=40, batch_size=4)
    a_pack.train.weights[40:] = 0.0
    with (
        backend("reference") if engine == "reference" else nullcontext(),
        pytest.raises(DataError, match="weights: all jets of a batch of epoch 0 have weight 0"),
    ):
        train_pack(a_pack)


@pytest.mark.parametrize("where", ["reference", pytest.param("kernels", marks=pytest.mark.cuda_kernels)])
@pytest.mark.parametrize("model", [JetTransformer(MODEL, seed=3), DeepSets(seed=3)], ids=["transformer", "deepsets"])
def test_targets_of_a_device_are_those_of_the_cpu_but_for_rounding(where, model, monkeypatch):
    """By the ops of the lock-step engine, on the CPU in the place of a GPU; several batches, empty jets."""
    monkeypatch.setattr(evaluation, "_BATCH", 17)
    jets = view(50, 4)
    with cuda_kernels() if where == "kernels" else backend("reference"):
        found = list(evaluation.evaluate_on_device(model, jets.features, jets.offsets, "cpu"))
    expected = list(evaluation.evaluate_model(model, jets.features, jets.offsets))
    assert len(found) == len(expected) == 3
    for ours, others in zip(found, expected, strict=True):
        for a, b in zip(ours, others, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@needs_gpu
def test_targets_of_a_gpu():
    model, jets = JetTransformer(MODEL, seed=3), view(50, 4)
    ours, expected = teacher_targets(model, jets, device="cuda:0"), teacher_targets(model, jets)
    for name, tensor in vars(expected).items():
        torch.testing.assert_close(getattr(ours, name), tensor, rtol=1e-5, atol=1e-6)


def test_targets_are_cached_and_a_damaged_cache_is_computed_anew(tmp_path):
    model, jets = JetTransformer(MODEL, seed=3), view(50, 4)
    fresh = teacher_targets(model, jets)
    first = teacher_targets(model, jets, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    again = teacher_targets(model, jets, tmp_path)
    assert path.read_bytes() == content
    cached = teacher_targets(model, jets, tmp_path)
    for targets in (first, again, cached):
        for name in ("logits", "attention_entropy", "attention_max"):
            assert torch.equal(getattr(targets, name), getattr(fresh, name))
    other = View(jets.features + 1, jets.offsets, jets.labels, jets.weights)
    teacher_targets(model, other, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
