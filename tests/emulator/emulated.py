"""CPU tensors through the sources of the CUDA kernels: kdfast._emu in the place of kdfast._cuda."""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from unittest import mock

import torch
from torch import Tensor

import kdfast
from kdfast.errors import KdfastWarning
from kdfast.ops import _gpu, backend

_emu: ModuleType | None
try:
    _emu = importlib.import_module("kdfast._emu")
except ImportError:
    _emu = None

is_built = _emu is not None


@contextmanager
def emulated(seed: int = 0, compute_capability: int = 90) -> Iterator[None]:
    """The backend "cuda" for CPU tensors.

    The kernels see copies of their tensors between guard pages, the inputs read-only; outputs hold NaN before. seed:
    the order of threads and blocks, and (even, odd) whether a guard page follows a tensor or precedes it.
    """
    assert _emu is not None
    _emu.set_seed(seed)
    _emu.set_compute_capability(compute_capability)
    at_end = seed % 2 == 0

    def call(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], *scalars: _gpu.Scalar) -> None:
        memory = [_guarded(tensor, at_end) for tensor in (*inputs, *outputs)]
        for guarded in memory[: len(inputs)]:
            if guarded is not None:
                guarded[0].make_read_only()
        addresses = [0 if guarded is None else guarded[1].data_ptr() for guarded in memory]
        getattr(_emu, op)(*addresses, *scalars, 0)
        written = []
        for tensor, guarded in zip(outputs, memory[len(inputs) :], strict=True):
            if tensor is not None and guarded is not None:
                assert guarded[0].is_intact(), f"{op} wrote around an output of {list(tensor.shape)}"
                after, between = guarded[1].view(tensor.dtype), torch.ones_like(_span(tensor), dtype=torch.bool)
                between.as_strided(tensor.shape, tensor.stride()).fill_(False)
                same = torch.equal(_bytes(after[between]), _bytes(_span(tensor)[between]))
                assert same, f"{op} wrote between the rows of an output of {list(tensor.shape)}"
                written.append((tensor.detach(), after.as_strided(tensor.shape, tensor.stride())))
        for tensor, after in written:
            tensor.copy_(after)

    with (
        warnings.catch_warnings(),
        mock.patch.multiple(backend, _cuda=_emu, why_no_cuda=None, cuda_device_type="cpu"),
        mock.patch.object(_gpu, "call", call),
        kdfast.backend("cuda"),
    ):
        warnings.simplefilter("error", KdfastWarning)  # the reference in place of a kernel would pass every test
        yield


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def _span(tensor: Tensor) -> Tensor:
    """The memory from a tensor's first element to its last; more than the tensor where it has gaps."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((elements,), (1,))


def _guarded(tensor: Tensor | None, at_end: bool) -> tuple[object, Tensor] | None:
    """Memory with the bytes of a tensor's span, and a view of it. An output is uninitialised: its bytes stay."""
    if tensor is None or tensor.numel() == 0:
        return None
    assert _emu is not None
    source = _bytes(_span(tensor))
    memory = _emu.GuardedMemory(source.numel(), at_end=at_end)
    view = torch.frombuffer(memory, dtype=torch.uint8)
    view.copy_(source)
    return memory, view
