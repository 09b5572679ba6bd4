"""kdfast.prepare and packed stores: the same jets as in memory, resumed, checked, read in place."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import kdfast
from kdfast import mapped
from kdfast.errors import ConfigError, DataError, KdfastWarning, ResourceError, StudyError
from kdfast.jets import isolated
from kdfast.jets import prepare as preparing
from kdfast.jets.fingerprint import fingerprint, jet_hashes
from kdfast.jets.jet_store import StoreCard, open_store, store_of, verify_store
from kdfast.jets.packed import DTYPES, PackedJets
from tests.jets.atlas_files import atlas_arrays, write_arrays, write_atlas
from tests.synthetic import synthetic_jets

JETS = synthetic_jets(700, seed=5, max_constituents=20)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "PART_JETS", 100)


def two_files(folder: Path) -> list[Path]:
    """400 and 300 jets, in chunks of 32."""
    how = {"width": 30, "chunks": (32, 30)}
    files = {folder / "a.h5": JETS[:400], folder / "b.h5": JETS[400:]}
    return [path if path.exists() else write_atlas(path, jets, **how) for path, jets in files.items()]


def assert_same(found: PackedJets, wanted: PackedJets) -> None:
    for name in DTYPES:
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)


def make(folder: Path, **how: object) -> Path:
    return kdfast.prepare(two_files(folder), folder / "jets.store", progress=False, **how)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "PART_JETS", 100)
        return make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of one that `make` made."""
    return Path(shutil.copytree(made, tmp_path / "jets.store"))


