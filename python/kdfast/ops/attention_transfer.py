"""The attention-transfer term for K members at once; see distill/attention_transfer.py for what it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kdfast.ops import backend, gpu
from kdfast.ops.packed_rows import PackedRows

__all__ = ["attention_transfer", "attention_transfer_reference"]


def attention_transfer(
    attention: Tensor, rows: PackedRows, teacher_entropy: Tensor, teacher_maximum: Tensor, weights: Tensor
) -> Tensor:
    """[K]: Σ_b w_b [(H_b − H_b^teacher)² + (max_b − max_b^teacher)²] / Σ_b w_b, differentiable by attention.

    attention: [K, M], a jet's weights, which sum to 1. teacher_entropy, teacher_maximum, weights: [B].
    """
    targets = (teacher_entropy, teacher_maximum, weights)
    if _takes_kernel(attention, rows, targets):
        return _AttentionTransfer.apply(attention, rows, targets)
    return attention_transfer_reference(attention, rows, *targets)


def attention_transfer_reference(
    attention: Tensor, rows: PackedRows, teacher_entropy: Tensor, teacher_maximum: Tensor, weights: Tensor
) -> Tensor:
    """The specification, in any floating dtype."""
    members = len(attention)
    jets = rows.jets
    jet = torch.where(rows.valid, rows.jet, jets)
    w = torch.where(rows.valid, attention, 0)
    terms = -w * torch.where(w > 0, w, 1.0).log()
    entropy = w.new_zeros(members, jets + 1).index_add(1, jet, terms)[:, :-1]
    maximum = w.new_zeros(members, jets + 1).scatter_reduce(1, jet.expand(members, -1), w, "amax")[:, :-1]
    error = (entropy - teacher_entropy).square() + (maximum - teacher_maximum).square()
    return (error * weights).sum(1) / weights.sum()


_Targets = tuple[Tensor, Tensor, Tensor]  # entropy, maximum, weights


def _takes_kernel(attention: Tensor, rows: PackedRows, targets: _Targets) -> bool:
    if attention.numel() == 0 or rows.jets == 0:
        return False
    all_float32 = all(x.dtype == torch.float32 for x in (attention, *targets))
    unsupported = None if all_float32 else "attention, the teacher's summary and the weights must be float32"
    return gpu.takes("attention_transfer", attention, unsupported)


class _AttentionTransfer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attention: Tensor, rows: PackedRows, targets: _Targets) -> Tensor:
        members, capacity = attention.shape
        sizes = (members, rows.jets, capacity)
        loss = attention.new_empty(members)
        total_weight = attention.new_empty(1)
        grad = torch.empty_like(attention, memory_format=torch.contiguous_format)
        size = backend.cuda_module().attention_transfer_workspace(*sizes[:2])
        workspace = torch.empty(size, dtype=torch.uint8, device=attention.device)
        inputs = [x.contiguous() for x in (attention, rows.offsets, *targets)]
        gpu.call("attention_transfer", inputs, (loss, grad, total_weight, workspace), *sizes)
        ctx.save_for_backward(grad, total_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad, total_weight = ctx.saved_tensors
        return grad * (grad_loss / total_weight)[:, None], None, None
