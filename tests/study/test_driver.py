"""The sweep, end to end on a few hundred jets and tiny networks."""

import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch

from kdfast.distill import cpu_engine, cuda_engine, trainer
from kdfast.errors import BackendError, ConfigError, DataError, KdfastWarning, ModelError, StudyError
from kdfast.jets.hlt import emulate_hlt
from kdfast.models.tagger import load_model
from kdfast.ops import backend
from kdfast.store import identity
from kdfast.store.grid import grid
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from kdfast.study import driver, training
from kdfast.study.results import StudyResults, open_study
from kdfast.study.worker import work
from tests.global_random import unchanged_random_state
from tests.study.small_sweep import GRID, SIZES, small_jets, small_sweep
from tests.synthetic import synthetic_jets


@pytest.fixture
def study(swept) -> StudyResults:
    return swept


@pytest.fixture
def copy(study, tmp_path) -> Path:
    shutil.copytree(study.path, tmp_path / "study")
    return tmp_path / "study"


def csv(path: Path) -> str:
    return (path / "results_summary.csv").read_text()


def stored(path: Path) -> set[str]:
    return {result.key.folder for result in StudyStore.open(path).results()}


def test_every_run_is_there(study):
    results = study.results
    assert sorted(results["run_name"]) == sorted(run.name for run in GRID)
    assert (results["status"] == "done").all()
    assert (results["epochs"] == 2).all()
    for column in ("auc_student", "auc_val", "auc_baseline", "auc_teacher"):
        assert results[column].between(0, 1).all()
    assert {"teacher.teacher.seed42", "baseline.baseline.seed42"} <= stored(study.path)
    best = study.best("auc")
    assert best["auc_val"] == results["auc_val"].max()
    assert (study.path / "study.toml").exists()


def test_a_sweep_leaves_the_global_random_state_alone(tmp_path):
    with unchanged_random_state():
        small_sweep(tmp_path / "study", epochs=1)


def test_a_gpu_that_is_not_there_is_an_error_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "why_no_cuda", "no NVIDIA driver is installed")
    with pytest.raises(BackendError, match="device 'cuda:1': no GPU can be used: no NVIDIA driver is installed"):
        small_sweep(tmp_path / "study", device="cuda:1")
    assert not (tmp_path / "study").exists()


def test_a_study_for_gpus_is_planned_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "why_no_cuda", "no NVIDIA driver is installed")
    small_sweep(tmp_path / "study", device="cuda", plan_only=True)
    store = StudyStore.open(tmp_path / "study")
    assert store.provenance["environment"]["device"] == "cuda"
    there = store.provenance["environment"] | {"device": "a GPU"}
    with monkeypatch.context() as patch:
        patch.setattr(identity, "environment", lambda device: there)
        assert identity.other_environment(store, "cuda") is None
    with pytest.raises(BackendError, match="no NVIDIA driver is installed"):
        work(tmp_path / "study", progress=False)
    assert store.attempts() == []  # of the machine, not of the teacher


def test_the_lock_step_engine_on_two_devices_gives_the_same_study(study, tmp_path, monkeypatch):
    """What a GPU's sweep goes through, with the processor in the place of two GPUs."""
    for module in (driver, trainer, training):
        monkeypatch.setattr(module, "training_devices", lambda name: {"cuda": ["cpu", "cpu"]}[name])
    monkeypatch.setattr(identity, "training_devices", lambda name: ["cpu"])
    monkeypatch.setattr(cuda_engine, "unsupported", lambda sizes: None)
    split = mock.patch.object(trainer, "train_on_gpus", wraps=trainer.train_on_gpus)
    with split as train_on_gpus:
        ours = small_sweep(tmp_path / "study", device="cuda")
    assert [len(call.args[2].members) for call in train_on_gpus.call_args_list] == [1, 1 + len(GRID)]
    assert stored(ours.path) == stored(study.path)
    pd.testing.assert_series_equal(ours.results["auc_val"], study.results["auc_val"], atol=0.05)
    assert 'device = "cuda"' in (ours.path / "study.toml").read_text()


