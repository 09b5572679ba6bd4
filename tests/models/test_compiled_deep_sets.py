"""The compiled step and evaluation of DeepSets against the model and loss that specify them, in float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast import backend
from kdfast.errors import DataError, KdfastWarning, ResourceError
from kdfast.models import DeepSets, DeepSetsConfig
from kdfast.models.compiled import CompiledModel
from kdfast.models.evaluation import evaluate_model
from kdfast.ops import backend as backends
from tests.models.compiled_case import Case, check_step
from tests.ops.memory_limit import few_more_bytes, needs_memory_limit

pytestmark = pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))


@torch.no_grad()
def margin(case: Case) -> float:
    """How far the values in float64 are from where the gradient jumps: zeros of ReLUs, two candidates of a maximum.

    Nearer than rounding moves them, float32 may be on the other side, here as in PyTorch. Equal candidates stay equal.
    """
    model = case.copy(torch.float64)
    assert isinstance(model, DeepSets)
    least = [1.0]
    pooled = []
    for first, end in itertools.pairwise(case.view.offsets):
        x = case.view.features[first:end].double()
        for layer in model.constituent:
            x = layer(x)
            least.append(float(x.abs().min()) if len(x) else 1.0)
            x = x.relu()
        top = x.amax(0) if len(x) else x.new_zeros(case.config.width)
        gaps = (top - x)[(top - x) > 1e-14]
        least.append(float(gaps.min()) if len(gaps) else 1.0)
        pooled.append(torch.cat([x.mean(0) if len(x) else top, top]))
    h = torch.stack(pooled)
    for layer in model.jet:
        h = layer(h)
        least.append(float(h.abs().min()))
        h = h.relu()
    return min(least)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    config = DeepSetsConfig(
        width=draw(st.sampled_from([1, 8, 15, 16, 17, 32, 40, 64])),
        layers=draw(st.integers(1, 3)),
        head_width=draw(st.sampled_from([7, 16, 32, 33])),
        head_layers=draw(st.integers(1, 3)),
        num_features=draw(st.sampled_from([1, 4, 7, 8, 16, 19])),
    )
    counts = draw(st.lists(st.sampled_from([1, 2, 5, 9, 17, 40, 200]), min_size=10, max_size=40))
    counts = draw(st.permutations(counts + [0] * draw(st.integers(0, 5))))
    return Case(config, counts, draw(st.integers(0, 1000)), draw(st.booleans()))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(case=cases(), num_threads=st.integers(1, 3))
def test_step_of_any_shape(case: Case, num_threads: int) -> None:
    assume(margin(case) > 1e-6)
    # Where nearly all ReLUs are at zero, the gradient is one or two sums that cancel, whose last bits are chance.
    assume(case.specified(torch.float64)[1].abs().max() > 0.1)
    check_step(case, num_threads)


COUNTS = torch.randint(0, 41, (64,), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"width": 64, "layers": 2},
        {"width": 20, "head_width": 12, "num_features": 19},
        {"width": 3, "head_width": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("teacher", [True, False])
def test_step_of_some_sizes(sizes: dict[str, int], teacher: bool) -> None:
    """Also widths that no vector divides: matrices are padded."""
    case = Case(DeepSetsConfig(**sizes), COUNTS, 2, teacher)
    assert margin(case) > 1e-7
    check_step(case, 2)


@pytest.mark.parametrize("counts", [[0, 0, 0], [1, 0], [0, 1, 0, 1], [1] * 40, [600, 1]], ids=str)
def test_batches_of_few_and_of_empty_jets(counts: list[int]) -> None:
    """Of so few numbers each one's last bits are chance."""
    case = Case(DeepSetsConfig(), counts, 3)
    for ours, right in zip(case.compiled(2), case.specified(torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=1e-5, atol=2e-6)


def test_equal_constituents_share_the_gradient_of_a_maximum() -> None:
    case = Case(DeepSetsConfig(width=16, layers=1), [8] * 24, 4)
    features = case.view.features.view(24, 8, 7)
    features[:12, 4:] = features[:12, :4]  # pairs
    features[12:18] = features[12:18, :1]  # all eight
    assert margin(case) > 1e-7
    check_step(case, 1)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_temperatures_and_logits_at_the_ends(temperature: float, scale: float, alpha: float) -> None:
    case = Case(DeepSetsConfig(), COUNTS, 5)
    case.temperature, case.alpha = temperature, alpha
    case.targets.logits.mul_(scale)
    with torch.no_grad():
        case.model.classify.weight.mul_(scale)
    assert margin(case) > 1e-7
    terms, gradient, _ = case.compiled()
    plain, exact = case.specified(torch.float32), case.specified(torch.float64)
    # A logit of 1e4 has an error of 1e-3, which T = 0.05 divides by: the loss feels it, in PyTorch as here.
    error, standard = ((x[0].double() - exact[0]).abs().max() for x in ((terms, gradient), plain))
    assert error <= 4 * standard + 2e-5 * exact[0].abs().max() + 1e-6
    error, standard = ((x.double() - exact[1]).abs() for x in (gradient, plain[1]))
    assert error.mean() <= 2 * standard.mean() + 1e-6 * exact[1].abs().mean()
    assert error.max() <= 4 * standard.max() + 1e-6 * exact[1].abs().max()


def test_weights_of_zero_and_of_very_different_size() -> None:
    """A slice of jets whose weights are all zero adds nothing."""
    case = Case(DeepSetsConfig(), [30] * 64, 6)
    case.order = torch.arange(64)
    case.view.weights[:20] = 0.0
    case.view.weights[20:40] *= 1e-6
    case.view.weights[40:] *= 1e3
    check_step(case, 2)


def test_the_number_of_threads_changes_no_bit() -> None:
    counts = torch.randint(0, 60, (150,), generator=torch.Generator().manual_seed(2)).tolist()
    for precision in ("fp32", "bf16"):
        case = Case(DeepSetsConfig(width=40), counts)
        first = case.compiled(1, precision)
        for num_threads in (2, 3, 4):
            for ours, theirs in zip(case.compiled(num_threads, precision), first, strict=True):
                assert torch.equal(ours, theirs)


def test_products_in_bfloat16() -> None:
    """No farther from float64 than PyTorch's autocast, which rounds more."""
    case = Case(DeepSetsConfig(), COUNTS, 7)
    exact = case.specified(torch.float64)[1]
    plain = case.specified(torch.float32, "bf16")[1]
    error, standard = ((x.double() - exact).norm() for x in (case.compiled(1, "bf16")[1], plain))
    assert 0 < error <= 2 * standard


@settings(max_examples=20, deadline=None)
@given(case=cases(), num_threads=st.integers(1, 3))
def test_evaluation(case: Case, num_threads: int) -> None:
    kernels = case.kernels()
    exact, plain = (
        _logits(case.copy(dtype), case.view.features.to(dtype), case.view.offsets)
        for dtype in (torch.float64, torch.float32)
    )
    jets = len(case.view)
    ours, weights = kernels.logits(case.view.features, case.view.offsets, 0, jets, num_threads, pooling=True)
    assert weights is None
    error, standard = ((x.double() - exact).abs().max() for x in (ours, plain))
    assert error <= 4 * standard + 8 * torch.finfo(torch.float32).eps * exact.abs().max(), case
    first = jets // 3
    part, _ = kernels.logits(case.view.features, case.view.offsets, first, jets - first, 1)
    assert torch.equal(part, ours[first:])


def _logits(model: torch.nn.Module, features: Tensor, offsets: Tensor) -> Tensor:
    with torch.no_grad(), backend("reference"):
        return model(features, offsets)


def test_evaluates_models_of_several_classes_without_a_warning() -> None:
    case = Case(DeepSetsConfig(num_classes=5), [3, 0, 30, 7])
    backends._warned.clear()
    (answer,) = evaluate_model(case.model.eval(), case.view.features, case.view.offsets)
    assert not backends._warned
    torch.testing.assert_close(answer[0], _logits(case.model, case.view.features, case.view.offsets))
    assert answer[1] is None
    with pytest.raises(DataError, match="models of one logit, this one has 5"):
        case.compiled()


def test_values_that_cannot_be() -> None:
    case = Case(DeepSetsConfig(), [5] * 40)
    case.view.features[7, 2] = torch.nan
    assert not case.compiled(2)[0][0].isfinite()
    case = Case(DeepSetsConfig(), [5] * 40)
    for name, wrong in (("labels", 2.0), ("labels", torch.nan), ("weights", -1.0), ("weights", torch.inf)):
        values = getattr(case.view, name).clone()
        values[17] = wrong
        view = case.view
        case.view = replace(view, **{name: values})
        for num_threads in (1, 2):
            with pytest.raises(DataError, match="labels must lie in"):
                case.compiled(num_threads)
        case.view = view
    case.view = replace(case.view, weights=torch.zeros(40))
    with pytest.raises(DataError, match="not all 0"):
        case.compiled()
    with pytest.raises(DataError, match=r"\(10, 0\) parameters and running statistics, expected \(5537, 0\)"):
        CompiledModel(DeepSetsConfig(), torch.zeros(10), torch.zeros(0))


@needs_memory_limit
def test_lack_of_memory_is_an_error_of_its_own() -> None:
    """And the same call works once there is memory."""
    case = Case(DeepSetsConfig(), [200_000], 1)  # one jet, of 300 MB
    kernels = case.kernels()
    with few_more_bytes(2**24):
        with pytest.raises(ResourceError, match="no memory for the activations of a batch of 1 jets"):
            case.step(kernels, torch.empty_like(kernels.parameters))
        with pytest.raises(ResourceError, match="no memory for the activations of 1 jets"):
            kernels.logits(case.view.features, case.view.offsets, 0, 1, 1)
    logits, _ = kernels.logits(case.view.features, torch.tensor([0, 100]), 0, 1, 1)
    assert logits.isfinite().all()


def test_the_reference_runs_with_a_warning_where_weights_are_float64() -> None:
    case = Case(DeepSetsConfig(), [3, 4])
    backends._warned.clear()
    with pytest.warns(KdfastWarning, match="deep_sets runs its PyTorch reference.*not float32"):
        list(evaluate_model(case.copy(torch.float64), case.view.features.double(), case.view.offsets))
