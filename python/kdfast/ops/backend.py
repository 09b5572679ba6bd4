"""Which implementation of an op runs: the compiled CPU kernels, the CUDA kernels, or the PyTorch reference.

The choice is made per call. By itself an op takes the compiled kernels of the tensors' device and falls back
to the reference, with one warning per op and reason. `KDFAST_BACKEND` or `with kdfast.backend(...)` force
one: "reference", or the kernels of "cpu" or "cuda", where a call on tensors of that device is an error rather
than to fall back.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch

from kdfast.errors import BackendError, ConfigError, KdfastWarning, suggest
from kdfast.ops.undocumented import variable_reader

NAMES = ["reference", "cpu", "cuda"]

_VARIABLE = "KDFAST_BACKEND"
_read_variable = variable_reader(_VARIABLE)

_forced: ContextVar[str | None] = ContextVar("kdfast_backend", default=None)
_warned: dict[tuple[str, str], object] = {}


def _load(name: str, brings: str) -> tuple[ModuleType | None, str | None]:
    """A compiled module, or why there is none."""
    try:
        return importlib.import_module(name), None  # no import statement: type checkers can't see into the module
    except ImportError as error:
        if str(error).startswith("KDFAST_ISA"):  # which names an unknown or unsupported instruction set
            raise BackendError(str(error)) from None
        return None, f"the compiled module {name} is missing ({error}); {brings}"


_cpu, why_no_cpu = _load("kdfast._cpu", "a build with a C++ compiler brings it")
_cuda, why_no_cuda = _load("kdfast._cuda", "a build with nvcc ≥ 12.8 and KDFAST_CUDA=ON brings it")
if _cuda is not None:
    why_no_cuda = _cuda.why_unusable()

# The device whose tensors the CUDA kernels take. Tests that run their sources on a CPU (kdfast._emu) put
# "cpu" here.
cuda_device_type = "cuda"


def cpu_module() -> ModuleType:
    """The compiled CPU module. Call it only where `choose` has answered "cpu"."""
    assert _cpu is not None
    return _cpu


def cuda_module() -> ModuleType:
    """The compiled CUDA module. Call it only where `choose` has answered "cuda"."""
    assert _cuda is not None
    return _cuda


def _check(name: str, where: str) -> str:
    if name not in NAMES:
        raise ConfigError(f"unknown backend {name!r}", where=where, hint=suggest(name, NAMES))
    if name == "cpu" and _cpu is None:
        raise BackendError(str(why_no_cpu), where=where, hint="reinstall kdfast, or use the backend 'reference'")
    if name == "cuda" and why_no_cuda is not None:
        raise BackendError(why_no_cuda, where=where, hint="use 'cpu' or 'reference'")
    return name


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend inside a `with` block, in this thread or task; KDFAST_BACKEND does so for a process.

    What is computed in the block is differentiated by the same backend, wherever that happens.

    Parameters
    ----------
    name : str
        "reference": the PyTorch reference of every op. "cpu" or "cuda": the compiled kernels for tensors of
        that device; a call that they can't take raises BackendError instead of running the reference. Tensors
        of another device, and float64, which only the references take, run as they do otherwise.

    Raises
    ------
    ConfigError
        For an unknown name.
    BackendError
        For a backend that this installation or machine does not have.

    Examples
    --------
    >>> with backend("reference"):
    ...     forced()
    'reference'
    """
    token = _forced.set(_check(name, "kdfast.backend"))
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """The backend that is forced here, or None."""
    name = _forced.get()
    if name is not None:
        return name
    value = _read_variable()
    return _check(value, _VARIABLE) if value else None


def forced_here() -> str | None:
    """What a `with` block forces here: for an op's backward pass to keep, see `as_forced`."""
    return _forced.get()


def as_forced(name: str | None, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls the function with the backend forced that was forced in the op's forward pass; None: as it is here.

    Autograd runs the backward pass of a GPU's tensors on a thread of its own, on which no block has been
    entered.
    """
    if name is None:
        return function(*arguments)
    token = _forced.set(name)
    try:
        return function(*arguments)
    finally:
        _forced.reset(token)


@cache
def why_no_code(gpu: int) -> str | None:
    """Why this build's kernels can't run on the GPU of this number; None: they can."""
    module = cuda_module()
    try:
        with torch.cuda.device(gpu):  # the module changes the current one
            if module.code_capability(gpu):
                return None
    except RuntimeError as error:  # one that another process has for itself
        return f"GPU {gpu} can't be used: {error}"
    return f"this build of kdfast._cuda has code for compute capabilities {module.architectures}, not for GPU {gpu}'s"


def _why_no_code(gpu: int | None) -> str | None:
    return None if gpu is None else why_no_code(gpu)  # None: kdfast._emu's


def choose(op: str, device_type: str, unsupported: str | None = None, gpu: int | None = None) -> str:
    """The implementation for one call: "cpu" or "cuda" (compiled), or "reference".

    device_type, gpu: the tensors' `device.type` and `.index`. unsupported: why the kernel can't take this
    call (None: it can). A fall-back that the user did not ask for warns once per op and reason; it raises
    BackendError where these kernels are forced.
    """
    name = forced()
    if name == "reference":
        return name
    kernels = "cuda" if device_type == cuda_device_type else device_type
    for_all_ops = True
    if kernels not in ("cpu", "cuda"):
        reason = f"there is no compiled kernel for device {device_type!r}"
    elif kernels == "cpu" and why_no_cpu is not None:
        reason = why_no_cpu
    elif kernels == "cuda" and (why_no_cuda or _why_no_code(gpu)) is not None:
        reason = str(why_no_cuda or _why_no_code(gpu))
    else:
        for_all_ops = False
        if kernels == "cuda" and not hasattr(_cuda, op):
            reason = "it has no CUDA kernel yet"
        elif unsupported is not None:
            reason = unsupported
        else:
            return kernels
    if name == kernels:
        hint = f"without {name!r} forced, the PyTorch reference runs"
        raise BackendError(f"the forced backend {name!r} can't run it: {reason}", where=f"kdfast.ops.{op}", hint=hint)
    key = ("" if for_all_ops else op, reason)
    mine = object()
    if _warned.setdefault(key, mine) is mine:  # one step, with the interpreter's lock: one thread's call is the first
        message = f"kdfast.ops.{op} runs its PyTorch reference, which is slower: {reason}"
        warnings.warn(message, KdfastWarning, stacklevel=3)
    return "reference"
