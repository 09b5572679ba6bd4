"""Full disks, places that can't be written, untrusted studies: errors that say what, and nothing lost."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kdfast
from kdfast.cli import main
from kdfast.errors import KdfastError, StudyError
from kdfast.store.attempts import Attempt
from kdfast.store.claims import Claims
from kdfast.store.folders import commit, json_bytes
from kdfast.store.key import RunKey
from kdfast.store.status import study_status
from kdfast.store.store import StudyStore
from kdfast.store.verify import repair, verify
from kdfast.study.results import open_study
from tests.report.fake_study import SMALL_GRID, make_study
from tests.store.studies import (
    CLAIM,
    FILES_OF_A_RESULT,
    PROVENANCE,
    SETTINGS,
    environment,
    flip_a_bit,
    make_result,
    mounted,
    wait_until,
)
from tests.study.small_sweep import small_sweep


@pytest.fixture
def small_disk(tmp_path):
    with mounted("-t", "tmpfs", "-o", "size=400k", "tmpfs", where=tmp_path / "disk") as disk:
        yield disk


def fill(disk):
    """Takes the disk's last byte, until the file it returns is deleted."""
    path = disk / "filler"
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(512))
    return path


# ---- full disks


def test_a_full_disk_is_read_verified_and_named(small_disk):
    store = StudyStore.create_or_open(small_disk / "study", {"seeds": [42]}, PROVENANCE)
    folder = store.write(make_result())
    filler = fill(small_disk)
    arrays = {"labels": np.zeros(5000), "weights": np.ones(5000), "index": np.arange(5000)}
    for write in (
        lambda: store.write_shared("test", arrays),
        lambda: store.write(make_result(seed=43)),
        lambda: store.write_attempt(Attempt("seed1.000", "lost")),
    ):
        with pytest.raises(StudyError, match="can't be written: No space left on device\nmake room and run the same"):
            write()
    assert list((store.path / "results").iterdir()) == [folder]
    assert not store.has(RunKey("student", make_result().name, 43))
    again = StudyStore.open(store.path)
    assert [r.key.folder for r in again.results()] == [folder.name]
    assert again.has(RunKey("student", make_result().name, 42))
    assert study_status(again).counts["done"] == 1
    assert verify(store.path).intact  # no leftovers either
    flip_a_bit(folder / "weights.safetensors", 0.9)
    with pytest.raises(StudyError, match="can't be written: No space left on device"):
        repair(store.path)
    assert folder.exists()  # still in its place, and still known to be damaged
    assert not verify(store.path).intact
    filler.unlink()
    assert repair(store.path)[1] == [f"results/{folder.name}: moved to damaged/results.{folder.name}.1"]
    assert verify(store.path).intact
    store.write_shared("test", arrays)
    for seed in (42, 43):
        StudyStore.open(store.path).write(make_result(seed=seed))
    assert verify(store.path).intact


def test_a_disk_that_fills_during_a_sweep_leaves_a_study_without_fault(small_disk):
    """With the whole program: what is there verifies and is kept, and with room the same sweep ends."""
    subprocess.run(["mount", "-o", "remount,size=280k", str(small_disk)], check=True)
    with pytest.raises(StudyError, match=r"can't be written: No space left on device\nmake room"):
        small_sweep(small_disk / "study")
    assert verify(small_disk / "study").findings == ()
    stored = metrics_of(small_disk / "study")
    assert 0 < len(stored) < 6
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    results = small_sweep(small_disk / "study")
    assert (results.results["status"] == "done").all()
    assert results.verify().intact
    assert stored.items() <= metrics_of(small_disk / "study").items()


def metrics_of(study):
    return {result.key: result.metrics for result in StudyStore.open(study).results()}


# ---- places that may not be written


def test_a_read_only_file_system(tmp_path):
    """Everything that reads works; what writes says so."""
    make_study(tmp_path / "study", list(SMALL_GRID)[:1])
    with mounted("--bind", str(tmp_path / "study"), where=tmp_path / "seen") as seen:
        if subprocess.run(["mount", "-o", "remount,bind,ro", str(seen)], capture_output=True, check=False).returncode:
            pytest.skip("needs the right to remount")
        reads_and_refuses_to_write(seen, tmp_path, "Read-only file system")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folders_without_the_right_to_write(tmp_path):
    make_study(tmp_path / "study", list(SMALL_GRID)[:1])
    parents = [tmp_path / "study", *(p for p in (tmp_path / "study").iterdir() if p.is_dir())]
    for parent in parents:
        parent.chmod(0o555)
    try:
        reads_and_refuses_to_write(tmp_path / "study", tmp_path, "Permission denied")
    finally:
        for parent in parents:
            parent.chmod(0o755)


