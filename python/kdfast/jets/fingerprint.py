"""A name for the content of jets."""

import hashlib

import numpy as np

from kdfast.jets.packed import DTYPES, PackedJets

__all__ = ["fingerprint"]


def fingerprint(jets: PackedJets) -> str:
    """SHA-256 (hexadecimal) over every array's name, type, shape and bytes, in a fixed order.

    Equal for jets with equal content however they came about (read, sliced, loaded); keys caches and is stored with
    results, so that results are never mixed with other data's.
    """
    digest = hashlib.sha256()
    for name in DTYPES:
        array = np.ascontiguousarray(getattr(jets, name))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
