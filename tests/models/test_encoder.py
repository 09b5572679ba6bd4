"""The compiled training step and evaluation against the model and loss that specify them, in float64."""

import multiprocessing
import os
import resource
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast import backend
from kdfast.errors import BackendError, DataError, ModelError, ResourceError
from kdfast.models import PRESETS, JetTransformer, ModelConfig
from kdfast.models.compiled import PARTS, CompiledModel, unsupported
from kdfast.models.evaluation import evaluate_model
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.ops import backend as backends
from tests.models.compiled_case import Case, check_step
from tests.ops.memory_limit import few_more_bytes, needs_memory_limit

pytestmark = pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))


def sizes(width: int, heads: int, **more: int | float) -> ModelConfig:
    return ModelConfig(**({"width": width, "heads": heads, "layers": 1, "ffn": 32} | more))


HEADS = {16: (1, 2), 32: (1, 2, 4), 48: (2, 3, 6), 64: (1, 2, 4, 8), 96: (3, 4, 6, 12)}  # head_dim 8, 16, 24, 32, 64


@st.composite
def cases(draw: st.DrawFn) -> Case:
    width = draw(st.sampled_from(list(HEADS)))
    config = sizes(
        width,
        draw(st.sampled_from(HEADS[width])),
        layers=draw(st.integers(1, 2)),
        ffn=16 * draw(st.integers(1, 5)),
        pooling_heads=draw(st.sampled_from([1, 2, 4, 8, 16])),
        dropout=draw(st.sampled_from([0.0, 0.1, 0.5])),
        num_features=draw(st.sampled_from([1, 4, 7, 16])),
    )
    # Ten jets with constituents at least: where a BatchNorm of the head sees hardly anything but equal rows (those of
    # empty jets), the derivative of its 1/σ makes noise of the last bits, in PyTorch as here.
    counts = draw(st.lists(st.sampled_from([1, 2, 5, 9, 17, 40, 200]), min_size=10, max_size=40))
    counts += [0] * draw(st.integers(0, 5))
    counts = draw(st.permutations(counts))
    return Case(config, counts, draw(st.integers(0, 1000)), draw(st.booleans()))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(case=cases(), num_threads=st.integers(1, 3))
def test_step_of_any_shape(case: Case, num_threads: int) -> None:
    check_step(case, num_threads)


