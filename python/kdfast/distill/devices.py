"""Where packs are trained: what a device's name stands for, and a pack that several GPUs share."""

from __future__ import annotations

import contextvars
import queue
import re
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from kdfast.errors import BackendError, ConfigError, suggest
from kdfast.ops import _gpu, backend

if TYPE_CHECKING:
    from kdfast.distill.checkpoint import Checkpoints
    from kdfast.distill.trainer import EpochReport, MemberResult, Pack

__all__ = ["check_name", "train_on_gpus", "training_devices"]

_POLL = 0.1  # seconds between looks at whether to stop


def check_name(name: str) -> None:
    """Raises ConfigError unless it is "auto", "cpu", "cuda" or "cuda:" and a number."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        hint = suggest(name.lower().replace("gpu", "cuda"), ["auto", "cpu", "cuda", "cuda:0"])
        raise ConfigError(f"unknown device {name!r}", where="device", hint=hint)


def training_devices(name: str) -> list[str]:
    """The devices that a name stands for: "cuda" for all GPUs that torch sees and kdfast._cuda has code for, "cuda:1"
    for one of them, "cpu".

    "auto" is the CPU: GPUs train where they are asked for.
    Raises ConfigError for another name, BackendError that says what is missing where no GPU can be used.
    """
    check_name(name)
    if not name.startswith("cuda"):
        return ["cpu"]
    hint = "'cpu' always works; kdfast doctor says what is in use"
    if (why := _gpu.why_unusable()) is not None:
        raise BackendError(f"no GPU can be used: {why}", where=f"device {name!r}", hint=hint)
    gpus = range(torch.cuda.device_count())
    wanted = gpus if name == "cuda" else [int(name.removeprefix("cuda:"))]
    if wanted[-1] not in gpus:
        what = f"torch sees {len(gpus)} GPUs: {', '.join(f'cuda:{i}' for i in gpus)}"
        raise BackendError(what, where=f"device {name!r}", hint=hint)
    lacks = {i: why for i in wanted if (why := backend.why_no_code(i)) is not None}
    if len(lacks) == len(wanted):
        raise BackendError(lacks[wanted[0]], where=f"device {name!r}", hint=f"build kdfast on this machine; {hint}")
    return [f"cuda:{i}" for i in wanted if i not in lacks]


Train = Callable[
    ["Pack", int, "Callable[[EpochReport], None] | None", threading.Event, "Checkpoints | None"],
    "Generator[MemberResult, None, None]",
]


def train_on_gpus(
    devices: Sequence[str],
    train: Train,
    pack: Pack,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """An engine's `train` of a pack whose members the devices share, each a pack of its own on a thread of its own."""
    packs = [
        replace(pack, members=pack.members[first :: len(devices)], device=device)
        for first, device in enumerate(devices[: len(pack.members)])
    ]
    finished: queue.SimpleQueue[MemberResult | BaseException | None] = queue.SimpleQueue()  # None: a pack's end
    given_up = threading.Event()  # by the caller, or for a fault on another device

    def work(part: Pack) -> None:
        try:
            if part.device != "cpu":
                torch.cuda.set_device(part.device)
            for result in train(part, 0, on_epoch, given_up, checkpoints):
                finished.put(result)
        except BaseException as error:
            finished.put(error)
        finally:
            finished.put(None)

    workers = [
        threading.Thread(target=contextvars.copy_context().run, args=(work, part), name=f"kdfast-{part.device}")
        for part in packs
    ]
    try:
        for worker in workers:
            worker.start()
        running = len(workers)
        while running:
            try:
                result = finished.get(timeout=_POLL)
            except queue.Empty:
                if stop.is_set():
                    given_up.set()
                continue
            if result is None:
                running -= 1
            elif isinstance(result, BaseException):
                raise result
            else:
                yield result
    finally:
        given_up.set()
        for worker in workers:
            worker.join()
