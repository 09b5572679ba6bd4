"""Spaces: what is drawn lies in them, each configuration once, and what can't be a space is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kdfast
from kdfast.errors import ConfigError
from kdfast.store.grid import Range, space

EVERY = space(
    temperature=(1, 50, "log"),
    alpha=(0, 1),
    temperature_final=[None, 1, 2.5],
    alpha_final=(0.1, 0.4),
    shape=["linear", "cosine"],
    learning_rate=(1e-4, 1e-2, "log"),
    attention_weight=0.3,
    batch_size=(64, 512, "log"),
    model=["tiny", {"width": 16, "layers": 1, "heads": 1, "ffn": 16}],
)


@st.composite
def ranges(draw, low, high):
    ends = sorted(draw(st.lists(st.floats(low, high), min_size=2, max_size=2, unique=True)))
    return (*ends, "log") if ends[0] > 0 and draw(st.booleans()) else tuple(ends)


def axis(low, high):
    choices = st.lists(st.floats(low, high).map(lambda value: float(f"{value:.3g}")), min_size=1, max_size=4)
    return st.one_of(st.floats(low, high), ranges(low, high), choices)


def inside(value, axis):
    if isinstance(axis, Range):
        return axis.low <= value <= axis.high
    return value in axis


@given(temperature=axis(0.05, 100), alpha=axis(0, 1), rate=axis(1e-6, 1), seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_configurations_lie_in_the_space(temperature, alpha, rate, seed):
    drawn = space(temperature=temperature, alpha=alpha, alpha_final=0.5, learning_rate=rate)
    for method in ("sobol", "random"):
        for run in drawn.sample(1, method, seed):
            assert inside(run.temp_init, drawn.axes["temperature"])
            assert inside(run.alpha_init, drawn.axes["alpha"])
            assert inside(run.settings["learning_rate"], drawn.axes["learning_rate"])
            assert run.alpha_final in ({None, 0.5} if run.alpha_init == 0.5 else {0.5})
            assert kdfast.RunConfig.from_name(run.name) == run


@given(low=st.integers(2, 2000), span=st.integers(1, 5000), share=st.floats(0, 1), log=st.booleans())
def test_whole_numbers_stay_whole_and_inside(low, span, share, log):
    number = Range(low, low + span, log, whole=True).at(share)
    assert isinstance(number, int)
    assert low <= number <= low + span


@pytest.mark.parametrize("method", ["sobol", "random"])
def test_a_sample_has_no_repetitions_and_grows(method):
    runs = EVERY.sample(100, method, seed=3)
    assert len({run.name for run in runs}) == 100
    assert EVERY.sample(37, method, seed=3) == runs[:37]
    assert EVERY.sample(8, method, seed=4) != runs[:8]
    for run in runs:
        assert 64 <= run.settings["batch_size"] <= 512
        assert isinstance(run.settings["batch_size"], int)
        assert run.settings["attention_weight"] == 0.3
        assert run.temp_init == float(f"{run.temp_init:.3g}")
    assert {run.temp_final for run in runs} == {None, 1.0, 2.5}


def test_logarithmic_ranges_are_even_in_the_logarithm():
    runs = space(temperature=(1, 100, "log"), alpha=(0, 1)).sample(64)
    below = np.array([run.temp_init < 10 for run in runs])
    assert below.mean() == 0.5
    assert np.mean([run.alpha_init < 0.5 for run in runs]) == 0.5


def test_a_finite_space_can_be_exhausted():
    small = space(temperature=[1, 2, 2.0], alpha=0.5, temperature_final=[None, 2], model=["tiny", "small"])
    assert len(small.free["temperature"]) == 2
    assert len(small.sample(6)) == 6  # T constant at 1, at 2, and from 1 to 2; two models
    with pytest.raises(ConfigError, match=r"n: the space has 6 configurations, 7 are asked for"):
        small.sample(7)
    assert [run.name for run in space(temperature=3, alpha=0.5).sample(1)] == ["baseline_T3.0_A0.5"]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"temperature": (5, 1)}, r"space, temperature: the range \(5, 1\) is empty"),
        ({"temperature": (0, 1)}, "space, temperature: temperature must be finite and above 0"),
        ({"temperature": (1, 2, "lin")}, r"space, temperature: a range is \(low, high\)"),
        ({"temperature": (1, 2, 3)}, "choices are a list"),
        ({"temperature": (True, 2)}, "space, temperature: a range is"),
        ({"temperature": "3"}, "space, temperature: must be a number"),
        ({"temperature": []}, "space, temperature: has no choice"),
        ({"temperature": None}, "space, temperature: must be a number"),
        ({"alpha": (0, 1.5)}, r"space, alpha: α must lie in \[0, 1\]"),
        ({"alpha": (0, 1, "log")}, "space, alpha: a logarithmic range begins above 0"),
        ({"alpha_final": (0.1, float("nan"))}, "space, alpha_final: α must lie"),
        ({"shape": ["linaer"]}, "space, shape: unknown schedule 'linaer'"),
        ({"model": ("tiny", "small")}, "space, model: a range is"),
        ({"model": ["smal"]}, "space, model: unknown model preset 'smal'"),
        ({"batch_size": (64.5, 512)}, "space, batch_size: must be a whole number"),
        ({"learning_rate": (-1, 1)}, "space, learning_rate: "),
        ({"learnin_rate": (0, 1)}, "unknown axis 'learnin_rate'"),
    ],
)
def test_bad_axes_are_named(axes, message):
    with pytest.raises(ConfigError, match=message):
        space(**({"temperature": (1, 5), "alpha": 0.5} | axes))


def test_bad_samples():
    with pytest.raises(ConfigError, match="did you mean 'sobol'"):
        EVERY.sample(4, "sobel")
    with pytest.raises(ConfigError, match="n: must be at least 1"):
        EVERY.sample(0)