@pytest.fixture
def bf16_gpus(monkeypatch):
    """The processor in the place of two GPUs that have bf16."""
    for module in (driver, trainer, training):
        monkeypatch.setattr(module, "training_devices", lambda name: {"cuda": ["cpu", "cpu"]}.get(name, ["cpu"]))
    monkeypatch.setattr(identity, "training_devices", lambda name: ["cpu"])
    monkeypatch.setattr(cuda_engine, "unsupported", lambda sizes: None)
    monkeypatch.setattr(driver, "default_precision", lambda devices: "bf16" if devices == ["cpu", "cpu"] else "fp32")


def precision_of(path):
    return StudyStore.open(path).settings["precision"]


@pytest.mark.slow
def test_a_study_on_gpus_is_bf16_by_default_and_keeps_its_precision(tmp_path, bf16_gpus, capsys):
    out = tmp_path / "study"
    small_sweep(out, device="cuda", epochs=1, progress=True)
    assert precision_of(out) == "bf16"
    assert ", in bf16; checkpoints of up to " in capsys.readouterr().err
    assert 'precision = "bf16"' in (out / "study.toml").read_text()
    # Resumed, also where bf16 is no default; another precision is another study.
    small_sweep(out, device="cuda", epochs=1, seeds=(42, 43))
    small_sweep(out, device="cpu", epochs=1)
    assert precision_of(out) == "bf16"
    with pytest.raises(StudyError, match="precision"):
        small_sweep(out, device="cuda", epochs=1, precision="fp32")


@pytest.mark.slow
def test_a_precision_that_is_given_wins(tmp_path, bf16_gpus, capsys):
    for number, arguments in enumerate(({"precision": "fp32"}, {"config": {"precision": "fp32"}})):
        small_sweep(tmp_path / f"{number}", device="cuda", epochs=1, **arguments)
        assert precision_of(tmp_path / f"{number}") == "fp32"
    # What others are to train is not known here; a study in fp32 stays so on GPUs.
    small_sweep(tmp_path / "planned", device="cuda", epochs=1, plan_only=True, progress=True)
    assert precision_of(tmp_path / "planned") == "fp32"
    assert "in fp32, since the GPUs are other processes'; precision bf16 is faster" in capsys.readouterr().err
    small_sweep(tmp_path / "planned", device="cuda", epochs=1)
    assert precision_of(tmp_path / "planned") == "fp32"


def test_scores_are_those_that_the_written_model_gives(study):
    best = study.best("auc")
    scores = study.scores(best["run_name"], 42)
    tagger = load_model(study.path / "models" / "best_student.safetensors")
    jets = small_jets()
    test = scores[scores["split"] == "test"]
    expected = tagger.logits(jets[test["index"].to_numpy()])[:, 0].numpy()
    np.testing.assert_allclose(test["score"], expected, rtol=1e-4, atol=1e-5)
    teacher = load_model(study.path / "models" / "teacher.safetensors")
    assert teacher.preparation.view == "offline"
    assert teacher.model.config.width == 32
    assert load_model(study.path / "models" / "baseline.safetensors").model.config.width == 16


def test_the_same_again_trains_nothing_and_changes_nothing(study, copy):
    folders = {path: path.stat().st_mtime_ns for path in (copy / "results").iterdir()}
    again = small_sweep(copy)
    assert {path: path.stat().st_mtime_ns for path in (copy / "results").iterdir()} == folders
    assert csv(again.path) == csv(study.path)


def test_a_resumed_study_ends_in_the_same_table_bit_for_bit(study, copy):
    for key in ("student.baseline_T2.0_A0.5.seed42", "baseline.baseline.seed42"):
        shutil.rmtree(copy / "results" / key)
    shutil.rmtree(copy / "targets")
    small_sweep(copy, threads=1)
    assert csv(copy) == csv(study.path)


