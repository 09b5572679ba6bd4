"""The CPU engine trains what the reference engine trains."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import kdfast
from kdfast import backend
from kdfast.distill.schedules import RunConfig
from kdfast.distill.trainer import Member, MemberResult, Pack, Recipe, Targets, View, train_pack
from kdfast.errors import ConfigError
from kdfast.jets.features import Standardisation, features
from kdfast.jets.hlt import emulate_hlt
from kdfast.models import PRESETS, ModelConfig
from kdfast.ops import backend as backends
from tests.distill.packs import pack, students

pytestmark = pytest.mark.skipif(backends.why_no_cpu is not None, reason=str(backends.why_no_cpu))


def test_the_first_epochs_are_the_references():
    """Same initial weights, batches and dropout: the curves agree but for rounding, which grows with the steps."""
    a_pack = pack([Member("baseline"), *students(2)], epochs=2, learning_rate=1e-3)
    compiled = {result.name: result for result in train_pack(a_pack)}
    with backend("reference"):
        plain = {result.name: result for result in train_pack(a_pack)}
    for name, result in compiled.items():
        for curve, values in result.curves.items():
            # Of 64 jets' AUC, each pair that changes places is a thousandth.
            tolerance = {"atol": 5e-3} if curve == "auc_val" else {"rtol": 1e-3}
            np.testing.assert_allclose(values, plain[name].curves[curve], **tolerance, err_msg=f"{name} {curve}")
        torch.testing.assert_close(result.scores_test, plain[name].scores_test, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_bit_depends_on_the_size_of_the_pack_or_the_threads(precision: str):
    """Odd batches; more threads than members share a member's slices, also when the others have finished."""
    members = students(5)

    def results(number: int, threads: int) -> dict[str, MemberResult]:
        a_pack = pack(members[:number], batch_size=33, epochs=2)
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
    """3,000 jets of the sample at HLT, 1,500 each for validation and test; a teacher that knows the labels."""
    jets = kdfast.sample()[::3][:6000]
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
    parts = (train, view(slice(3000, 4500)), view(slice(4500, 6000)))
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
