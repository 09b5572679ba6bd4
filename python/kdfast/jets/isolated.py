"""Reading files in a child process, so that a crash or a hang inside a format's library is an error with the
file's name. It protects from damaged files. It is no sandbox: the child has the rights of its parent.

The parent is here, the child in reading_process.py. Requests go to the child's stdin, each as a line. Its
stdout has a line for each file and block that it begins, and at last the answer. The arrays of jets that are
loaded are in memory that both share.
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
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kdfast import errors
from kdfast.errors import DataError, KdfastError, KdfastWarning, ResourceError

__all__ = ["ALIGNMENT", "Child", "read_in_child"]

# Seconds for a block of rows, which takes milliseconds: more of computing is a hang; more of waiting is a
# storage that does not answer, which may come back. Where the system does not tell the two apart, the longer
# one holds.
BLOCK_SECONDS = 60.0
WAITING_SECONDS = 1800.0
ALIGNMENT = 64  # bytes, of arrays in the shared memory
DAMAGED = "copy or download it again; if that does not help, write it again by another program"

# Signals that stop a sweep are for the parent, which then ends the child.
_CHILD = """
import json, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
sys.path[:] = json.loads(sys.argv[1])
from kdfast.jets.reading_process import main
main()
"""


class Child:
    """A process that reads files. shared: an open file that it inherits."""

    def __init__(self, shared: IO[bytes] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
            pass_fds=[] if shared is None else [shared.fileno()],
        )
        self._left = bytearray()  # of stdout, read and not used

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent to a child that has died
                pipe.close()

    def kill(self) -> None:
        self._process.kill()

    def ask(self, do: str, places: Sequence[str], **request: Any) -> dict[str, Any]:
        """The answer to a request. places: what is read, as messages name it.

        Raises what the child raises of kdfast's errors, OSError where it can't write, DataError for anything
        else, a crash, and a block of rows that takes too long, ResourceError where it is killed.
        """
        assert self._process.stdin is not None
        place = 0
        line = b""
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
            while (line := self._next_line()).strip().isdigit():
                place = int(line)
        except BrokenPipeError:
            pass
        except TimeoutError as error:
            raise DataError(str(error), where=places[place], hint=DAMAGED) from None
        if not line:
            raise self._died(places[place])
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise _error_of(answer["error"], places[place])
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        return answer

    def _next_line(self) -> bytes:
        """The child's next line, b"" at the end. Raises TimeoutError where none comes in time."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        began = time.monotonic()
        computed = _computed(self._process.pid)
        while b"\n" not in self._left:
            if not poll.poll(500):
                _check_time(time.monotonic() - began, _computed(self._process.pid) - computed)
                continue
            more = os.read(pipe, 1 << 16)
            if not more:
                return b""
            self._left.extend(more)
        line, _, rest = bytes(self._left).partition(b"\n")
        self._left[:] = rest
        return line + b"\n"

    def _died(self, place: str) -> KdfastError:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return ResourceError("the process that read it was killed", where=place, hint="is there enough memory?")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        hint = f"{DAMAGED}; or the memory is used up"
        return DataError(f"the library that reads it crashed ({how})", where=place, hint=hint)


def _check_time(waited: float, computed: float) -> None:
    if computed > BLOCK_SECONDS:
        raise TimeoutError(f"a block of its rows was not read in {BLOCK_SECONDS:g} s of computing: the file is damaged")
    if waited > WAITING_SECONDS:
        raise TimeoutError(
            f"a block of its rows was not read within {WAITING_SECONDS:g} s: its storage does not respond"
        )


def _computed(pid: int) -> float:
    """Seconds that a process has computed; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _error_of(found: dict[str, Any], place: str) -> KdfastError:
    """A child's error, as its own type where that is one of kdfast.errors."""
    kind = getattr(errors, found["type"], None)
    if isinstance(kind, type) and issubclass(kind, KdfastError):
        return kind(found["what"], where=found["where"], hint=found["hint"], settings=found["settings"])
    error = DataError(f"can't be read ({found['what']})", where=place, hint=DAMAGED)
    error.__cause__ = RuntimeError(found["traceback"])
    return error


def read_in_child(files: Sequence[str], reading: dict[str, Any], stacklevel: int) -> dict[str, NDArray[Any]]:
    """The arrays of the jets of files, and their places, by name. Warns of what the child warns of.

    reading: the fields of readers.Reading. Raises what `Child.ask` raises.
    """
    with _scratch() as shared:
        with Child(shared) as child:
            answer = child.ask("load", files, files=files, reading=reading, shared=shared.fileno())
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
