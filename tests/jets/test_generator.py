"""The generator: the same file whatever the number of processes, and whatever interrupts it."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from kdfast.errors import BackendError, ConfigError, StudyError
from kdfast.jets import generator, pythia

needs_pythia = pytest.mark.skipif(importlib.util.find_spec("pythia8mc") is None, reason="needs the extra [generate]")

# A program of its own, to be interrupted and killed: chunks of 2 jets, two processes.
PROGRAM = """
import sys
from kdfast.jets import generator
generator.CHUNK_JETS = 2
generator.generate(int(sys.argv[1]), sys.argv[2], seed=7, jobs=2)
"""


def start(jets, out):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "KDFAST_TEST": str(out)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(jets), str(out)], stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_chunks(folder, count):
    deadline = time.monotonic() + 60
    while len(list(folder.glob("chunk_*.npz"))) < count:
        assert time.monotonic() < deadline, "no chunk was finished within a minute"
        time.sleep(0.02)


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(generator, "CHUNK_JETS", 2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The bytes of a file of 8 jets in four chunks that one process made without an interrupt."""
    pytest.importorskip("pythia8mc")
    out = tmp_path_factory.mktemp("generated") / "jets.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "CHUNK_JETS", 2)
        generator.generate(8, out, seed=7, jobs=1, progress=False)
    return out


def test_content(reference):
    with h5py.File(reference) as file:
        labels = file["labels"][:]
        assert len(labels) == 8
        assert labels.sum() == 4
        pt = file["fjet_clus_pt"][:]
        assert np.all(np.diff(pt, axis=1) <= 0)
        assert np.all((file["fjet_pt"][:] > 450e3) & (file["fjet_pt"][:] < 1200e3))
        np.testing.assert_array_equal(
            *(np.histogram(file["fjet_pt"][:][labels == k] / 1e3, pythia.PT_EDGES)[0] for k in (0, 1))
        )
        assert (file.attrs["jets"], file.attrs["seed"]) == (8, 7)
        assert set(json.loads(file.attrs["pythia_settings"])) == {"QCD", "top"}
    assert not list(reference.parent.glob("*.partial"))


def test_stored_constituents_cluster_into_the_stored_jet(reference):
    """FastJet itself on the file's constituents: one anti-kT jet, with the momentum that is stored."""
    fastjet = pytest.importorskip("fastjet")
    definition = fastjet.JetDefinition(fastjet.antikt_algorithm, pythia.RADIUS)
    with h5py.File(reference) as file:
        pt, eta, phi, energy = (file[f"fjet_clus_{name}"][:].astype(np.float64) for name in ("pt", "eta", "phi", "E"))
        jet_pt = file["fjet_pt"][:]
    for jet in range(len(pt)):
        used = pt[jet] > 0
        p, h, f, e = pt[jet, used], eta[jet, used], phi[jet, used], energy[jet, used]
        momenta = np.stack([p * np.cos(f), p * np.sin(f), p * np.sinh(h), e], axis=1)
        sequence = fastjet.ClusterSequence([fastjet.PseudoJet(*row) for row in momenta.tolist()], definition)
        leading = max(sequence.inclusive_jets(), key=lambda j: j.pt())
        assert leading.pt() == pytest.approx(jet_pt[jet], rel=2e-3)  # a soft particle at the edge may fall out


def test_number_of_processes_changes_no_byte(reference, tmp_path, small_chunks):
    out = generator.generate(8, tmp_path / "jets.h5", seed=7, jobs=2, progress=False)
    assert out.read_bytes() == reference.read_bytes()


@needs_pythia
def test_another_seed_gives_other_jets(reference, tmp_path, small_chunks):
    out = generator.generate(2, tmp_path / "jets.h5", seed=8, jobs=1, progress=False)
    with h5py.File(out) as file, h5py.File(reference) as other:
        assert not np.isin(file["fjet_pt"][:], other["fjet_pt"][:]).any()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_resumes_after(how, reference, tmp_path, small_chunks):
    out = tmp_path / "jets.h5"
    folder = tmp_path / "jets.h5.partial"
    process = start(8, out)
    wait_for_chunks(folder, 1)
    process.send_signal(how)
    error = process.communicate(timeout=30)[1]
    assert process.returncode != 0
    assert not out.exists()
    if how == signal.SIGINT:
        assert "jets are kept in" in error
        assert "rerun the same command to resume" in error
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("chunk_*.npz")}
    assert kept
    made = []
    original = generator._make_chunks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator, "_make_chunks", lambda chunks, *rest: (made.extend(chunks), original(chunks, *rest)))
        generator.generate(8, out, seed=7, jobs=1, progress=False)
    assert len(made) <= 4 - len(kept)
    assert not {chunk["path"] for chunk in made} & set(kept)
    assert out.read_bytes() == reference.read_bytes()
    assert not folder.exists()


