"""How ops call their CUDA kernels."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from kdfast.ops import backend
from kdfast.ops.arrays import DTYPE_CODES, check_device
from kdfast.ops.packed_rows import Dropout, PackedRows, gradient_place
from kdfast.ops.philox import dropout_scale, dropout_threshold

Scalar = int | float | tuple[int, ...]


def call(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], *scalars: Scalar) -> None:
    """Starts an op of kdfast._cuda on the current stream of its tensors' device, which is that of the first output.

    Tensors are contiguous, or of strides that the scalars tell. The arguments' order is that of the op's
    binding (csrc/bindings/gpu/): inputs, outputs, scalars. The kernels have not necessarily run when this
    returns. Raises DataError for an input of another device.
    """
    assert outputs[0] is not None
    module = backend.cuda_module()
    device = outputs[0].device
    check_device(outputs[0], **{f"{op}, input {i}": x for i, x in enumerate(inputs)})
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, *outputs)]
    with torch.cuda.device(device):
        module.set_device(device.index)
        getattr(module, op)(*addresses, *scalars, torch.cuda.current_stream(device).cuda_stream)


def takes(op: str, x: Tensor, unsupported: str | None = None) -> bool:
    """Whether the CUDA kernel of an op that has no CPU kernel runs for x (and like tensors); the reference otherwise.

    Of float64, and on other devices, that is as it should be and warns of nothing. unsupported: as for
    backend.choose.
    """
    if x.dtype == torch.float64 or x.device.type != backend.cuda_device_type:
        return False
    if x.dtype not in DTYPE_CODES:
        unsupported = f"{x.dtype} is not among the kernel's types"
    return backend.choose(op, x.device.type, unsupported, x.device.index) == "cuda"


def why_unusable() -> str | None:
    """Why nothing can run on a GPU here; None where it can."""
    if backend.why_no_cuda is not None:
        return backend.why_no_cuda
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return None if torch.cuda.is_available() else "torch sees no GPU"


def may_wait(device: torch.device) -> bool:
    """False where the host can't look at results: while a CUDA graph is captured."""
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


@overload
def aligned(x: Tensor) -> Tensor: ...
@overload
def aligned(x: None) -> None: ...
def aligned(x: Tensor | None) -> Tensor | None:
    """x, contiguous and beginning at a multiple of 16 bytes, as kernels with vector accesses want it."""
    if x is None:
        return None
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def member_vectors(*vectors: Tensor | None) -> tuple[list[Tensor | None], list[int]]:
    """Vectors [K, D] of the members as kernels read them, float32 with contiguous rows; and the rows' strides."""
    found = [v if v is None or v.stride(-1) == 1 else v.contiguous() for v in map(_as_float32, vectors)]
    return found, [0 if v is None else v.stride(0) for v in found]


def member_gradients(*vectors: Tensor | None) -> tuple[list[Tensor | None], list[int]]:
    """Where kernels write the gradients of vectors [K, D] of the members, and the rows' strides."""
    places = [v if v is None else _place(v) for v in vectors]
    return places, [0 if place is None else place.stride(0) for place in places]


def _place(vector: Tensor) -> Tensor:
    place = gradient_place(vector)
    if place is not None and place.dtype == torch.float32 and place.stride(-1) == 1:
        return place
    return torch.empty(vector.shape, dtype=torch.float32, device=vector.device)


def _as_float32(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def rows_and_dropout(rows: PackedRows, dropout: Dropout | None) -> tuple[tuple[Tensor | None, ...], tuple[int, float]]:
    """What an op on packed rows hands on of them: inputs (count, jet, position, seed, mask), scalars
    (threshold, scale)."""
    if dropout is None or dropout.p == 0:
        return (rows.count, rows.jet, rows.position, None, None), (0, 1.0)
    scalars = dropout_threshold(dropout.p), dropout_scale(dropout.p)
    return (rows.count, rows.jet, rows.position, dropout.seed, dropout.mask), scalars
