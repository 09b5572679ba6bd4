"""Sweeps with networks of the user's own: stored, resumed, shared with workers, refined and predicted with."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from kdfast.cli import main
from kdfast.distill.trainer import train_pack
from kdfast.errors import ConfigError, StudyError
from kdfast.jets.features import features
from kdfast.jets.hlt import offline_view
from kdfast.models.own_model import own_model
from kdfast.models.tagger import load_model
from kdfast.store.store import StudyStore
from kdfast.study.refine import refine
from kdfast.study.results import open_study
from kdfast.study.worker import work
from tests.distill.packs import pack, students
from tests.distill.test_checkpoint import Kept, StopAtCall, assert_same
from tests.own_networks import PlainDeepSets, attentive, particle_net, particle_transformer
from tests.study.small_sweep import small_jets, small_sweep
from tests.undrawn import undrawn_figures

PLAIN = "tests.own_networks:PlainDeepSets"


@pytest.fixture(scope="module")
def swept(tmp_path_factory, undrawn):
    """Students and teacher are own networks, given as functions."""
    study = tmp_path_factory.mktemp("own") / "study"
    before = torch.get_rng_state()
    small_sweep(study, model=PlainDeepSets, teacher=attentive, teacher_model=None)
    assert torch.equal(before, torch.get_rng_state())
    return study


@pytest.fixture(scope="module")
def undrawn():
    with undrawn_figures():
        yield


def stored(study, kind):
    """The results of a kind, by name and seed."""
    store = StudyStore.open(study)
    return [store.get(key) for key in sorted(store.keys()) if key.kind == kind]


def scores(study, kind="baseline"):
    return [result.arrays["scores_test"] for result in stored(study, kind)]


def test_every_run_is_trained_and_opening_the_study_imports_nothing(swept):
    results = open_study(swept)
    assert (results.results["status"] == "done").all()
    assert len(results.results) == 4
    code = f"import sys, kdfast; kdfast.open_study({str(swept)!r}).best('auc'); assert 'tests' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_attention_of_a_teacher_reaches_only_students_that_have_one(swept, tmp_path):
    assert not any(np.any(result.curves["loss_attention"]) for result in stored(swept, "student"))
    small_sweep(tmp_path / "study", model=attentive, teacher=attentive, teacher_model=None)
    assert all(np.all(result.curves["loss_attention"]) for result in stored(tmp_path / "study", "student"))


@pytest.mark.parametrize("at_step", [2, 5, 8])
def test_a_stopped_member_resumes_with_the_bits_of_one_that_was_not(at_step):
    """The optimizer, the batch norm's statistics and dropout's place are all in the checkpoint."""
    a_pack = pack(students(1), model=own_model(PlainDeepSets))
    whole = list(train_pack(a_pack, threads=1))
    kept = Kept()
    stopped = list(train_pack(a_pack, threads=1, stop=StopAtCall(at_step), checkpoints=kept))
    assert not stopped
    assert kept.saved
    (resumed,) = train_pack(a_pack, threads=1, checkpoints=kept)
    assert_same(resumed, whole[0])


def test_members_do_not_change_each_other():
    """Their dropout comes from one generator of torch's."""
    model = own_model(PlainDeepSets)
    together = {result.name: result for result in train_pack(pack(students(3), model=model), threads=2)}
    for member in students(3):
        (alone,) = train_pack(pack([member], model=model), threads=2)
        assert_same(alone, together[member.name])


def test_a_sweep_without_the_network_says_what_is_missing(swept):
    with pytest.raises(StudyError, match=r"its students are networks of your own \(tests.own_networks:PlainDeepSets\)"):
        small_sweep(swept, teacher=attentive, teacher_model=None)


