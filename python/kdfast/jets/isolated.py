"""Reading files in a child process, so that a crash or a hang inside a format's library is an error with the file's
name. It protects from damaged files. It is no sandbox: the child has the rights of its parent.

The parent is here, the child in reading_process.py. The request goes to the child's stdin. Its stdout has a line for
each file and block that it begins, and at last the result; the jets' arrays are in memory that both share.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdfast import errors
from kdfast.errors import DataError, KdfastError, KdfastWarning

__all__ = ["ALIGNMENT", "error_of", "read_in_child"]

# Seconds for a block of rows, which takes milliseconds: more of computing is a hang; more of waiting is a storage that
# does not answer, which may come back. Where the system does not tell the two apart, the longer one holds.
BLOCK_SECONDS = 60.0
WAITING_SECONDS = 1800.0
ALIGNMENT = 64  # bytes, of arrays in the shared memory

# Signals that stop a sweep are for the parent, which then ends the child.
_CHILD = """
import json, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from kdfast.jets.reading_process import main
main()
"""


def read_in_child(request: dict[str, Any], files: Sequence[str], stacklevel: int) -> dict[str, NDArray[Any]]:
    """The arrays that the child makes of a request, by name. Warns of what the child warns of.

    Raises what the child raises of kdfast's errors, and DataError with a file's name for anything else, a crash, and a
    block of rows that takes too long.
    """
    with _scratch() as shared:
        arguments = [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(shared.fileno())]
        child = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[shared.fileno()],
        )
        try:
            answer = _answer(child, json.dumps(request).encode(), files)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        if "error" in answer:
            raise error_of(answer["error"], files)
        for text in answer["warnings"]:
            warnings.warn(text, KdfastWarning, stacklevel=stacklevel)
        content = mmap.mmap(shared.fileno(), answer["size"], access=mmap.ACCESS_COPY)
    arrays = {}
    for name, (dtype, shape, start) in answer["arrays"].items():
        values = np.frombuffer(content, dtype, count=int(np.prod(shape)), offset=start)
        arrays[name] = values.reshape(shape)
    return arrays


def _scratch() -> IO[bytes]:
    """Memory that a child can inherit: without a limit of its own where the system has such (Linux), else a file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("kdfast"), "r+b")
    return tempfile.TemporaryFile()


def _answer(child: subprocess.Popen[bytes], request: bytes, files: Sequence[str]) -> dict[str, Any]:
    """The child's last line. Before it, each line is the position of the file that is being read."""
    assert child.stdin is not None
    assert child.stdout is not None
    place = 0
    line = b""
    try:
        child.stdin.write(request)
        child.stdin.close()
        next_line = _lines(child)
        while (line := next_line()).strip().isdigit():
            place = int(line)
    except BrokenPipeError:
        pass
    except TimeoutError as error:
        raise DataError(str(error), where=files[place], hint="copy or download it again") from None
    if not line:
        status = child.wait()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        what = f"made the library that reads it crash ({how})"
        hint = "the file is damaged (copy or download it again), or the memory is used up"
        raise DataError(what, where=files[place], hint=hint)
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        answer["error"]["place"] = place
    return answer


def _lines(child: subprocess.Popen[bytes]) -> Callable[[], bytes]:
    """A function that gives the child's next line, b"" at the end, and raises TimeoutError where none comes in time."""
    assert child.stdout is not None
    pipe = child.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    left = bytearray()

    def next_line() -> bytes:
        began, computed = time.monotonic(), _computed(child.pid)
        while b"\n" not in left:
            if not poll.poll(500):
                _check_time(time.monotonic() - began, _computed(child.pid) - computed)
                continue
            more = os.read(pipe, 1 << 16)
            if not more:
                return b""
            left.extend(more)
        line, _, rest = bytes(left).partition(b"\n")
        left[:] = rest
        return line + b"\n"

    return next_line


def _check_time(waited: float, computed: float) -> None:
    if computed > BLOCK_SECONDS:
        raise TimeoutError(f"a block of its rows was not read in {BLOCK_SECONDS:g} s of computing: the file is damaged")
    if waited > WAITING_SECONDS:
        raise TimeoutError(
            f"a block of its rows was not read within {WAITING_SECONDS:g} s: its storage does not answer"
        )


def _computed(pid: int) -> float:
    """Seconds that a process has computed; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def error_of(found: dict[str, Any], files: Sequence[str]) -> KdfastError:
    """A child's error, as its own type where that is one of kdfast.errors."""
    kind = getattr(errors, found["type"], None)
    if isinstance(kind, type) and issubclass(kind, KdfastError):
        return kind(found["what"], where=found["where"], hint=found["hint"], settings=found["settings"])
    error = DataError(f"can't be read ({found['what']})", where=files[found["place"]], hint="copy or download it again")
    error.__cause__ = RuntimeError(found["traceback"])
    return error