def test_seeds_and_configurations_may_be_added(study, copy):
    more = small_sweep(copy, grid=grid(temperature=[2.0], alpha=[0.5, 0.9]), seeds=(7,))
    assert stored(copy) - stored(study.path) == {
        "baseline.baseline.seed7",
        "student.baseline_T2.0_A0.5.seed7",
        "student.baseline_T2.0_A0.9.seed7",
    }
    results = more.results
    assert len(results) == len(GRID) + 2
    old = results[results["seed"] == 42].reset_index(drop=True)
    assert old.equals(study.results)


def test_one_run_by_name_and_settings_from_a_file(tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'seeds = [1]\ngrid = ["baseline_T3.0_A0.5"]\n[recipe]\nbatch_size = 32\nepochs = 9\nteacher_epochs = 1\n'
    )
    arguments = {"grid": None, "epochs": 1, "batch_size": None, "config": toml}
    results = small_sweep(tmp_path / "out", **arguments).results
    assert [*results["run_name"]] == ["baseline_T3.0_A0.5"]
    assert [*results["seed"]] == [1]
    assert [*results["epochs"]] == [1]
    # what is given goes over the file, also where it is the default's value
    more = small_sweep(tmp_path / "out", **(arguments | {"seeds": (42,)})).results
    assert [*more["seed"]] == [1, 42]


def test_a_saved_teacher_gives_the_same_students(study, tmp_path):
    other = small_sweep(tmp_path / "other", teacher=study.path / "models" / "teacher.safetensors")
    assert csv(other.path) == csv(study.path)
    tagger = load_model(study.path / "models" / "teacher.safetensors")
    with pytest.raises(StudyError, match="teacher"):
        small_sweep(study.path, teacher=tagger)
    small_sweep(other.path, teacher=tagger)  # the same teacher


def test_a_teacher_that_was_trained_on_test_jets(study, tmp_path):
    """Found with another split of the jets, also where they are read anew, in another order and cut otherwise."""
    file = study.path / "models" / "teacher.safetensors"
    jets = small_jets()
    again = replace(jets[::-1], index=jets.index)
    for changes in ({"data_seed": 7}, {"fractions": (0.5, 0.25, 0.25)}, {"data": again, "max_constituents": 10}):
        with pytest.raises(DataError) as error:
            small_sweep(tmp_path / "out", **{"data": jets, "teacher": file} | changes)
        assert str(error.value).startswith("teacher: was trained on test jets: about ")
        assert "\nsplit the jets as the teacher's study did (data_seed, fractions, " in str(error.value)
    other = small_sweep(tmp_path / "other", synthetic_jets(400, seed=4), teacher=file, epochs=1, grid=GRID[:1])
    stored = load_model(other.path / "models" / "teacher.safetensors")
    assert stored.trained_on == load_model(file).trained_on


def test_a_teacher_of_which_nobody_knows_the_training_jets(study, tmp_path):
    tagger = load_model(study.path / "models" / "teacher.safetensors")
    assert len(tagger.trained_on) == 256
    tagger.trained_on = None  # as in files of kdfast 0.2
    with pytest.warns(KdfastWarning, match="the teacher's file does not say which jets it was trained on"):
        small_sweep(tmp_path / "study", teacher=tagger, epochs=1, grid=GRID[:1])


def test_a_teachers_logits(study, tmp_path):
    tagger = load_model(study.path / "models" / "teacher.safetensors")
    logits = tagger.logits(small_jets())
    given = small_sweep(tmp_path / "out", teacher=logits.numpy())
    results = given.results
    np.testing.assert_allclose(results["auc_teacher"], study.results["auc_teacher"], atol=1e-3)
    assert np.array_equal(results["auc_baseline"], study.results["auc_baseline"])
    name = GRID[0].name
    assert not np.array_equal(given.scores(name)["score"], study.scores(name)["score"])  # no attention term
    curves = StudyStore.open(tmp_path / "out").get(RunKey("student", name, 42)).curves
    assert curves["loss_attention"] == [0.0, 0.0]
    assert not (tmp_path / "out" / "models" / "teacher.safetensors").exists()


