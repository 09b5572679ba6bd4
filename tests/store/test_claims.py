"""Claims: one process at a time, taken over from the dead and the silent, without comparing clocks."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from kdfast.errors import StudyError
from kdfast.store import claims as module
from kdfast.store.claims import Claims
from tests.store.studies import ELSEWHERE

HOLD = """
import sys, time
from pathlib import Path
from kdfast.store.claims import Claims
claim = Claims(Path(sys.argv[1]), beat=0.05).take("pack")
print("held" if claim else "refused", flush=True)
if claim:
    with claim:
        time.sleep(float(sys.argv[2]))
"""


def other(folder: Path, seconds: float = 60) -> subprocess.Popen[str]:
    run = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    process = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_one_holder_at_a_time(tmp_path):
    mine, yours = Claims(tmp_path), Claims(tmp_path)
    claim = mine.take("pack")
    with claim:
        assert yours.take("pack") is None
        (holder,) = yours.holders()
        assert (holder.name, holder.pid, holder.alive) == ("pack", os.getpid(), True)
        with yours.take("another"):
            pass
    assert yours.holders() == []
    with yours.take("pack"):
        assert mine.take("pack") is None


def test_many_at_once_and_one_gets_it(tmp_path):
    won, start = [], threading.Barrier(16)

    def run() -> None:
        start.wait()
        won.append(Claims(tmp_path).take("pack"))

    for expected in range(1, 6):  # a new claim, then one after the other taken over
        threads = [threading.Thread(target=run) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (claim,) = [claim for claim in won if claim is not None]
        assert [path.name for path in tmp_path.glob("pack/*")] == [f"{expected:06}.claim"]
        with claim:
            pass
        won.clear()


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path):
    process = other(tmp_path)
    assert Claims(tmp_path).take("pack") is None
    process.kill()
    process.wait()
    assert not Claims(tmp_path).holders()[0].alive
    assert Claims(tmp_path).take("pack") is not None


def test_the_copy_of_a_study_is_nobody_s(tmp_path):
    """`cp -r` of a study that a worker is at."""
    original, copy = tmp_path / "study", tmp_path / "copy"
    process = other(original)
    shutil.copytree(original, copy)
    assert not Claims(copy).holders()[0].alive
    with Claims(copy).take("pack"):
        assert Claims(original).holders()[0].alive
        assert Claims(original).take("pack") is None
    process.kill()
    process.wait()


TWO_USERS = """
import os, signal, sys
from pathlib import Path
from kdfast.process import is_writing, temporary_name
from kdfast.store.claims import Claims
folder, (said, say) = Path(sys.argv[1]), os.pipe()
os.umask(0)

def become(user):
    os.setgroups([]); os.setgid(user); os.setuid(user)

if not (holder := os.fork()):
    become(1001)
    claim, name = Claims(folder).take("pack"), temporary_name(folder / "result")
    os.write(say, name.name.encode())
    signal.pause()
name = os.read(said, 1000).decode()
for end in (False, True):
    if end:
        os.kill(holder, signal.SIGKILL); os.waitpid(holder, 0)
    if not (other := os.fork()):
        become(1002)
        claims = Claims(folder)
        print(is_writing(name), claims.holders()[0].alive, claims.take("pack") is not None, flush=True)
        os._exit(0)
    os.waitpid(other, 0)
"""


@pytest.mark.parametrize("hidden", [0, 1, 2])
def test_another_users_process_is_not_dead_where_proc_hides_it(hidden):
    """As on login nodes; with the real mount option, in a name space of its own."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs the right to mount another /proc")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be entered by this user alone
        os.chmod(folder, 0o777)
        mount = f'mount -o remount,hidepid={hidden} /proc && exec "$@"'
        run = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", mount, "sh", sys.executable, "-c"]
        done = subprocess.run([*run, TWO_USERS, folder], capture_output=True, text=True, check=False)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    seen = "None" if hidden else "True"
    assert done.stdout.splitlines() == [f"{seen} True False", "False False True"], done.stderr


def test_the_silent_are_taken_over_and_learn_of_it(tmp_path, monkeypatch):
    """As on another machine, whose processes can't be looked at."""
    held = Claims(tmp_path, beat=0.2)
    claim = held.take("pack")
    monkeypatch.setattr(module, "_this_process", lambda: ELSEWHERE)
    watcher = Claims(tmp_path, lease=0.3, beat=0.05)
    assert watcher.take("pack") is None
    time.sleep(0.4)
    assert not watcher.is_beating("pack")
    taken = watcher.take("pack")
    assert taken is not None
    with claim:  # beats, and sees it
        assert claim.lost.wait(5)
    assert watcher.holders()[0].generation == 2


