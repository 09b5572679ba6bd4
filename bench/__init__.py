"""Benchmarks: one file per op and per journey, each with its plain baseline beside it. Run them with `kdfast bench`."""
