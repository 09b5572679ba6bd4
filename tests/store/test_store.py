"""The store: what is written comes back, whole or not at all; damage and killed writers are found."""

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdfast.errors import StudyError
from kdfast.files import write_content
from kdfast.jets.features import Standardisation
from kdfast.models import JetTransformer, ModelConfig, Preparation, Tagger, load_model, tagger_card
from kdfast.store import store as store_module
from kdfast.store.documents import FORMAT
from kdfast.store.key import RunKey
from kdfast.store.locks import is_held
from kdfast.store.store import StudyStore, _create
from kdfast.store.verify import repair, verify
from tests.store.studies import FILES_OF_A_RESULT, PROVENANCE, SETTINGS, environment, flip_a_bit, make_result


@pytest.fixture
def store(tmp_path):
    return StudyStore.create_or_open(tmp_path / "a" / "study", SETTINGS, PROVENANCE)


def test_what_is_written_comes_back_bit_for_bit(store):
    original = make_result()
    folder = store.write(original)
    assert folder == store.path / "results" / "student.combined_T3.0to1.0_A0.9to0.1.seed42"
    again = StudyStore.open(store.path)
    assert (again.settings, again.provenance) == (SETTINGS, PROVENANCE)
    (result,) = again.results()
    for name in ("kind", "name", "seed", "config", "status", "message", "metrics", "card"):
        assert getattr(result, name) == getattr(original, name), name
    for name, values in original.curves.items():
        np.testing.assert_array_equal(result.curves[name], values)
    for name, values in original.arrays.items():
        assert result.arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(result.arrays[name], values)
    assert set(result.state) == set(original.state)
    for name, tensor in original.state.items():
        assert torch.equal(result.state[name], tensor)
    assert again.has(RunKey("student", original.name, 42))
    assert not again.has(RunKey("student", original.name, 43))
    assert not again.has(RunKey("baseline", original.name, 42))
    assert verify(store.path).findings == ()


def test_the_same_result_gives_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        folder = StudyStore.create_or_open(tmp_path / name, SETTINGS, PROVENANCE).write(
            replace(make_result(), stored="2026-03-01T12:00:00.000+00:00")
        )
        contents.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert contents[0] == contents[1]


def test_results_are_sorted_and_complete(store):
    for seed in (43, 42):
        store.write(make_result(seed=seed))
        store.write(replace(make_result("teacher", seed), kind="teacher", config=None, card=None))
    expected = [("student", 42), ("student", 43), ("teacher", 42), ("teacher", 43)]
    assert [(result.kind, result.seed) for result in store.results()] == expected
    assert store.get(RunKey.teacher(43)).config is None
    with pytest.raises(StudyError, match="there is no teacher 'teacher' with seed 7"):
        store.get(RunKey.teacher(7))


def test_a_result_never_changes(store):
    folder = store.write(make_result())
    before = (folder / "result.json").read_bytes()
    with pytest.raises(StudyError, match="is stored already"):
        store.write(replace(make_result(), message="other"))
    assert (folder / "result.json").read_bytes() == before
    assert list((store.path / "results").iterdir()) == [folder]


def test_opening_again_keeps_the_stored_settings(store):
    store.write(make_result())
    again = StudyStore.create_or_open(store.path, {"data": "other"}, {"kdfast": "9"})
    assert (again.settings, again.provenance) == (SETTINGS, PROVENANCE)
    assert again.has(RunKey("student", make_result().name, 42))


def test_shared_arrays(store):
    arrays = {"labels": np.array([0, 1]), "weights": np.ones(2, np.float32), "index": np.array([7, 9])}
    store.write_shared("test", arrays)
    store.write_shared("test", arrays)  # a resumed run writes it again
    with pytest.raises(StudyError, match="holds other jets for test"):
        store.write_shared("test", {**arrays, "index": np.array([7, 8])})
    read = StudyStore.open(store.path).shared("test")
    for name, values in arrays.items():
        np.testing.assert_array_equal(read[name], values)
    with pytest.raises(StudyError, match="there are no shared arrays 'validation'"):
        store.shared("validation")


