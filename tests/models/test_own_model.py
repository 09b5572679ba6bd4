"""Networks of the user's own: what is called how, and what is refused."""

import pytest
import torch
from torch import nn

from kdfast.errors import ConfigError, ModelError
from kdfast.jets.features import Standardisation
from kdfast.models import Adapter
from kdfast.models.build import build_network
from kdfast.models.config import OwnModel, model_config
from kdfast.models.own_model import named_again, own_model
from tests import own_networks

OFFSETS = torch.tensor([0, 3, 3, 4])


class Fixed(nn.Module):
    """Returns what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.answer = answer

    def forward(self, x, mask):
        return self.answer(x, mask)


def test_padded_inputs_hold_the_jets_and_one_constituent_of_an_empty_one():
    seen = []

    def answer(x, mask):
        seen.append((x, mask))
        return x.sum((1, 2))

    features = torch.arange(28.0).view(4, 7)
    logits, weights = Adapter(Fixed(answer))(features, OFFSETS)
    x, mask = seen[0]
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    assert torch.equal(x[0], features[:3])
    assert torch.equal(x[2, 0], features[3])
    assert not x[1].any()
    assert logits[:, 0].tolist() == [features[:3].sum(), 0, features[3].sum()]
    assert weights is None


def test_weights_of_padded_constituents_come_back_packed():
    network = build_network(own_model(own_networks.attentive), seed=1).eval()
    logits, weights = network(torch.randn(4, 7), OFFSETS, return_attention=True)
    assert logits.shape == (3, 1)
    torch.testing.assert_close(weights[:3].sum(), torch.tensor(1.0))
    torch.testing.assert_close(weights[3], torch.tensor(1.0))


def test_features_that_are_not_standardised_are_those_of_the_jets():
    scaling = Standardisation(torch.full((7,), 2.0), torch.full((7,), 3.0))
    config = own_model(lambda: Adapter(Fixed(lambda x, mask: x[:, 0, 0]), standardised=False))
    network = build_network(config.model_copy(update={"standardisation": scaling})).eval()
    raw = torch.randn(4, 7)
    logits = network(scaling.apply(raw), OFFSETS)
    torch.testing.assert_close(logits[0, 0], raw[0, 0])


def test_dropout_and_weights_depend_on_seeds_alone():
    config = own_model(own_networks.PlainDeepSets)
    first, second, other = (build_network(config, seed) for seed in (5, 5, 6))
    assert torch.equal(first.adapter.module.embed.weight, second.adapter.module.embed.weight)
    assert not torch.equal(first.adapter.module.embed.weight, other.adapter.module.embed.weight)
    before = torch.get_rng_state()
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    answers = [first(features, OFFSETS, dropout_seed=seed) for seed in (8, 8, 9)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: {}["boom"], "the function fails: KeyError: 'boom'"),
        (lambda: 3, "must be a torch.nn.Module, is int"),
        (lambda: nn.Linear(7, 1), "does not say what it takes"),
        (lambda: Fixed(lambda x, mask: x[:, :, 0]), r"must return logits \[4, 1\] for 4 jets, returns \[4, 3\]"),
        (lambda: Fixed(lambda x, mask: None), "must return logits, returns NoneType"),
        (lambda: Fixed(lambda x, mask: x[:, 0, 0] / 0), "not finite.*\n.*no constituents"),
        (lambda: Fixed(lambda x, mask: x[:, 9, 0]), "fails with 4 jets: IndexError"),
        (lambda: Fixed(lambda x, mask: x[:, 0, 0]).double(), "weight is torch.float64, not float32"),
        (lambda: Fixed(lambda x, mask: x[:, 0, 0]).requires_grad_(False), "has no weights to train"),
        (lambda: Adapter(Fixed(lambda x, mask: x[:, 0, 0]), attention=True), "must return \\(logits, weights\\)"),
        (lambda: Adapter(Fixed(lambda x, mask: (x[:, 0, 0], mask[0])), attention=True), "fails with|weights of"),
    ],
)
def test_networks_that_cannot_be_used_say_why(made, message):
    with pytest.raises((ConfigError, ModelError), match=message):
        own_model(made)


def test_a_network_instead_of_a_function_is_refused():
    with pytest.raises(ConfigError, match=r"is a network\n.*function that makes"):
        own_model(own_networks.PlainDeepSets())


def test_functions_are_named_and_imported():
    config = own_model("tests.own_networks:wide")
    assert config.name == "tests.own_networks:wide"
    for name, message in [
        ("tests.no_such_module:net", "can't be imported"),
        ("tests.own_networks:no_such", "can't be imported"),
        ("tests.own_networks:not_a_function", "is not a function: 3"),
        (":net", "can't be imported"),
    ]:
        with pytest.raises(ConfigError, match=message):
            own_model(name)


def test_the_stored_description_runs_no_code_and_refuses_another_network():
    made = own_model(own_networks.PlainDeepSets)
    stored = model_config(made.model_dump())
    assert isinstance(stored, OwnModel)
    assert stored.factory is None
    with pytest.raises(ConfigError, match=r"network of your own\n.*name it again: --model"):
        build_network(stored)
    with pytest.raises(ConfigError, match="network of your own"):
        named_again(stored, None, "model")
    with pytest.raises(ConfigError, match="other weights"):
        named_again(stored, own_model(own_networks.wide), "model")
    build_network(named_again(stored, made, "model"))
