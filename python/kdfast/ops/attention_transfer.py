"""The attention-transfer term for K members at once; see distill/attention_transfer.py for what it is."""

from __future__ import annotations

import torch
from torch import Tensor

from kdfast.ops.packed_rows import PackedRows

__all__ = ["attention_transfer", "attention_transfer_reference"]


def attention_transfer(
    attention: Tensor, rows: PackedRows, teacher_entropy: Tensor, teacher_maximum: Tensor, weights: Tensor
) -> Tensor:
    """[K]: Σ_b w_b [(H_b − H_b^teacher)² + (max_b − max_b^teacher)²] / Σ_b w_b, differentiable by attention.

    attention: [K, M], a jet's weights, which sum to 1. teacher_entropy, teacher_maximum, weights: [B].
    """
    return attention_transfer_reference(attention, rows, teacher_entropy, teacher_maximum, weights)


def attention_transfer_reference(
    attention: Tensor, rows: PackedRows, teacher_entropy: Tensor, teacher_maximum: Tensor, weights: Tensor
) -> Tensor:
    """The specification, in any floating dtype."""
    members, jets = len(attention), rows.jets
    jet = torch.where(rows.valid, rows.jet, jets)
    w = torch.where(rows.valid, attention, 0)
    terms = -w * torch.where(w > 0, w, 1.0).log()
    entropy = w.new_zeros(members, jets + 1).index_add(1, jet, terms)[:, :-1]
    maximum = w.new_zeros(members, jets + 1).scatter_reduce(1, jet.expand(members, -1), w, "amax")[:, :-1]
    error = (entropy - teacher_entropy).square() + (maximum - teacher_maximum).square()
    return (error * weights).sum(1) / weights.sum()
