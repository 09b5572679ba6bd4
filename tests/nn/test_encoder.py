"""EncoderBlock against torch.nn.TransformerEncoderLayer and JetTransformer's layer; compiled, exported, in bfloat16."""

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import kdfast
from kdfast.errors import ConfigError
from kdfast.models import ModelConfig
from kdfast.models.layers import EncoderLayer
from kdfast.nn import EncoderBlock
from tests.nn.jets import MASK, NOT_EMPTY, packed, padded, randomise
from tests.ops.accuracy import assert_accurate

# torch's name of a parameter that is ours
TORCH_NAMES = {
    "norm1.weight": "norm1.weight",
    "norm2.bias": "norm2.bias",
    "qkv.weight": "self_attn.in_proj_weight",
    "qkv.bias": "self_attn.in_proj_bias",
    "out.weight": "self_attn.out_proj.weight",
    "ffn_in.weight": "linear1.weight",
    "ffn_out.bias": "linear2.bias",
}


def torch_layer(**options: Any) -> nn.TransformerEncoderLayer:
    options = {"activation": "gelu", "batch_first": True, "norm_first": True, "dtype": torch.float64} | options
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.1, **options).eval()
    randomise(layer)
    return layer


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_equals_torch(norm_first: bool, activation: str) -> None:
    theirs = torch_layer(norm_first=norm_first, activation=activation)
    ours = EncoderBlock.from_torch(theirs)
    x = padded(16, torch.float64).requires_grad_()
    out = ours(x, mask=MASK)
    assert not out[~MASK].any()

    mask = MASK[NOT_EMPTY]  # torch gives NaN for an empty jet
    clean = x.detach()[NOT_EMPTY].nan_to_num(0, 0, 0).requires_grad_()
    expected = theirs(clean, src_key_padding_mask=~mask)[mask]
    torch.testing.assert_close(out[MASK], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(*packed(x)), expected, rtol=1e-12, atol=1e-12)

    weights = torch.randn(expected.shape, dtype=torch.float64)
    (out[MASK] * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad[MASK], clean.grad[mask], rtol=1e-10, atol=1e-11)
    assert not x.grad[~MASK].any()
    for name, theirs_name in TORCH_NAMES.items():
        torch.testing.assert_close(
            ours.get_parameter(name).grad, theirs.get_parameter(theirs_name).grad, rtol=1e-10, atol=1e-11, msg=name
        )


@pytest.mark.parametrize("bias", [True, False])
def test_weights_travel_both_ways(bias: bool) -> None:
    theirs = torch_layer(bias=bias, layer_norm_eps=1e-3, norm_first=False, activation=nn.ReLU())
    ours = EncoderBlock.from_torch(theirs)
    assert (ours.norm1.eps, ours.norm_first, ours.activation, ours.dropout, ours.training) == (
        1e-3,
        False,
        "relu",
        0.1,
        False,
    )
    back = ours.to_torch()
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in theirs.state_dict().items())
    x = padded(16, torch.float64).nan_to_num(0, 0, 0)
    torch.testing.assert_close(
        back(x, src_key_padding_mask=~MASK)[NOT_EMPTY & MASK[:, 0]],
        theirs(x, src_key_padding_mask=~MASK)[NOT_EMPTY & MASK[:, 0]],
    )


