"""Programs that tests start, signal and wait for."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Python with these arguments, its output in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, text=True, **(pipes | options))


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Waits for its end; exit status, stdout, stderr."""
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


def wait_until(true: Callable[[], Any], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)