def test_real_hlt_jets(study, tmp_path):
    jets = small_jets()
    real = small_sweep(tmp_path / "real", hlt=emulate_hlt(jets, "severe", seed=1), grid=GRID[:1])
    assert real.results["auc_teacher"][0] == study.results["auc_teacher"][0]
    assert real.results["auc_baseline"][0] != study.results["auc_baseline"][0]
    tagger = load_model(real.path / "models" / "best_student.safetensors")
    assert tagger.preparation.hlt is None
    with pytest.raises(StudyError, match="hlt is jets"):
        small_sweep(real.path, hlt=emulate_hlt(jets, "severe", seed=2))


def test_event_weights_count(study, tmp_path):
    jets = small_jets()
    weights = np.where(jets.constituents[jets.offsets[:-1], 0] > 100, 3.0, 0.5).astype(np.float32)
    results = small_sweep(tmp_path / "out", replace(jets, weights=weights), grid=GRID[:1]).results
    assert results["auc_baseline"][0] != study.results["auc_baseline"][0]
    scores = open_study(tmp_path / "out").scores("baseline")
    assert set(scores["weight"]) == {0.5, 3.0}


def test_a_diverging_student_leaves_the_others_alone(study, tmp_path, monkeypatch):
    genuine = cpu_engine.step_inputs

    def sometimes_nan(pack, member):
        inputs = genuine(pack, member)
        if member.name != GRID[1].name:
            return inputs
        return replace(inputs, teacher_logits=torch.full_like(inputs.teacher_logits, torch.nan))

    monkeypatch.setattr(cpu_engine, "step_inputs", sometimes_nan)
    results = small_sweep(tmp_path / "out").results.set_index("run_name")
    assert results.loc[GRID[1].name, "status"] == "diverged"
    assert np.isnan(results.loc[GRID[1].name, "auc_student"])
    others = [run.name for run in GRID if run != GRID[1]]
    assert results.loc[others].equals(study.results.set_index("run_name").loc[others])


def test_a_diverging_teacher_is_an_error(tmp_path, monkeypatch):
    genuine = cpu_engine.step_inputs

    def nan(pack, member):
        inputs = genuine(pack, member)
        return replace(inputs, features=torch.full_like(inputs.features, torch.nan))

    monkeypatch.setattr(cpu_engine, "step_inputs", nan)
    with pytest.raises(StudyError, match="the teacher diverged: loss or gradient not finite in epoch 0"):
        small_sweep(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"epochs": 3},
            "holds another study: recipe.epochs is 2 there, 3 here; recipe.teacher_epochs is 2 there, 3 here",
        ),
        ({"hlt": "severe"}, "hlt.pt_threshold is 2.0 there, 5.0 here"),
        ({"model": {**SIZES, "ffn": 32}}, "model.ffn is 16 there, 32 here"),
        ({"max_constituents": 10}, "data.max_constituents is 15 there, 10 here"),
        ({"data": small_jets()[:300]}, "holds another study: the jets are others"),
        ({"resume": False}, "holds a study already"),
        ({"teacher": np.zeros(400)}, "teacher"),
    ],
)
def test_another_study_is_refused_and_the_differences_named(study, changes, message):
    before = stored(study.path)
    with pytest.raises(StudyError) as error:
        small_sweep(study.path, **changes)
    assert str(study.path) in str(error.value)
    assert message in str(error.value)
    assert str(error.value).count("\n") == 1
    assert stored(study.path) == before


