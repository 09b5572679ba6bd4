"""Names of what is being written: no two writers share one, and they tell when the writer is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdfast import process
from kdfast.files import write_atomically
from kdfast.process import is_writing, temporary_name


def test_of_this_process():
    names = {temporary_name(Path("a/report.json")).name for _ in range(100)}
    assert len(names) == 100  # threads share the process
    assert all(is_writing(name) for name in names)
    assert len(os.fsencode(temporary_name(Path("ä" * 100)).name)) <= 255


def test_of_a_process_that_is_gone():
    code = "import sys; from pathlib import Path; from kdfast.process import temporary_name as n; print(n(Path('x')))"
    child = subprocess.Popen([sys.executable, "-c", f"{code}; sys.stdout.flush(); sys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    name = child.stdout.readline().strip()
    assert is_writing(name)
    child.kill()
    child.wait()
    assert is_writing(name) is False


def test_the_number_of_a_process_may_be_given_again(monkeypatch):
    name = temporary_name(Path("x")).name
    monkeypatch.setattr(process, "_started", lambda pid: "12345")
    assert is_writing(name) is False


@pytest.mark.parametrize(
    ("writer", "expected"),
    [
        (("host", "boot", "other"), None),  # another container: its processes are not seen
        (("host", "other", "here"), False),  # the machine has been started anew
        (("other", "boot", "here"), None),  # another machine
        (("other", "other", "here"), None),
    ],
)
def test_of_other_machines(monkeypatch, writer, expected):
    monkeypatch.setattr(process, "_writer", lambda: tuple(map(process._digest, writer)))
    name = temporary_name(Path("x")).name
    monkeypatch.setattr(process, "_writer", lambda: tuple(map(process._digest, ("host", "boot", "here"))))
    assert is_writing(name) is expected


def test_other_names_tell_nothing():
    for name in (".x.123.tmp", ".x.1.0a.tmp", "x.tmp", ".tmp"):
        assert is_writing(name) is None


def test_two_machines_write_one_file(tmp_path, monkeypatch):
    """Process numbers of two machines may be the same: neither writes into the other's file."""

    def first(file):
        file.write(b"first")
        file.flush()
        monkeypatch.setattr(process, "_writer", lambda: tuple(map(process._digest, ("other", "boot", "here"))))
        write_atomically(tmp_path / "report", lambda other: other.write(b"second"))
        assert (tmp_path / "report").read_bytes() == b"second"

    write_atomically(tmp_path / "report", first)
    assert (tmp_path / "report").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
