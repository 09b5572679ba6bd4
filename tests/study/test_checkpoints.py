"""Checkpoints on disk: the newest intact one of the same configuration is used, what is damaged never is."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdfast.distill import cpu_engine
from kdfast.distill.checkpoint import MemberCheckpoint
from kdfast.distill.pack import MemberResult, Pack
from kdfast.distill.trainer import train_pack
from kdfast.errors import KdfastWarning, StudyError
from kdfast.models.config import PRESETS
from kdfast.store import folders
from kdfast.store.store import StoredResult, StudyStore
from kdfast.store.verify import verify
from kdfast.study.checkpoints import StudyCheckpoints, checkpoint_bytes
from tests.distill.packs import pack, students
from tests.distill.test_checkpoint import Kept, assert_same
from tests.study.small_sweep import GRID, small_sweep

HERE = {"kdfast": "1", "torch": "2", "isa": "avx2", "backend": "auto", "device": "cpu", "host": "a"}
A_PACK = pack(students(1), epochs=3)
NAME = A_PACK.members[0].name
FOLDER = f"student.{NAME}.seed5"


class Disk:
    """A study's folder of checkpoints, and what is said and warned about it."""

    def __init__(self, study: Path) -> None:
        self.study, self.said = study, list[str]()

    def open(self, a_pack: Pack = A_PACK, environment: dict[str, str] = HERE, decisive: str = "x") -> StudyCheckpoints:
        return StudyCheckpoints(
            self.study,
            a_pack,
            {NAME: FOLDER},
            decisive={"hlt": decisive},
            environment=environment,
            interval=0.0,
            say=self.said.append,
        )

    @property
    def steps(self) -> list[str]:
        return [folder.name for folder in folders.committed(self.study / "checkpoints" / FOLDER)]


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def trained() -> tuple[MemberResult, list[MemberCheckpoint]]:
    """The member, uninterrupted, and its checkpoints after steps 1 to 8."""
    every = Kept(interval=0.0)
    (result,) = train_pack(A_PACK, checkpoints=every)
    return result, every.saved[NAME]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_what_is_saved_comes_back_and_the_member_ends_in_the_same_bits(disk, trained):
    expected, saved = trained
    for checkpoint in (saved[1], saved[5], saved[5]):
        disk.open().save(NAME, checkpoint)
    assert disk.steps == ["000000006"]
    found = disk.open().load(NAME)
    assert found is not None
    for name in ("step", "curves", "best_epoch", "best_auc", "seconds"):
        assert getattr(found, name) == getattr(saved[5], name), name
    for group in ("learner", "best_state"):
        there, here = getattr(found, group), getattr(saved[5], group)
        assert there.keys() == here.keys()
        assert all(torch.equal(tensor, there[name]) for name, tensor in here.items())
    (result,) = train_pack(A_PACK, checkpoints=disk.open())
    assert_same(result, expected)
    assert disk.said[-1] == f"{NAME} resumes in epoch 3 of 3, after step 6"
    assert disk.steps == ["000000008"]


def test_curves_of_any_numbers_come_back(disk, trained):
    odd = replace(trained[1][4], curves={"loss": [0.1 + 0.2, float("inf")], "auc_val": [1 / 3, 0.5]})
    disk.open().save(NAME, odd)
    found = disk.open().load(NAME)
    assert found is not None
    assert found.curves == odd.curves


def test_another_process_was_first_at_a_step(disk, trained):
    """It has taken the member over: what it saved stays, and is no reason to warn."""
    disk.open().save(NAME, trained[1][3])
    (folder,) = (disk.study / "checkpoints" / FOLDER).iterdir()
    before = folder.stat().st_ino
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        disk.open().save(NAME, trained[1][3])
    assert folder.stat().st_ino == before


@pytest.mark.parametrize("file", ["checkpoint.json", "tensors.safetensors", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_one_is_not_used_but_an_older_one(disk, trained, file, damage):
    checkpoints = disk.open()
    checkpoints.save(NAME, trained[1][3])
    older = disk.study / "checkpoints" / FOLDER / "000000004"
    shutil.copytree(older, disk.study / "kept")
    checkpoints.save(NAME, trained[1][6])
    shutil.move(disk.study / "kept", older)  # as a kill before its removal leaves it
    path = disk.study / "checkpoints" / FOLDER / "000000007" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] if damage == "cut" else content[:middle] + b"#" + content[middle + 1 :])
    checkpoints = disk.open()
    with pytest.warns(KdfastWarning, match=r"000000007.*this checkpoint is not used"):
        found = checkpoints.load(NAME)
    assert found is not None
    assert found.step == 4
    (result,) = train_pack(A_PACK, checkpoints=Kept(saved={NAME: [found]}))
    assert_same(result, trained[0])
    checkpoints.save(NAME, trained[1][6])  # takes the damaged one's place
    assert disk.steps == ["000000007"]
    assert disk.open().load(NAME) is not None


