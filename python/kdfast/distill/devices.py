"""Where packs are trained: what a device's name means."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from kdfast.distill.recipe import check_device_name
from kdfast.errors import BackendError, ConfigError
from kdfast.ops import backend, gpu

__all__ = ["check_bf16", "check_threads", "default_precision", "exact_sums", "training_devices"]

_BF16 = (8, 0)  # the compute capability whose tensor cores multiply bfloat16
_exact = threading.Lock()
_trainings: list[bool] = []  # one for each under way: whether PyTorch allowed bf16 sums before the first


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


def default_precision(devices: Sequence[str]) -> str:
    """ "bf16" if all devices are GPUs that multiply it in tensor cores, else "fp32". devices: of `training_devices`."""
    return "bf16" if all(_multiplies_bf16(device) for device in devices) else "fp32"


def check_bf16(devices: Sequence[str]) -> None:
    """Raises BackendError where one of the devices is a GPU without instructions for bfloat16."""
    for device in devices:
        if device == "cpu" or _multiplies_bf16(device):
            continue
        major, minor = torch.cuda.get_device_capability(device)
        what = f"bf16 needs a GPU of compute capability 8.0 or later, {device} has {major}.{minor}"
        raise BackendError(what, where="precision", hint='use precision="fp32"')


def _multiplies_bf16(device: str) -> bool:
    return device.startswith("cuda") and torch.cuda.get_device_capability(device) >= _BF16


@contextmanager
def exact_sums() -> Iterator[None]:
    """Matrix products in bfloat16 add in float32 throughout: by default PyTorch lets cuBLAS add partial sums
    in bfloat16. The setting is the process's; it returns to what it was when the last of several trainings
    ends."""
    matmul = torch.backends.cuda.matmul
    with _exact:
        before = _trainings[0] if _trainings else matmul.allow_bf16_reduced_precision_reduction
        _trainings.append(before)
        if before:
            matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        with _exact:
            _trainings.pop()
            if before and not _trainings:
                matmul.allow_bf16_reduced_precision_reduction = True
