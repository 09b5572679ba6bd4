"""Settings as keywords of `sweep`, as options, and as rows of the documentation's table."""

import inspect

import pytest

import kdfast
from kdfast.errors import ConfigError
from kdfast.jets.columns import column_map
from kdfast.jets.splits import split_rule
from kdfast.store.keywords import GRID_LISTS, HLT_FILES, SETTINGS, SweepSettings, nested, settings_table
from kdfast.store.settings import SearchSettings, StudySettings
from kdfast.study import driver
from tests.store.test_settings import write_toml

KEYWORDS = {setting.keyword: setting for setting in SETTINGS if setting.keyword != "data"}

# A value other than the default, of settings that can't be 7.
VALUES = {
    "hlt": "mild",
    "grid": "wide",
    "teacher": "t.npy",
    "teacher_kind": "probability",
    "precision": "bf16",
    "device": "cpu",
    "on_bad": "drop",
    "unit": "GeV",
    "sort": True,
    "columns": column_map({"preset": "atlas", "unit": "GeV"}),
    "model": "medium",
    "teacher_model": "small",
    "seeds": (7,),
    "search": SearchSettings(max_runs=40),
    "fractions": (0.5, 0.25, 0.25),
    "validation_data": ("v.h5",),
    "test_data": ("t.h5",),
    "split": split_rule("fold validation=3"),
}

DEFAULTS = {"grid": "study", "hlt": "nominal", "seeds": (42,), "precision": "fp32", "device": "auto"}


@pytest.fixture
def resolved(monkeypatch):
    """`sweep` without the sweep: returns the settings."""
    monkeypatch.setattr(driver, "run_study", lambda settings, *rest, **more: settings)
    return kdfast.sweep


def test_editors_know_every_setting():
    assert set(SweepSettings.__annotations__) == set(KEYWORDS), "add the setting to SweepSettings, or remove it"
    for keyword, annotation in SweepSettings.__annotations__.items():
        kind = KEYWORDS[keyword].kind
        if kind in (int, float):
            assert annotation.__forward_arg__ == f"{kind.__name__} | None", keyword


def test_every_setting_is_described():
    settings = (*SETTINGS, *GRID_LISTS, *HLT_FILES)
    assert all(setting.description.endswith(".") for setting in settings)
    assert len({setting.keyword for setting in settings}) == len({setting.option for setting in settings})
    table = settings_table()
    for setting in settings:
        assert f"| `{setting.path[-1]}` |" in table
    meaning = "Planned epochs of students and baseline. (≥ 1)"
    assert f"\n| `epochs` | `epochs=` | `--epochs N` | 50 (demo: 40) | {meaning} |\n" in table


def test_the_signature_shows_names_and_defaults():
    parameters = inspect.signature(kdfast.sweep).parameters
    first = "data out grid model hlt teacher epochs seeds batch_size max_constituents precision device"
    assert list(parameters)[:12] == first.split()
    defaults = {name: parameters[name].default for name in ("grid", "hlt", "seeds", "precision", "device", "model")}
    assert defaults == DEFAULTS | {"model": None, "hlt": None}
    assert set(KEYWORDS) < set(parameters)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_every_setting_is_a_keyword(resolved, keyword):
    value = VALUES.get(keyword, 7)
    settings = resolved("jets.h5", **{keyword: value})
    found = settings
    for key in KEYWORDS[keyword].path:
        found = getattr(found, key)
    assert found == value
    assert resolved("jets.h5", **{keyword: None}) == resolved("jets.h5")


def test_a_keyword_takes_precedence_over_the_file_even_if_it_is_the_default(resolved, tmp_path):
    file = {"grid": "wide", "hlt": "mild", "seeds": (1,), "precision": "bf16", "device": "cuda"}
    write_toml(StudySettings.resolve({**file, "recipe": {"epochs": 3}}), tmp_path / "study.toml")
    settings = resolved(config=tmp_path / "study.toml", **DEFAULTS)
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    assert settings.recipe.epochs == 3
    kept = resolved(config=tmp_path / "study.toml")
    assert {name: getattr(kept, name) for name in file} == file


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"learning_rate": -1}, "learning_rate: must be > 0, is -1"),
        ({"learning_rate": float("nan")}, "learning_rate: must be a finite number, is nan"),
        ({"epochs": 0, "config": {"recipe": {"epochs": 3}}}, "epochs: must be ≥ 1, is 0"),
        ({"config": {"recipe": {"epochs": 0}}}, "recipe.epochs: must be ≥ 1, is 0"),
        ({"data_seed": 2**32}, "data_seed: must be < 4294967296, is 4294967296"),
        ({"warmup_epochs": True}, "warmup_epochs: must not be true or false, is True"),
        (
            {"grid": {"temperature": [1]}},
            "grid.alpha: is missing\na grid of your own needs both temperature and alpha",
        ),
        ({"model": "huge"}, "model: unknown model preset 'huge'"),
        ({"on_bad": "skip"}, "on_bad: must be 'error' or 'drop', is 'skip'"),
    ],
)
def test_an_error_names_the_keyword(keywords, message):
    with pytest.raises(ConfigError) as error:
        kdfast.sweep(**keywords)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("keyword", "nearest"), [("lerning_rate", "learning_rate"), ("resum", "resume")])
def test_an_unknown_keyword_is_a_type_error_that_names_the_nearest(keyword, nearest):
    with pytest.raises(TypeError) as error:
        kdfast.sweep(**{keyword: 1})
    assert isinstance(error.value, ConfigError)
    assert str(error.value).startswith(f"sweep: unknown keyword {keyword!r}\ndid you mean {nearest!r}?")


def test_keywords_as_tables():
    assert nested({"epochs": 3, "max_jets": 5, "hlt": "mild"}) == {
        "hlt": "mild",
        "data": {"max_jets": 5},
        "recipe": {"epochs": 3},
    }
