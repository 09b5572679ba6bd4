"""`kdfast verify` finds a flipped bit in any file and what should not be there, and repairs what it can."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from threading import Timer

import numpy as np
import pytest

from kdfast.cli import main
from kdfast.distill.targets import teacher_targets
from kdfast.errors import KdfastError, StudyError
from kdfast.models import load_model
from kdfast.store import verify as module
from kdfast.store.attempts import Attempt
from kdfast.store.claims import Claims
from kdfast.store.folders import commit
from kdfast.store.key import RunKey
from kdfast.store.locks import locked
from kdfast.store.store import StudyStore
from kdfast.store.verify import repair, verify
from kdfast.study.results import open_study
from tests.store.studies import claim_elsewhere, environment, start_sweep, wait_until
from tests.study.small_sweep import small_sweep


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole study, with an attempt, a pack, an input and a checkpoint."""
    path = tmp_path_factory.mktemp("verify") / "study"
    small_sweep(path)
    store = StudyStore.open(path)
    store.write_attempt(Attempt.failed("seed42.000", ValueError("what went wrong"), [RunKey("student", "x", 42)]))
    for place in ("inputs/jets", "checkpoints/student.x.seed42/000010"):
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        commit(path / place, {"tensors.safetensors": b"0123456789" * 10})
    return path


@pytest.fixture
def copy(study, tmp_path):
    path = tmp_path / "study"
    shutil.copytree(study, path)
    return path


def files_of(path):
    passed_over = {"claims", ".lock", ".report.lock"}
    return sorted(p for p in path.rglob("*") if p.is_file() and not passed_over & set(p.parts))


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(content))


def everything(path):
    """All that is ever read of a study."""
    store = StudyStore.open(path)
    read = {"settings": store.settings, "provenance": store.provenance, "attempts": store.attempts()}
    for result in store.results():
        assert store.has(result.key)
        arrays = {name: (array.dtype.str, array.tobytes()) for name, array in result.arrays.items()}
        state = {name: (str(tensor.dtype), tensor.numpy().tobytes()) for name, tensor in result.state.items()}
        read[result.key.folder] = repr((result.metrics, result.curves, result.card, result.config)), arrays, state
    for name in ("validation", "test", "test_kinematics"):
        read[name] = {key: (array.dtype.str, array.tobytes()) for key, array in store.shared(name).items()}
    for model in sorted((path / "models").iterdir()):
        read[model.name] = {n: t.numpy().tobytes() for n, t in load_model(model).model.state_dict().items()}
    return read


