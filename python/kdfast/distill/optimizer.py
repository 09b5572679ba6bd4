"""AdamW with gradient clipping over a member's flat parameters, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["FlatAdamW", "learning_rate"]


def learning_rate(epoch: int, epochs: int, warmup_epochs: int, peak: float) -> float:
    """Linear warm-up, (e + 1)/W, then ½(1 + cos(π(e − W)/max(E − W, 1))); epochs counted from 0."""
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    return peak * 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1)))


class FlatAdamW:
    """AdamW (Loshchilov & Hutter, ICLR'19) on one flat buffer that a model's parameters become views of.

    parameters, gradient, and both moments are [P]; one set of elementwise passes updates the whole model. The gradient
    is first scaled to a global norm of at most clip_norm, as torch.nn.utils.clip_grad_norm_ does.
    """

    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def __init__(self, model: nn.Module, weight_decay: float, clip_norm: float) -> None:
        self.weight_decay, self.clip_norm = weight_decay, clip_norm
        shapes = list(model.parameters())
        total = sum(p.numel() for p in shapes)
        self.parameters = torch.empty(total)
        self.gradient, self.moment1, self.moment2 = (torch.zeros(total) for _ in range(3))
        self.step_count = 0
        start = 0
        for parameter in shapes:
            stop = start + parameter.numel()
            view = self.parameters[start:stop].view(parameter.shape)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = self.gradient[start:stop].view(parameter.shape)
            start = stop

    def zero_grad(self) -> None:
        """Zeroes the gradient, to which a backward pass then adds."""
        self.gradient.zero_()

    def step(self, learning_rate: float) -> bool:
        """One update. False, and nothing changes, where the gradient is not finite."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        if not math.isfinite(norm):
            return False
        if (scale := self.clip_norm / (norm + 1e-6)) < 1:
            self.gradient.mul_(scale)
        self.step_count += 1
        self.moment1.lerp_(self.gradient, 1 - self.beta1)
        self.moment2.mul_(self.beta2).addcmul_(self.gradient, self.gradient, value=1 - self.beta2)
        correction1 = 1 - self.beta1**self.step_count
        correction2 = 1 - self.beta2**self.step_count
        self.parameters.mul_(1 - learning_rate * self.weight_decay)
        denominator = self.moment2.sqrt().div_(math.sqrt(correction2)).add_(self.eps)
        self.parameters.addcdiv_(self.moment1, denominator, value=-learning_rate / correction1)
        return True
