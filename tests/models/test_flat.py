"""Flat buffers of a model's tensors: shared where they can be, and never stale."""

import pytest
import torch
from torch import nn

from kdfast.models import DeepSets, JetTransformer
from kdfast.models.flat import flat, flatten_parameters, flatten_running, tensors_of


@pytest.fixture
def model() -> JetTransformer:
    return JetTransformer("tiny", seed=1)


def flat_parameters(model: nn.Module) -> torch.Tensor:
    return flat(tensors_of(model)[0])


def flat_running(model: nn.Module) -> torch.Tensor:
    return flat(tensors_of(model)[1])


def expected(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in model.parameters()])


def test_a_model_of_separate_tensors_is_copied_and_left_alone(model: JetTransformer) -> None:
    places = [parameter.data_ptr() for parameter in model.parameters()]
    found = flat_parameters(model)
    assert torch.equal(found, expected(model))
    found.zero_()
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert bool(expected(model).any())
    assert torch.equal(flat_running(model), flatten_running(model))


def test_a_flattened_model_shares_its_buffers(model: JetTransformer) -> None:
    buffers = (flatten_parameters(model), flatten_running(model))
    for found, buffer in zip((flat_parameters(model), flat_running(model)), buffers, strict=True):
        assert found.data_ptr() == buffer.data_ptr()
        assert torch.equal(found, buffer)
        assert not found.requires_grad


def test_a_model_without_batch_norms_has_no_statistics() -> None:
    assert flat_running(DeepSets(seed=1)).shape == (0,)


def test_rows_of_a_pack_are_shared_too(model: JetTransformer) -> None:
    """Members of a pack are rows of [K, P]: the row is found, and no more than the row."""
    rows = flatten_parameters(model).repeat(3, 1)
    parts = rows[1].split([parameter.numel() for parameter in model.parameters()])
    for parameter, part in zip(model.parameters(), parts, strict=True):
        parameter.data = part.view(parameter.shape)
    found = flat_parameters(model)
    assert found.data_ptr() == rows[1].data_ptr()
    assert found.shape == rows[1].shape


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.data.mul_(2),
        lambda layer: setattr(layer.weight, "data", layer.weight.data * 2),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight.detach() * 2)),
        lambda layer: layer.double(),
    ],
)
def test_no_change_is_missed(model: JetTransformer, change) -> None:
    flatten_parameters(model)
    flat_parameters(model)
    with torch.no_grad():
        change(model.encoder[0].qkv)
    assert torch.equal(flat_parameters(model), expected(model))
