"""AdamW with gradient clipping over a member's flat parameters, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdfast.models.flat import flatten_parameters
from kdfast.ops.adamw import adamw

__all__ = ["FlatAdamW", "learning_rate"]


def learning_rate(epoch: int, epochs: int, warmup_epochs: int, peak: float) -> float:
    """Linear warm-up, (e + 1)/W, then ½(1 + cos(π(e − W)/max(E − W, 1))); epochs counted from 0."""
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1)))


class FlatAdamW:
    """AdamW (Loshchilov & Hutter, ICLR'19) on one flat buffer that a model's parameters become views of.

    parameters, gradient, and both moments are [P], so that one call of the op clips and updates the whole
    model.
    """

    def __init__(self, model: nn.Module, weight_decay: float, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.parameters = flatten_parameters(model)
        self.weight_decay = self._scalar(weight_decay)
        self.gradient, self.moment1, self.moment2 = (torch.zeros_like(self.parameters) for _ in range(3))
        self.step_count = torch.zeros(1, dtype=torch.int64, device=self.parameters.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter, part in zip(parameters, self.gradient.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view(parameter.shape)

    def tensors(self) -> dict[str, Tensor]:
        """What the next update depends on, by name: the tensors themselves."""
        moments = {"moment1": self.moment1, "moment2": self.moment2}
        return {"parameters": self.parameters, **moments, "updates": self.step_count}

    def zero_grad(self) -> None:
        """Zeroes the gradient, to which a backward pass then adds."""
        self.gradient.zero_()

    def step(self, learning_rate: float, num_threads: int | None = None) -> bool:
        """One update. False, and nothing changes, where the gradient is not finite. num_threads: None for torch's."""
        self.step_count += 1
        norm = adamw(
            *(x[None] for x in (self.parameters, self.gradient, self.moment1, self.moment2)),
            step=self.step_count,
            learning_rate=self._scalar(learning_rate),
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            num_threads=num_threads,
        )
        return math.isfinite(norm.item())

    def _scalar(self, value: float) -> Tensor:
        return torch.full((1,), value, dtype=torch.float32, device=self.parameters.device)