def test_in_bfloat16(study, tmp_path):
    other = small_sweep(tmp_path / "out", precision="bf16")
    assert set(other.results["status"]) == {"done"}
    name = GRID[0].name
    difference = (other.scores(name)["score"] - study.scores(name)["score"]).abs()
    assert 0 < difference.max() < 0.1


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"epochs": 0}, ConfigError, "epochs: must be ≥ 1, is 0"),
        ({"grid": "studdy"}, ConfigError, "did you mean 'study'?"),
        ({"model": "smal"}, ConfigError, "model: unknown model preset 'smal'\ndid you mean 'small'?"),
        ({"hlt": "nominl"}, ConfigError, "did you mean 'nominal'?"),
        ({"precision": "fp16"}, ConfigError, "unknown precision 'fp16'"),
        ({"batch_size": 300}, ConfigError, "batch_size: 300 jets a batch, but 280 training jets"),
        ({"config": {"recipe": {"epoch": 3}}}, ConfigError, "unknown key 'epoch'\ndid you mean 'epochs'?"),
        ({"config": {"data": {"paths": ["x.h5"]}}}, ConfigError, "data.paths: names files, but jets are given too"),
        ({"pack_size": 0}, ConfigError, "pack_size: must be a whole number, at least 1, is 0"),
        ({"pack_size": 2.5}, ConfigError, "pack_size: must be a whole number, at least 1, is 2.5"),
        ({"workers": 0}, ConfigError, "workers: must be"),
        ({"threads": 0}, ConfigError, "threads: must be"),
        ({"threads": 99999}, ConfigError, "threads: 99999 threads are more than the "),
        ({"seeds": [1, 2, 1]}, ConfigError, "seeds: has 1 more than once\nequal seeds train equal networks: give each"),
        ({"data": 3}, DataError, "data: must be paths, PackedJets, a table or None, is int"),
        ({"data": pd.DataFrame({"pt": [1.0]})}, DataError, "DataFrame, column fjet_clus_pt: is missing\ncolumns=…"),
        ({"data": {"jets.h5": 1}}, DataError, "dict, column fjet_clus_pt: is missing\ncolumns=… names"),
        ({"data": []}, DataError, "data: names no file"),
        ({"data": "nowhere.h5"}, DataError, "nowhere.h5"),
        ({"teacher": np.zeros(399)}, DataError, "teacher: 399 logits for 400 jets"),
        ({"teacher": np.full(400, np.nan)}, DataError, "teacher, row 0: logit must be finite, is nan"),
        ({"teacher": np.linspace(0, 1, 400)}, DataError, "teacher: the logits of all 400 jets lie in [0, 1], as "
         "probabilities do\nteacher_kind='probability' takes probabilities"),
        ({"teacher": np.linspace(0, 1.1, 400), "teacher_kind": "probability"}, DataError,
         "teacher, row 363: probability must lie in [0, 1], is 1.00"),
        ({"teacher": np.full(400, np.nan), "teacher_kind": "probability"}, DataError,
         "teacher, row 0: probability must lie in [0, 1], is nan"),
        ({"teacher": np.zeros(399), "teacher_kind": "probability"}, DataError, "399 probabilities for 400 jets"),
        ({"teacher_kind": "probability"}, ConfigError, "teacher_kind: is for a teacher given as an array or .npy file"),
        ({"teacher": np.zeros((400, 2))}, DataError, "teacher: needs one logit a jet, has shape [400, 2]"),
        ({"teacher": object()}, DataError, "teacher: is neither a model nor logits: object"),
        ({"teacher": "nowhere.safetensors"}, ModelError, "nowhere.safetensors: there is no such model file"),
        ({"hlt": small_jets()[:10]}, DataError, "hlt: 10 HLT jets for 400 offline jets"),
        ({"hlt": {"pt_threshold": 1e6, "merge_radius": 0, "pt_resolution": 0, "angular_resolution": 0, "loss": 0}},
         DataError, "train jets, hlt view: no jet has a constituent left"),
    ],
)  # fmt: skip
def test_bad_input_says_what_is_wrong(tmp_path, changes, kind, message):
    with pytest.raises(kind) as error:
        small_sweep(tmp_path / "out", **changes)
    assert message in str(error.value)
    assert str(error.value).count("\n") <= 1


