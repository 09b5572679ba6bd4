"""Ops on packed jets, each with a compiled kernel and a PyTorch reference that is its specification."""

from kdfast.ops.distill_loss import distill_loss

__all__ = ["distill_loss"]
