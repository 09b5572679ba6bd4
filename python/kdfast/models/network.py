"""What every network of the package offers its engines."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdfast.models.config import NetworkConfig
from kdfast.ops.philox import philox4x32

__all__ = ["Network", "uniform"]


class Network(nn.Module):
    """A network on packed jets, made by a config and a seed."""

    config: NetworkConfig

    def forward(
        self,
        features: Tensor,
        offsets: Tensor,
        return_attention: bool = False,
        *,
        dropout_seed: int | None = None,
    ) -> Any:
        """Logits of packed jets.

        Parameters
        ----------
        features : Tensor [M, F]
            Standardised features of the constituents.
        offsets : Tensor [B + 1], int64
            Where each jet begins.
        return_attention : bool
            Whether to return the pooling weights too.
        dropout_seed : int, optional
            Key of this step's dropout in training mode. By default it is drawn from torch's default
            generator.

        Returns
        -------
        logits : Tensor [B, C]
        attention : Tensor [M], or None
            Only with return_attention: pooling weights, averaged over heads; they sum to 1 over a jet. None where
            the network has none.

        Raises
        ------
        ModelError
            For features of another width.
        """
        logits, weights = self._answer(features, offsets, dropout_seed)
        return (logits, weights) if return_attention else logits

    def _answer(self, features: Tensor, offsets: Tensor, dropout_seed: int | None) -> tuple[Tensor, Tensor | None]:
        """What `forward` returns with return_attention."""
        raise NotImplementedError

    def num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters())


def uniform(seed: int, like: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float64, of like's shape: element e from word e % 4 of the counter e // 4."""
    blocks = torch.arange((like.numel() + 3) // 4)
    zero = torch.zeros_like(blocks)
    words = torch.stack(philox4x32(seed, blocks, zero, zero, zero), dim=1).flatten()[: like.numel()]
    return ((words.double() + 0.5) / 2**32).view(like.shape)
