"""What every network of the package offers its engines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdfast.models.config import NetworkConfig
from kdfast.ops.philox import philox4x32

__all__ = ["Network", "uniform"]


class Network(nn.Module):
    """A network on packed jets, made by a config and a seed.

    It is called as model(features [M, F], offsets [B + 1], return_attention=False, dropout_seed=None). It
    returns logits [B, C]; with return_attention also the weights [M] by which it pools the constituents, or
    None if it has none. dropout_seed: key of the step's random numbers in training mode; None: they are drawn
    from torch's default generator.
    """

    config: NetworkConfig

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


def uniform(seed: int, like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64, of like's shape: element e from word e % 4 of the counter e // 4."""
    blocks = torch.arange((like.numel() + 3) // 4)
    zero = torch.zeros_like(blocks)
    words = torch.stack(philox4x32(seed, blocks, zero, zero, zero), dim=1).flatten()[: like.numel()]
    return ((words.double() + 0.5) / 2**32).view(like.shape)
