"""Ops on packed jets, each with a compiled kernel and a PyTorch reference that is its specification."""