def test_a_whole_study(study, capsys):
    found = open_study(study).verify()
    assert found.intact
    assert found.notes == ()
    assert found.files == len(files_of(study))
    assert main(["verify", str(study)]) == 0
    assert capsys.readouterr().out.endswith("MB, all as written\n")
    assert main(["verify", str(study), "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_a_flipped_bit_in_any_file_is_found_and_never_used(copy):
    expected, rng = everything(copy), np.random.default_rng(11)
    for path in files_of(copy):
        content = path.read_bytes()
        for _ in range(3):
            flip(path, rng)
            try:
                found = verify(copy)
            except StudyError as error:  # the format's number has become a higher one
                assert "newer kdfast" in str(error)  # noqa: PT017
            else:
                # the file, or the one whose checksum it held
                near = {path.parent, copy} if path.name in ("manifest.json", "report.sha256") else {path}
                assert any({copy / f.path, *(copy / f.path).parents} & near for f in found.findings), path
            with suppress(KdfastError):
                assert everything(copy) == expected, path
            path.write_bytes(content)
    assert verify(copy).intact


def test_flipped_targets_are_never_trained_from(copy):
    (targets,) = (copy / "targets").iterdir()
    expected, rng = (copy / "results_summary.csv").read_text(), np.random.default_rng(2)
    content = targets.read_bytes()
    for position in (4, len(content) // 2):  # header, values
        targets.write_bytes(content[:position] + bytes([content[position] ^ 16]) + content[position + 1 :])
        (damaged,) = verify(copy).findings
        assert (damaged.path, damaged.what) == (f"targets/{targets.name}", "does not match its checksum")
        victim = sorted((copy / "results").glob("student.*"))[rng.integers(4)]
        shutil.rmtree(victim)
        assert small_sweep(copy).verify().intact
        assert (copy / "results_summary.csv").read_text() == expected
        assert targets.read_bytes() == content
    assert teacher_targets.__module__ == "kdfast.distill.targets"


def test_what_should_not_be_there_is_named(copy):
    results = copy / "results"
    one, two, three, *_ = sorted(results.iterdir())
    (one / "more.txt").write_text("?")
    shutil.copytree(two, two.with_name(two.name.replace("seed42", "seed43")))
    (results / "loose").write_text("?")
    (results / ".student.x.1.0a.tmp").mkdir()
    (copy / ".study.toml.1.tmp").write_text("?")
    (copy / "notes.txt").write_text("mine")
    shutil.move(three, copy / "elsewhere")
    three.symlink_to(copy / "elsewhere")
    (copy / "targets" / "more").write_text("?")
    named = {f.path: f.what for f in verify(copy).findings}
    assert named == {
        f"results/{one.name}/more.txt": "no manifest lists it",
        f"results/{two.name.replace('seed42', 'seed43')}/result.json": f"has unexpected content (it holds {two.name})",
        "results/loose": "no manifest lists it",
        "results/.student.x.1.0a.tmp": "was left by a writer that was killed",
        ".study.toml.1.tmp": "was left by a writer that was killed",
        f"results/{three.name}": "is a symbolic link",
        "targets/more": "no manifest lists it",
    }
    assert "notes.txt is not a kdfast file" in verify(copy).notes


@pytest.mark.slow
def test_repair_and_sweep_again_give_the_same_study(copy, capsys):
    """With the real program: what is damaged goes aside, and the same sweep replaces it bit for bit."""
    before, csv = everything(copy), (copy / "results_summary.csv").read_bytes()
    victims = sorted((copy / "results").glob("student.*"))[:2]
    flip(victims[0] / "weights.safetensors", np.random.default_rng(3))
    kept = (victims[0] / "weights.safetensors").read_bytes()
    (victims[1] / "manifest.json").unlink()
    (copy / "shared" / "test" / "arrays.safetensors").write_bytes(b"")
    for path in [*(copy / "targets").iterdir(), copy / "models" / "best_student.safetensors"]:
        path.write_bytes(b"?")
    (copy / "checkpoints" / "student.x.seed42" / "000010" / "tensors.safetensors").unlink()
    (copy / "results" / ".left.1.0a.tmp").mkdir()
    assert main(["verify", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "7 wrong" in out, out
    assert main(["status", str(copy)]) == 1
    capsys.readouterr()

    run = [sys.executable, "-m", "tests.study.run_cli", "verify", str(copy), "--repair"]
    done = subprocess.run(run, capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        f"results/{victims[0].name}/weights.safetensors: does not match its checksum",
        f"results/{victims[0].name}: moved to damaged/results.{victims[0].name}.1",
        f"results/{victims[1].name}: moved to damaged/results.{victims[1].name}.1",
        "shared/test: moved to damaged/shared.test.1",
        "checkpoints/student.x.seed42/000010: removed",
        "results/.left.1.0a.tmp: removed",
        f"report.sha256: removed; `kdfast report {copy}` writes the report again",
    ):
        assert f"  {line}\n" in done.stdout
    aside = copy / "damaged" / f"results.{victims[0].name}.1"
    assert (aside / "weights.safetensors").read_bytes() == kept  # never deleted
    why = aside.with_name(aside.name + ".txt").read_text()
    assert f"results/{victims[0].name}/weights.safetensors: does not match its checksum" in why
    assert verify(copy).intact
    assert main(["status", str(copy), "--quiet"]) == 1

    assert small_sweep(copy).verify().intact
    after = everything(copy)
    assert after.keys() == before.keys()
    for key in ("validation", "test", "best_student.safetensors", "teacher.safetensors"):
        assert after[key] == before[key]
    for victim in victims:
        assert after[victim.name][1:] == before[victim.name][1:]
    assert (copy / "results_summary.csv").read_bytes() == csv


def test_a_second_damage_goes_beside_the_first(copy):
    victim = next((copy / "results").glob("student.*"))
    for number in (1, 2):
        (victim / "result.json").write_bytes(b"?")
        _, done = repair(copy)
        assert done == [f"results/{victim.name}: moved to damaged/results.{victim.name}.{number}"]
        small_sweep(copy)


def test_what_only_a_user_can_put_right(copy, capsys):
    (copy / "study.toml").write_text("seeds = [1]\n")
    assert main(["verify", str(copy), "--repair"]) == 1
    out = capsys.readouterr().out
    assert "study.toml: does not match its checksum" in out
    advice = f"restore it from a copy; if it is meant to be so, delete {copy / 'manifest.json'}"
    assert out.splitlines()[-1] == f"  study.toml: can't be repaired: {advice}"
    with pytest.raises(StudyError, match=r"study.toml does not match its checksum\nrestore it from a copy; if it is "):
        StudyStore.open(copy)
    (copy / "manifest.json").unlink()  # as the hint says
    assert StudyStore.open(copy).settings == {"seeds": [1]}
    found = verify(copy)
    assert found.intact
    (note,) = found.notes
    assert "study.toml and provenance.json have no checksums" in note


def test_no_study(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "none")]) == 2
    assert main(["verify", str(tmp_path), "--repair"]) == 2
    assert capsys.readouterr().err.count("give the folder that `kdfast sweep --out` wrote") == 2


@pytest.mark.slow
def test_no_repair_while_a_sweep_is_at_work(tmp_path):
    out = tmp_path / "study"
    sweep = start_sweep(out, 400)
    try:
        wait_until(lambda: list(out.glob("results/teacher.*")))
        for _ in range(10):  # a reader at any moment finds no fault with a study that is being made
            assert verify(out).findings == ()
        with pytest.raises(StudyError, match="a sweep is working on this study\nrepair it when that has ended"):
            repair(out)
    finally:
        sweep.send_signal(signal.SIGKILL)
        sweep.wait()
    repair(out)
    assert verify(out).intact


ELSEWHERE = f".student.x.seed42.{'a' * 8}-{'b' * 8}-{'c' * 8}.7-1.{'d' * 8}.tmp"  # a temporary name


def test_a_claim_that_a_lost_machine_left_hides_no_damage(copy, capsys):
    for pack in ("teacher", "seed42.000"):
        claim_elsewhere(copy, pack)
    for name in ("report.html", "models/best_student.safetensors"):
        flip(copy / name, np.random.default_rng(5))
    assert main(["verify", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "report.html: does not match its checksum" in out
    assert "best_student.safetensors: does not match its checksum" in out
    assert main(["verify", str(copy), "--repair"]) == 0  # the pack is done: nobody need be asked


def test_what_is_not_looked_at_is_noted(copy):
    shutil.rmtree(next((copy / "results").glob("student.*")))
    claim_elsewhere(copy, "seed42.000")
    (copy / "results" / ELSEWHERE).mkdir()
    flip(copy / "report.html", np.random.default_rng(5))
    found = verify(copy)
    assert [f.path for f in found.findings] == ["report.html"]
    what = "may be what another machine is writing: elsewhere, process 7, is working on seed42.000"
    assert found.notes == (f"results/{ELSEWHERE} {what}",)
    with StudyStore.open(copy).writing():
        found = verify(copy)
    assert found.findings == ()
    assert "the report and its models were not checked: a sweep or a report is being written" in found.notes
    assert f"results/{ELSEWHERE} may be what another machine is writing: a sweep is running on the study" in found.notes


def test_what_another_machine_finishes_meanwhile_hides_no_damage(copy, monkeypatch):
    folder = copy / "results" / ELSEWHERE
    victim = next((copy / "results").glob("student.*"))
    flip(victim / "weights.safetensors", np.random.default_rng(5))
    folder.mkdir()

    def renamed(name):
        folder.rename(copy / "elsewhere")

    monkeypatch.setattr(module, "is_writing", renamed)
    assert [f.path for f in verify(copy).findings] == [f"results/{victim.name}/weights.safetensors"]
    assert not folder.exists()


def test_repair_ends_where_a_worker_starts_meanwhile(copy, monkeypatch):
    genuine, victim = module._verify, next((copy / "results").glob("student.*"))
    flip(victim / "result.json", np.random.default_rng(5))

    def meanwhile(*arguments, **options):
        claim_elsewhere(copy, "seed43.000")
        return genuine(*arguments, **options)

    monkeypatch.setattr(module, "_verify", meanwhile)
    with pytest.raises(StudyError, match=r"elsewhere, process 7, is working on seed43\.000"):
        repair(copy)
    assert victim.exists()


def test_repair_that_ends_half_way_tells_what_it_has_moved(copy, monkeypatch, capsys):
    genuine, (one, other, *_) = module._move_aside, sorted((copy / "results").glob("student.*"))
    for victim in (one, other):
        flip(victim / "result.json", np.random.default_rng(5))

    def meanwhile(*arguments):
        line = genuine(*arguments)
        claim_elsewhere(copy, "seed43.000")
        return line

    monkeypatch.setattr(module, "_move_aside", meanwhile)
    assert main(["verify", str(copy), "--repair"]) == 2
    out, errors = capsys.readouterr()
    assert out == f"  results/{one.name}: moved to damaged/results.{one.name}.1\n"
    assert "elsewhere, process 7, is working on seed43.000" in errors
    assert other.exists()


def test_repair_waits_for_who_only_looks(copy):
    """`kdfast status --watch` and `verify` hold the lock for a moment."""
    flip(next((copy / "results").glob("student.*")) / "result.json", np.random.default_rng(5))
    with ExitStack() as look:
        assert look.enter_context(locked(copy, fcntl.LOCK_SH | fcntl.LOCK_NB))
        Timer(0.1, look.pop_all().close).start()
        assert len(repair(copy)[1]) == 1


def test_no_repair_while_a_worker_is_at_work(copy):
    claim = Claims(copy / "claims").take("seed42.007")
    with claim:
        with pytest.raises(StudyError, match=rf"process {os.getpid()}, is working on seed42\.007\nstop it; if that"):
            repair(copy)
        assert verify(copy).findings == ()
    assert repair(copy)[1] == []