def test_who_beats_is_not_taken_over(tmp_path, monkeypatch):
    claim = Claims(tmp_path, beat=0.05).take("pack")
    monkeypatch.setattr(module, "_this_process", lambda: ELSEWHERE)
    watcher = Claims(tmp_path, lease=0.5)
    with claim:
        for _ in range(15):
            assert watcher.take("pack") is None
            time.sleep(0.1)
        assert watcher.is_beating("pack")
        assert not claim.lost.is_set()


def test_no_clock_is_compared(tmp_path, monkeypatch):
    """A holder from the future and one from the past, by their clocks, are treated alike."""
    for years in (-3600 * 24 * 365, 3600 * 24 * 365):
        name = f"pack{years}"
        claim = Claims(tmp_path).take(name)
        path = next(tmp_path.glob(f"{name}/*.claim"))
        os.utime(path, (time.time() + years, time.time() + years))
        assert Claims(tmp_path, lease=3600).take(name) is None
        with claim:
            pass
        assert Claims(tmp_path).take(name) is not None


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b'{"host": 1}\n', b"[]\n..."])
def test_a_torn_claim_is_taken_over_at_once(tmp_path, content):
    """No writer leaves one: a power cut or a full disk does."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "000004.claim").write_bytes(content)
    watcher = Claims(tmp_path)
    assert (watcher.holders()[0].host, watcher.holders()[0].alive) == ("unknown", False)
    assert watcher.take("pack") is not None
    assert [path.name for path in tmp_path.glob("pack/*")] == ["000005.claim"]


def test_a_folder_that_can_not_be_written_is_an_error(tmp_path):
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(StudyError, match="can't be written"):
        Claims(tmp_path / "claims").take("pack")


def test_one_that_was_taken_over_meanwhile(tmp_path, monkeypatch):
    """What was looked at is gone when the next generation is made: that one must not win over a later one."""
    for _ in range(2):
        with Claims(tmp_path).take("pack"):
            pass
    late = Claims(tmp_path)
    seen = late._latest("pack")
    monkeypatch.setattr(late, "_latest", lambda name: seen)
    with Claims(tmp_path).take("pack"):  # 3
        pass
    with Claims(tmp_path).take("pack"):  # 4: it has removed 3
        assert late.take("pack") is None
        assert [path.name for path in tmp_path.glob("pack/*")] == ["000004.claim"]


def test_a_full_disk_leaves_no_claim(tmp_path, monkeypatch):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_this_process", full)
        with pytest.raises(StudyError, match="No space left"):
            Claims(tmp_path).take("pack")
    assert not list(tmp_path.rglob("*.claim"))
    assert not list(tmp_path.rglob(".*"))
    with Claims(tmp_path).take("pack"):  # nobody has to be waited for
        pass


def test_a_reader_never_sees_half_a_claim(tmp_path, monkeypatch):
    """Another process looks while the claim is being written."""
    seen, genuine = [], module._this_process

    def looked_at():
        seen.append(Claims(tmp_path).holders())
        return genuine()

    monkeypatch.setattr(module, "_this_process", looked_at)
    with Claims(tmp_path).take("pack"):
        assert seen == [[]]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Claims(tmp_path).take("pack"):
        assert Claims(tmp_path).holders()[0].alive
        assert Claims(tmp_path).take("pack") is None
    assert not list(tmp_path.rglob(".*"))


def test_a_file_system_that_is_away_ends_no_heartbeat(tmp_path, monkeypatch):
    def away(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    claim = Claims(tmp_path).take("pack")
    (path,) = tmp_path.glob("pack/*")
    before = path.stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", away)
        claim.beat()
    claim.beat()
    assert path.stat().st_size == before + 1
    assert not claim.lost.is_set()


def test_claims_of_one_owner_are_taken_over_at_once(tmp_path):
    """Its scheduler knows that the first holder is lost, wherever that was; others wait for a lease."""
    first = Claims(tmp_path, beat=0.01, owner="a").take("x")
    assert first is not None
    with first:
        assert Claims(tmp_path).take("x") is None
        assert Claims(tmp_path, owner="b").take("x") is None
        second = Claims(tmp_path, owner="a").take("x")
        assert second is not None
        assert first.lost.wait(10)
    (holder,) = Claims(tmp_path).holders()
    assert (holder.generation, holder.owner) == (2, "a")
