"""Packed and padded jets for the tests of kdfast.nn, and weights away from their initial zeros and ones."""

import torch
from torch import Tensor, nn

# Not only prefixes: constituents may stand anywhere in a padded row. The third jet is empty.
MASK = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0] * 6, [1] * 6, [0, 0, 0, 0, 0, 1]]).bool()
NOT_EMPTY = MASK.any(1)


def padded(width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """x [5, 6, width] for MASK, with NaN and infinity in the padding."""
    x = torch.randn(*MASK.shape, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    x[~MASK] = float("nan")
    x[3:][~MASK[3:]] = float("inf")
    return x


def packed(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same jets packed: [M, width], offsets [6]."""
    return x[MASK], torch.tensor([0, *MASK.sum(1)]).cumsum(0)


def randomise(module: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