def test_workers_need_the_networks_named_again(swept, tmp_path, capsys):
    study = tmp_path / "study"
    small_sweep(study, model=PLAIN, teacher=attentive, teacher_model=None, plan_only=True)
    with pytest.raises(ConfigError, match="name it again: --model"):
        work(study, progress=False)
    with pytest.raises(ConfigError, match="other weights"):
        work(study, progress=False, model="tests.own_networks:wide", teacher_model=attentive)
    own = ["--model", PLAIN, "--teacher-model", "tests.own_networks:attentive"]
    assert main(["worker", "--store", str(study), "--quiet", *own]) == 0
    np.testing.assert_array_equal(scores(study, "student"), scores(swept, "student"))
    refined = refine(study, top=1, seeds=2, progress=False, data=None, model=PLAIN, teacher_model=attentive)
    assert set(refined.results["seed"]) == {42, 43}


def test_predict_gives_the_scores_of_the_study(swept):
    file = swept / "models" / "best_student.safetensors"
    with pytest.raises(ConfigError, match="network of your own"):
        load_model(file)
    tagger = load_model(file, model=PLAIN)
    test_jets = small_jets()[StudyStore.open(swept).shared("test")["index"]]
    logits = tagger.logits(test_jets)[:, 0].numpy()
    assert any(np.array_equal(logits, known) for known in scores(swept, "student"))


@pytest.mark.slow
def test_a_trained_network_teaches_by_its_logits(tmp_path):
    torch.manual_seed(0)
    teacher = PlainDeepSets().eval().requires_grad_(False)  # as trained networks often are
    jets = small_jets()
    small_sweep(tmp_path / "module", teacher=teacher)
    view = offline_view(jets.hardest(15))
    with torch.no_grad():
        logits = teacher(features(view).clamp(-10, 10), torch.from_numpy(view.offsets)).numpy()
    small_sweep(tmp_path / "logits", teacher=logits)
    np.testing.assert_array_equal(scores(tmp_path / "module", "student"), scores(tmp_path / "logits", "student"))


def test_a_trained_network_sees_the_offline_view_of_the_study(tmp_path):
    """Whose pT is a logarithm with hlt="study"."""
    torch.manual_seed(0)
    teacher = PlainDeepSets().eval()
    view = offline_view(small_jets().hardest(15), "study")
    with torch.no_grad():
        logits = teacher(features(view).clamp(-10, 10), torch.from_numpy(view.offsets)).numpy()
    arguments = {"hlt": "study", "grid": ["baseline_T2_A0.5"]}
    small_sweep(tmp_path / "module", teacher=teacher, **arguments)
    small_sweep(tmp_path / "logits", teacher=logits, **arguments)
    for kind in ("teacher", "student"):
        np.testing.assert_array_equal(scores(tmp_path / "module", kind), scores(tmp_path / "logits", kind))


def test_bf16_is_autocast(tmp_path):
    small_sweep(tmp_path / "study", model=PlainDeepSets, precision="bf16", grid=["baseline_T2_A0.5"])
    assert (open_study(tmp_path / "study").results["status"] == "done").all()


@pytest.mark.slow
@pytest.mark.parametrize("factory", [particle_transformer, particle_net])
def test_the_networks_of_weaver_core(factory, tmp_path):
    pytest.importorskip("weaver.nn.model.ParticleTransformer")
    results = small_sweep(tmp_path / "study", model=factory, epochs=3, batch_size=64, grid=["baseline_T2_A0.5"])
    assert (results.results["status"] == "done").all()


def test_a_file_of_settings_names_no_code(tmp_path):
    (tmp_path / "study.toml").write_text(f'model = "{PLAIN}"\n')
    with pytest.raises(ConfigError, match="can't name a network of your own"):
        small_sweep(tmp_path / "study", config=tmp_path / "study.toml", model=None)


def test_the_command_line_takes_a_function(tmp_path, capsys):
    out = str(tmp_path / "study")
    options = ["--model", "tests.own_networks:missing", "--max-jets", "400"]
    assert main(["sweep", "--out", out, "--quiet", *options]) == 2
    assert "can't be imported" in capsys.readouterr().err