def test_the_weights_are_a_model_file(store, tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=1, heads=2, ffn=16)
    standardisation = Standardisation(torch.zeros(7), torch.ones(7))
    preparation = Preparation("hlt", "nominal", 3, 40, standardisation)
    tagger = Tagger(JetTransformer(config), preparation)
    card = tagger_card(config, preparation)
    store.write(replace(make_result(), state=tagger.model.state_dict(), card=card))
    (result,) = StudyStore.open(store.path).results()
    (tmp_path / "model.safetensors").write_bytes(store.model_file(result))
    read = load_model(tmp_path / "model.safetensors")
    assert tagger_card(read.model.config, read.preparation) == card == result.card
    for name, tensor in tagger.model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor)


# ---- folders that are no study


def test_open_says_what_is_wrong(tmp_path):
    with pytest.raises(StudyError, match=r"nowhere: does not exist\ngive the folder that `kdfast sweep --out` wrote"):
        StudyStore.open(tmp_path / "nowhere")
    with pytest.raises(StudyError, match=r"holds no study\ngive the folder"):
        StudyStore.open(tmp_path)
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(StudyError, match=r"is not a study and is not empty\ngive a new or an empty folder"):
        StudyStore.create_or_open(tmp_path, SETTINGS, PROVENANCE)
    with pytest.raises(StudyError, match="is not a study"):
        StudyStore.create_or_open(tmp_path / "thesis.tex", SETTINGS, PROVENANCE)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_killed_creation_is_completed(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / ".study.toml.123.tmp").write_bytes(b"hal")
    store = StudyStore.create_or_open(tmp_path, SETTINGS, PROVENANCE)
    assert store.settings == SETTINGS


def test_two_that_create_one_study(tmp_path, monkeypatch):
    """The second one waits or is refused, and never mixes its description with the first one's."""
    path, others = tmp_path / "study", []

    def write(file, content):
        write_content(file, content)
        if file.name == "study.toml":
            with pytest.raises(StudyError, match="another process is working on this study"):
                StudyStore.create_or_open(path, {"seeds": [7]}, PROVENANCE)
            others.append(file)

    monkeypatch.setattr(store_module, "write_content", write)
    assert StudyStore.create_or_open(path, SETTINGS, PROVENANCE).settings == SETTINGS
    assert others
    _create(path, {"seeds": [7]}, PROVENANCE)  # by one that had looked before the study was there
    assert StudyStore.open(path).settings == SETTINGS


@pytest.mark.parametrize("file", ["provenance.json", "study.toml"])
def test_broken_description(store, file):
    (store.path / file).write_text("{ not = [ readable")
    with pytest.raises(StudyError, match=rf"{file}: can't be read \("):
        StudyStore.open(store.path)


def test_a_newer_format_is_refused(store):
    folder = store.write(make_result())
    message = rf"was written by a newer kdfast \(format {FORMAT + 1}; this one reads up to {FORMAT}\)\nupgrade kdfast"
    for path in (folder / "manifest.json", store.path / "provenance.json"):
        document = json.loads(path.read_bytes())
        path.write_text(json.dumps({**document, "format": FORMAT + 1}))
    with pytest.raises(StudyError, match=message):
        store.results()
    with pytest.raises(StudyError, match=message):
        StudyStore.open(store.path)
    with pytest.raises(StudyError, match=message):
        StudyStore.create_or_open(store.path, SETTINGS, PROVENANCE)


# ---- damage


@pytest.mark.parametrize("at", [0.0, 0.3, 0.99])
@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("result.json", lambda result: result.metrics),
        ("arrays.safetensors", lambda result: result.arrays["scores_test"]),
        ("weights.safetensors", lambda result: dict(result.state)),
        ("manifest.json", lambda result: dict(result.state)),
    ],
)
def test_a_flipped_bit_is_found_on_use(store, file, use, at):
    healthy = store.write(make_result(seed=1))
    folder = store.write(make_result())
    flip_a_bit(folder / file, at)
    store = StudyStore.open(store.path)
    with pytest.raises(StudyError, match=r"student\.combined_.*seed42.*\n") as caught:
        use(store.get(RunKey("student", make_result().name, 42)))
    assert "is damaged" in str(caught.value) or "manifest.json" in str(caught.value)
    with pytest.raises(StudyError):
        store.has(RunKey("student", make_result().name, 42))
    assert {finding.unit for finding in verify(store.path).findings} == {str(folder.relative_to(store.path))}
    use(store.get(RunKey("student", make_result().name, 1)))
    # the hint is right: without the folder the rest is as it was
    shutil.rmtree(folder)
    assert not store.has(RunKey("student", make_result().name, 42))
    assert [r.key.folder for r in store.results()] == [healthy.name]


