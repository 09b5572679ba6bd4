import json

import numpy as np
import pytest
import torch

from kdfast.errors import DataError
from kdfast.jets.features import FEATURE_NAMES, Standardisation, features
from kdfast.jets.hlt import emulate_hlt
from tests.synthetic import synthetic_jets


def test_features_are_relative_to_the_axis_of_the_view():
    jets = emulate_hlt(synthetic_jets(100, seed=3), "mild")
    x = features(jets)
    assert x.shape == (len(jets.constituents), len(FEATURE_NAMES))
    assert x.dtype == torch.float32
    # Scaling all momenta of a view moves only ln pT and ln E: the axis and the sums are the view's own, not p4.
    doubled = jets.constituents * np.array([2, 1, 1, 2], np.float32)
    y = features(jets.with_constituents(doubled, jets.offsets))
    torch.testing.assert_close(y[:, [0, 1, 4, 5, 6]], x[:, [0, 1, 4, 5, 6]], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(y[:, [2, 3]], x[:, [2, 3]] + np.log(2), rtol=1e-6, atol=1e-6)


def test_standardised_features_have_mean_0_and_std_1():
    x = features(synthetic_jets(500, seed=4))
    before = x.clone()
    y = Standardisation.fit(x).apply(x)
    torch.testing.assert_close(x, before, rtol=0, atol=0)
    assert y.abs().max() <= 10
    inside = y.double()
    torch.testing.assert_close(inside.mean(0), torch.zeros(7).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(inside.std(0), torch.ones(7).double(), rtol=1e-3, atol=0)


def test_clip_and_constant_features():
    x = torch.zeros(1000, 7)
    x[:, 0] = 0.1  # not representable: its float64 mean carries rounding
    x[0, 1] = 1000.0
    standardisation = Standardisation.fit(x)
    y = standardisation.apply(x)
    assert standardisation.std[0] == 1.0
    assert bool(y.isfinite().all())
    assert y[:, 0].abs().max() < 1e-6
    assert y[0, 1] == 10.0


def test_statistics_of_many_values_keep_their_precision():
    x = torch.full((400_000, 7), 1000.0) + torch.tensor([1.0, -1.0]).repeat(200_000)[:, None]
    standardisation = Standardisation.fit(x)
    torch.testing.assert_close(standardisation.mean, torch.full((7,), 1000.0), rtol=1e-7, atol=0)
    torch.testing.assert_close(standardisation.std, torch.ones(7), rtol=1e-6, atol=0)


def test_dict_gives_back_the_same_bits():
    standardisation = Standardisation.fit(features(synthetic_jets(20, seed=5)))
    again = Standardisation.from_dict(json.loads(json.dumps(standardisation.to_dict())))
    assert torch.equal(again.mean, standardisation.mean)
    assert torch.equal(again.std, standardisation.std)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Standardisation(torch.zeros(6), torch.ones(6)), "mean: must be 7 finite numbers"),
        (lambda: Standardisation(torch.full((7,), torch.nan), torch.ones(7)), "mean: must be 7 finite numbers"),
        (lambda: Standardisation(torch.zeros(7), torch.zeros(7)), "std: must be above 0"),
        (lambda: Standardisation.fit(torch.zeros(0, 7)), r"features: must be \[M, 7\] with M ≥ 1"),
        (lambda: Standardisation.from_dict({"mean": [0.0] * 7}), "is not a standardisation"),
        (lambda: Standardisation.from_dict({"mean": "x", "std": "y"}), "is not a standardisation"),
    ],
)
def test_errors(make, message):
    with pytest.raises(DataError, match=message):
        make()


def test_read_only_jets():
    jets = synthetic_jets(5)
    jets.constituents.flags.writeable = False
    assert len(features(jets)) == len(jets.constituents)