@pytest.mark.parametrize("jobs", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("max_constituents", [None, 7])
def test_a_store_holds_what_load_jets_gives(tmp_path: Path, jobs: int, max_constituents: int | None) -> None:
    files = two_files(tmp_path)
    wanted = kdfast.load_jets(files, max_constituents=max_constituents)
    out = kdfast.prepare(files, tmp_path / "jets.store", max_constituents=max_constituents, jobs=jobs, progress=False)
    jets = kdfast.load_jets(out)
    assert_same(jets, wanted)
    assert store_of(jets) == store_of(jets[3:9]) == out
    assert store_of(jets[[3, 9]]) is None, "chosen jets are a copy"
    assert fingerprint(jets) == fingerprint(wanted)
    assert fingerprint(jets, 3) == fingerprint(wanted.hardest(3))
    np.testing.assert_array_equal(jet_hashes(jets), jet_hashes(wanted))
    assert sum(verify_store(out)) == len(JETS)
    assert len(StoreCard.read(out).parts) > 6
    assert sorted(path.name for path in out.iterdir()) == sorted([*(f"{name}.npy" for name in DTYPES), "store.json"])
    np.testing.assert_array_equal(np.load(out / "p4.npy"), wanted.p4)  # any program reads them


def test_parts_of_a_store_are_loaded(tmp_path: Path) -> None:
    out = make(tmp_path)
    assert_same(kdfast.load_jets(out, max_jets=50, max_constituents=4), kdfast.load_jets(out)[:50].hardest(4))
    with pytest.raises(DataError, match="is a packed store, and not the only path"):
        kdfast.load_jets([out, tmp_path / "a.h5"])
    for setting, value in {"columns": "salt", "unit": "GeV", "sort": True}.items():
        with pytest.raises(ConfigError, match=f"{setting}: is for files, but .* is a packed store"):
            kdfast.load_jets(out, **{setting: value})  # type: ignore[arg-type]


def test_sets_of_their_own(tmp_path: Path) -> None:
    data, test = two_files(tmp_path)
    out = kdfast.prepare(data, tmp_path / "jets.store", test_data=test, progress=False)
    jets = kdfast.load_jets(out)
    assert StoreCard.read(out).sets == {"data": 400, "test_data": 300}
    np.testing.assert_array_equal(jets.index[:400], 10**12 + np.arange(400))
    np.testing.assert_array_equal(jets.index[400:], np.arange(300))
    np.testing.assert_array_equal(jets.labels, JETS.labels)
    with pytest.raises(DataError, match=r"a.h5: is given as both data and validation_data"):
        kdfast.prepare(data, tmp_path / "b.store", validation_data=[data], test_data=test, progress=False)


@pytest.mark.slow
def test_bad_jets(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=30)
    arrays["fjet_clus_pt"][[5, 350], 0] = np.nan
    path = write_arrays(tmp_path / "a.h5", arrays, chunks=(32, 30))
    with pytest.raises(DataError, match="fjet_clus_pt, row 5: is not finite"):
        kdfast.prepare(path, tmp_path / "jets.store", jobs=1, progress=False)
    shutil.rmtree(tmp_path / "jets.store.partial")
    with pytest.warns(KdfastWarning, match=r"2 of 700 jets dropped: 2 because fjet_clus_pt is not finite .*row 5"):
        out = kdfast.prepare(path, tmp_path / "jets.store", on_bad="drop", progress=False)
    with pytest.warns(KdfastWarning, match="2 of 700"):
        assert_same(kdfast.load_jets(out), kdfast.load_jets(path, on_bad="drop"))
    assert StoreCard.read(out).dropped == {"fjet_clus_pt is not finite": 2}
    arrays["fjet_clus_pt"][:, 0] = np.nan
    path = write_arrays(tmp_path / "b.h5", arrays)
    with pytest.raises(DataError, match="no good jet is left"):
        kdfast.prepare(path, tmp_path / "none.store", on_bad="drop", progress=False)


def test_jets_without_labels(tmp_path: Path) -> None:
    arrays = atlas_arrays(JETS, width=30)
    del arrays["labels"]
    path = write_arrays(tmp_path / "a.h5", arrays)
    with pytest.raises(DataError, match="labels: is missing"):
        kdfast.prepare(path, tmp_path / "jets.store", progress=False)
    out = kdfast.prepare(path, tmp_path / "jets.store", require_labels=False, progress=False)
    assert (kdfast.load_jets(out, require_labels=False).labels == -1).all()
    with pytest.raises(DataError, match="was made without labels"):
        kdfast.load_jets(out)


# ---- interrupted


@pytest.mark.slow
def test_a_killed_one_resumes(tmp_path: Path) -> None:
    """Parts that were finished are not read again, and the store is the same."""
    wanted = make(tmp_path)
    shutil.move(wanted, tmp_path / "whole")
    script = (
        "import kdfast, time; from kdfast.jets import prepare as p; p.PART_JETS = 100\n"
        "old = p._Writing._place_in_turn\n"
        "def slow(self, number, answer):\n"
        "    if number == 4: time.sleep(60)\n"
        "    return old(self, number, answer)\n"
        "p._Writing._place_in_turn = slow\n"
        f"kdfast.prepare(['{tmp_path}/a.h5', '{tmp_path}/b.h5'], '{wanted}', progress=False, jobs=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    journal = tmp_path / "jets.store.partial" / "parts.jsonl"
    end = time.monotonic() + 60
    while (not journal.exists() or len(journal.read_text().splitlines()) < 4) and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = journal.read_text().splitlines()
    assert len(kept) >= 4
    assert not wanted.exists()
    with open(journal, "a") as file:
        file.write('{"number": 9, "je')  # as a kill may leave it
    asked: list[int] = []
    ask = isolated.Child.ask

    def noted(child: isolated.Child, do: str, places: list[str], **request: object) -> dict[str, object]:
        if do == "read":
            asked.append(int(str(request["start"])))
        return ask(child, do, places, **request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated.Child, "ask", noted)
        assert make(tmp_path) == wanted
    assert len(asked) == len(StoreCard.read(wanted).parts) - 4
    assert_same(open_store(wanted), open_store(tmp_path / "whole"))
    assert sum(verify_store(wanted)) == len(JETS)


@pytest.mark.slow
def test_parts_of_other_settings_are_not_taken(tmp_path: Path) -> None:
    files = two_files(tmp_path)
    out = tmp_path / "jets.store"
    damaged = tmp_path / "jets.store.partial"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_finish", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(StudyError, match=r"can't be written \(No space left on device\)\nfinished parts are kept"):
            kdfast.prepare(files, out, progress=False)
    with pytest.raises(ConfigError, match="holds unfinished jets of other settings: max_constituents None"):
        kdfast.prepare(files, out, max_constituents=5, progress=False)
    assert (damaged / "parts.jsonl").exists()
    kdfast.prepare(files, out, progress=False)
    assert not damaged.exists()
    with pytest.raises(ConfigError, match=r"jets.store: exists already"):
        kdfast.prepare(files, out, progress=False)


def test_killed_just_before_the_end(tmp_path: Path) -> None:
    """Whatever happens until the store appears, the same call can resume."""
    files = two_files(tmp_path)
    out = tmp_path / "jets.store"
    move = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target) == out:
            raise SystemExit
        move(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing.os, "replace", killed)
        with pytest.raises(SystemExit):
            kdfast.prepare(files, out, progress=False)
    kdfast.prepare(files, out, progress=False)
    assert sum(verify_store(out)) == len(JETS)


# ---- processes that die


def test_a_crash_of_the_reading_library_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = "import os, sys, signal; sys.stdin.readline(); os.kill(os.getpid(), signal.{})"
    monkeypatch.setattr(isolated, "_CHILD", worker.format("SIGSEGV"))
    with pytest.raises(DataError, match=r"a.h5: the library that reads it crashed \(SIGSEGV\)\ncopy or download"):
        make(tmp_path)
    monkeypatch.setattr(isolated, "_CHILD", worker.format("SIGKILL"))
    with pytest.raises(ResourceError, match=r"a.h5: the process that read it was killed\nis there enough memory"):
        make(tmp_path)


READS_ONE_PART = """import os, time
from kdfast.jets import reading_process
read_file = reading_process.read_file
def read_one(source, rows, *more):
    if rows.start:
        {}
    read_file(source, rows, *more)
reading_process.read_file = read_one
reading_process.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "error", "message"),
    [
        (
            "os.kill(os.getpid(), 9)",
            ResourceError,
            ", rows 96 to 191: the process that read it was killed\nuse fewer jobs",
        ),
        (
            "raise MemoryError",
            ResourceError,
            ": there is not enough memory for a part\nuse fewer jobs; finished parts are",
        ),
        (
            "time.sleep(60)",
            DataError,
            ", rows 96 to 191: a block of its rows was not read within 12 s: its storage does",
        ),
        (
            "while True: pass",
            DataError,
            ", rows 96 to 191: a block of its rows was not read in 5 s of computing: the file",
        ),
    ],
)
def test_a_part_that_is_not_read_names_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, error: type[Exception], message: str
) -> None:
    usual = "from kdfast.jets.reading_process import main\nmain()"
    monkeypatch.setattr(isolated, "_CHILD", isolated._CHILD.replace(usual, READS_ONE_PART.format(then)))
    # As little as the parts that are read take at the most, on a machine that does much else.
    monkeypatch.setattr(isolated, "BLOCK_SECONDS", 5.0 if "while" in then else 60.0)
    monkeypatch.setattr(isolated, "WAITING_SECONDS", 12.0 if "sleep" in then else 60.0)
    with pytest.raises(error, match="a.h5" + re.escape(message)):
        make(tmp_path, jobs=1)


def test_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    two_files(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # as a quota: writers get EFBIG
    try:
        with pytest.raises(StudyError, match=r"jets.store.partial: can't be written \(File too large\)"):
            kdfast.prepare([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "jets.store", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(kdfast.load_jets(kdfast.prepare(two_files(tmp_path), tmp_path / "c.store", progress=False))) == 700


# ---- damage


@pytest.mark.parametrize("name", DTYPES)
def test_a_flipped_bit_is_found(store: Path, name: str) -> None:
    path = store / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}"):
        list(verify_store(store))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: os.truncate(out / "weights.npy", 500), "weights.npy: is damaged"),
        (lambda out: (out / "p4.npy").unlink(), "p4.npy: is damaged"),
        (lambda out: np.save(out / "labels.npy", np.zeros(3)), r"labels.npy: is damaged: it must be int64 \[700\]"),
        (lambda out: np.save(out / "p4.npy", np.array([{}])), "p4.npy: is damaged"),
        (lambda out: edit(out, jets=699), "store.json: is damaged: its content does not match its checksum"),
        (lambda out: edit(out, format=99), "store.json: has format 99, newer than this kdfast reads\nupdate kdfast"),
        (lambda out: (out / "store.json").write_text("{"), "store.json: is damaged"),
        (lambda out: (out / "store.json").write_text("[]"), "store.json: is damaged"),
    ],
)
def test_damaged_stores(store: Path, damage: object, message: str) -> None:
    damage(store)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        kdfast.load_jets(store)


def edit(out: Path, **changes: object) -> None:
    path = out / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- mapped arrays


def resident() -> int:
    """Bytes of this process's memory that are pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_release_gives_memory_back(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(1 << 23))  # 64 MB
    array = mapped.map_file(tmp_path / "a.npy")
    before = resident()
    total = int(array.sum())
    assert resident() - before > 60e6
    mapped.release([array, np.zeros(3)])
    assert resident() - before < 10e6
    assert int(array[5:].sum()) == total - 10
    array[3] = 7  # in this process only
    assert np.load(tmp_path / "a.npy")[3] == 3


def test_an_array_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(bytes(mapped.HEADER_BYTES + 8))
    mapped.write_header(tmp_path / "a.npy", np.float32, (0, 4))
    array = mapped.map_file(tmp_path / "a.npy")
    assert array.shape == (0, 4)
    assert not mapped.is_mapped(array)
