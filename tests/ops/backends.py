"""What the tests of an op run: the implementations of this build, the CUDA kernels on a GPU, their sources on the
emulator."""

from contextlib import AbstractContextManager
from unittest import mock

import pytest
import torch

import kdfast
from kdfast.ops import backend
from tests.cuda_kernels import on_gpu, why_no_gpu
from tests.emulator.emulated import emulated, is_built

BACKENDS = ["reference"]
if backend.why_no_cpu is None:
    BACKENDS.append("cpu")
if is_built:
    BACKENDS.append("emulated cuda")
if why_no_gpu is None:
    BACKENDS.append("cuda")

# Why tests marked `cuda_kernels`, which use cuda_kernels below, can't run here (tests/conftest.py skips them).
why_no_cuda_kernels = (
    None
    if is_built or why_no_gpu is None
    else "needs kdfast._emu (a build with KDFAST_EMULATOR=ON), or kdfast._cuda and a GPU"
)


def chosen(name: str) -> AbstractContextManager[None]:
    """One of BACKENDS inside a `with` block, for CPU tensors."""
    if name == "cuda":
        return on_gpu()
    return emulated() if name == "emulated cuda" else kdfast.backend(name)


def unforced() -> AbstractContextManager[object]:
    """Inside `chosen` or `cuda_kernels`: a call that these kernels can't take falls back, as without them forced."""
    return mock.patch.object(backend, "forced", return_value=None)


def cuda_kernels(schedule: int = 0, compute_capability: int = 90) -> AbstractContextManager[None]:
    """The CUDA kernels for CPU tensors: on a GPU where there is one, else on the emulator, with an order of threads.

    compute_capability: below 80 the test is of the kernels of GPUs whose tensor cores know no bfloat16.
    """
    if why_no_gpu is not None:
        return emulated(schedule, compute_capability)
    if (compute_capability < 80) != (torch.cuda.get_device_capability() < (8, 0)):
        pytest.skip(f"the GPU has not the kernels of compute capability {compute_capability / 10}")
    return on_gpu()