def test_every_byte_of_the_manifest_counts(store):
    folder = store.write(make_result())
    path = folder / "manifest.json"
    content = path.read_bytes()
    unnoticed = []
    for position in range(len(content)):
        for bit in (0, 2, 5):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            path.write_bytes(bytes(changed))
            try:
                result = StudyStore.open(store.path).get(RunKey("student", make_result().name, 42))
                dict(result.state), dict(result.arrays)
                unnoticed.append(bytes(changed))
            except StudyError:
                pass
    # a change that nobody notices changes nothing that is read: white space, and an older format's number
    expected = json.loads(content)["files"]
    for changed in unnoticed:
        assert json.loads(changed)["files"] == expected


@pytest.mark.parametrize("file", FILES_OF_A_RESULT)
def test_a_missing_file_is_found(store, file):
    folder = store.write(make_result())
    (folder / file).unlink()
    store = StudyStore.open(store.path)
    (finding,) = verify(store.path).findings
    assert finding.path == f"results/{folder.name}/{file}"
    assert finding.what.endswith("is missing")
    with pytest.raises(StudyError, match=f"{file} is missing\n`kdfast verify --repair` moves it aside"):
        store.has(RunKey("student", make_result().name, 42))


def test_a_swapped_folder_is_found(store):
    folder = store.write(make_result())
    shutil.copytree(folder, folder.with_name(folder.name.replace("seed42", "seed43")))
    with pytest.raises(StudyError, match=r"seed43: is damaged: result\.json has .* \(it holds student\..*seed42\)"):
        store.results()


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "é", "x" * 201])
def test_names_that_are_no_file_names(store, name):
    with pytest.raises(StudyError, match="can't name a result"):
        store.write(make_result(name))


def test_unknown_kind(store):
    with pytest.raises(StudyError, match=r"unknown kind of result 'studnet'\ndid you mean 'student'\?"):
        store.has(RunKey("studnet", "x", 1))


# ---- writers that die, and disks that fill

WRITER = """
    import sys
    from tests.store.studies import make_result
    from kdfast.store.store import StudyStore
    store = StudyStore.open(sys.argv[1])
    results = [make_result(seed=seed, jets=20_000) for seed in range(1000, 1200)]
    print("writing", flush=True)
    for result in results:
        store.write(result)
        print(result.seed, flush=True)
"""


PAUSE = """
    import os, time
    def pause(*_):
        print("paused", flush=True)
        time.sleep(600)
    os.CALL = pause
"""


def start_writer(store, *, pause_before=None):
    """A process that writes result after result; with pause_before it stops for good at that call of os.*."""
    code = textwrap.dedent(WRITER)
    if pause_before:
        code = textwrap.dedent(PAUSE).replace("CALL", pause_before) + code
    run = [sys.executable, "-c", code, str(store.path)]
    return subprocess.Popen(run, stdout=subprocess.PIPE, text=True, env=environment())


@pytest.mark.slow
@pytest.mark.parametrize("pause_before", ["fsync", "rename"])
def test_killed_in_mid_write(store, pause_before):
    store.write(make_result())
    writer = start_writer(store, pause_before=pause_before)
    assert [writer.stdout.readline().strip() for _ in range(2)] == ["writing", "paused"]
    results = store.path / "results"
    assert len(list(results.glob(".*.tmp"))) == 1
    # while the writer lives, its folder is left alone; readers don't see it
    assert len(StudyStore.create_or_open(store.path, SETTINGS, PROVENANCE).results()) == 1
    assert len(list(results.glob(".*.tmp"))) == 1
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(StudyStore.open(store.path).results()) == 1
    assert not store.has(RunKey("student", make_result().name, 1000))
    again = StudyStore.create_or_open(store.path, SETTINGS, PROVENANCE)
    assert list(results.glob(".*")) == []
    again.write(make_result(seed=1000))
    assert len(again.results()) == 2