def reads_and_refuses_to_write(study, tmp_path, reason):
    store = StudyStore.open(study)
    assert len(store.results()) == 3
    assert store.has(RunKey.teacher(42))
    assert study_status(store).counts["done"] == 3
    assert main(["status", str(study), "--quiet"]) == 1
    assert main(["verify", str(study), "--quiet"]) == 0
    assert (open_study(study).report(tmp_path / "report")["report.json"]).exists()
    for write in (
        lambda: store.write(make_result(seed=43)),
        lambda: store.write_attempt(Attempt("seed1.000", "lost")),
        lambda: open_study(study).report(),
    ):
        with pytest.raises(StudyError, match=f"can't be written: {reason}\ngive a place that may be written"):
            write()


def as_nobody():
    """The start of a command line that gives up root's rights, or nothing where we have none."""
    if os.geteuid() != 0:
        return []
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("root may write everywhere, and there is no setpriv")
    return [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.mark.slow
def test_permission_lost_half_way():
    """With the real program: a sweep that loses the right to write keeps what it has stored and says why."""
    place = Path(tempfile.mkdtemp(prefix="kdfast"))  # below pytest's folder others may not look
    try:
        place.chmod(0o777)
        study = place / "study"
        run = [*as_nobody(), sys.executable, "-m", "tests.study.small_sweep", str(study), "40"]
        quiet = environment() | {"HOME": str(place), "MPLCONFIGDIR": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
        sweep = subprocess.Popen(run, env=quiet, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: list(study.glob("results/baseline.*")) or sweep.poll() is not None)
        (study / "results").chmod(0o555)
        error = sweep.communicate(timeout=120)[1]
        assert sweep.returncode == 2, error
        assert re.search(r"/results/student\..*: can't be written: Permission denied", error)
        stored = metrics_of(study)
        assert 2 <= len(stored) < 6
        assert verify(study).findings == ()
        (study / "results").chmod(0o755)
        subprocess.run(run, env=quiet, check=True, capture_output=True)
        again = metrics_of(study)
        assert len(again) == 6
        assert stored.items() <= again.items()
    finally:
        shutil.rmtree(place)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        store = make_study(tmp_path / "study", list(SMALL_GRID)[:1])
        store.write_attempt(Attempt("seed1.000", "lost"))
        open_study(store.path).report()
        open_study(store.path).status()
    finally:
        os.umask(before)
    modes = {(p.is_dir(), p.stat().st_mode & 0o777) for p in store.path.rglob("*")}
    assert modes == {(True, 0o750), (False, 0o640)}


# ---- strangers' studies


@pytest.fixture
def stranger(tmp_path):
    store = StudyStore.create_or_open(tmp_path / "study", SETTINGS, PROVENANCE)
    store.write(make_result())
    (tmp_path / "secret").write_text("of another")
    return store.path


def first_result(study):
    return next((study / "results").iterdir())


@pytest.mark.parametrize("name", ["../../../secret", "/etc/passwd", "a/b", "..", ".", "", "manifest.json", "x\0y"])
def test_names_that_leave_the_folder(stranger, name):
    folder = first_result(stranger)
    (folder / "manifest.json").write_bytes(json_bytes({"format": 1, "files": {name: "0" * 64}}))
    for use in (lambda s: s.results(), lambda s: s.has(RunKey("student", make_result().name, 42))):
        with pytest.raises(StudyError, match=r"manifest\.json has .*it lists .*, which is not a file of this folder"):
            use(StudyStore.open(stranger))
    assert "which is not a file of this folder" in verify(stranger).findings[0].what


@pytest.mark.parametrize("file", FILES_OF_A_RESULT)
def test_a_linked_file_is_refused(stranger, tmp_path, file):
    """Even if what it points to is right."""
    path = first_result(stranger) / file
    shutil.move(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(StudyError, match=f"{re.escape(str(path))}: is a symbolic link .a study holds none"):
        StudyStore.open(stranger).has(RunKey("student", make_result().name, 42))
    assert [f.path for f in verify(stranger).findings] == [str(path.relative_to(stranger))]


PARTS = ["results", "shared", "targets", "attempts", "packs", "inputs", "checkpoints", "claims", "damaged"]


@pytest.mark.parametrize("name", [*PARTS, "study.toml", "provenance.json", "manifest.json"])
def test_a_linked_part_of_a_study_is_refused(stranger, tmp_path, name):
    if (stranger / name).exists():
        shutil.move(stranger / name, tmp_path / "outside")
    else:
        (tmp_path / "outside").mkdir()
    (stranger / name).symlink_to(tmp_path / "outside")
    with pytest.raises(StudyError, match=f"study/{re.escape(name)}: is a symbolic link"):
        StudyStore.open(stranger)
    assert name in {f.path for f in verify(stranger).findings}


@pytest.fixture
def victim(tmp_path):
    """A study that must not change, whatever another one's links lead to."""
    path = make_study(tmp_path / "victim", list(SMALL_GRID)[:1]).path
    open_study(path).report()
    before = contents(path)
    yield path
    assert contents(path) == before


def contents(study):
    return {str(p): p.read_bytes() for p in study.rglob("*") if p.is_file()}


def test_a_worker_deletes_no_other_study_s_results(victim, tmp_path, capsys):
    study = tmp_path / "study"
    small_sweep(study, plan_only=True, epochs=1)
    (study / "checkpoints").symlink_to(victim / "results")
    assert main(["worker", "--store", str(study), "--quiet"]) == 2
    assert "checkpoints: is a symbolic link" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["models", "figures"])
def test_a_report_overwrites_no_other_study_s_files(victim, tmp_path, capsys, name):
    study = make_study(tmp_path / "study", list(SMALL_GRID)[:2]).path
    open_study(study).report()
    shutil.rmtree(study / name)
    (study / name).symlink_to(victim / name)
    before = (study / "report.sha256").read_bytes()
    assert main(["report", str(study)]) == 2
    assert f"{name}: is a symbolic link" in capsys.readouterr().err
    assert (study / "report.sha256").read_bytes() == before  # nothing was begun
    repair(study)
    assert not os.path.lexists(study / name)


def test_links_among_claims_and_checkpoints(victim, stranger):
    claimed, outside = victim / "claims" / "pack", stranger / "claims" / "pack"
    claimed.mkdir(parents=True)
    (claimed / "000001.claim").write_text("another's")
    outside.parent.mkdir()
    outside.symlink_to(claimed)
    with pytest.raises(StudyError, match="claims/pack: is a symbolic link"):
        StudyStore.open(stranger)
    assert Claims(stranger / "claims").holders() == []
    assert "claims/pack" in {f.path for f in verify(stranger).findings}
    (stranger / "damaged").symlink_to(victim)
    with pytest.raises(StudyError, match="damaged: is a symbolic link"):
        repair(stranger)
    shutil.rmtree(victim / "claims")


def test_a_pipe_among_the_claims_is_not_waited_for(tmp_path):
    (tmp_path / "pack").mkdir()
    os.mkfifo(tmp_path / "pack" / "000001.claim")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "000001.claim").symlink_to(tmp_path / "nowhere")
    claims = Claims(tmp_path, lease=0.0)
    for name in ("pack", "other"):
        with claims.take(name):
            pass


ENDLESS, DEEP = b'{"seed": 1e999, "pid": 1e999, "runs": [], "format": 1}', b'{"a":' * 100_000


@pytest.fixture
def foreign(tmp_path):
    """A study whose settings are one's own, too."""
    store = StudyStore.create_or_open(tmp_path / "study", {"grid": ["baseline_T3.0_A0.5"], "seeds": [42]}, PROVENANCE)
    store.write(make_result())
    return store.path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("²", CLAIM.encode()),  # a digit, and no number
        ("000001", CLAIM.replace("7", "1e999").encode()),
        ("000001", DEEP),
    ],
)
def test_claims_of_any_content_are_looked_at(foreign, name, content):
    folder = foreign / "claims" / "seed42.000"
    folder.mkdir(parents=True)
    (folder / f"{name}.claim").write_bytes(content)
    assert main(["status", str(foreign), "--quiet"]) == 1
    assert main(["verify", str(foreign), "--quiet"]) == 0
    (holder,) = Claims(foreign / "claims").holders()
    taken = Claims(foreign / "claims").take("seed42.000")
    assert (holder.name, holder.alive) == ("seed42.000", taken is None)  # a torn one is taken over


