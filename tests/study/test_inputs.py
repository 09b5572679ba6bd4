"""What later calls say of a study's files, device and checkpoints, and who opens the study then."""

import fcntl
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import tomli_w

import kdfast
from kdfast import report
from kdfast.errors import ConfigError, StudyError
from kdfast.jets.columns import column_map
from kdfast.store import store as store_module
from kdfast.store.locks import locked
from kdfast.store.store import StudyStore
from kdfast.store.verify import verify
from kdfast.study.batch_script import slurm_script
from kdfast.study.refine import refine
from kdfast.study.worker import open_inputs, work
from tests.study.small_sweep import small_sweep

SAMPLE = Path(kdfast.__file__).parent / "jets" / "data" / "sample.h5"
JETS = 300


def jets_file(path: Path, jets: int = JETS, constituents: int | None = None) -> Path:
    """The first jets of the bundled sample, with fewer constituents, as a trigger may see them."""
    path.parent.mkdir(exist_ok=True)
    with h5py.File(SAMPLE) as source, h5py.File(path, "w") as file:
        for name in source:
            file[name] = source[name][:jets, :constituents] if source[name].ndim == 2 else source[name][:jets]
    return path


def plan(out: Path, data: object, seed: int, **changes: object) -> None:
    small_sweep(out, data, seeds=[seed], epochs=1, plan_only=True, pack_size=5, **changes)


def is_finished_by_a_worker(out: Path, seeds: int) -> None:
    assert work(out, progress=False).failed == {}
    assert sum(result.kind == "baseline" for result in StudyStore.open(out).results()) == seeds
    assert verify(out).findings == ()


@pytest.fixture(autouse=True)
def no_reports(monkeypatch):
    monkeypatch.setattr(report, "write", lambda store: {})


def test_device_and_checkpoints_are_those_of_the_last_call(tmp_path, capfd):
    plan(tmp_path, None, 42)
    before = StudyStore.open(tmp_path).settings
    plan(tmp_path, None, 43, device="cuda", checkpoint_every=7, progress=True)
    assert "study.toml: checkpoint_every is 7.0 from now on, was 300.0" in capfd.readouterr().err
    store = StudyStore.open(tmp_path)
    assert store.settings == before | {"device": "cuda", "checkpoint_every": 7.0}  # seeds and grid add up elsewhere
    assert verify(tmp_path).findings == ()
    assert "--gpus" in slurm_script(tmp_path)


@pytest.mark.slow
def test_files_in_another_unit_are_the_same_study(tmp_path):
    """The unit only says how files are read; studies of files in MeV do not name it, as those of kdfast 0.2."""
    gev, mev, out = jets_file(tmp_path / "gev.h5"), jets_file(tmp_path / "mev.h5"), tmp_path / "study"
    momenta = ("fjet_clus_pt", "fjet_clus_E", "fjet_pt", "fjet_m")
    with h5py.File(gev, "r+") as file, h5py.File(mev, "r+") as other:
        for name in momenta:
            file[name][...] = np.round(file[name][...] / 1000 * 64) / 64  # in GeV and in MeV without rounding
            other[name][...] = file[name][...] * 1000
        for each in (file, other):
            each["fjet_clus_E"][...] *= 2  # not below the rounded momentum
            pt = each["fjet_clus_pt"]
            assert (np.diff(pt[...], axis=1) <= 0).all()
            for name in ("fjet_clus_E", "fjet_clus_eta", "fjet_clus_phi"):
                each[name][...] = np.where(pt[...] > 0, each[name][...], 0)
    plan(out, mev, 1)
    assert "unit" not in StudyStore.open(out).settings["data"]
    plan(out, gev, 2, unit="GeV")
    assert StudyStore.open(out).settings["data"]["unit"] == "GeV"
    assert open_inputs(StudyStore.open(out))[0].data.unit == "GeV"
    plan(out, mev, 3)
    assert "unit" not in StudyStore.open(out).settings["data"]


@pytest.mark.slow
def test_files_in_another_layout_are_the_same_study(tmp_path):
    """A map only says how files are read. The study holds the map's content, and none for the ATLAS layout."""
    atlas, other, out = jets_file(tmp_path / "atlas.h5"), jets_file(tmp_path / "other.h5"), tmp_path / "study"
    with h5py.File(other, "r+") as file:
        file.move("fjet_m", "jets/m")
        file.move("labels", "is_top")
    mapped = {"preset": "atlas", "jet": {"mass": "jets/m"}, "label": {"column": "is_top"}}
    (tmp_path / "map.toml").write_text(tomli_w.dumps(mapped))
    plan(out, atlas, 1)
    assert "columns" not in StudyStore.open(out).settings["data"]
    plan(out, other, 2, columns=tmp_path / "map.toml")
    (tmp_path / "map.toml").unlink()
    assert StudyStore.open(out).settings["data"]["columns"]["jet"]["mass"] == "jets/m"
    assert open_inputs(StudyStore.open(out))[0].data.columns == column_map(mapped)
    plan(out, atlas, 3)
    assert "columns" not in StudyStore.open(out).settings["data"]


