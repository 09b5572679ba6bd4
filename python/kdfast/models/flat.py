"""A model's parameters and running statistics as flat buffers.

`flatten_…` makes the model's own tensors views of a new buffer. `flat` reads them and leaves them as they
are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdfast.models.layers import BatchNorm

__all__ = ["flat", "flatten_parameters", "flatten_running", "tensors_of"]


def flatten_parameters(model: nn.Module) -> Tensor:
    """[P], in the order of model.parameters(), which become views of it. Frozen ones (requires_grad False) stay."""
    return _flatten([p for p in model.parameters() if p.requires_grad])


def flatten_running(model: nn.Module) -> Tensor:
    """Mean and variance of each BatchNorm of the model, in its order; the model's own become views."""
    return _flatten(tensors_of(model)[1])


def tensors_of(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and running statistics, in the order of `flatten_parameters` and `flatten_running`.

    Without names, and without looking for duplicates as model.parameters() does: that time counts for a
    single jet.
    """
    parameters: list[Tensor] = []
    running: list[Tensor] = []
    left: list[nn.Module | None] = [model]
    while left:
        module = left.pop()
        if module is None:
            continue
        parameters += [parameter for parameter in module._parameters.values() if parameter is not None]
        left += reversed(module._modules.values())
        if isinstance(module, BatchNorm):
            running += [getattr(module, name) for name in ("running_mean", "running_var")]
    return parameters, running


def flat(tensors: list[Tensor]) -> Tensor:
    """All elements as [P] float32: the buffer that the tensors are views of, one after the other, or a copy."""
    if not tensors:
        return torch.empty(0)
    first = tensors[0].detach()
    start = place = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != place or tensor.dtype != torch.float32 or not tensor.is_contiguous():
            break
        place += 4 * tensor.numel()
    else:
        end = first.untyped_storage().data_ptr() + first.untyped_storage().nbytes()
        if place <= end:  # else they only happen to be neighbours
            return first.as_strided(((place - start) // 4,), (1,))
    return torch.cat([each.detach().float().flatten() for each in tensors])


def _flatten(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.empty(0)
    buffer = torch.cat([tensor.detach().flatten() for tensor in tensors])
    for tensor, part in zip(tensors, buffer.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.data = part.view(tensor.shape)
    return buffer
