"""K members in lock-step against K models, each by itself: logits, gradients, running statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdfast.models import DeepSets, DeepSetsConfig, JetTransformer, ModelConfig
from kdfast.models.build import pack_networks
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.models.packed import dropout_seeds
from kdfast.ops.packed_rows import PackedRows

CONFIG = ModelConfig(width=16, layers=2, heads=2, ffn=32, pooling_heads=4, dropout=0.1)


def batch(counts: list[int], padding: int) -> tuple[Tensor, PackedRows]:
    """Features [M, 7] float64 with NaN in their padding, and their rows."""
    generator = torch.Generator().manual_seed(len(counts))
    offsets = torch.tensor([0, *counts]).cumsum(0)
    rows = PackedRows.of_constituents(offsets, sum(counts) + padding)
    features = torch.full((sum(counts) + padding, CONFIG.num_features), torch.nan, dtype=torch.float64)
    features[: sum(counts)] = torch.randn(sum(counts), CONFIG.num_features, generator=generator, dtype=torch.float64)
    return features, rows


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(lambda counts: sum(counts) > 0),
    padding=st.integers(0, 5),
    members=st.integers(1, 3),
    training=st.booleans(),
)
def test_each_member_is_the_model_of_its_own(counts: list[int], padding: int, members: int, training: bool) -> None:
    features, rows = batch(counts, padding)
    models = [JetTransformer(CONFIG, seed=member).double().train(training) for member in range(members)]
    for model in models:  # affine parts of the norms that do something
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    parameters = torch.stack([flatten_parameters(model) for model in models])
    running = torch.stack([flatten_running(model) for model in models])
    gradient = torch.full_like(parameters, torch.nan)
    packed = pack_networks(CONFIG, parameters.clone(), running, gradient=gradient)
    seed = 12345
    seeds = torch.tensor(dropout_seeds(seed, CONFIG.layers)) if training else None
    logits, attention = packed.logits(features, rows, seeds, training=training)
    weights = torch.randn(logits.shape, dtype=torch.float64), torch.randn(attention.shape, dtype=torch.float64)
    packed.write_gradient((weights[0] * logits).sum() + (weights[1] * attention).sum())
    count = sum(counts)
    for member, model in enumerate(models):
        answers = model(features[:count], rows.offsets, return_attention=True, dropout_seed=seed)
        torch.testing.assert_close(logits[member], answers[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(attention[member, :count], answers[1], rtol=1e-9, atol=1e-9)
        assert not attention[member, count:].any()
        terms = zip((weights[0][member], weights[1][member, :count]), answers, strict=True)
        torch.stack([(w * answer).sum() for w, answer in terms]).sum().backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradient[member], expected, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(running[member], flatten_running(model), rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0),
    padding=st.integers(0, 5),
    members=st.integers(1, 3),
    classes=st.integers(1, 2),
)
def test_each_member_is_the_deep_sets_of_its_own(counts: list[int], padding: int, members: int, classes: int) -> None:
    """Equal constituents, which share the gradient of a maximum, among the others."""
    features, rows = batch(counts, padding)
    features[1:2] = features[:1]
    config = DeepSetsConfig(width=12, layers=2, head_width=8, num_classes=classes)
    models = [DeepSets(config, seed=member).double() for member in range(members)]
    parameters = torch.stack([flatten_parameters(model) for model in models])
    gradient = torch.full_like(parameters, torch.nan)
    packed = pack_networks(config, parameters.clone(), torch.empty(members, 0), gradient=gradient)
    logits, attention = packed.logits(features, rows, training=True)
    assert attention is None
    weights = torch.randn(logits.shape, dtype=torch.float64)
    packed.write_gradient((weights * logits).sum())
    for member, model in enumerate(models):
        expected = model(features[: sum(counts)], rows.offsets)
        torch.testing.assert_close(logits[member], expected, rtol=1e-9, atol=1e-9)
        (weights[member] * expected).sum().backward()
        expected = torch.cat([p.grad.flatten() for p in model.parameters()])
        torch.testing.assert_close(gradient[member], expected, rtol=1e-7, atol=1e-8)


def test_products_of_deep_sets_in_bfloat16() -> None:
    """The jets' layers stay float32."""
    features, rows = batch([3, 0, 9], 2)
    config = DeepSetsConfig(width=16)
    parameters = flatten_parameters(DeepSets(config))[None]
    exact, rounded = (
        pack_networks(config, parameters, torch.empty(1, 0), precision).logits(features.float(), rows, training=False)[
            0
        ]
        for precision in ("fp32", "bf16")
    )
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()
