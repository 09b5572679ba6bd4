"""A model's parameters and running statistics as flat buffers, of which the model's own become views."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdfast.models.layers import BatchNorm

__all__ = ["flatten_parameters", "flatten_running"]


def flatten_parameters(model: nn.Module) -> Tensor:
    """[P], in the order of model.parameters(), which become views of it."""
    parameters = list(model.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat


def flatten_running(model: nn.Module) -> Tensor:
    """Mean and variance of each BatchNorm of the model, in its order; the model's own become views."""
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    names = [(norm, name) for norm in norms for name in ("running_mean", "running_var")]
    flat = torch.cat([getattr(norm, name) for norm, name in names])
    for (norm, name), part in zip(names, flat.split([getattr(n, name).numel() for n, name in names]), strict=True):
        setattr(norm, name, part)
    return flat
