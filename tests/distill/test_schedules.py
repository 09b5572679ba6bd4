import math

import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "strategy", "name"),
    [
        (RunConfig(7, 0.5), "baseline", "baseline_T7.0_A0.5"),
        (RunConfig(3, 0.9, temp_final=1), "tempanneal", "tempanneal_T3.0to1.0_A0.9"),
        (RunConfig(3, 0.9, alpha_final=0.1), "alphasched", "alphasched_T3.0_A0.9to0.1"),
        (RunConfig(10, 0.9, 1, 0.3), "combined", "combined_T10.0to1.0_A0.9to0.3"),
        (RunConfig(10, 0.9, 1, 0.3, "cosine"), "combined", "combined_T10.0to1.0_A0.9to0.3_cosine"),
    ],
)
def test_names_are_the_studys(config, strategy, name):
    assert (config.strategy, config.name) == (strategy, name)


def test_linear_schedule():
    config = RunConfig(10, 0.9, 1, 0.3)
    assert config.at(0, 50) == (10, 0.9)
    assert config.at(49, 50) == pytest.approx((1, 0.3))
    assert config.at(7, 50) == pytest.approx((10 - 9 * 7 / 49, 0.9 - 0.6 * 7 / 49))
    assert config.at(0, 1) == (10, 0.9)


def test_constant_values_stay_and_schedules_may_rise():
    assert RunConfig(7, 0.5).at(30, 50) == (7, 0.5)
    assert RunConfig(1, 0.1, 10, 0.9).at(49, 50) == pytest.approx((10, 0.9))


def test_other_shapes_share_their_ends():
    for shape in ("cosine", "step"):
        config = RunConfig(10, 0.9, 1, 0.3, shape)
        assert config.at(0, 11) == pytest.approx((10, 0.9))
        assert config.at(10, 11) == pytest.approx((1, 0.3))
    assert RunConfig(10, 0.9, 2, shape="cosine").at(5, 11)[0] == pytest.approx(6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temp_init": 0, "alpha_init": 0.5}, "temp_init: temperature must be finite and above 0, is 0"),
        ({"temp_init": math.inf, "alpha_init": 0.5}, "temp_init: temperature must be finite"),
        ({"temp_init": 3, "alpha_init": 0.5, "temp_final": -1.0}, "temp_final"),
        ({"temp_init": 3, "alpha_init": 1.5}, r"alpha_init: α must lie in \[0, 1\], is 1.5"),
        ({"temp_init": 3, "alpha_init": 0.5, "alpha_final": math.nan}, "alpha_final"),
        ({"temp_init": 3, "alpha_init": 0.5, "shape": "linaer"}, "did you mean 'linear'"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**values)