def test_all_damaged_begins_anew(disk, trained):
    disk.open().save(NAME, trained[1][3])
    (disk.study / "checkpoints" / FOLDER / "000000004" / "checkpoint.json").write_text("{}")
    with pytest.warns(KdfastWarning, match="not used"):
        assert disk.open().load(NAME) is None


def test_half_written_ones_are_not_seen_and_go(disk, trained):
    parent = disk.study / "checkpoints" / FOLDER
    disk.open().save(NAME, trained[1][3])
    gone = "from pathlib import Path; from kdfast.process import *; print(temporary_name(Path('000000009')), end='')"
    name = subprocess.run([sys.executable, "-c", gone], capture_output=True, text=True, check=True).stdout
    for half_written in (name, ".000000009.123.abcd.tmp"):  # of a process that is gone, and of who knows whom
        shutil.copytree(parent / "000000004", parent / half_written)
        (parent / half_written / "manifest.json").unlink()
    found = disk.open().load(NAME)
    assert found is not None
    assert found.step == 4
    assert {path.name for path in parent.iterdir()} == {"000000004", ".000000009.123.abcd.tmp"}


def test_one_that_is_being_removed_is_no_fault(disk, trained, monkeypatch):
    """`kdfast verify` may look between two of its files; so may a kill come there."""
    genuine, removed = shutil.rmtree, list[str]()

    def one_by_one(path, **options):
        for file in sorted(file for file in Path(path).rglob("*") if file.is_file()):
            file.unlink()
            removed.append(file.name)
            assert verify(disk.study).findings == ()
        genuine(path, **options)

    store = StudyStore.create_or_open(disk.study, {}, {})
    checkpoints = disk.open()
    for folder in (disk.study / "checkpoints" / FOLDER / "000000002", disk.study / "results"):
        folder.mkdir(parents=True, exist_ok=True)  # the first is unusable
    with pytest.warns(KdfastWarning, match=r"manifest\.json is missing; this checkpoint is not used"):
        assert checkpoints.load(NAME) is None
    monkeypatch.setattr(shutil, "rmtree", one_by_one)
    for checkpoint in trained[1][1:3]:
        checkpoints.save(NAME, checkpoint)
    assert disk.steps == ["000000003"]
    store.write(StoredResult("student", NAME, 5, A_PACK.members[0].config))
    assert list((disk.study / "checkpoints").iterdir()) == []
    assert removed == 2 * ["checkpoint.json", "manifest.json", "tensors.safetensors"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"decisive": "y"}, "settings"),
        ({"a_pack": replace(A_PACK, recipe=A_PACK.recipe.model_copy(update={"epochs": 4}))}, "recipe.epochs"),
        ({"a_pack": replace(A_PACK, precision="bf16")}, "precision"),
        ({"a_pack": replace(A_PACK, seed=6)}, "seed"),
        ({"a_pack": replace(A_PACK, model=A_PACK.model.model_copy(update={"ffn": 32}))}, "model.ffn"),
        ({"a_pack": replace(A_PACK, targets=replace(A_PACK.targets, logits=A_PACK.targets.logits + 1))}, "targets"),
        ({"a_pack": replace(A_PACK, members=(replace(A_PACK.members[0], config=None),))}, "config"),
    ],
)
def test_one_of_another_configuration_is_ignored(disk, trained, change, named):
    disk.open().save(NAME, trained[1][3])
    other = disk.open(**change)
    with pytest.warns(KdfastWarning, match=rf"of another configuration \({named}\)"):
        assert other.load(NAME) is None
    other.save(NAME, trained[1][1])  # of an earlier step: the foreign one goes all the same
    assert disk.steps == ["000000002"]


def test_a_process_that_has_lost_the_member_removes_no_further_checkpoint(disk, trained):
    late, taken_over = disk.open(), disk.open()
    late.save(NAME, trained[1][0])
    taken_over.load(NAME)
    taken_over.save(NAME, trained[1][6])
    late.save(NAME, trained[1][3])
    assert disk.steps == ["000000004", "000000007"]
    taken_over.save(NAME, trained[1][7])
    assert disk.steps == ["000000008"]


