"""What PyTorch and Python offer but do not document, each with a fallback for a version that has no such name."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["direct_apply", "is_watched", "variable_reader", "version_of"]


def _find(path: str) -> Any:
    """torch's attribute of this dotted name; None where there is none."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


_num_dispatch_modes = _find("_C._len_torch_dispatch_stack")
_functorch_is_active = _find("_C._are_functorch_transforms_active")
_counts_changes = _find("Tensor._version") is not None


def is_watched() -> bool:
    """Whether a dispatch mode or a functorch transform sees the ops that run now; True where that can't be asked."""
    if _num_dispatch_modes is None or _functorch_is_active is None:
        return True
    return _num_dispatch_modes() > 0 or _functorch_is_active()


def direct_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """The function's apply, without the preparations for functorch's transforms: for callers that exclude those."""
    return getattr(super(torch.autograd.Function, function), "apply", function.apply)


def variable_reader(name: str) -> Callable[[], str | None]:
    """A function that returns an environment variable, None where it is not set.

    os.environ.get raises and catches an exception where it is not set, which shows on small batches; the
    dictionary behind it just answers.
    """
    variables = getattr(os.environ, "_data", None)
    encode = getattr(os.environ, "encodekey", None)
    if variables is None or encode is None:
        return lambda: os.environ.get(name)
    key = encode(name)
    return lambda: os.environ[name] if key in variables else None


def version_of(x: Tensor) -> int | None:
    """A number that each in-place change of x increases; None where changes are not counted."""
    return x._version if _counts_changes and not x.is_inference() else None