def test_a_stack_takes_torchs_state_dict() -> None:
    theirs = nn.TransformerEncoder(torch_layer(), 2, enable_nested_tensor=False)
    ours = nn.ModuleDict({"layers": nn.ModuleList(EncoderBlock(16, 2, 24) for _ in range(2))})
    state = theirs.state_dict()
    names = list(state)
    ours.load_state_dict(state)
    assert list(state) == names  # the caller's dictionary stays as it was
    assert torch.equal(
        ours["layers"][1].qkv.weight.double(), theirs.layers[1].self_attn.in_proj_weight.float().double()
    )
    with pytest.raises(RuntimeError, match="Missing key"):
        EncoderBlock(16, 2, 24).load_state_dict({k: v for k, v in torch_layer().state_dict().items() if "norm" in k})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        EncoderBlock(16, 2, 24).load_state_dict(
            {**EncoderBlock(16, 2, 24).state_dict(), "linear3.weight": torch.ones(1)}
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": F.silu}, "neither exact GELU nor ReLU"),
        ({"activation": nn.GELU(approximate="tanh")}, "neither exact GELU nor ReLU"),
    ],
)
def test_what_has_no_counterpart(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderBlock.from_torch(torch_layer(**change))
    layer = torch_layer()
    layer.dropout1.p = 0.5
    with pytest.raises(ConfigError, match="several dropout probabilities"):
        EncoderBlock.from_torch(layer)


def test_is_the_layer_of_jet_transformer() -> None:
    """The same names, and the same bits for the same seed of dropout."""
    layer = EncoderLayer(ModelConfig(width=32, layers=1, heads=4, ffn=48, dropout=0.25))
    block = EncoderBlock(32, 4, 48, 0.25)
    randomise(layer)
    block.load_state_dict(layer.state_dict())
    x, offsets = packed(padded(32))
    assert torch.equal(block(x, offsets, seed=11), layer(x, offsets, 11))
    assert torch.equal(block.eval()(x, offsets), layer(x, offsets, None))
    layer.load_state_dict(block.state_dict())


@pytest.mark.parametrize("norm_first", [True, False])
def test_dropout(norm_first: bool) -> None:
    block = EncoderBlock(16, 2, 24, 0.3, norm_first)
    x = padded(16)
    one, again, other = (block(x, mask=MASK, seed=s) for s in (5, torch.tensor(5), 6))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one[MASK], block(*packed(x), seed=5))  # a constituent's number in its jet counts, not its slot
    torch.manual_seed(0)
    first, second = block(x, mask=MASK), block(x, mask=MASK)
    torch.manual_seed(0)
    assert torch.equal(first, block(x, mask=MASK))
    assert not torch.equal(first, second)
    block.eval()
    without = EncoderBlock(16, 2, 24, 0.0, norm_first)
    without.load_state_dict(block.state_dict())
    assert torch.equal(block(x, mask=MASK, seed=5), without(x, mask=MASK))


@pytest.mark.parametrize("norm_first", [True, False])
def test_gradcheck(norm_first: bool) -> None:
    block = EncoderBlock(8, 2, 4, 0.2, norm_first, dtype=torch.float64)
    randomise(block)
    x = padded(8, torch.float64)[:2].nan_to_num().requires_grad_()
    bias = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, bias: Tensor, *_: Tensor) -> Tensor:
        return block(x, mask=MASK[:2], pair_bias=bias, seed=3)

    assert torch.autograd.gradcheck(function, (x, bias, *block.parameters()), fast_mode=True)


@pytest.mark.parametrize("autocast", [False, True])
def test_accuracy(autocast: bool) -> None:
    """The accuracy rule in float32 and under autocast to bfloat16, against torch's own layer."""
    exact_layer = torch_layer().train()
    exact_layer.dropout.p = exact_layer.dropout1.p = exact_layer.dropout2.p = exact_layer.self_attn.dropout = 0.0
    plain = copy.deepcopy(exact_layer).float()
    exact_layer.load_state_dict(plain.state_dict())
    block = EncoderBlock.from_torch(plain)
    mask = MASK[NOT_EMPTY]
    x = padded(16)[NOT_EMPTY].nan_to_num(0, 0, 0)
    results = []
    for layer, dtype in ((block, torch.float32), (plain, torch.float32), (exact_layer, torch.float64)):
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and dtype == torch.float32):
            out = layer(leaf, mask=mask) if layer is block else layer(leaf, src_key_padding_mask=~mask)
        grads = torch.autograd.grad(out[mask].square().sum(), (leaf, *layer.parameters()))
        results.append((out[mask].detach(), grads[0][mask]))
    for actual, theirs, exact in zip(*results, strict=True):
        assert_accurate(actual, theirs, exact, f"autocast {autocast}")


def test_autocast_runs_attention_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = kdfast.nn.attention.constituent_attention_qkvpacked
    monkeypatch.setattr(
        kdfast.nn.attention,
        "constituent_attention_qkvpacked",
        lambda qkv, *rest, **options: seen.append(qkv.dtype) or original(qkv, *rest, **options),
    )
    with torch.autocast("cpu", torch.bfloat16):
        out = EncoderBlock(16, 2, 24)(padded(16), mask=MASK)
    assert seen == [torch.bfloat16]
    assert out.dtype == torch.float32  # the residual's
    assert EncoderBlock(16, 2, 24, dtype=torch.bfloat16)(padded(16, torch.bfloat16), mask=MASK).dtype == torch.bfloat16


