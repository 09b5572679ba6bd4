"""ConstituentAttention against torch.nn.MultiheadAttention, and its two entrances against each other."""

import pytest
import torch
from torch import nn

import kdfast
from kdfast.errors import ConfigError, DataError, KdfastWarning
from kdfast.nn import ConstituentAttention
from kdfast.ops import constituent_attention
from tests.nn.jets import MASK, NOT_EMPTY, packed, padded, randomise


def torch_attention(bias: bool = True) -> nn.MultiheadAttention:
    layer = nn.MultiheadAttention(16, 2, bias=bias, batch_first=True, dtype=torch.float64).eval()
    randomise(layer)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("entrance", ["padded", "packed"])
def test_equals_torch(entrance: str, bias: bool) -> None:
    theirs = torch_attention(bias)
    ours = ConstituentAttention.from_torch(theirs)
    assert not ours.training
    x = padded(16, torch.float64).requires_grad_()
    clean = x.detach().nan_to_num(0, 0, 0).requires_grad_()
    expected = theirs(clean, clean, clean, key_padding_mask=~MASK, need_weights=False)[0][MASK]
    if entrance == "padded":
        out = ours(x, mask=MASK)
        assert not out[~MASK].any()
        out = out[MASK]
    else:
        out = ours(*packed(x))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)

    weights = torch.randn(out.shape, dtype=out.dtype)
    (out * weights).sum().backward()
    # torch gives NaN for the empty jet, whose rows are not in `expected`, and that NaN spoils its gradients.
    jets, mask = clean.detach()[NOT_EMPTY].requires_grad_(), MASK[NOT_EMPTY]
    (theirs(jets, jets, jets, key_padding_mask=~mask, need_weights=False)[0][mask] * weights).sum().backward()
    torch.testing.assert_close(x.grad[NOT_EMPTY][mask], jets.grad[mask], rtol=1e-11, atol=1e-12)
    assert not x.grad[~MASK].any()
    torch.testing.assert_close(ours.qkv.weight.grad, theirs.in_proj_weight.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(ours.out.weight.grad, theirs.out_proj.weight.grad, rtol=1e-11, atol=1e-12)
    if bias:
        torch.testing.assert_close(ours.qkv.bias.grad, theirs.in_proj_bias.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_weights_travel_both_ways(bias: bool) -> None:
    theirs = torch_attention(bias)
    ours = ConstituentAttention.from_torch(theirs)
    back = ours.to_torch()
    assert back.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(back.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert ours.qkv.weight.data_ptr() != theirs.in_proj_weight.data_ptr()
    fresh = ConstituentAttention(16, 2, bias=bias, dtype=torch.float64)
    fresh.load_state_dict(theirs.state_dict())  # torch's names
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), ours.parameters(), strict=True))
    fresh.load_state_dict(ours.state_dict())  # its own


def test_what_has_no_counterpart() -> None:
    with pytest.raises(ConfigError, match="widths"):
        ConstituentAttention.from_torch(nn.MultiheadAttention(16, 2, kdim=8))
    with pytest.raises(ConfigError, match="add_bias_kv"):
        ConstituentAttention.from_torch(nn.MultiheadAttention(16, 2, add_bias_kv=True))


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_pair_bias_and_dropout_are_the_same_at_both_entrances(name: str) -> None:
    attention = ConstituentAttention(32, 4, dropout=0.3)
    x = padded(32)
    bias = torch.randn(len(MASK), 4, 6, 6)
    pairs = MASK[:, :, None] & MASK[:, None, :]
    bias.permute(0, 2, 3, 1)[~pairs] = float("nan")
    packed_bias = bias.transpose(0, 1)[:, pairs]
    rows, offsets = packed(x)
    with kdfast.backend(name):
        out = attention(x, mask=MASK, pair_bias=bias, seed=5)
        assert torch.equal(out[MASK], attention(rows, offsets, pair_bias=packed_bias, seed=5))
        assert not out[~MASK].any()
        q, k, v = attention.qkv(rows).view(-1, 3, 4, 8).unbind(1)
        attended = constituent_attention(q, k, v, offsets, bias=packed_bias, dropout_p=0.3, seed=5)
        assert torch.equal(out[MASK], attention.out(attended.flatten(1)))
        assert not torch.equal(out, attention(x, mask=MASK, pair_bias=bias, seed=6))


