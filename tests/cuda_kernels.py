"""CPU tensors through the CUDA kernels: on a GPU where one can be used, else on the emulator.

Either way a kernel sees copies of its tensors, between guards, and nothing but outputs comes back. So one test of CPU
tensors serves both; what tensors on a GPU need besides is in tests/ops/test_tensors_on_a_gpu.py.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Protocol
from unittest import mock

import pytest
import torch
from torch import Tensor

import kdfast
from kdfast.errors import KdfastWarning
from kdfast.ops import backend, gpu
from kdfast.ops.arrays import check_device

why_no_gpu = gpu.why_unusable()
needs_gpu = pytest.mark.skipif(why_no_gpu is not None, reason=f"no GPU can be used: {why_no_gpu}")

_GUARD = 0xA5
# Where torch allocates each tensor by itself, as under compute-sanitizer, that watches its bounds: no margins.
_MARGIN = 0 if "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ else 256  # bytes


class Copy(Protocol):
    """Of a tensor, for a kernel. view: the copy, of the tensor's dtype, shape and strides."""

    view: Tensor

    def is_intact(self) -> bool:
        """Whether what lies around it is as it was."""


Run = Callable[[str, list[Tensor | None], list[Tensor | None], tuple[gpu.Scalar, ...]], None]


@contextmanager
def copied(module: ModuleType, copy: Callable[[Tensor, bool], Copy], run: Run) -> Iterator[None]:
    """The backend "cuda" for CPU tensors: its kernels are `module`'s, called by run(op, inputs, outputs, scalars).

    copy(tensor, whether it is an input): an output is uninitialised memory, whose bytes go along.
    """

    def call(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], *scalars: gpu.Scalar) -> None:
        assert outputs[0] is not None
        check_device(outputs[0], **{f"{op}, input {i}": x for i, x in enumerate(inputs)})
        tensors = (*inputs, *outputs)
        copies = [None if t is None or t.numel() == 0 else copy(t, i < len(inputs)) for i, t in enumerate(tensors)]
        views = [None if c is None else c.view for c in copies]
        run(op, views[: len(inputs)], views[len(inputs) :], scalars)
        written = []
        for tensor, c in zip(outputs, copies[len(inputs) :], strict=True):
            if tensor is not None and c is not None:
                assert c.is_intact(), f"{op} wrote around an output of {list(tensor.shape)}"
                after, between = span(c.view).cpu(), torch.ones_like(span(tensor), dtype=torch.bool)
                between.as_strided(tensor.shape, tensor.stride()).fill_(False)
                same = torch.equal(bytes_of(after[between]), bytes_of(span(tensor)[between]))
                assert same, f"{op} wrote between the rows of an output of {list(tensor.shape)}"
                written.append((tensor.detach(), after.as_strided(tensor.shape, tensor.stride())))
        for tensor, result in written:
            tensor.copy_(result)

    with (
        warnings.catch_warnings(),
        mock.patch.multiple(backend, _cuda=module, why_no_cuda=None, cuda_device_type="cpu"),
        mock.patch.object(gpu, "call", call),
        kdfast.backend("cuda"),
    ):
        warnings.simplefilter("error", KdfastWarning)  # the reference in place of a kernel would pass every test
        yield


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)


def span(tensor: Tensor) -> Tensor:
    """The memory from a tensor's first element to its last; more than the tensor where it has gaps."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((elements,), (1,))


class _OnGpu:
    """A Copy that begins as far behind a multiple of 16 bytes as the tensor does."""

    def __init__(self, tensor: Tensor, is_input: bool) -> None:
        source = bytes_of(span(tensor))
        self.begin = _MARGIN + tensor.data_ptr() % 16
        self.end = self.begin + source.numel()
        self.memory = torch.full((self.end + _MARGIN,), _GUARD, dtype=torch.uint8, device="cuda")
        place = self.memory[self.begin : self.end]
        place.copy_(source)
        self.view = place.view(tensor.dtype).as_strided(tensor.shape, tensor.stride())

    def is_intact(self) -> bool:
        return bool((self.memory[: self.begin] == _GUARD).all() and (self.memory[self.end :] == _GUARD).all())


def on_gpu() -> AbstractContextManager[None]:
    """CPU tensors through kdfast._cuda's kernels on the current GPU."""
    module = backend.cuda_module()

    def run(op: str, inputs: list[Tensor | None], outputs: list[Tensor | None], scalars: tuple[object, ...]) -> None:
        module.set_device(torch.cuda.current_device())
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, *outputs)]
        getattr(module, op)(*addresses, *scalars, torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()  # a fault is this op's

    return copied(module, _OnGpu, run)
