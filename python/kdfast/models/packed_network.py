"""K networks of one family as one: what the families in lock-step share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from kdfast.models.network import Network
from kdfast.ops.packed_rows import PackedRows
from kdfast.ops.undocumented import copy_each

__all__ = ["PackedNetwork"]


class PackedNetwork(ABC):
    """K members on flat buffers.

    model: for sizes, names and shapes alone. parameters: [K, P], each row in the order of model.parameters(). running:
    [K, R], mean and variance of each BatchNorm, as models/flat.py has them. Both are shared with the caller. precision:
    "fp32" (the parameters' own), or "bf16": operands of the matrix products in bfloat16.
    """

    def __init__(self, model: Network, parameters: Tensor, running: Tensor, precision: str = "fp32") -> None:
        self.dtype = torch.bfloat16 if precision == "bf16" else parameters.dtype
        self.config = model.config
        self.members = len(parameters)
        self._shapes = {name: p.shape for name, p in model.named_parameters()}
        self._parameters = {name: part.requires_grad_() for name, part in _views(parameters.detach(), self._shapes)}
        moments = {name: x.shape for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))}
        self._running = dict(_views(running, moments))

    @abstractmethod
    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(logits [K, B, C], pooling attention [K, M], averaged over heads) of one batch of jets, the same for all.

        features: [M, F]. seeds: int64, those of the step's dropout; None: no dropout. The attention is None where
        there is none.
        """

    def write_gradient(self, loss: Tensor, gradient: Tensor) -> None:
        """The derivatives of a scalar that logits went into, to gradient [K, P]."""
        parts = [part for _, part in _views(gradient, self._shapes)]
        copy_each(parts, torch.autograd.grad(loss, list(self._parameters.values())))

    def matrix(self, x: Tensor, name: str) -> Tensor:
        """x Wᵀ of a linear layer, for x [K, M, D]."""
        weight = self._parameters[f"{name}.weight"].to(x.dtype)
        return torch.bmm(x, weight.transpose(1, 2))

    def affine(self, x: Tensor, name: str) -> Tensor:
        """x Wᵀ + b of a linear layer."""
        weight = self._parameters[f"{name}.weight"].to(x.dtype)
        bias = self._parameters[f"{name}.bias"].to(x.dtype)
        return torch.baddbmm(bias[:, None], x, weight.transpose(1, 2))

    def moments(self, norm: str) -> tuple[Tensor, Tensor]:
        """Running mean and variance [K, D] of a BatchNorm."""
        return self._running[f"{norm}.running_mean"], self._running[f"{norm}.running_var"]


def _views(flat: Tensor, shapes: dict[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    """Each name's part of flat [K, …], as [K, *shape]."""
    parts = flat.split([shape.numel() for shape in shapes.values()], 1)
    for (name, shape), part in zip(shapes.items(), parts, strict=True):
        yield name, part.view(len(flat), *shape)
