"""The index: it saves time, it never changes an answer, and nothing that happens to it is an error."""

import builtins
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from kdfast.errors import StudyError
from kdfast.store import folders
from kdfast.store.index import Index
from kdfast.store.key import RunKey
from kdfast.store.store import StudyStore
from tests.store.test_store import PROVENANCE, SETTINGS, flip_a_bit, make_result

SEEDS = range(1, 13)


@pytest.fixture
def store(tmp_path):
    store = StudyStore.create_or_open(tmp_path / "study", SETTINGS, PROVENANCE)
    for seed in SEEDS:
        store.write(make_result(seed=seed))
    return store


@pytest.fixture
def opened(monkeypatch):
    """The files of results that are opened."""
    names = []
    opening = os.open

    def spy(path, *arguments, **more):
        if "/results/" in str(path):
            names.append(Path(path).name)
        return opening(path, *arguments, **more)

    monkeypatch.setattr(folders.os, "open", spy)
    return names


def answers(store):
    """What reading the study gives: its results, and the message of the first damaged one."""
    again = StudyStore.open(store.path)
    try:
        return [(r.key, r.metrics, r.stored, repr(r.curves)) for r in again.results()]
    except StudyError as error:
        return str(error)


def settle(store):
    """Reads until the index holds everything: files of the present tick are not yet relied on."""
    for _ in range(3):
        reader = StudyStore.open(store.path)
        reader.results()
        assert all(reader.has(RunKey("student", make_result().name, seed)) for seed in SEEDS)


def test_unchanged_results_are_neither_opened_nor_hashed_again(store, opened):
    settle(store)
    opened.clear()
    again = StudyStore.open(store.path)
    assert [r.seed for r in again.results()] == sorted(SEEDS, key=lambda seed: f"seed{seed}")
    assert all(again.has(RunKey("student", make_result().name, seed)) for seed in SEEDS)
    assert opened == []
    # what is used is checked again: arrays and weights
    np.testing.assert_array_equal(again.results()[0].arrays["scores_test"], make_result(seed=1).arrays["scores_test"])
    assert opened == ["manifest.json", "arrays.safetensors"]


def test_a_result_is_known_from_when_it_is_written(store, opened):
    answers(store)  # those that were written within one tick of the clock
    opened.clear()
    answers(store)
    assert opened == []


@pytest.mark.parametrize("file", ["manifest.json", "result.json", "arrays.safetensors", "weights.safetensors"])
def test_a_changed_file_is_hashed_again(store, file):
    settle(store)
    folder = store.path / "results" / make_result(seed=3).key.folder
    flip_a_bit(folder / file, 0.5)
    again = StudyStore.open(store.path)
    assert again.has(RunKey("student", make_result().name, 4))
    with pytest.raises(StudyError, match="seed3"):
        again.has(RunKey("student", make_result().name, 3))
    if file == "result.json":
        with pytest.raises(StudyError, match="seed3"):
            again.results()


def test_a_change_that_keeps_size_and_mtime_is_seen(store):
    settle(store)
    path = store.path / "results" / make_result(seed=3).key.folder / "weights.safetensors"
    before = path.stat()
    flip_a_bit(path, 0.9)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StudyError, match=r"weights\.safetensors does not match"):
        StudyStore.open(store.path).has(RunKey("student", make_result().name, 3))


def test_the_listing_decides_what_there_is(store):
    settle(store)
    gone, new = store.path / "results" / make_result(seed=3).key.folder, make_result(seed=99)
    shutil.rmtree(gone)
    other = StudyStore.open(store.path)
    other._index = Index(store.path.parent)  # another machine's
    other.write(new)
    keys = [key for key, *_ in answers(store)]
    assert set(keys) == {make_result(seed=seed).key for seed in (*SEEDS, 99)} - {gone.name}
    assert not StudyStore.open(store.path).has(RunKey("student", make_result().name, 3))
    assert set(Index(store.path).rows()) == set(keys)


def index_file(store):
    (path,) = (store.path / ".index").iterdir()
    return path