def batch(counts: list[int], padded_entrance: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """A leaf of features of width 16, and how the jets lie in it."""
    generator = torch.Generator().manual_seed(sum(counts))
    if not padded_entrance:
        return torch.randn(sum(counts), 16, generator=generator).requires_grad_(), {
            "offsets": torch.tensor([0, *counts]).cumsum(0)
        }
    mask = torch.arange(max(counts) + 2) >= 2 + max(counts) - torch.tensor(counts)[:, None]
    x = torch.randn(*mask.shape, 16, generator=generator)
    x[~mask] = float("nan")
    return x.requires_grad_(), {"mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("padded_entrance", [False, True])
def test_compiles_whole_for_any_number_of_constituents(padded_entrance: bool) -> None:
    """Forward and backward equal the eager ones; new sizes and new seeds need no new code."""
    torch._dynamo.reset()
    block = EncoderBlock(16, 2, 24, 0.2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    for step, counts in enumerate([[5, 0, 7], [3, 4, 2, 9], [12, 2]]):
        x, where = batch(counts, padded_entrance)
        for seed in (step + 5, torch.tensor(step + 10)):
            outs = [f(x, **where, seed=seed) for f in (compiled, block)]
            torch.testing.assert_close(*outs)
            torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in outs))
    assert counter.frame_count <= 3  # the first int as a constant, tensors, any int


def test_compiled_code_draws_its_own_seeds() -> None:
    block = torch.compile(EncoderBlock(16, 2, 24, 0.2), backend="aot_eager", fullgraph=True)
    x, where = batch([5, 7], False)
    assert not torch.equal(block(x, **where), block(x, **where))


@pytest.mark.parametrize("padded_entrance", [False, True])
def test_no_graph_breaks(padded_entrance: bool) -> None:
    x, where = batch([5, 0, 7], padded_entrance)
    explained = torch._dynamo.explain(EncoderBlock(16, 2, 24))(x, **where)
    assert (explained.graph_break_count, explained.graph_count) == (0, 1)


@pytest.mark.slow
def test_inductor() -> None:
    block = EncoderBlock(16, 2, 24, 0.2)
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for padded_entrance in (False, True):
        x, where = batch([5, 0, 7], padded_entrance)
        outs = [f(x, **where, seed=torch.tensor(3)) for f in (compiled, block)]
        torch.testing.assert_close(*outs)
        torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), x)[0] for out in outs))


@pytest.mark.parametrize("padded_entrance", [False, True])
def test_export(padded_entrance: bool) -> None:
    """The graph holds the registered op, for any number of jets and constituents; a saved one is the same."""
    block = EncoderBlock(16, 2, 24).eval()
    x, where = batch([5, 0, 7], padded_entrance)
    shapes = (
        {"x": {0: Dim("B"), 1: Dim("N")}, "mask": {0: Dim("B"), 1: Dim("N")}}
        if padded_entrance
        else {"x": {0: Dim("M")}, "offsets": {0: Dim("B1", min=2)}}
    )
    program = torch.export.export(block, (x.detach(),), where, dynamic_shapes=shapes)
    assert "kdfast.constituent_attention" in program.graph_module.code
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x, where = batch([3, 4, 2, 9], padded_entrance)
    for name in ("reference", "cpu"):
        with kdfast.backend(name):
            torch.testing.assert_close(loaded(x, **where), block(x, **where))


def test_copies_and_pickles() -> None:
    block = EncoderBlock(16, 2, 24).eval()
    file = io.BytesIO()
    torch.save(block, file)
    file.seek(0)
    x, offsets = packed(padded(16))
    for twin in (copy.deepcopy(block), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x, offsets), block(x, offsets))
        assert twin.qkv.weight.data_ptr() != block.qkv.weight.data_ptr()


def test_repr() -> None:
    assert "width=16, heads=2, ffn=24, dropout=0.1, norm_first, activation='gelu'" in repr(EncoderBlock(16, 2, 24))
    assert "norm_last, activation='relu'" in repr(EncoderBlock(16, 2, 24, norm_first=False, activation="relu"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((30, 4, 8), {}, "EncoderBlock: width 30 is not a multiple of heads 4"),
        ((16, 2, 0), {}, "ffn must be a whole number above 0"),
        ((16, 2, 24), {"dropout": -0.1}, "dropout must lie"),
        ((16, 2, 24), {"activation": "gelo"}, "unknown activation 'gelo'\ndid you mean 'gelu'"),
    ],
)
def test_bad_sizes(arguments: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EncoderBlock(*arguments, **options)