@pytest.mark.parametrize("preset", [name for name, sizes in PRESETS.items() if isinstance(sizes, ModelConfig)])
def test_step_of_the_presets(preset: str) -> None:
    counts = torch.randint(0, 41, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    check_step(Case(JetTransformer(preset).config, counts), 2)


@pytest.mark.parametrize("counts", [[1, 0], [2, 0], [0, 1, 0, 1], [1] * 17])
def test_batches_of_few(counts: list[int]) -> None:
    """Fewer than two constituents: the embedding's BatchNorm takes its running statistics."""
    case = Case(sizes(32, 4, dropout=0.0), counts)
    for ours, right in zip(case.compiled(), case.specified(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=2e-3, atol=2e-5)  # near-constant columns amplify rounding


def test_a_batch_of_empty_jets() -> None:
    case = Case(sizes(32, 4, dropout=0.0), [0, 0, 0])
    ours, right = case.compiled(), case.specified(torch.float64)
    torch.testing.assert_close(ours[0], right[0])
    encoder_ends = sum(p.numel() for name, p in case.model.named_parameters() if name.startswith(("embed", "encoder")))
    assert not ours[1][:encoder_ends].any()
    assert ours[1].isfinite().all()


def test_the_number_of_threads_changes_no_bit() -> None:
    counts = torch.randint(0, 60, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    case = Case(sizes(48, 2, layers=2, ffn=80, dropout=0.1), counts)
    first = case.compiled(1)
    for num_threads in (2, 3, 16):
        for ours, theirs in zip(case.compiled(num_threads), first, strict=True):
            assert torch.equal(ours, theirs)


@settings(max_examples=15, deadline=None)
@given(case=cases(), num_threads=st.integers(1, 3))
def test_evaluation(case: Case, num_threads: int) -> None:
    encoder, model = case.kernels(), case.copy(torch.float64).eval()
    with torch.no_grad(), backend("reference"):
        exact = model(case.view.features.double(), case.view.offsets, return_attention=True)
        plain = case.copy(torch.float32).eval()(case.view.features, case.view.offsets, return_attention=True)
    jets = len(case.view)
    ours = encoder.logits(case.view.features, case.view.offsets, 0, jets, num_threads, pooling=True)
    for compiled, torchs, right in zip(ours, plain, exact, strict=True):
        # Few numbers, each the end of a hundred roundings: see check_step.
        error, standard = ((x.double() - right).abs().max() for x in (compiled, torchs))
        assert error <= 4 * standard + 8 * torch.finfo(torch.float32).eps * right.abs().max(), case
    first = jets // 3
    part, _ = encoder.logits(case.view.features, case.view.offsets, first, jets - first, 1)
    assert torch.equal(part, ours[0][first:])


def test_evaluates_models_of_several_classes() -> None:
    case = Case(sizes(32, 2, num_classes=5), [3, 0, 30, 7])
    model = case.model.eval()
    answers = [
        list(evaluate_model(model, case.view.features, case.view.offsets, reference=reference))
        for reference in (False, True)
    ]
    for ours, theirs in zip(answers[0][0], answers[1][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_input_that_is_not_finite_makes_the_loss_not_finite() -> None:
    case = Case(sizes(32, 2), [5] * 10)
    case.view.features[7, 2] = torch.nan
    loss, _, _ = case.compiled(2)
    assert not loss[0].isfinite()


def test_values_that_cannot_be_are_errors() -> None:
    case = Case(sizes(32, 2), [5] * 10)
    case.view.labels[3] = 2.0
    with pytest.raises(DataError, match="labels must lie in"):
        case.compiled()
    with pytest.raises(DataError, match="labels: must be contiguous"):
        replace(case.inputs(), labels=case.view.labels.double())
    for name, value in vars(case.inputs()).items():
        wrong = "labels" if name == "offsets" else "offsets" if name == "features" else name
        with pytest.raises(DataError, match=f"^{wrong}: must (be|rise)"):
            replace(case.inputs(), **{name: value[:-1].clone()})
    case.view = replace(case.view, features=torch.zeros(50, 5))
    with pytest.raises(ModelError, match=r"features must be \[M, 7\], are \[50, 5\]"):
        case.compiled()
    parameters, running = torch.zeros(10), torch.zeros(10)
    with pytest.raises(DataError, match="parameters and running statistics, expected"):
        CompiledModel(case.config, parameters, running)

    with pytest.raises(DataError, match="models of one logit, this one has 5"):
        Case(sizes(32, 2, num_classes=5), [5] * 10).compiled()


@needs_memory_limit
def test_lack_of_memory_is_an_error_of_its_own() -> None:
    """And the same call works once there is memory."""
    case = Case(sizes(64, 4), [40] * 20_000)  # 2 GB of activations to train, 200 MB to evaluate
    encoder = case.kernels()
    with few_more_bytes(2**24):
        with pytest.raises(ResourceError, match="no memory for the activations of a batch of 20000 jets"):
            case.step(encoder, torch.empty_like(encoder.parameters))
        with pytest.raises(MemoryError, match="no memory for the activations of 20000 jets"):
            encoder.logits(case.view.features, case.view.offsets, 0, 20_000, 1)
    assert encoder.memory == 0
    logits, _ = encoder.logits(case.view.features, case.view.offsets, 0, 100, 1)
    assert logits.isfinite().all()


@needs_memory_limit
def test_a_jet_whose_attention_does_not_fit_the_memory() -> None:
    """The threads' scratch grows with the longest jet; they can't throw."""
    model = JetTransformer(sizes(16, 2))
    encoder = CompiledModel(model.config, flatten_parameters(model), flatten_running(model))
    features, offsets = torch.zeros(300_000, 7), torch.tensor([0, 300_000])
    encoder.logits(features, torch.arange(0, 300_001, 10), 0, 30_000, 1)  # the arena has grown to the batch's size
    with few_more_bytes(2**24), pytest.raises(ResourceError, match="no memory for the activations of 1 jets"):
        encoder.logits(features, offsets, 0, 1, 2)
    assert encoder.logits(features, torch.tensor([0, 100]), 0, 1, 2)[0].isfinite().all()


def test_sizes_that_it_does_not_take() -> None:
    assert unsupported(sizes(16, 2)) is None
    for config, reason in [
        (sizes(24, 3), "multiples of 16"),
        (sizes(32, 2, ffn=24), "multiples of 16"),
        (sizes(80, 2), "width / heads is 40"),
        (sizes(32, 2, num_features=17), "17 features"),
    ]:
        assert reason in str(unsupported(config))
        with pytest.raises(BackendError, match=reason):
            CompiledModel(config, torch.empty(0), torch.empty(0))


def test_the_time_of_each_part() -> None:
    case = Case(sizes(64, 4, layers=2), [30] * 64)
    encoder, seconds = case.kernels(), torch.zeros(len(PARTS), dtype=torch.float64)
    gradient = torch.empty_like(encoder.parameters)
    case.step(encoder, gradient, 2, seconds)
    assert (seconds > 0).all()
    assert seconds.sum() < 5
    expected = case.compiled()[1]
    assert torch.equal(gradient, expected)  # measuring changes nothing


@pytest.mark.skipif("ASAN_OPTIONS" in os.environ, reason="AddressSanitizer keeps freed memory")
def test_memory_is_flat_over_a_thousand_steps() -> None:
    case = Case(sizes(32, 4), [8] * 32)
    encoder = case.kernels()
    gradient = torch.empty_like(encoder.parameters)
    for _ in range(50):
        case.step(encoder, gradient, 2)
    held, peak = encoder.memory, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1000):
        case.step(encoder, gradient, 2)
    assert encoder.memory == held
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 2048  # kilobytes


def test_several_threads_at_once() -> None:
    case = Case(sizes(32, 4, layers=2), [8, 0, 25, 3] * 16)
    expected = case.compiled(1)[1]
    results: list[Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(case.compiled(2)[1])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(torch.equal(result, expected) for result in results)


def _in_child(case: Case, expected: Tensor) -> None:
    assert torch.equal(case.compiled(2)[1], expected)


def test_in_a_forked_process() -> None:
    case = Case(sizes(32, 4), [8, 0, 25, 3] * 8)
    expected = case.compiled(2)[1]  # the parent's threads are there
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(case, expected))
    child.start()
    child.join(60)
    assert child.exitcode == 0
