"""DeepSets against the same network written with padded tensors and torch's own functions."""

import itertools

import pytest
import torch
from torch.nn.functional import relu

from kdfast.errors import ConfigError, ModelError
from kdfast.models import DeepSets, DeepSetsConfig, JetTransformer
from kdfast.models.build import build_network
from kdfast.models.config import PRESETS, model_config
from kdfast.models.layers import segment_max


def padded(model: DeepSets, features: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """The same function of the same weights, a jet at a time."""
    logits = []
    for first, end in itertools.pairwise(offsets):
        x = features[first:end]
        for layer in model.constituent:
            x = relu(layer(x))
        empty = x.new_zeros(model.config.width)
        h = torch.cat([x.mean(0), x.max(0).values] if len(x) else [empty, empty])
        for layer in model.jet:
            h = relu(layer(h))
        logits.append(model.classify(h))
    return torch.stack(logits)


@pytest.mark.parametrize("counts", [[3, 0, 1, 5], [1], [0, 0], [40, 2]])
def test_logits_and_gradients_are_those_of_the_plain_network(counts):
    torch.manual_seed(0)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    features = torch.randn(sum(counts), 7, dtype=torch.float64)
    model = DeepSets(seed=3, width=8, head_width=4).double()
    ours, theirs = model(features, offsets), padded(model, features, offsets)
    torch.testing.assert_close(ours, theirs)
    parameters = list(model.parameters())
    gradients = [
        torch.autograd.grad(out.square().sum(), parameters, allow_unused=True, materialize_grads=True)
        for out in (ours, theirs)
    ]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference)


def test_equal_constituents_share_the_gradient_of_a_maximum():
    x = torch.tensor([[1.0, 1.0], [1.0, 2.0], [0.5, 2.0], [3.0, 0.0]], dtype=torch.float64, requires_grad=True)
    top = segment_max(x, torch.tensor([0, 3, 3, 4]))
    assert top.tolist() == [[1, 2], [0, 0], [3, 0]]
    (gradient,) = torch.autograd.grad((top * torch.tensor([[1.0, -1.0]])).sum(), x)
    assert gradient.tolist() == [[0.5, 0], [0.5, -0.5], [0, -0.5], [1, -1]]


def test_gradcheck():
    torch.manual_seed(1)
    model = DeepSets(seed=3, width=4, head_width=4, layers=2).double()
    features = torch.randn(6, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x, torch.tensor([0, 4, 4, 6])), features)


def test_the_same_weights_for_a_seed_whatever_torch_has_drawn():
    before = torch.get_rng_state()
    weights = [DeepSets(seed=seed).constituent[0].weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())


def test_there_is_no_attention():
    logits, attention = DeepSets()(torch.randn(2, 7), torch.tensor([0, 2]), return_attention=True)
    assert logits.shape == (1, 1)
    assert attention is None


def test_presets_and_families_are_told_apart():
    assert isinstance(build_network(PRESETS["deepsets"]), DeepSets)
    assert isinstance(build_network(PRESETS["tiny"]), JetTransformer)
    assert model_config(DeepSetsConfig(width=16).model_dump()) == DeepSetsConfig(width=16)
    with pytest.raises(ConfigError, match="is not a DeepSets model"):
        DeepSets("small")
    with pytest.raises(ConfigError, match="is not a JetTransformer"):
        JetTransformer("deepsets")
    with pytest.raises(ConfigError, match="unknown family of models 'deepset'"):
        model_config({"family": "deepset"})
    with pytest.raises(ConfigError, match="width"):
        model_config({"family": "deepsets", "width": 0})
    with pytest.raises(ModelError, match="features must be"):
        DeepSets()(torch.randn(2, 6), torch.tensor([0, 2]))
