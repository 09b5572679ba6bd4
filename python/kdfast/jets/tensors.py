"""Packed jets' arrays as tensors."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["as_tensor"]


def as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that shares the array's memory; a copy where torch can't (read-only or not contiguous)."""
    flags = array.flags
    shared = flags.c_contiguous and flags.writeable
    return torch.from_numpy(array if shared else np.require(array, requirements=["C", "W"]))
