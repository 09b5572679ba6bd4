"""Grids and the names of runs."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdfast.distill.schedules import SHAPES, RunConfig
from kdfast.errors import ConfigError
from kdfast.store.grid import grid, with_baselines


def test_study_grid_is_the_published_one():
    configs = grid("study")
    assert len(configs) == len({c.name for c in configs}) == 132
    assert Counter(c.strategy for c in configs) == {"baseline": 16, "tempanneal": 32, "alphasched": 28, "combined": 56}
    names = {c.name for c in configs}
    assert {
        "baseline_T7.0_A0.5",
        "tempanneal_T3.0to1.0_A0.9",
        "alphasched_T3.0_A0.9to0.1",
        "combined_T10.0to1.0_A0.9to0.3",
    } <= names
    assert "alphasched_T3.0_A0.3to0.3" not in names


def test_wide_grid_reaches_further_and_holds_the_study():
    configs = grid("wide")
    assert {c.name for c in grid("study")} <= {c.name for c in configs}
    assert min(c.temp_init for c in configs) == 1
    assert max(c.temp_init for c in configs) == 50
    assert max(c.alpha_init for c in configs) == 1
    assert all(c.temp_final is None or c.temp_final < c.temp_init for c in configs)
    assert all(c.alpha_final is None or c.alpha_final < c.alpha_init for c in configs)


def test_own_lists():
    assert [c.name for c in grid(temperature=[3], alpha=0.5)] == ["baseline_T3.0_A0.5"]
    names = [c.name for c in grid(temperature=[3, 3.0, 1], alpha=[0.5], temperature_final=[1, 4], shape="cosine")]
    assert names == [
        "baseline_T3.0_A0.5",
        "baseline_T1.0_A0.5",
        "tempanneal_T3.0to1.0_A0.5_cosine",
        "tempanneal_T3.0to4.0_A0.5_cosine",  # one's own schedule may rise
        "tempanneal_T1.0to4.0_A0.5_cosine",  # 1 → 1 is no schedule
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "stdy"}, "grid: unknown preset 'stdy'\ndid you mean 'study'?"),
        ({"preset": "study", "alpha": [0.5]}, "a preset or lists, not both"),
        ({}, "needs a preset, or both temperature and alpha"),
        ({"temperature": [3]}, "both temperature and alpha"),
        ({"temperature": [], "alpha": [0.5]}, "grid: has no configuration"),
        ({"temperature": [0], "alpha": [0.5]}, "temp_init: temperature must be finite and above 0, is 0.0"),
        ({"temperature": [-3], "alpha": [0.5]}, "above 0, is -3.0"),
        ({"temperature": [float("nan")], "alpha": [0.5]}, "above 0, is nan"),
        ({"temperature": [float("inf")], "alpha": [0.5]}, "above 0, is inf"),
        ({"temperature": [3], "alpha": [1.01]}, "alpha_init: α must lie in [0, 1], is 1.01"),
        ({"temperature": [3], "alpha": [0.5], "alpha_final": [-0.1]}, "alpha_final: α must lie in [0, 1]"),
        ({"temperature": [3], "alpha": [0.5], "temperature_final": [0]}, "temp_final: temperature must be finite"),
        ({"temperature": "37", "alpha": [0.5]}, "grid, temperature: must be a number or a list of numbers"),
        ({"temperature": [3], "alpha": [0.5], "shape": "cosin"}, "did you mean 'cosine'?"),
    ],
)
def test_bad_grids_say_what_is_wrong(arguments, message):
    with pytest.raises(ConfigError) as error:
        grid(**arguments)
    assert message in str(error.value)


temperatures = st.floats(0.05, 100)
alphas = st.floats(0, 1)


@given(temperatures, st.none() | temperatures, alphas, st.none() | alphas, st.sampled_from(sorted(SHAPES)))
def test_a_name_says_everything(temp, temp_final, alpha, alpha_final, shape):
    config = RunConfig(temp, alpha, temp_final, alpha_final, shape)
    assert RunConfig.from_name(config.name) == config


def test_names_of_others_are_read():
    assert RunConfig.from_name("tempanneal_T3to1_A0.5") == RunConfig(3, 0.5, temp_final=1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("transformer_1000001", "'transformer_1000001': is not the name of a run\na run's name looks like"),
        ("baseline_T7.0", "is not the name of a run"),
        ("baseline_T7.0_A0.5 ", "is not the name of a run"),
        ("baseline_T7.0to1.0_A0.5", "of the strategy 'tempanneal'"),
        ("combined_T7.0to1.0_A0.5", "of the strategy 'tempanneal'"),
        ("baseline_T0.0_A0.5", "'baseline_T0.0_A0.5', temp_init: temperature must be finite and above 0"),
        ("baseline_T7.0_A1.5", "α must lie in [0, 1]"),
        ("tempanneal_T7.0to1.0_A0.5_quick", "unknown schedule 'quick'"),
    ],
)
def test_bad_names_say_what_is_wrong(name, message):
    with pytest.raises(ConfigError) as error:
        RunConfig.from_name(name)
    assert message in str(error.value)


def test_further_axes_are_crossed_with_the_rest():
    runs = grid("study", learning_rate=[1e-3, 2e-3], model="small")
    assert len(runs) == len({run.name for run in runs}) == 264
    assert [replace(run, settings={}) for run in runs] == 2 * grid("study")
    assert [run.settings for run in runs[::132]] == [{"learning_rate": rate, "model": "small"} for rate in (1e-3, 2e-3)]
    assert grid("study", learning_rate=[1e-3, 1e-3]) == grid("study", learning_rate=1e-3)  # repetitions count once
    assert with_baselines(runs)[:3] == [runs[0].baseline, runs[-1].baseline, runs[0]]
    assert with_baselines(grid("study"))[:2] == [None, grid("study")[0]]
    with pytest.raises(ConfigError, match="grid: unknown axis 'learnin_rate'\ndid you mean 'learning_rate'"):
        grid("study", learnin_rate=[1])
    with pytest.raises(ConfigError, match="model: unknown model preset 'smal'"):
        grid("study", model=["smal"])
    with pytest.raises(ConfigError, match="needs a preset, or both temperature and alpha"):
        grid(learning_rate=[1e-3])
