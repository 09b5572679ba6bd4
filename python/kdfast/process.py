"""Which process of which machine this is, so that others can know whether it has ended."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["is_running", "is_writing", "machine", "memory", "started", "temporary_name"]


def machine() -> str:
    """This boot of this machine, and the numbering of its processes (containers have their own); "": not known."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def memory() -> int:
    """Bytes of memory that this machine has; 0: not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def started(pid: int) -> str:
    """When a process was started, in the kernel's ticks; "" where it is not running, or can't be looked at.
    So two processes with the same number are known to be different ones."""
    return _started(pid) or ""


def is_running(pid: int, start: str) -> bool | None:
    """Whether the process of this machine that was `started` then is still running. None: not known, as where
    /proc shows each user only their own processes (hidepid)."""
    if (found := _started(pid)) is not None:
        return found == start
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's process has this number; since when is not shown
    return None


def _started(pid: int) -> str | None:
    """See `started`; None: /proc does not show it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]  # a zombie is gone


# ---- names of what is being written

_WRITER = re.compile(r"\..*\.([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{8})\.(\d+)-(\d*)\.[0-9a-f]{8}\.tmp")


def temporary_name(path: Path) -> Path:
    """A hidden name next to path, for what is being written there.

    It names the writing process: no other one, on any machine, uses the same name, and `is_writing` knows
    when it has ended.
    """
    pid = os.getpid()
    who = f"{'-'.join(_writer())}.{pid}-{started(pid)}.{secrets.token_hex(4)}"
    return path.with_name(f".{path.name[:100]}.{who}.tmp")  # file systems take names of 255 bytes


def is_writing(name: str) -> bool | None:
    """Whether the process that made a `temporary_name` is still running. None: not known, as of another machine's."""
    parts = _WRITER.fullmatch(name)
    if parts is None:
        return None
    host, boot, processes = _writer()
    if not machine() or parts[1] != host:
        return None
    if parts[2] != boot:
        return False  # this machine has been started anew since
    return is_running(int(parts[4]), parts[5]) if parts[3] == processes else None


@cache
def _writer() -> tuple[str, str, str]:
    """Digests of this machine's name and identity, of its boot, and of the numbering of its processes."""
    identity = ""
    with suppress(OSError):
        identity = Path("/etc/machine-id").read_text()
    boot, _, processes = machine().partition(" ")
    return _digest(socket.gethostname() + identity), _digest(boot), _digest(processes)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