def test_gradcheck() -> None:
    attention = ConstituentAttention(8, 2, dropout=0.2, dtype=torch.float64)
    x = padded(8, torch.float64)[:2].nan_to_num().requires_grad_()
    bias = torch.randn(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)

    def function(x: torch.Tensor, bias: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return attention(x, mask=MASK[:2], pair_bias=bias, seed=3)

    assert torch.autograd.gradcheck(function, (x, bias, *attention.parameters()), fast_mode=True)


def test_other_head_dims_run_the_reference() -> None:
    attention = ConstituentAttention(20, 2)
    x, offsets = packed(padded(20))
    with pytest.warns(KdfastWarning, match="head_dim 10"):
        out = attention(x, offsets)
    with kdfast.backend("reference"):
        assert torch.equal(out, attention(x, offsets))


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_but_padding_gives_zeros_and_zero_gradients(compiled: bool) -> None:
    attention = ConstituentAttention(16, 2)
    call = torch.compile(attention, backend="aot_eager", fullgraph=True) if compiled else attention
    x = torch.full((2, 3, 16), float("nan"), requires_grad=True)
    out = call(x, mask=torch.zeros(2, 3, dtype=torch.bool))
    out.sum().backward()
    assert not out.any()
    assert not x.grad.any()
    assert not any(p.grad.any() for p in attention.parameters())


def test_repr_and_initial_weights() -> None:
    assert "width=16, heads=2, dropout=0.1" in repr(ConstituentAttention(16, 2, 0.1))
    torch.manual_seed(0)
    attention = ConstituentAttention(64, 8)
    bound = (6 / (64 + 3 * 64)) ** 0.5
    assert 0.95 * bound < attention.qkv.weight.abs().max() <= bound
    assert not attention.qkv.bias.any()
    before = attention.qkv.weight.clone()
    attention.reset_parameters()
    assert not torch.equal(before, attention.qkv.weight)
    torch.manual_seed(0)
    attention.reset_parameters()
    assert attention.qkv.weight.abs().max() <= bound


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((30, 4), "ConstituentAttention: width 30 is not a multiple of heads 4"),
        ((0, 1), "width must be a whole number above 0, is 0"),
        ((16, 2.0), "heads must be a whole number above 0, is 2.0"),
        ((16, 2, 1.0), r"dropout must lie in \[0, 1\), is 1.0"),
        ((16, 2, float("nan")), "dropout must lie"),
    ],
)
def test_bad_sizes(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConstituentAttention(*arguments)  # type: ignore[arg-type]


X, OFFSETS = torch.zeros(5, 16), torch.tensor([0, 3, 5])
PADDED = torch.zeros(2, 3, 16)
ALL = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X, {}, ConfigError, "exactly one of offsets and mask"),
        (X, {"offsets": OFFSETS, "mask": ALL}, ConfigError, "exactly one of offsets and mask"),
        (
            X,
            {"mask": ALL},
            DataError,
            r"x: must be floating-point \[B, N, 16\] with a mask, is torch.float32 \[5, 16\]",
        ),
        (PADDED, {"offsets": OFFSETS}, DataError, r"x: must be floating-point \[M, 16\] with offsets"),
        (X[:, :8], {"offsets": OFFSETS}, DataError, r"is torch.float32 \[5, 8\]"),
        (X.long(), {"offsets": OFFSETS}, DataError, "is torch.int64"),
        (X, {"offsets": OFFSETS + 1}, DataError, "offsets: must rise from 0 to 5"),
        (X, {"offsets": OFFSETS.int()}, DataError, "offsets: must be int64"),
        (X, {"offsets": OFFSETS, "pair_bias": torch.zeros(2, 12)}, DataError, "Σ n² = 13"),
        (X, {"offsets": OFFSETS, "pair_bias": torch.zeros(3, 13)}, DataError, "H = 2"),
        (PADDED, {"mask": ALL.float()}, DataError, r"mask: must be bool \[2, 3\], is torch.float32(.|\n)*opposite"),
        (PADDED, {"mask": ALL[:, :2]}, DataError, r"mask: must be bool \[2, 3\], is torch.bool \[2, 2\]"),
        (PADDED, {"mask": ALL, "pair_bias": torch.zeros(2, 1, 3, 3)}, DataError, r"pair_bias: .* = \[2, 2, 3, 3\]"),
    ],
)
def test_bad_arguments(x: torch.Tensor, options: dict[str, torch.Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ConstituentAttention(16, 2)(x, **options)