@pytest.mark.slow
def test_whatever_happens_to_the_file_changes_no_answer(store):
    settle(store)
    expected, path = answers(store), index_file(store)
    content = path.read_bytes()
    rng = np.random.default_rng(5)
    used = len(content)
    damages = [b"", b"x" * 5000, content[: used // 2], content[: used // 2] + bytes(used - used // 2), content[::-1]]
    for position in [*range(100), *rng.integers(0, used, 150)]:  # the head counts most
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.integers(8)
        damages.append(bytes(flipped))
    for number, damaged in enumerate(damages):
        path.write_bytes(damaged)
        assert answers(store) == expected, number
        assert all(StudyStore.open(store.path).has(RunKey("student", make_result().name, seed)) for seed in SEEDS)
    path.unlink()
    assert answers(store) == expected
    assert set(Index(store.path).rows()) == {key for key, *_ in expected}  # made anew


@pytest.mark.parametrize(
    "change",
    [
        "PRAGMA user_version = 2",
        "DROP TABLE results",
        "ALTER TABLE results ADD COLUMN more",
        "CREATE TRIGGER run AFTER INSERT ON results BEGIN DELETE FROM results; END",
        "UPDATE results SET text = replace(text, '0.3', '0.4')",
        "UPDATE results SET text = 7",
        "UPDATE results SET files = CAST(replace(CAST(files AS TEXT), '1', '2') AS BLOB)",
        "UPDATE results SET key = 'student.' || rowid",
    ],
)
def test_another_schema_or_content_is_not_believed(store, change):
    settle(store)
    expected = answers(store)
    with sqlite3.connect(index_file(store)) as connection:
        connection.execute(change)
    connection.close()
    assert answers(store) == expected
    assert Index(store.path).rows().keys() == {key for key, *_ in expected}
    assert Index(store.path).fault() is None


def test_a_locked_index_is_done_without(store, opened):
    expected = answers(store)
    connection = sqlite3.connect(index_file(store), isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    opened.clear()
    assert answers(store) == expected
    assert len(opened) == 2 * len(SEEDS)
    store.write(make_result(seed=77))
    connection.close()
    assert len(answers(store)) == len(SEEDS) + 1


def test_a_place_where_it_can_not_be(store, monkeypatch):
    expected = answers(store)
    shutil.rmtree(store.path / ".index")
    (store.path / ".index").write_text("a file")
    assert answers(store) == expected
    (store.path / ".index").unlink()
    outside = store.path.parent / "outside"
    outside.mkdir()
    (store.path / ".index").symlink_to(outside)  # a stranger's study could lead us anywhere
    assert answers(store) == expected
    assert list(outside.iterdir()) == []
    (store.path / ".index").unlink()
    monkeypatch.setenv("KDFAST_INDEX_DIR", "/proc/nowhere")
    assert answers(store) == expected


def test_a_folder_for_the_index(store, tmp_path, monkeypatch):
    shutil.rmtree(store.path / ".index")
    monkeypatch.setenv("KDFAST_INDEX_DIR", str(tmp_path / "scratch"))
    for copy in (tmp_path / "one", tmp_path / "two"):
        shutil.copytree(store.path, copy)
        StudyStore.open(copy).results()
        assert not (copy / ".index").exists()
    assert len(list((tmp_path / "scratch").glob("*.sqlite"))) == 2  # one for each study


def test_a_python_without_sqlite(store, monkeypatch):
    expected, importing = answers(store), builtins.__import__

    def without(name, *arguments, **more):
        if name == "sqlite3":
            raise ImportError(name)
        return importing(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert answers(store) == expected


def test_a_copied_index_is_not_believed(store, tmp_path, opened):
    """Inodes and times of a copy are others."""
    settle(store)
    shutil.copytree(store.path, tmp_path / "copy")
    opened.clear()
    assert len(StudyStore.open(tmp_path / "copy").results()) == len(SEEDS)
    assert len(opened) == 2 * len(SEEDS)