@pytest.mark.parametrize("content", [ENDLESS, DEEP])
@pytest.mark.parametrize(
    "name", ["attempts/seed42.000.001/attempt", "packs/seed42.000/pack", "results/r.x.seed1/result"]
)
def test_documents_of_any_content_are_damage(foreign, capsys, name, content):
    """Numbers that are none, nesting without end: with the checksums that belong to them."""
    folder, file = (foreign / f"{name}.json").parent, Path(f"{name}.json").name
    folder.parent.mkdir(exist_ok=True)
    commit(folder, {file: content, "traceback.txt": b""})
    assert main(["status", str(foreign)]) == 1
    assert "1 damaged" in capsys.readouterr().out
    assert main(["verify", str(foreign)]) == 1
    what = "can't be read" if content == DEEP else "has unexpected content"
    assert f"{folder.relative_to(foreign)}/{file}: {what}" in capsys.readouterr().out


@pytest.mark.parametrize("more", [b"1e999", b'"\\ud800"', b"[" * 900 + b"]" * 900, b"[" * 100_000])
def test_manifests_of_any_content_are_damage(foreign, more):
    path = first_result(foreign) / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1] + b', "more": ' + more + b"}")
    study_status(StudyStore.open(foreign))
    (found,) = verify(foreign).findings
    assert found.path == str(path.relative_to(foreign))


