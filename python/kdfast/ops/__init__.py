"""Ops on packed jets, each with a compiled kernel and a PyTorch reference that is its specification."""

from kdfast.ops.constituent_attention import (
    constituent_attention,
    constituent_attention_qkvpacked,
    padded_attention,
)
from kdfast.ops.distill_loss import distill_loss
from kdfast.ops.dropout import dropout

__all__ = [
    "constituent_attention",
    "constituent_attention_qkvpacked",
    "distill_loss",
    "dropout",
    "padded_attention",
]
