import pytest
import torch

from kdfast.errors import ConfigError, ModelError
from kdfast.models import PRESETS, JetTransformer, ModelConfig
from tests.models.padded_twin import PaddedTwin

TRANSFORMERS = [name for name, sizes in PRESETS.items() if isinstance(sizes, ModelConfig)]


def packed_features(counts, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
    offsets[1:] = torch.tensor(counts).cumsum(0)
    return torch.randn(int(offsets[-1]), 7, generator=generator, dtype=dtype), offsets


def padded(features, offsets):
    counts = offsets.diff()
    mask = torch.arange(int(counts.max())) < counts[:, None]
    x = torch.zeros(*mask.shape, 7, dtype=features.dtype)
    x[mask] = features
    return x, mask


def randomise(model, seed=1):
    """Weights and running statistics away from their initial zeros and ones, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * 0.2
            tensor.copy_(noise.abs() + 0.5 if "running_var" in name else tensor + noise)


@pytest.mark.parametrize("preset", TRANSFORMERS)
def test_presets(preset):
    assert JetTransformer(preset).config == PRESETS[preset]


def test_the_study_s_parameters():
    assert JetTransformer("study").num_parameters() == 1_299_329


@pytest.mark.parametrize("preset", TRANSFORMERS)
def test_equals_its_padded_form(preset):
    model = JetTransformer(preset).double().eval()
    randomise(model)
    features, offsets = packed_features([3, 1, 17, 40, 8], dtype=torch.float64)
    logits, attention = model(features, offsets, return_attention=True)
    expected, expected_attention = PaddedTwin(model).eval()(*padded(features, offsets))
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(attention, expected_attention, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        torch.segment_reduce(attention, "sum", offsets=offsets), torch.ones(5, dtype=torch.float64)
    )


def test_gradients_equal_those_of_the_padded_form():
    model = JetTransformer("small").double().eval()
    randomise(model)
    features, offsets = packed_features([3, 1, 17, 8], dtype=torch.float64)
    weights = torch.randn(4, 1, dtype=torch.float64)
    model(features.requires_grad_(), offsets).mul(weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}, features.grad.clone()

    twin = PaddedTwin(model).eval()
    model.zero_grad()
    x, mask = padded(features.detach(), offsets)
    twin(x.requires_grad_(), mask)[0].mul(weights).sum().backward()
    torch.testing.assert_close(ours[1], x.grad[mask], rtol=1e-9, atol=1e-10)
    for name in ("embed.linear.weight", "pool.query", "classify.bias", "dense2.norm.weight"):
        torch.testing.assert_close(ours[0][name], model.get_parameter(name).grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(
        ours[0]["encoder.1.qkv.weight"], twin.encoder.layers[1].self_attn.in_proj_weight.grad, rtol=1e-9, atol=1e-10
    )
    torch.testing.assert_close(
        ours[0]["encoder.0.ffn_out.weight"], twin.encoder.layers[0].linear2.weight.grad, rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("counts", [[0, 4, 0, 9, 0], [0, 0], [200, 1]])
def test_empty_and_full_jets_are_finite_in_value_and_gradient(counts):
    model = JetTransformer("small")
    features, offsets = packed_features(counts)
    logits, attention = model(features, offsets, return_attention=True, dropout_seed=3)
    (logits.sum() + attention.sum()).backward()
    assert logits.shape == (len(counts), 1)
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_order_of_constituents_and_the_other_jets_do_not_matter():
    model = JetTransformer("small").double().eval()
    features, offsets = packed_features([5, 9, 3], dtype=torch.float64)
    logits = model(features, offsets)
    shuffled = torch.cat([features[:5].flip(0), features[5:14][torch.randperm(9)], features[14:]])
    torch.testing.assert_close(model(shuffled, offsets), logits, rtol=1e-10, atol=1e-10)
    alone = model(features[5:14], torch.tensor([0, 9]))
    torch.testing.assert_close(alone[0], logits[1], rtol=1e-10, atol=1e-10)


def test_dropout_follows_its_seed():
    model = JetTransformer("small")
    features, offsets = packed_features([8] * 16)
    with torch.no_grad():
        one, again, other = (model(features, offsets, dropout_seed=s) for s in (5, 5, 6))
        torch.manual_seed(0)
        assert not torch.equal(model(features, offsets), model(features, offsets))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    no_dropout = JetTransformer("small", dropout=0.0)
    assert torch.equal(no_dropout(features, offsets, dropout_seed=1), no_dropout(features, offsets, dropout_seed=2))


def test_initial_weights_follow_the_seed_and_xavier():
    model, same, other = JetTransformer("study", seed=7), JetTransformer("study", seed=7), JetTransformer("study")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert not torch.equal(model.encoder[0].ffn_in.weight, other.encoder[0].ffn_in.weight)
    weight = model.encoder[0].ffn_in.weight  # [512, 128]
    bound = (6 / (512 + 128)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert model.pool.query.std().item() == pytest.approx(0.02, rel=0.25)
    assert not model.encoder[3].ffn_in.bias.any()


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (("sudy",), {}, "did you mean 'study'"),
        ((), {}, "give a preset or sizes"),
        ((), {"width": 30, "layers": 1, "heads": 4, "ffn": 8}, "not a multiple of heads 4"),
        (("small",), {"widht": 64}, "did you mean 'width'"),
        (("small",), {"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_sizes(arguments, keywords, message):
    with pytest.raises(ConfigError, match=message):
        JetTransformer(*arguments, **keywords)


def test_wrong_features():
    with pytest.raises(ModelError, match=r"features must be \[M, 7\], are \[4, 5\]"):
        JetTransformer("small")(torch.zeros(4, 5), torch.tensor([0, 4]))
