"""CPU tensors through the sources of the CUDA kernels: kdfast._emu in the place of kdfast._cuda."""

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from tests.cuda_kernels import bytes_of, copied, span

_emu: ModuleType | None
try:
    _emu = importlib.import_module("kdfast._emu")
except ImportError:
    _emu = None

is_built = _emu is not None


def emulated(seed: int = 0, compute_capability: int = 90) -> AbstractContextManager[None]:
    """The backend "cuda" for CPU tensors.

    The kernels see copies of their tensors between guard pages, the inputs read-only; outputs hold NaN before. seed:
    the order of threads and blocks, and (even, odd) whether a guard page follows a tensor or precedes it.
    """
    assert _emu is not None
    _emu.set_seed(seed)
    _emu.set_compute_capability(compute_capability)
    at_end = seed % 2 == 0

    class Guarded:
        def __init__(self, tensor: Tensor, is_input: bool) -> None:
            source = bytes_of(span(tensor))
            self.memory = _emu.GuardedMemory(source.numel(), at_end=at_end)
            place = torch.frombuffer(self.memory, dtype=torch.uint8)
            place.copy_(source)
            self.view = place.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())
            if is_input:
                self.memory.make_read_only()

        def is_intact(self) -> bool:
            return bool(self.memory.is_intact())

    def run(op: str, inputs: list[Tensor | None], outputs: list[Tensor | None], scalars: tuple[object, ...]) -> None:
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, *outputs)]
        getattr(_emu, op)(*addresses, *scalars, 0)

    return copied(_emu, Guarded, run)


class Accesses(NamedTuple):
    """What kernels did to shared memory at one place of the source (csrc/emulator/bank_conflicts.h)."""

    place: str  # source:line
    how: str  # "load" or "store"
    bytes: int  # of a lane
    warps: int  # accesses of whole warps
    conflicts: int  # passes of the banks beyond those that these need
    most: int  # different words that lanes wanted of one bank at a time: 1 without conflicts


@contextmanager
def counted_accesses() -> Iterator[list[Accesses]]:
    """Counts accesses to shared memory in a `with` block; the list has them behind it."""
    assert _emu is not None
    accesses: list[Accesses] = []
    _emu.start_counting_accesses()
    try:
        yield accesses
    finally:
        accesses += [Accesses(*counts) for counts in _emu.stop_counting_accesses()]
