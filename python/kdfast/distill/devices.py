"""Where packs are trained: what a device's name means."""

from __future__ import annotations

import os

import torch

from kdfast.distill.recipe import check_device_name
from kdfast.errors import BackendError, ConfigError
from kdfast.ops import backend, gpu

__all__ = ["check_threads", "training_devices"]


def check_threads(threads: int | None) -> None:
    """Raises ConfigError for more threads than CPUs that this process may use: they would only wait for each other."""
    cpus = len(os.sched_getaffinity(0))
    if threads is not None and threads > cpus:
        what = f"{threads} threads are more than the {cpus} CPUs that this process may use"
        raise ConfigError(what, where="threads", hint=f"give at most {cpus}, or leave it out")


def training_devices(name: str) -> list[str]:
    """The devices that a name means: "cuda" for all GPUs that torch sees and kdfast._cuda has code for,
    "cuda:1" for one of them, "cpu".

    "auto" is the CPU: GPUs train where they are asked for.
    Raises ConfigError for another name, BackendError that says what is missing where no GPU can be used.
    """
    check_device_name(name)
    if not name.startswith("cuda"):
        return ["cpu"]
    hint = "'cpu' always works; kdfast doctor says what is in use"
    why = gpu.why_unusable()
    if why is not None:
        raise BackendError(f"no GPU can be used: {why}", where=f"device {name!r}", hint=hint)
    gpus = range(torch.cuda.device_count())
    wanted = gpus if name == "cuda" else [int(name.removeprefix("cuda:"))]
    if wanted[-1] not in gpus:
        what = f"torch sees {len(gpus)} GPUs: {', '.join(f'cuda:{i}' for i in gpus)}"
        raise BackendError(what, where=f"device {name!r}", hint=hint)
    usable = [i for i in wanted if backend.why_no_code(i) is None]
    if not usable:
        why = backend.why_no_code(wanted[0])
        raise BackendError(str(why), where=f"device {name!r}", hint=f"build kdfast on this machine; {hint}")
    return [f"cuda:{i}" for i in usable]
