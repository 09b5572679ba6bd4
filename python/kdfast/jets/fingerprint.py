"""Names for the content of jets, and of single jets."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from kdfast.files import write_content
from kdfast.jets.jet_store import content_of, store_of
from kdfast.jets.packed import DTYPES, PackedJets, offsets_of
from kdfast.mapped import release
from kdfast.ops.philox import splitmix64

__all__ = ["fingerprint", "jet_hashes", "kept_fingerprint", "sampled", "share_among"]

HASHED_JETS = 1 << 16  # at a time
SAMPLED = 256  # jets: a share of 2 % of them is missed with a probability of 0.6 %


def fingerprint(jets: PackedJets, max_constituents: int | None = None) -> str:
    """SHA-256 (hexadecimal) over every array's name, type, shape and bytes, in a fixed order.

    Equal for jets with equal content however they came about (read, sliced, loaded); keys caches and is
    stored with results, so that results are never mixed with other data's. max_constituents: of the jets as
    `hardest` cuts them.
    """
    digest = hashlib.sha256()
    counts = jets.counts if max_constituents is None else np.minimum(jets.counts, max_constituents)
    for name in DTYPES:
        array = offsets_of(counts) if name == "offsets" else getattr(jets, name)
        shape = (int(counts.sum()), 4) if name == "constituents" else array.shape
        digest.update(f"{name} {array.dtype.str} {shape}\n".encode())
        for start in range(0, len(array) if name == "offsets" else len(jets), HASHED_JETS):
            rows = slice(start, start + HASHED_JETS)
            part = jets[rows].hardest(max_constituents).constituents if name == "constituents" else array[rows]
            digest.update(np.ascontiguousarray(part).data)
            release(vars(jets).values())
    return digest.hexdigest()


def kept_fingerprint(jets: PackedJets, max_constituents: int | None = None) -> str:
    """`fingerprint`; of jets of a store it is kept next to the store's views, and not computed again.

    For jets that have been compared with the store's checksums: others may have changed since.
    """
    store = store_of(jets)
    if store is None:
        return fingerprint(jets, max_constituents)
    path = store / "views" / f"fingerprint-{content_of(jets)[:32]}-{max_constituents or 'all'}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept: dict[str, str] = json.loads(path.read_bytes())
        if kept["sha256"] == _text_digest(kept["fingerprint"]):  # else it is damaged
            return kept["fingerprint"]
    found = fingerprint(jets, max_constituents)
    with suppress(OSError):  # of a store that can't be written, views are reported
        path.parent.mkdir(exist_ok=True)
        write_content(path, json.dumps({"fingerprint": found, "sha256": _text_digest(found)}).encode())
    return found


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def jet_hashes(jets: PackedJets) -> NDArray[np.uint64]:
    """[B] a hash of each jet's p4 and first constituent.

    It is the same however many constituents are kept, and wherever the jet stands. The last four bits of each
    number do not count, so that files in MeV and in GeV mostly give the same.
    """
    hashes = np.empty(len(jets), np.uint64)
    for start in range(0, len(jets), HASHED_JETS):
        part = jets[start : start + HASHED_JETS]
        hashes[start : start + len(part)] = _hashes(part)
        release(vars(jets).values())
    return hashes


def _hashes(jets: PackedJets) -> NDArray[np.uint64]:
    first = np.zeros((len(jets), 4), np.float32)
    filled = jets.counts > 0
    first[filled] = jets.constituents[jets.offsets[:-1][filled]]
    hashes = np.zeros(len(jets), np.uint64)
    for numbers in (*jets.p4.T, *first.T):
        bits = np.ascontiguousarray(numbers + np.float32(0)).view(np.uint32).astype(np.uint64)  # −0 becomes 0
        hashes = splitmix64(hashes ^ ((bits + np.uint64(8)) >> np.uint64(4)))
    return hashes


def sampled(hashes: NDArray[np.uint64]) -> list[str]:
    """The SAMPLED smallest hashes, hexadecimal: a random sample of the jets that needs no random numbers."""
    return [f"{value:016x}" for value in np.unique(hashes)[:SAMPLED].tolist()]


def share_among(sample: Sequence[str], hashes: NDArray[np.uint64]) -> float:
    """The share of a sample's jets that are among the jets with these hashes."""
    wanted = np.array([int(text, 16) for text in sample], np.uint64)
    return float(np.isin(wanted, hashes).mean()) if len(wanted) else 0.0
