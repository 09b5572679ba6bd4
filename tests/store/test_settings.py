"""Settings: defaults, TOML written and read back, and errors."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from kdfast.distill.schedules import RunConfig
from kdfast.errors import ConfigError
from kdfast.jets.hlt import HLT_PRESETS, HLTConfig
from kdfast.models.config import PRESETS, ModelConfig
from kdfast.store.grid import grid
from kdfast.store.settings import DataSettings, GridLists, HLTFiles, RecipeSettings, StudySettings


def write_toml(settings, path):
    path.write_text(tomli_w.dumps(settings.table()))


def test_defaults_are_the_studys_where_data_are_given_and_the_demos_where_they_are_not():
    study = StudySettings.resolve(overrides={"data": {"paths": ["jets.h5"]}})
    assert (study.model, study.teacher_model, study.hlt) == ("small", "study", "nominal")
    assert (study.recipe.epochs, study.recipe.batch_size, study.data.max_constituents) == (50, 512, 40)
    teacher = study.recipe.teacher()
    assert (teacher.epochs, teacher.patience, study.recipe.student().patience) == (50, 15, 20)
    assert StudySettings.resolve(data_given=True) == StudySettings()
    demo = StudySettings.resolve()
    assert (demo.model, demo.teacher_model, demo.hlt) == ("demo", "medium", "mild")
    assert (study.data.fractions, demo.data.fractions) == ((0.70, 0.15, 0.15), (0.10, 0.08, 0.82))
    for settings in (study, demo):
        assert (settings.data.seed, settings.seeds) == (42, (42,))
        assert [run.name for run in settings.runs()] == [run.name for run in grid("study")]


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"data": {"paths": ["a.h5", "b.h5"], "max_jets": 1000, "on_bad": "drop"}, "seeds": [1, 2]},
        {"hlt": HLTConfig(1.0, 0.1, 0.2, 0.05, 0.0), "model": {"width": 16, "layers": 1, "heads": 2, "ffn": 32}},
        {"grid": {"temperature": [3], "alpha": [0.5, 0.7], "temperature_final": [1], "shape": "cosine"}},
        {"grid": grid(temperature=[3.0], alpha=[0.5]), "teacher": "teacher.safetensors", "seeds": 7},
        {"grid": {"preset": "study", "learning_rate": [1e-3], "shuffle_window": ["all", 64], "model": ["small"]}},
        {
            "grid": {
                "temperature": [3],
                "alpha": [0.5],
                "model": ["tiny", {"width": 16, "layers": 1, "heads": 1, "ffn": 8}],
            }
        },
        {"grid": grid(temperature=[3.0], alpha=[0.5], model=[PRESETS["tiny"]], batch_size=64)},
    ],
)
def test_toml_gives_back_the_same_settings(tmp_path, overrides):
    settings = StudySettings.resolve(overrides=overrides)
    write_toml(settings, tmp_path / "study.toml")
    again = StudySettings.resolve(tmp_path / "study.toml")
    if overrides.get("data") or not overrides:
        assert again == settings
    assert again.table() == settings.table()
    assert again.runs() == settings.runs()
    assert again.decisive() == settings.decisive()


def test_arguments_go_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "seeds = [1, 2]\n[recipe]\nepochs = 4\nbatch_size = 64\n[hlt]\npt_threshold = 1\nmerge_radius = 0.1\n"
        "pt_resolution = 0.2\nangular_resolution = 0.05\nloss = 0\n"
    )
    settings = StudySettings.resolve(path, {"recipe": {"epochs": 9, "batch_size": None}, "model": None})
    assert (settings.recipe.epochs, settings.recipe.batch_size, settings.seeds) == (9, 64, (1, 2))
    assert settings.hlt == HLTConfig(1, 0.1, 0.2, 0.05, 0)
    assert settings.model == "demo"
    assert StudySettings.resolve(path, {"hlt": "severe"}).hlt == "severe"  # replaced whole


def test_only_a_number_of_constituents_that_was_given_is_asked_for(tmp_path):
    def asks(config=None, number=None):
        return StudySettings.resolve(config, {"data": {"max_constituents": number}}).data.asks_for_constituents

    assert not asks()
    assert asks(number=40)
    assert not asks(number="all")
    assert asks({"data": {"max_constituents": 41}})
    study = StudySettings.resolve(data_given=True).table()  # every study.toml holds the default
    assert study["data"]["max_constituents"] == 40
    assert not asks(study)
    assert asks(study, 40)


def test_the_documented_settings_are_the_studys(tmp_path):
    docs = Path(__file__).parents[2] / "docs"
    pages = (docs / "reference" / "settings.md", docs / "how-to" / "sweeps.md")
    examples = [re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL) for page in pages]
    settings = []
    for text in [*examples[0], *examples[1]]:
        path = tmp_path / "study.toml"
        path.write_text(text)
        settings.append(StudySettings.resolve(path))
    study, lists, axes, numbers, trigger = settings
    assert study.decisive() == StudySettings.resolve(data_given=True).decisive()
    assert len(lists.runs()) == 8
    assert len(axes.runs()) == 132 * 2 * 2
    assert numbers.hlt == HLT_PRESETS["nominal"]
    assert trigger.hlt == HLTFiles(paths=("trigger_*.h5",))


def test_the_published_study_is_planned_with_its_own_settings():
    folder = Path(__file__).parents[2] / "examples" / "reproduce_study"
    published = StudySettings(hlt="study", model="study", data=DataSettings(max_jets=30_000))
    study = StudySettings.resolve(folder / "study.toml", data_given=True)
    assert study.decisive() == published.decisive()
    assert len(study.runs()) == 132
    reduced = StudySettings.resolve(folder / "reduced.toml")  # on the bundled jets
    changed = {"precision": "bf16", "data": published.model_copy(update={"data": DataSettings()}).decisive()["data"]}
    changed["recipe"] = published.decisive()["recipe"] | {"epochs": 30}
    assert reduced.decisive() == published.decisive() | changed
    assert [run.name for run in reduced.runs()] == [f"baseline_T{t}.0_A{a}" for t in (3, 10) for a in (0.3, 0.9)]


def test_what_decides_results():
    demo = StudySettings.resolve()
    same = {"grid": "wide", "seeds": [1, 2], "device": "cpu", "model": PRESETS["demo"]}
    assert StudySettings.resolve(overrides=same).decisive() == demo.decisive()
    for other in ({"recipe": {"epochs": 99}}, {"hlt": "severe"}, {"data": {"seed": 1}}, {"model": "medium"}):
        assert StudySettings.resolve(overrides=other).decisive() != demo.decisive()


def test_a_warm_up_that_is_longer_than_the_training_is_shortened():
    def recipes(epochs, teacher_epochs, warmup):
        table = {"epochs": epochs, "teacher_epochs": teacher_epochs, "warmup_epochs": warmup}
        settings = StudySettings.resolve({"recipe": table})
        trained = (settings.recipe.student(), settings.recipe.teacher())
        return [each.warmup_epochs for each in trained], settings.decisive()["recipe"]

    for epochs, warmup in ((5, 3), (3, 3), (1, 0)):  # it fits: as in older studies
        kept, decisive = recipes(epochs, epochs, warmup)
        assert kept == [warmup, warmup]
        assert decisive["warmup_epochs"] == warmup
        assert "teacher_warmup_epochs" not in decisive
    kept, decisive = recipes(2, 9, 3)
    assert (kept, decisive["warmup_epochs"], "teacher_warmup_epochs" in decisive) == ([2, 3], 2, False)
    kept, decisive = recipes(9, 2, 3)
    assert (kept, decisive["warmup_epochs"], decisive["teacher_warmup_epochs"]) == ([3, 2], 3, 2)


LISTS = "[grid]\ntemperature = [3]\nalpha = [0.5]\n"
MISSING = ("merge_radius", "pt_resolution", "angular_resolution", "loss")
SHARES = "must be three numbers > 0 that add up to 1"
SIZES = "]\nwidth = 8\nlayers = 1\nheads = 1\nffn = 8\n"
NUMBERS = "[hlt]\npt_threshold = 1\nmerge_radius = 0.1\npt_resolution = 0.2\nangular_resolution = 0\nloss = 0\n"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("sedes = [1]", "FILE, sedes: unknown key 'sedes'\ndid you mean 'seeds'?"),
        ("[recipe]\nepoch = 3", "FILE, recipe.epoch: unknown key 'epoch'\ndid you mean 'epochs'?"),
        ("[recipe]\nepochs = 0", "FILE, recipe.epochs: must be ≥ 1, is 0"),
        ('[data]\nunit = "TeV"', "FILE, data.unit: must be 'MeV' or 'GeV', is 'TeV'"),
        (
            '[data]\ncolumns = "atlsa"',
            "FILE, data.columns: unknown column map 'atlsa'\ndid you mean 'atlas'? (known: ",
        ),
        ('[data.columns]\nunit = "GeV"', "FILE, data.columns: constituents: is missing"),
        (
            '[data.columns]\npreset = "atlas"\n[data.columns.jet]\nm = "x"',
            "FILE, data.columns: jet.m: unknown key 'm'",
        ),
        (
            '[data.columns]\npreset = "atlas"\nunit = "TeV"',
            "FILE, data.columns: unit: must be 'MeV' or 'GeV', is",
        ),
        ('teacher_kind = "odds"', "FILE, teacher_kind: must be 'logit' or 'probability', is 'odds'"),
        ('[recipe]\nepochs = "many"', "FILE, recipe.epochs: must be a whole number, is 'many'"),
        ("[data]\nmax_jet = 3", "did you mean 'max_jets'?"),
        ("[data]\nfractions = [0.7, 0.2, 0.2]", f"FILE, data.fractions: {SHARES}, is [0.7, 0.2, 0.2]"),
        ("[data]\nfractions = [0.7, 0.3]", f"FILE, data.fractions: {SHARES}, is [0.7, 0.3]"),
        ('[data]\non_bad = "skip"', "FILE, data.on_bad: must be 'error' or 'drop', is 'skip'"),
        ('grid = "studdy"', "FILE, grid: unknown grid 'studdy'\ndid you mean 'study'?"),
        ("grid = 3", "FILE, grid: must be a preset's name, lists or runs, is 3"),
        ("grid = []", "FILE, grid: has no configuration"),
        ('grid = ["baseline_T0.0_A0.5"]', "FILE, grid: 'baseline_T0.0_A0.5', temp_init: temperature must be finite"),
        ("[grid]\ntemperature = [3]\nalpha = [1.5]", "FILE, grid: alpha_init: α must lie in [0, 1], is 1.5"),
        (f"{LISTS}temp_final = [1]", "FILE, grid.temp_final: unknown key 'temp_final'"),
        ("[grid]\ntemperature = []\nalpha = [0.5]", "FILE, grid: has no configuration"),
        (
            f"{LISTS}learning_rat = [1]",
            "FILE, grid.learning_rat: unknown key 'learning_rat'\ndid you mean 'learning_rate'?",
        ),
        (f"{LISTS}learning_rate = [0.0]", "FILE, grid.learning_rate: must be > 0, is 0"),
        (f"{LISTS}learning_rate = 1e-3", "FILE, grid.learning_rate: must be a list, is 0.001"),
        (f"{LISTS}batch_size = []", "FILE, grid: batch_size: has no value"),
        (f'{LISTS}model = ["smal"]', "FILE, grid: model: unknown model preset 'smal'\ndid you mean 'small'?"),
        (f'{LISTS}model = ["a:b"]', "FILE, grid.model: 'a:b' can't be part of a run's name"),
        ('[grid]\npreset = "stud"', "FILE, grid: unknown preset 'stud'\ndid you mean 'study'?"),
        ("[grid]\nlearning_rate = [1e-3]", "FILE, grid.temperature: is missing\na grid of your own needs both"),
        ('hlt = "nomnal"', "FILE, hlt: unknown HLT preset 'nomnal'\ndid you mean 'nominal'?"),
        ("[hlt]\npt_treshold = 1", "FILE, hlt: unknown key 'pt_treshold'\ndid you mean 'pt_threshold'?"),
        ("[hlt]\npt_threshold = 1", f"FILE, hlt: {', '.join(MISSING)} missing\ngive all of"),
        ('model = "huge"', "FILE, model: unknown model preset 'huge'"),
        ("[model]\nwidth = 10\nlayers = 1\nheads = 4\nffn = 8", "FILE, model: width 10 is not a multiple of heads 4"),
        ("[teacher_model]\nwdth = 8", "did you mean 'width'?"),
        (f"[model{SIZES}num_features = 5", "FILE, model: num_features is 7 in a study, not 5\nleave it out"),
        (
            f"[teacher_model{SIZES}num_classes = 2",
            "FILE, teacher_model: num_classes is 1 in a study, not 2\nleave it out",
        ),
        ("seeds = []", "FILE, seeds: is empty"),
        ('seeds = "42"', "FILE, seeds: must be a whole number or a list of them, is '42'\ne.g. seeds = [42, 43]"),
        ("seeds = true", "FILE, seeds: must not be true or false, is True"),
        ("seeds = [1, true]", "FILE, seeds: must not be true or false, is [1, True]"),
        ("seeds = 4.2", "FILE, seeds: must be a whole number or a list of them, is 4.2"),
        ("seeds = [[1]]", "FILE, seeds: must be a whole number or a list of them, is [[1]]"),
        ("seeds = {a = 1}", "FILE, seeds: must be a whole number or a list of them, is {'a': 1}"),
        ("[data]\npaths = {a = 1}", "FILE, data.paths: must be a path or a list of paths, is {'a': 1}"),
        ("[data]\npaths = 5", "FILE, data.paths: must be a path or a list of paths, is 5"),
        ("[data]\npaths = [5]", "FILE, data.paths: must be a path or a list of paths, is [5]"),
        ("[data]\nmax_jets = true", "FILE, data.max_jets: must not be true or false, is True"),
        ('[data]\nmax_constituents = "al"', 'FILE, data.max_constituents: must be a whole number ≥ 1 or "all"'),
        ('data = "jets.h5"', "FILE, data: must be a table, is 'jets.h5'\ne.g. data = { paths = ['jets.h5'] }"),
        ("recipe = 5", "FILE, recipe: must be a table, is 5"),
        ("[recipe]\nepochs = true", "FILE, recipe.epochs: must not be true or false, is True"),
        ("model = 5", f"FILE, model: must be a preset's name or sizes, is 5\npresets: {', '.join(PRESETS)}"),
        ("[hlt]\npaths = []", "FILE, hlt: names no file of HLT jets"),
        ('[hlt]\npaths = ["a.h5"]\nloss = 0.1', "FILE, hlt.loss: unknown key 'loss'\nknown: paths"),
        (NUMBERS.replace("loss = 0", "loss = true"), "FILE, hlt: loss: must be a finite number ≥ 0, is True"),
        (NUMBERS + 'log_pt = "no"', "FILE, hlt: log_pt: must be true or false, is 'no'"),
        ("seeds = [3, 1, 3]", "FILE, seeds: has 3 more than once\nequal seeds train equal networks: give each"),
        ("seeds = [-1]", "FILE, seeds: must be ≥ 0, is -1"),
        ('precision = "fp23"', "did you mean 'fp32'?"),
        ('device = "cuda:"', "FILE, device: unknown device 'cuda:'"),
        ("seeds = [1", "FILE: is not valid TOML"),
    ],
)
def test_bad_toml_says_what_is_wrong(tmp_path, toml, message):
    path = tmp_path / "study.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as error:
        StudySettings.resolve(path)
    text = str(error.value)
    assert message.replace("FILE", str(path)) in text
    assert text.count("\n") <= 1


def test_a_bad_argument_is_not_blamed_on_the_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("[recipe]\nepochs = 3\n")
    with pytest.raises(ConfigError, match=r"^recipe\.epochs: must be ≥ 1, is -2"):
        StudySettings.resolve(path, {"recipe": {"epochs": -2}})
    with pytest.raises(ConfigError, match=r"^grid: unknown grid 'x'"):
        StudySettings.resolve(path, {"grid": "x"})


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read \(No such file or directory\)"):
        StudySettings.resolve(tmp_path / "nowhere.toml")


def test_an_option_does_not_hide_what_is_no_table(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('data = "jets.h5"')
    with pytest.raises(ConfigError, match="must be a table"):
        StudySettings.resolve(path, {"data": {"max_jets": 5}})  # merged, it would be the bundled sample


WRONG = ["text", "", True, 4.2, -1, [], [True], ["a"], [[1]], {}, {"a": 1}, {1: 2}, float("nan"), b"x", object(), None]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda value: repr(value).split(" at 0x")[0])
def test_any_value_of_any_key_is_refused_in_words_or_comes_back(tmp_path, wrong):
    tables = {
        "data": {},
        "recipe": {},
        "grid": {"temperature": [3.0], "alpha": [0.5]},
        "hlt": {"pt_threshold": 1, "merge_radius": 0.1, "pt_resolution": 0.2, "angular_resolution": 0, "loss": 0},
        "model": {"width": 16, "layers": 1, "heads": 2, "ffn": 32},
    }
    models = {"data": DataSettings, "recipe": RecipeSettings, "grid": GridLists, "model": ModelConfig}
    keys = {name: model.model_fields for name, model in models.items()} | {"hlt": asdict(HLT_PRESETS["study"])}
    cases = [{key: wrong} for key in StudySettings.model_fields]
    cases += [{table: {**tables[table], key: wrong}} for table in tables for key in keys[table]]
    refused = []
    for case in cases:
        try:
            settings = StudySettings.resolve(case, data_given=True)
        except ConfigError as error:
            refused.append(str(error))
            continue
        write_toml(settings, tmp_path / "study.toml")
        assert StudySettings.resolve(tmp_path / "study.toml", data_given=True) == settings, case
    assert all(message.count("\n") <= 1 for message in refused)
    assert len(refused) > len(cases) / 2


def test_whole_numbers_of_numpy_are_seeds():
    assert StudySettings.resolve(overrides={"seeds": np.int64(3)}).seeds == (3,)
    assert StudySettings.resolve(overrides={"seeds": np.arange(2)}).seeds == (0, 1)


def test_all_constituents_come_back(tmp_path):
    """TOML has no None, and a missing key is the default."""
    path = tmp_path / "study.toml"
    for everything in (None, "all"):
        settings = StudySettings.resolve({"data": {"max_constituents": everything}})
        assert settings.data.max_constituents is None
        write_toml(settings, path)
        assert 'max_constituents = "all"' in path.read_text()
        assert StudySettings.resolve(path).decisive() == settings.decisive()
        assert StudySettings.resolve(path).data.max_constituents is None
    assert StudySettings.resolve(path, {"data": {"max_constituents": "20"}}).data.max_constituents == 20


def test_runs_as_a_grid():
    run = RunConfig(3.0, 0.5)
    assert StudySettings.resolve(overrides={"grid": [run, run]}).runs() == [run]
