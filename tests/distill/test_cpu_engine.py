"""The CPU engine trains what the reference engine trains."""

import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import kdfast
from kdfast import backend
from kdfast.distill import reference_engine
from kdfast.distill.engine import train_members
from kdfast.distill.optimizer import FlatAdamW
from kdfast.distill.pack import Member, MemberResult, Pack, Targets, View
from kdfast.distill.recipe import Recipe
from kdfast.distill.schedules import RunConfig
from kdfast.distill.trainer import train_pack
from kdfast.errors import ConfigError
from kdfast.jets.features import Standardisation, features
from kdfast.jets.hlt import emulate_hlt
from kdfast.models import PRESETS, ModelConfig
from kdfast.models.build import build_network
from kdfast.models.config import NetworkConfig
from kdfast.models.flat import flatten_running
from kdfast.ops import backend as backends
from tests.distill.packs import DEEP_SETS, MODEL, pack, students

pytestmark = pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))


class ExactLearner(reference_engine._Learner):
    """The reference engine's in float64, for a pack in float64."""

    def __init__(self, pack: Pack, member: Member) -> None:
        super().__init__(pack, member)
        self.model = build_network(pack.model, pack.seed).double()
        self.optimizer = FlatAdamW(self.model, pack.recipe.weight_decay, pack.recipe.clip_norm)
        self.buffers = {"running": flatten_running(self.model)}


def in_float64(a_pack: Pack) -> Pack:
    def wide(part: View | Targets) -> Any:
        return type(part)(*(x.double() if x.is_floating_point() else x for x in vars(part).values()))

    views = {name: wide(getattr(a_pack, name)) for name in ("train", "validation", "test", "targets")}
    return replace(a_pack, **views)


def learned(result: MemberResult, model: NetworkConfig) -> Tensor:
    """The trained parameters that have a gradient.

    Exactly zero are those of biases before a BatchNorm (of which pool_norm's, over jets, is one) and of the keys' bias,
    which drops out of the softmax. Rounding makes noise of it, Adam steps of the learning rate's size of the noise; the
    running means follow these biases, and evaluation takes both.
    """
    state = dict(result.state)
    for name in list(state):
        if "running" in name or name == "pool_norm.bias" or re.fullmatch(r"(embed|dense\d).linear.bias", name):
            del state[name]
        elif name.endswith("qkv.bias"):
            query, _, value = state[name].split(model.width)
            state[name] = torch.cat([query, value])
    return torch.cat([x.flatten() for x in state.values() if x.is_floating_point()])


@pytest.mark.parametrize("model", [MODEL, DEEP_SETS], ids=["transformer", "deepsets"])
def test_the_first_epochs_are_the_references(model: NetworkConfig):
    """Same initial weights, batches and dropout, judged by the reference engine in float64.

    Each number is the end of thousands of roundings in a row, so a single one's error is chance, in PyTorch's
    computation too: as in tests/models/test_encoder.py the mean is held to the accuracy rule, the largest to more.
    """
    a_pack = pack([Member("baseline"), *students(7)], epochs=2, learning_rate=1e-3, model=model)

    def by_name(results: Iterable[MemberResult]) -> list[MemberResult]:
        return sorted(results, key=lambda result: result.name)

    compiled = by_name(train_pack(a_pack))
    with backend("reference"):
        plain = by_name(train_pack(a_pack))
        exact = by_name(train_members(ExactLearner, in_float64(a_pack), 1, None, threading.Event()))
    runs = (compiled, plain, exact)

    def check(what: str, quantity: Callable[[MemberResult], Tensor]) -> None:
        ours, theirs, expected = (torch.cat([quantity(result) for result in results]) for results in runs)
        errors = [(x.double() - expected).abs() for x in (ours, theirs)]
        eps, size = torch.finfo(torch.float32).eps, expected.abs()
        assert errors[0].mean() <= 2 * errors[1].mean() + 2 * eps * size.mean(), what
        assert errors[0].max() <= 4 * errors[1].max() + 8 * eps * size.max(), what

    assert [r.best_epoch for r in compiled] == [r.best_epoch for r in plain] == [r.best_epoch for r in exact]
    for curve in ("loss", "loss_kd", "loss_label", "loss_attention"):
        check(curve, lambda result, curve=curve: torch.tensor(result.curves[curve], dtype=torch.float64))
    check("scores of the validation jets", lambda result: result.scores_validation)
    check("scores of the test jets", lambda result: result.scores_test)
    check("parameters", lambda result: learned(result, model))
    for ours, expected in zip(compiled, exact, strict=True):
        for constant in ("temperature", "alpha", "learning_rate"):
            assert ours.curves[constant] == expected.curves[constant]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [MODEL, DEEP_SETS], ids=["transformer", "deepsets"])
