"""K DeepSets as one: batched matrix products over [K, M, D], sums and maxima over each jet for all members at once.

The same function of the same parameters as K models of models/deep_sets.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdfast.models.config import DeepSetsConfig
from kdfast.models.layers import segment_max, segment_sum
from kdfast.models.packed_network import PackedNetwork
from kdfast.ops.packed_rows import PackedRows, wide

__all__ = ["PackedDeepSets"]


class PackedDeepSets(PackedNetwork):
    """K DeepSets on flat buffers. running: [K, 0]. "bf16" is for the products on constituents."""

    config: DeepSetsConfig

    def logits(
        self, features: Tensor, rows: PackedRows, seeds: Tensor | None = None, *, training: bool
    ) -> tuple[Tensor, None]:
        """See PackedNetwork; there is neither attention nor dropout, and training changes nothing."""
        config = self.config
        x = rows.clear(features).to(self.dtype).expand(self.members, -1, -1)
        for layer in range(config.layers):
            x = torch.relu(self.affine(x, f"constituent.{layer}"))
        x = wide(x).transpose(0, 1)  # the reductions want the rows first
        mean = segment_sum(x, rows.offsets) / rows.offsets.diff().clamp(min=1)[:, None, None]
        maximum = segment_max(x, rows.offsets, rows.jet)
        h = torch.cat([mean, maximum], dim=2).transpose(0, 1)
        for layer in range(config.head_layers):
            h = torch.relu(self.affine(h, f"jet.{layer}"))
        return self.affine(h, "classify"), None