def test_a_description_of_any_content_is_told(foreign, capsys):
    (foreign / "manifest.json").unlink()
    (foreign / "study.toml").write_text("a = " + "[" * 100_000)
    assert main(["status", str(foreign)]) == 2
    assert "study.toml: can't be read" in capsys.readouterr().err
    (foreign / "provenance.json").write_bytes(DEEP)
    assert main(["status", str(foreign)]) == 2
    assert "provenance.json: can't be read" in capsys.readouterr().err
    assert main(["verify", str(foreign)]) == 1


def test_a_linked_result_is_refused(stranger, tmp_path):
    folder = first_result(stranger)
    shutil.move(folder, tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    for use in (lambda s: s.results(), lambda s: s.has(RunKey("student", make_result().name, 42))):
        with pytest.raises(StudyError, match="seed42: is a symbolic link"):
            use(StudyStore.open(stranger))
    repair(stranger)
    assert not os.path.lexists(folder)
    assert len(list((tmp_path / "outside").iterdir())) == 4  # the link went aside, not what it points to


@pytest.mark.parametrize("file", ["manifest.json", "result.json", "weights.safetensors"])
def test_a_pipe_is_not_waited_for(stranger, file):
    path = first_result(stranger) / file
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(StudyError, match=f"is damaged: {re.escape(file)} is not a file"):
        StudyStore.open(stranger).has(RunKey("student", make_result().name, 42))
    assert not verify(stranger).intact


def test_names_in_the_report_s_checksums_can_not_leave_the_study(tmp_path):
    store = make_study(tmp_path / "study", list(SMALL_GRID)[:1])
    (tmp_path / "secret").write_text("")
    for name in ("../secret", "/etc/passwd", "figures/../../secret"):
        (store.path / "report.sha256").write_text(f"{'0' * 64}  {name}\n")
        assert [f.what for f in verify(store.path).findings] == ["is not as kdfast writes it"]


def test_no_file_can_run_code():
    """Nothing is unpickled: no torch.load, no pickle, no numpy file with objects, no evaluated text."""
    loads = r"\bpickle\b|allow_pickle(?!=False)|torch\.load|np\.load\((?!.*allow_pickle=False)"
    forbidden = loads + r"|\beval\(|\bexec\(|yaml|marshal|shelve"
    found = [
        f"{path.name}: {line.strip()}"
        for path in Path(kdfast.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(forbidden, line) and ".eval()" not in line
    ]
    # numpy's default is allow_pickle=False: this one reads the generator's own chunk
    assert [line for line in found if not line.startswith("generator.py: with np.load(path)")] == []


def test_numbers_of_another_study_are_not_taken(stranger, tmp_path):
    """A whole result from elsewhere under another name is recognized by its content."""
    other = StudyStore.create_or_open(tmp_path / "other", SETTINGS, PROVENANCE)
    folder = other.write(replace(make_result(seed=7), message="of another"))
    shutil.copytree(folder, stranger / "results" / make_result(seed=8).key.folder)
    with pytest.raises(KdfastError, match=r"seed8: is damaged: result\.json .*it holds student\..*seed7"):
        StudyStore.open(stranger).results()