def test_no_bit_depends_on_the_size_of_the_pack_or_the_threads(model: NetworkConfig, precision: str):
    """Odd batches; more threads than members share a member's slices, also when the others have finished."""
    members = students(5)

    def results(number: int, threads: int) -> dict[str, MemberResult]:
        a_pack = pack(members[:number], batch_size=33, epochs=2, model=model)
        return {r.name: r for r in train_pack(replace(a_pack, precision=precision), threads=threads)}

    expected = results(5, 1)
    for number in (1, 2, 3, 5):
        for threads in (2, 4):
            for name, result in results(number, threads).items():
                assert result.curves == expected[name].curves
                assert torch.equal(result.scores_test, expected[name].scores_test)
                assert all(torch.equal(result.state[key], tensor) for key, tensor in expected[name].state.items())


def test_sizes_that_it_does_not_take_train_with_a_warning():
    odd = pack(students(1), epochs=1, model=ModelConfig(width=24, layers=1, heads=3, ffn=16))
    backends._warned.clear()
    with pytest.warns(kdfast.errors.KdfastWarning, match="multiples of 16"):
        (result,) = train_pack(odd)
    assert result.status == "done"


def test_the_reference_refuses_another_precision():
    a_pack = pack(students(1), epochs=1)
    with backend("reference"), pytest.raises(ConfigError, match="the reference engine does not train in 'bf16'"):
        list(train_pack(replace(a_pack, precision="bf16")))


@pytest.fixture(scope="module")
def sample_pack() -> Pack:
    """3,000 jets of the sample at HLT, 1,500 for validation, 800 for test; a teacher that knows the labels."""
    jets = kdfast.sample()[::3]
    hlt = emulate_hlt(jets, "nominal")
    inputs, offsets = features(hlt), torch.from_numpy(hlt.offsets)
    inputs = Standardisation.fit(inputs).apply(inputs)
    labels = torch.from_numpy(hlt.labels).float()

    def view(part: slice) -> View:
        bounds = offsets[part.start : part.stop + 1]
        weights = torch.ones(part.stop - part.start)
        return View(inputs[bounds[0] : bounds[-1]], bounds - bounds[0], labels[part], weights)

    train = view(slice(0, 3000))
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    targets = Targets((4 * train.labels - 2 + noise)[:, None], torch.full((3000,), 1.5), torch.full((3000,), 0.4))
    recipe = Recipe(epochs=3, batch_size=128, learning_rate=2e-3, warmup_epochs=1)
    member = Member("student", RunConfig(3.0, 0.5))
    parts = (train, view(slice(3000, 4500)), view(slice(4500, 5300)))
    return Pack(PRESETS["small"], (member,), 0, recipe, *parts, targets)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_auc_is_the_references_within_the_noise_of_seeds(sample_pack: Pack, precision: str):
    """Five seeds, paired: no difference that Student's t sees at 1 %, none beyond a fifth of what seeds differ by."""
    ours, theirs = [], []
    for seed in range(5):
        seeded = replace(sample_pack, seed=seed)
        (compiled,) = train_pack(replace(seeded, precision=precision))
        with backend("reference"):
            (plain,) = train_pack(seeded)
        ours.append(compiled.curves["auc_val"])
        theirs.append(plain.curves["auc_val"])
    first, last = (np.array([curve[epoch] for curve in theirs]) for epoch in (0, -1))
    assert (last > 0.75).all()  # they learn
    assert (last > first).mean() > 0.5
    difference = np.array([curve[-1] for curve in ours]) - last
    assert stats.ttest_1samp(difference, 0).pvalue > 0.01 or abs(difference.mean()) < 1e-5
    assert abs(difference.mean()) < 0.2 * last.std(ddof=1)
    assert np.abs(difference).max() < 0.2 * last.std(ddof=1) + 0.005