@needs_pythia
def test_partial_folder_of_other_settings_is_refused(tmp_path):
    folder = tmp_path / "jets.h5.partial"
    folder.mkdir()
    (folder / "settings.json").write_text(json.dumps({"jets": 100, "seed": 7}))
    with pytest.raises(ConfigError, match=r"unfinished jets of other settings: jets 100 \(now 8\)") as caught:
        generator.generate(8, tmp_path / "jets.h5", seed=7)
    assert "delete the folder" in str(caught.value)


@needs_pythia
def test_damaged_chunk_is_named(tmp_path, monkeypatch):
    def torn(chunks, *rest):
        for chunk in chunks:
            chunk["path"].write_bytes(b"PK")

    monkeypatch.setattr(generator, "_make_chunks", torn)
    with pytest.raises(StudyError, match=r"chunk_000000.npz: is damaged"):
        generator.generate(2, tmp_path / "jets.h5", seed=7, progress=False)
    assert not (tmp_path / "jets.h5").exists()


def failing(**chunk):
    """Instead of pythia.write_chunk."""
    raise RuntimeError("Pythia does not initialise")


def dying(**chunk):
    """Likewise, of a worker that runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


@needs_pythia
@pytest.mark.parametrize(
    ("worker", "message"),
    [
        (failing, "a worker stopped: RuntimeError: Pythia does not initialise\n.* rerun the same command to resume"),
        (dying, "a worker process was killed or failed to start\nis there enough memory"),
    ],
)
def test_failing_workers_are_an_error(worker, message, tmp_path, monkeypatch):
    monkeypatch.setattr(pythia, "write_chunk", worker)
    with pytest.raises(BackendError, match=message):
        generator.generate(2, tmp_path / "jets.h5", seed=7, progress=False)
    assert not (tmp_path / "jets.h5").exists()


def processes_with(text):
    """Living processes whose environment has a text."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in os.fsdecode((folder / "environ").read_bytes()):
                found.append(folder.name)
    return found


@needs_pythia
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how, tmp_path):
    out = tmp_path / "jets.h5"
    process = start(2000, out)
    wait_for_chunks(tmp_path / "jets.h5.partial", 1)
    assert len(processes_with(str(out))) >= 3  # the parent and two workers
    process.send_signal(how)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while processes_with(str(out)):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.05)


@needs_pythia
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jets": 7}, "jets: must be an even number"),
        ({"jets": 0}, "jets: must be an even number"),
        ({"seed": -1}, "seed: must be a whole number"),
        ({"jobs": 0}, "jobs: must be at least 1"),
        ({"out": "there.h5"}, "there.h5: exists already"),
        ({"out": "a_file/jets.h5"}, "a_file/jets.h5.partial: can't be created"),
        ({"out": "folder.h5"}, "folder.h5.partial: is not a folder of unfinished jets"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("there.h5", "a_file"):
        (tmp_path / name).touch()
    (tmp_path / "folder.h5.partial").mkdir()
    (tmp_path / "folder.h5.partial" / "thesis.tex").touch()
    call = {"jets": 2, "out": "jets.h5", "seed": 1, **arguments}
    with pytest.raises(ConfigError, match=message):
        generator.generate(call.pop("jets"), call.pop("out"), **call)
    assert (tmp_path / "folder.h5.partial" / "thesis.tex").exists()


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pythia8mc", None)
    with pytest.raises(BackendError, match=r"pip install 'kdfast\[generate\]'"):
        generator.generate(2, tmp_path / "jets.h5", seed=1)
    assert not list(tmp_path.iterdir())


def test_mantissa_rounding():
    x = np.random.default_rng(0).normal(size=100_000).astype(np.float32) * 1e3
    rounded = pythia.round_mantissa(x)
    assert np.max(np.abs(rounded / x - 1)) <= 2.0**-14
    assert np.all(rounded.view(np.uint32) & 0x3FF == 0)
    assert np.all(np.diff(pythia.round_mantissa(np.sort(x))) >= 0)
    np.testing.assert_array_equal(pythia.round_mantissa(rounded), rounded)


@pytest.mark.parametrize(("first", "count"), [(0, 1), (0, 500), (500, 500), (123, 77)])
def test_pt_bins_follow_the_target(first, count):
    bins = pythia.pt_bins(first, count)
    assert bins.sum() == count
    integral = pythia.PT_EDGES ** (1 - pythia.PT_POWER)
    expected = count * np.diff(integral) / (integral[-1] - integral[0])
    assert np.all(np.abs(bins - expected) < 4)  # random numbers would be off by √159 ≈ 13 in the first bin