@pytest.mark.slow
def test_a_teacher_of_probabilities(tmp_path):
    """As an array and as a file, planned for workers and by the driver: the same as its logits."""
    logits = np.random.default_rng(1).normal(0, 3, 400)
    probabilities = 1 / (1 + np.exp(-logits))
    probabilities[:2] = (0, 1)
    logits[:2] = np.log(1e-7 / (1 - 1e-7)) * np.array([1, -1])  # clipped
    np.save(tmp_path / "p.npy", probabilities)
    common = {"epochs": 1, "grid": GRID[:1], "teacher_kind": "probability"}
    tables = []
    for number, teacher in enumerate((probabilities, tmp_path / "p.npy", probabilities[:, None])):
        out = tmp_path / str(number)
        small_sweep(out, teacher=teacher, plan_only=number == 0, **common)
        if number == 0:
            assert work(out, progress=False).failed == {}
        assert StudyStore.open(out).settings["teacher_kind"] == "probability"
        small_sweep(out, teacher=teacher, **common)  # resumes: it is the same study
        tables.append(open_study(out).results.to_csv())
    assert len(set(tables)) == 1
    of_logits = small_sweep(tmp_path / "logits", teacher=logits, **common | {"teacher_kind": None})
    name = GRID[0].name
    np.testing.assert_allclose(open_study(out).scores(name)["score"], of_logits.scores(name)["score"], rtol=1e-3)
    assert "teacher_kind" not in StudyStore.open(tmp_path / "logits").settings


def test_a_warm_up_that_is_longer_than_the_training(tmp_path):
    with pytest.warns(KdfastWarning) as caught:
        longer = small_sweep(tmp_path / "a", epochs=1, teacher_epochs=2, warmup_epochs=3, grid=GRID[:1])
    message = "warmup_epochs is 3, longer than the training: shortened to 1 for the students, to 2 for the teacher"
    assert [str(warning.message) for warning in caught] == [message]
    assert caught[0].filename == small_sweep.__code__.co_filename
    with pytest.warns(KdfastWarning, match="shortened to 1 for the students$"):
        same = small_sweep(tmp_path / "b", epochs=1, teacher_epochs=2, warmup_epochs=2, grid=GRID[:1])
    name = GRID[0].name
    np.testing.assert_array_equal(longer.scores(name)["score"], same.scores(name)["score"])
    assert longer.path != same.path


def test_folders_that_can_not_hold_a_study(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    for out, message in (
        (tmp_path / "file", "file"),
        (tmp_path / "file" / "below", "file"),
        (tmp_path / "other", "is not a study and is not empty"),
        (Path("/proc/study"), "/proc/study"),
    ):
        with pytest.raises(StudyError) as error:
            small_sweep(out)
        assert message in str(error.value)


def test_a_disk_that_fills_up_half_way(study, tmp_path, monkeypatch):
    import errno

    from kdfast.store import folders

    genuine, written = folders.os.fsync, []

    def full(descriptor):
        written.append(descriptor)
        if len(written) > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        genuine(descriptor)

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(StudyError, match="No space left on device\nmake room and run the same command again"):
        small_sweep(tmp_path / "out")
    monkeypatch.undo()
    before = stored(tmp_path / "out")
    assert before
    small_sweep(tmp_path / "out")
    assert csv(tmp_path / "out") == csv(study.path)


def test_going_on_in_another_environment_warns(copy):
    provenance = copy / "provenance.json"
    provenance.write_text(provenance.read_text().replace(torch.__version__, "2.6.0"))
    (copy / "manifest.json").unlink()  # holds its checksum
    with pytest.warns(match="begun in another environment .torch 2.6.0 → "):
        small_sweep(copy)