@pytest.mark.slow
def test_killed_at_any_moment_loses_nothing_reported(store):
    """What the writer reported as written is there and intact, and nothing else is half there."""
    for repetition in range(3):
        writer = start_writer(store)
        assert writer.stdout.readline() == "writing\n"
        time.sleep(0.02 + 0.03 * repetition)
        writer.send_signal(signal.SIGKILL)
        reported = [int(line) for line in writer.communicate()[0].split()]
        again = StudyStore.create_or_open(store.path, SETTINGS, PROVENANCE)
        assert verify(store.path).findings == ()
        stored = {result.seed for result in again.results()}
        assert set(reported) <= stored
        assert len(stored) <= len(reported) + 1
        assert list((store.path / "results").glob(".*")) == []
        for folder in (store.path / "results").iterdir():
            shutil.rmtree(folder)


def test_one_writing_process(store):
    with store.writing():
        code = (
            "import sys\nfrom kdfast.store.store import StudyStore\nwith StudyStore.open(sys.argv[1]).writing(): pass"
        )
        run = [sys.executable, "-c", code, str(store.path)]
        second = subprocess.run(run, capture_output=True, text=True, env=environment())
        assert second.returncode == 1
        assert f"{store.path}: another process is working on this study" in second.stderr
    assert subprocess.run(run, env=environment()).returncode == 0


def flock_of_nfs(descriptor, how):
    """Linux turns a flock of NFS into a lock of the file's bytes (flock(2)): an exclusive one needs a file that is
    open for writing, a shared one a file that is open for reading."""
    if not how & fcntl.LOCK_UN:
        mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if how & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return flock(descriptor, how)


flock = fcntl.flock


def test_one_writing_process_on_nfs(store, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    other = StudyStore.open(store.path)
    assert not is_held(store.path)
    with store.writing():
        assert is_held(other.path)
        with pytest.raises(StudyError, match="another process is working on this study"), other.writing():
            pass
        with pytest.raises(StudyError, match="a sweep is working on this study"):
            repair(store.path)
    assert not is_held(store.path)
    with other.writing():
        pass


def test_a_folder_that_becomes_no_study_gets_no_file(tmp_path):
    (tmp_path / "mine").write_text("")
    for use in (lambda p: StudyStore.create_or_open(p, SETTINGS, PROVENANCE), repair, verify, StudyStore.open):
        with pytest.raises(StudyError):
            use(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_lock_that_is_a_link_is_refused(store, tmp_path):
    (store.path / ".lock").unlink()
    (store.path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match=r"\.lock: is a symbolic link"), store.writing():
        pass
    assert not (tmp_path / "elsewhere").exists()


def is_unchanged_and_writable_again(store, folder):
    assert list((store.path / "results").iterdir()) == [folder]  # no leftover either
    assert verify(store.path).findings == ()
    assert not store.has(RunKey("student", make_result().name, 43))


def test_full_disk_by_file_size_limit(store):
    folder = store.write(make_result())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StudyError, match=r"seed43: can't be written: .*\nmake room and run the same command again"):
            store.write(make_result(seed=43, jets=20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    is_unchanged_and_writable_again(store, folder)
    store.write(make_result(seed=43))


def test_unwritable_folder(store, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StudyError, match=r"can't be written: Not a directory\ngive a place that may be written"):
        StudyStore.create_or_open(file / "study", SETTINGS, PROVENANCE)
    with pytest.raises(StudyError, match="/proc/kdfast: can't be written"):
        StudyStore.create_or_open("/proc/kdfast", SETTINGS, PROVENANCE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_study_can_be_read(store):
    store.write(make_result())
    (store.path / "results").chmod(0o555)
    store.path.chmod(0o555)
    try:
        assert len(StudyStore.open(store.path).results()) == 1
        with pytest.raises(StudyError, match="can't be written: Permission denied"):
            store.write(make_result(seed=43))
    finally:
        store.path.chmod(0o755)
        (store.path / "results").chmod(0o755)
