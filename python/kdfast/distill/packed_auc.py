"""AUC of all members of a pack at once, on their device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from kdfast.metrics import roc_auc

__all__ = ["PackedAuc"]

_ELEMENTS = 1 << 24  # logits that are sorted at a time: their order, sums and places take some 40 bytes each
_BITS = 40  # of a weight, relative to the largest


class PackedAuc:
    """`metrics.roc_auc` of each row of logits [K, B], but for rounding; the same bits on every run.

    labels [B]: 1 for signal, 0 for background. weights [B]: ≥ 0, of finite sum. Raises DataError where a
    class is missing.
    """

    def __init__(self, labels: Tensor, weights: Tensor, device: torch.device) -> None:
        roc_auc(labels.numpy(), torch.zeros(len(labels)).numpy(), weights.numpy())  # for its errors
        used = weights > 0
        self.signal, self.background = (((labels == y) & used).nonzero()[:, 0].to(device) for y in (1, 0))
        weights = weights.double().to(device)
        self.w_signal = weights[self.signal]
        # Whole numbers, as sums of others depend on the order in which a GPU adds them. Their sum is below 2^62.
        background = weights[self.background]
        bits = min(_BITS, 61 - math.ceil(math.log2(len(background))))
        self.w_background = (background / background.max() * 2.0**bits).round().long()

    def __call__(self, logits: Tensor) -> Tensor:
        """[K] in float64; NaN for a member whose logits are not all finite."""
        members = max(1, _ELEMENTS // logits.shape[1])
        return torch.cat([self._of(rows) for rows in logits.split(members)])

    def _of(self, logits: Tensor) -> Tensor:
        signal = logits.index_select(1, self.signal)
        background, order = logits.index_select(1, self.background).sort(1)
        weight_below = F.pad(self.w_background[order].cumsum(1), (1, 0))  # [K, background + 1]
        first, last = (torch.searchsorted(background, signal, right=right) for right in (False, True))
        pairs = weight_below.gather(1, first).double() + weight_below.gather(1, last).double()  # ties count half
        areas = (pairs * self.w_signal).sum(1) / (2.0 * self.w_signal.sum() * weight_below[:, -1].double())
        return torch.where(logits.isfinite().all(1), areas.clamp(max=1.0), math.nan)
