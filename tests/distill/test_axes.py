"""Further axes: their names, and members of one pack that have settings of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdfast.distill.pack import Member, Pack
from kdfast.distill.recipe import AXES, Recipe, Settings, model_of
from kdfast.distill.schedules import NoTeacher, RunConfig, run_from, run_table, shown, stored_name
from kdfast.distill.trainer import train_pack
from kdfast.errors import ConfigError
from kdfast.models import ModelConfig
from kdfast.models.config import DeepSetsConfig, model_config
from kdfast.store.key import RunKey
from tests.distill.packs import MODEL, pack
from tests.distill.test_cuda_engine import lock_step, reference

SIZES = {"width": 32, "layers": 2, "heads": 2, "ffn": 64, "dropout": 1e-5}


def test_every_setting_of_the_recipe_is_an_axis_with_a_code_of_its_own():
    assert {*AXES} == {*Recipe.model_fields, "model"}
    assert len({axis.code for axis in AXES.values()}) == len(AXES)


positive = st.builds(lambda digits, exponent: digits * 10.0**exponent, st.integers(1, 99), st.integers(-9, 3))
VALUES = {
    "learning_rate": positive,
    "weight_decay": st.just(0.0) | positive,
    "clip_norm": positive,
    "attention_weight": positive,
    "warmup_epochs": st.integers(0, 99),
    "patience": st.integers(1, 99),
    "epochs": st.integers(1, 999),
    "batch_size": st.integers(2, 10**6),
    "shuffle_window": st.integers(1, 10**9) | st.sampled_from(["all", None]),
    "model": st.sampled_from(["small", "deepsets", SIZES, ModelConfig(**SIZES), MODEL, DeepSetsConfig(width=16)]),
}


@given(st.fixed_dictionaries({}, optional=VALUES), st.sampled_from([(), (1.0,), (None, 0.3, "cosine")]))
def test_a_name_can_be_read_and_names_a_folder(values, schedule):
    try:
        run = RunConfig(3.0, 0.5, *schedule, settings=values)
    except ConfigError as error:
        assert "grid: the name would have " in str(error)  # noqa: PT017
        return
    same = RunConfig.from_name(run.name)
    assert (same, hash(same)) == (run, hash(run))
    for each in (run, run.baseline):
        assert run_from(run_table(each)) == each
        assert len(RunKey.of(each, 42).folder) < 250
        assert RunKey.parse(RunKey.of(each, 42).folder) == RunKey.of(each, 42)


def test_names_are_short():
    settings = {"model": "small", "learning_rate": 1e-3, "attention_weight": 0}
    run = RunConfig(3, 0.5, settings=settings)
    assert run.name == "baseline_T3.0_A0.5_lr0.001_aw0.0_m-small"
    assert run.settings == {"learning_rate": 0.001, "attention_weight": 0.0, "model": "small"}
    assert run.baseline == NoTeacher(Settings({"learning_rate": 1e-3, "model": "small"}))  # without a transfer
    assert run.baseline.name == "baseline_lr0.001_m-small"
    assert RunConfig(3, 0.5, settings={"attention_weight": 1}).baseline is RunConfig(3, 0.5).baseline is None
    assert RunConfig(3, 0.5) == RunConfig(3, 0.5, settings={})
    sized = RunConfig(3, 0.5, settings={"model": SIZES})
    assert sized.name == "baseline_T3.0_A0.5_m-width.32-layers.2-heads.2-ffn.64-dropout.1e-05"
    assert model_of(sized.settings["model"]) == SIZES
    for config in (MODEL, DeepSetsConfig(), DeepSetsConfig(width=16)):
        assert model_config(model_of(RunConfig(3, 0.5, settings={"model": config}).settings["model"])) == config


def test_a_run_without_further_settings_is_stored_as_before():
    values = {"temp_init": 3.0, "alpha_init": 0.5, "temp_final": None, "alpha_final": None, "shape": "linear"}
    assert list(run_table(RunConfig(3.0, 0.5)).items()) == list(values.items())


def test_a_constant_run_has_two_names():
    for name in ("constant_T3_A0.5_lr1e-3", "baseline_T3.0_A0.5_lr0.001"):
        assert RunConfig.from_name(name).name == stored_name(name) == "baseline_T3.0_A0.5_lr0.001"
    text = shown("baseline_T3.0_A0.5, the baseline, baseline_lr0.001")
    assert text == "constant_T3.0_A0.5, the baseline, baseline_lr0.001"
    assert stored_name("my run") == "my run"
    assert stored_name("baseline_lr0.001") == "baseline_lr0.001"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("constant_T3to1_A0.5", "these values are of the strategy 'tempanneal'"),
        ("tempanneal_T3_A0.5", "these values are of the strategy 'constant'"),
        (
            "constant_T3_A0.5_zz3",
            r"'constant_T3_A0.5_zz3': has an unknown part 'zz3'\nafter T and α: lr \(learning_rate\)",
        ),
        ("constant_T3_A0.5_lr", "unknown"),
        ("constant_T3_A0.5_bs1.5", "batch_size: must be a whole number, is '1.5'"),
        ("constant_T3_A0.5_lr0", "learning_rate: must be > 0"),
    ],
)
def test_bad_names(name, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_name(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "unknown axis 'learning_rat'\ndid you mean 'learning_rate'"),
        ({"patience": True}, "patience: must not be true or false"),
        ({"model": "a/b"}, "model: 'a/b' can't be part of a run's name"),
        ({"model": {"width": 3}}, "model: "),
        ({"model": 3}, "model: must be a preset's name or sizes, is 3"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(3, 0.5, settings=settings)


# ---- packs

OWN = [
    {},
    {"learning_rate": 2e-3, "patience": 1},
    {"weight_decay": 0.1, "clip_norm": 0.05},
    {"attention_weight": 3.0, "warmup_epochs": 2},
]


def mixed() -> Pack:
    configs = [RunConfig(2.0, 0.5, settings=own) for own in OWN]
    others = [NoTeacher(Settings({"learning_rate": 2e-3})), None]
    members = [Member(config.name, config) for config in configs] + [
        Member(f"alone{i}", c) for i, c in enumerate(others)
    ]
    return pack(members, epochs=3, learning_rate=1e-3)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_member_among_others_is_the_same_alone(engine):
    """Also the same as in a pack whose recipe has its settings."""
    from kdfast import backend

    a_pack = mixed()
    with backend(engine):
        together = {result.name: result for result in train_pack(a_pack, threads=2)}
        for member in a_pack.members:
            recipe = a_pack.recipe_of(member)
            config = replace(member.config, settings={}) if isinstance(member.config, RunConfig) else None
            alone = replace(a_pack, members=(Member(member.name, config),), recipe=recipe)
            (result,) = train_pack(alone, threads=1)
            found = together[member.name]
            assert found.curves == result.curves
            assert (found.best_epoch, found.epochs) == (result.best_epoch, result.epochs)
            assert torch.equal(found.scores_test, result.scores_test)
            assert all(torch.equal(found.state[name], tensor) for name, tensor in result.state.items())
    assert len({tuple(result.curves["loss"]) for result in together.values()}) == len(together)


@pytest.mark.parametrize("chosen", [slice(None), slice(2, 3)])
def test_members_in_lock_step_have_their_own_settings(chosen):
    a_pack = replace(mixed(), members=mixed().members[chosen])
    ours, expected = lock_step(a_pack), reference(a_pack)
    for name, result in expected.items():
        assert ours[name].epochs == result.epochs
        for curve, values in result.curves.items():
            tolerance = {"atol": 5e-3} if curve == "auc_val" else {"rtol": 1e-4, "atol": 1e-6}
            np.testing.assert_allclose(ours[name].curves[curve], values, **tolerance, err_msg=f"{name} {curve}")


@pytest.mark.parametrize("settings", [{"batch_size": 16}, {"epochs": 4}, {"shuffle_window": 8}, {"model": SIZES}])
def test_what_a_pack_shares_is_not_a_members_own(settings):
    config = RunConfig(2.0, 0.5, settings=settings)
    with pytest.raises(ConfigError, match="has other batches, epochs or sizes than its pack"):
        pack([Member(config.name, config)])