def test_one_of_another_environment_is_used_and_said(disk, trained):
    first, second, third = HERE, HERE | {"isa": "avx512", "host": "b"}, HERE | {"torch": "3", "host": "c"}
    disk.open(environment=first).save(NAME, trained[1][1])
    elsewhere = disk.open(environment=second)
    message = r"begun in another environment \(isa avx2 → avx512\); last bits may differ"
    with pytest.warns(KdfastWarning, match=message):
        assert elsewhere.load(NAME) is not None
    assert elsewhere.resumed_from(NAME) == (first,)
    elsewhere.save(NAME, trained[1][2])
    last = disk.open(environment=third)
    with pytest.warns(KdfastWarning) as warned:
        assert last.load(NAME) is not None
    assert ["isa avx512 → avx2" in str(warning.message) for warning in warned] == [False, True]
    assert ["torch 2 → 3" in str(warning.message) for warning in warned] == [True, True]
    assert last.resumed_from(NAME) == (first, second)
    last.save(NAME, trained[1][3])
    other_host = disk.open(environment=third | {"host": "d"})  # decides no bit
    with pytest.warns(KdfastWarning):
        assert other_host.load(NAME) is not None
    assert other_host.resumed_from(NAME) == (first, second)


def test_one_that_can_not_be_written_warns_once_and_training_goes_on(disk, trained, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.warns(KdfastWarning, match="No space left on device; training continues without") as warned:
        (result,) = train_pack(A_PACK, checkpoints=disk.open())
    assert len(warned) == 1
    assert_same(result, trained[0])
    assert disk.steps == []


def test_the_bytes_of_a_checkpoint_are_known_before(disk, trained, capsys):
    disk.open().save(NAME, trained[1][7])
    folder = disk.study / "checkpoints" / FOLDER / "000000008"
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert checkpoint_bytes(A_PACK.model) <= size < checkpoint_bytes(A_PACK.model) + 3_000  # curves, settings, manifest
    assert 4 * 4 * 1_299_329 < checkpoint_bytes(PRESETS["study"]) < 1.01 * 4 * 4 * 1_299_329


def test_what_a_checkpoint_costs(tmp_path, capsys):
    """Prints milliseconds and milliseconds per MB for the study's model; a checkpoint each 300 s may take 1 % of it."""
    a_pack = replace(A_PACK, model=PRESETS["study"])
    learner = cpu_engine._Learner(a_pack, a_pack.members[0])
    checkpoints = Disk(tmp_path).open(a_pack)
    at = MemberCheckpoint(learner=learner.tensors(), best_state=learner.state())
    times = []
    for step in range(1, 8):
        at.step = step
        began = time.perf_counter()
        checkpoints.save(NAME, at)
        times.append(time.perf_counter() - began)
    milliseconds, megabytes = 1e3 * sorted(times)[3], checkpoint_bytes(a_pack.model) / 1e6
    with capsys.disabled():
        print(f"\na checkpoint of {megabytes:.1f} MB: {milliseconds:.0f} ms, {milliseconds / megabytes:.1f} ms/MB")
    assert milliseconds < 3_000


# ---- in a sweep


def test_with_a_result_its_checkpoints_go_and_its_environment_stays(tmp_path):
    out = tmp_path / "study"
    small_sweep(out, checkpoint_every=0.0, grid=GRID[:1])
    store = StudyStore.open(out)
    assert list((out / "checkpoints").iterdir()) == []
    for result in store.results():
        assert set(result.environment) == set(HERE)
        assert result.resumed_from == ()
    # stored and then killed: its checkpoints go when the study is opened for writing
    (out / "checkpoints" / result.key.folder / "000000001").mkdir(parents=True)
    small_sweep(out, grid=GRID[:1])
    assert list((out / "checkpoints").iterdir()) == []


def test_results_of_older_studies_open(swept, tmp_path):
    out = shutil.copytree(swept.path, tmp_path / "study")
    folder = next((out / "results").glob("student.*"))
    document = json.loads((folder / "result.json").read_bytes())
    assert document.pop("environment")["torch"] == torch.__version__
    assert document.pop("resumed_from") == []
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    shutil.rmtree(folder)
    folders.commit(folder, files | {"result.json": folders.json_bytes(document)})
    (result,) = (result for result in StudyStore.open(out).results() if result.key.folder == folder.name)
    assert (result.environment, result.resumed_from) == (None, ())


def test_a_result_that_can_not_be_written_is_the_usual_error_and_its_checkpoint_stays(tmp_path, monkeypatch):
    out, genuine = tmp_path / "study", folders.commit

    def commit(folder: Path, files: dict[str, bytes]) -> dict[str, str]:
        if folder.name.startswith("student."):
            raise StudyError("can't be written: No space left on device", where=str(folder))
        return genuine(folder, files)

    monkeypatch.setattr(folders, "commit", commit)
    with pytest.raises(StudyError, match="No space left on device"):
        small_sweep(out, checkpoint_every=0.0, threads=1)
    assert list((out / "checkpoints").glob("student.*/0*"))
    monkeypatch.undo()
    assert (small_sweep(out).results["status"] == "done").all()
