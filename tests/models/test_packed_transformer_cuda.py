"""Forward and backward of three members by the CUDA kernels, against the references and float64."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor

from kdfast.models import JetTransformer, ModelConfig
from kdfast.models.build import pack_networks
from kdfast.models.flat import flatten_parameters, flatten_running
from kdfast.models.packed import dropout_seeds
from kdfast.ops import dropout_masks, gpu
from tests.ops.accuracy import assert_accurate
from tests.ops.backends import cuda_kernels
from tests.ops.packed import normal, rows_of

pytestmark = pytest.mark.cuda_kernels

CONFIG = ModelConfig(width=32, layers=2, heads=4, ffn=72, pooling_heads=4, dropout=0.1)
MEMBERS = 3
ROWS = rows_of([5, 0, 1, 17, 8, 3], padding=6)
RESULTS = ("logits", "pooling attention", "gradient", "running moments")


def run(dtype: torch.dtype, precision: str, training: bool) -> list[Tensor]:
    """RESULTS, computed from float32 parameters and features."""
    models = [JetTransformer(CONFIG, seed=member) for member in range(MEMBERS)]
    parameters = torch.stack([flatten_parameters(model) for model in models]).detach()
    parameters += 0.1 * normal(*parameters.shape, seed=1)  # affine parts of the norms that do something
    running = torch.stack([flatten_running(model) for model in models]).to(dtype)
    gradient = torch.zeros_like(parameters, dtype=dtype)
    packed = pack_networks(CONFIG, parameters.to(dtype), running, precision, gradient=gradient)
    features = normal(1, len(ROWS.jet), CONFIG.num_features, rows=ROWS)[0].to(dtype)
    seeds = torch.tensor(dropout_seeds(77, CONFIG.layers)) if training else None
    logits, attention = packed.logits(features, ROWS, seeds, training=training)
    wanted = (normal(*x.shape, seed=seed).to(x.dtype) for seed, x in enumerate((logits, attention), start=2))
    loss = torch.stack([(x * w).sum() for x, w in zip((logits, attention), wanted, strict=True)]).sum()
    packed.write_gradient(loss)
    return [x.detach() for x in (logits, attention, gradient, running)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
def test_three_members_by_the_kernels(precision: str, training: bool) -> None:
    with cuda_kernels(), mock.patch.object(gpu, "call", wraps=gpu.call) as call:
        actual = run(torch.float32, precision, training)
        calls = [arguments.args[0] for arguments in call.call_args_list]
    ran = set(calls)
    assert calls.count("dropout_masks") == training
    assert calls.count("constituent_attention_plan") == 1
    for op in ("residual_norm", "bias_gelu", "batch_norm_gelu", "constituent_attention", "attention_pooling"):
        assert {op, f"{op}_backward"} <= ran
    plain, exact = run(torch.float32, precision, training), run(torch.float64, "fp32", training)
    for name, *results in zip(RESULTS, actual, plain, exact, strict=True):
        assert_accurate(*results, f"{name}, {precision}, training={training}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_are_written_where_they_belong(precision: str) -> None:
    """By the ops themselves, into rows that are longer than P, but for three of the pooling, which are copied."""
    parameters = flatten_parameters(JetTransformer(CONFIG)).detach().repeat(MEMBERS, 1)
    flat = torch.full((MEMBERS, parameters.shape[1] + 7), torch.nan)
    gradient = flat[:, : parameters.shape[1]]
    running = flatten_running(JetTransformer(CONFIG)).repeat(MEMBERS, 1)
    packed = pack_networks(CONFIG, parameters, running, precision, gradient=gradient)
    features = normal(1, len(ROWS.jet), CONFIG.num_features, rows=ROWS)[0]
    seeds = torch.tensor(dropout_seeds(77, CONFIG.layers))
    parts = packed._parameters
    with cuda_kernels():
        logits, attention = packed.logits(features, ROWS, seeds, training=True)
        found = torch.autograd.grad(logits.square().sum() + attention.square().sum(), list(parts.values()))
    elsewhere = set()
    for (name, parameter), grad in zip(parts.items(), found, strict=True):
        assert parameter.grad is not None
        if grad.data_ptr() == parameter.grad.data_ptr():
            assert grad.isfinite().all(), name
        else:
            elsewhere.add(name)
    assert elsewhere == {"pool.query", "pool.kv.weight", "pool.kv.bias"}
    assert flat[:, parameters.shape[1] :].isnan().all()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_bits_without_masks(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kernel then draws what it drops. Products then add the bias of qkv, as without masks."""
    monkeypatch.setattr("kdfast.models.packed.adds_bias", lambda *_: False)
    with cuda_kernels():
        expected = run(torch.float32, precision, training=True)
        monkeypatch.setattr(dropout_masks, "_MOST_BYTES", 0)
        with mock.patch.object(gpu, "call", wraps=gpu.call) as call:
            found = run(torch.float32, precision, training=True)
    assert "dropout_masks" not in [arguments.args[0] for arguments in call.call_args_list]
    for name, a, b in zip(RESULTS, found, expected, strict=True):
        assert torch.equal(a, b), name