def test_files_may_store_fewer_constituents_than_the_default(tmp_path):
    path, out = jets_file(tmp_path / "jets.h5", constituents=20), tmp_path / "study"
    plan(out, path, 1, max_constituents=None)
    assert StudyStore.open(out).settings["data"]["max_constituents"] == 40
    assert open_inputs(StudyStore.open(out))[1].prepared.jets.counts.max() == 20
    with pytest.raises(ConfigError, match="max_constituents: is 40, but only 20 constituents a jet are stored"):
        plan(out, path, 2, max_constituents=40)


def test_hlt_jets_are_read_by_the_same_map(tmp_path):
    files, out = [jets_file(tmp_path / "jets.h5"), jets_file(tmp_path / "hlt.h5", constituents=20)], tmp_path / "study"
    for path in files:
        with h5py.File(path, "r+") as file:
            file.move("labels", "is_top")
    mapped = {"preset": "atlas", "label": {"column": "is_top"}}
    plan(out, files[0], 1, hlt={"paths": [files[1]]}, columns=mapped)
    assert open_inputs(StudyStore.open(out))[0].data.columns == column_map(mapped)


@pytest.mark.slow
def test_files_that_have_moved(tmp_path):
    """Jets, HLT jets and the teacher's logits, which then lie elsewhere, in files that hold more."""
    old, new, out = tmp_path / "old", tmp_path / "new", tmp_path / "study"
    jets, trigger, logits = jets_file(old / "jets.h5"), jets_file(old / "trigger.h5", constituents=20), old / "t.npy"
    np.save(logits, np.linspace(-1, 1, JETS))
    small_sweep(out, jets, seeds=[42], epochs=1, hlt={"paths": [trigger]}, teacher=logits)
    old.rename(new)
    jets, trigger = jets_file(new / "jets.h5", 2 * JETS), jets_file(new / "trigger.h5", 2 * JETS, constituents=20)
    plan(out, jets, 43, hlt={"paths": [trigger]}, teacher=new / "t.npy", max_jets=JETS)
    is_finished_by_a_worker(out, 2)
    assert sorted(refine(out, top=1, seeds=3, progress=False).results["seed"].unique()) == [42, 43, 44]


@pytest.mark.slow
def test_jets_of_python_whose_place_files_take_and_again(tmp_path):
    """However they are cut: more jets, of which the first are used, or just these."""
    out, file, larger = tmp_path / "study", jets_file(tmp_path / "jets.h5"), jets_file(tmp_path / "more.h5", 2 * JETS)
    jets, more, logits = kdfast.load_jets(file), kdfast.load_jets(larger), np.linspace(-1, 1, JETS)
    small_sweep(out, jets, seeds=[1], epochs=1, teacher=logits)
    with pytest.raises(StudyError, match="was given its jets in Python, and does not hold them"):
        open_inputs(StudyStore.open(out))
    np.save(tmp_path / "logits.npy", logits)
    plan(out, file, 2, teacher=tmp_path / "logits.npy")
    is_finished_by_a_worker(out, 2)
    plan(out, more, 3, teacher=logits, max_jets=JETS)
    file.unlink()
    is_finished_by_a_worker(out, 3)
    plan(out, jets, 4, teacher=logits)
    is_finished_by_a_worker(out, 4)
    plan(out, larger, 5, teacher=logits, max_jets=JETS)
    assert StudyStore.open(out).provenance["given"] == ["teacher"]
    is_finished_by_a_worker(out, 5)


def test_jets_of_python_that_the_folder_does_not_hold_take_no_files_place(tmp_path):
    out, file = tmp_path / "study", jets_file(tmp_path / "jets.h5")
    plan(out, file, 1)
    small_sweep(out, kdfast.load_jets(file), seeds=[2], epochs=1, checkpoint_every=7)
    settings, _ = open_inputs(StudyStore.open(out))
    assert (settings.data.paths, settings.checkpoint_every) == ((str(file),), 7.0)


@pytest.mark.parametrize("written", range(3))
def test_killed_while_the_description_is_written_anew(tmp_path, monkeypatch, written):
    """It opens, the same call goes on, and its checksums come back."""
    plan(tmp_path, None, 1)
    genuine, files = store_module.write_content, []

    def write_content(path, content):
        if len(files) == written:
            raise KeyboardInterrupt
        files.append(path)
        genuine(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_content", write_content)
        with pytest.raises(KeyboardInterrupt):
            plan(tmp_path, None, 1, checkpoint_every=7)
    StudyStore.open(tmp_path)
    plan(tmp_path, None, 1, checkpoint_every=7)
    assert open_inputs(StudyStore.open(tmp_path))[0].checkpoint_every == 7
    assert (tmp_path / "manifest.json").exists()
    assert verify(tmp_path).findings == ()


def test_who_opens_or_verifies_a_study_meanwhile_finds_no_damage(tmp_path):
    store = StudyStore.create_or_open(tmp_path, {"device": "auto"}, {})
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for device in ("cpu", "auto"):
                with locked(tmp_path, fcntl.LOCK_EX):
                    store.describe({"device": device}, {})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert StudyStore.open(tmp_path).settings["device"] in ("cpu", "auto")
            assert verify(tmp_path).findings == ()
    finally:
        stop.set()
        writer.join()
