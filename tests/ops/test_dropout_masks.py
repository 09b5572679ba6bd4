"""The bits of dropout_masks' specification, one by one."""

import pytest
import torch

from kdfast.ops.dropout_masks import MaskUse, dropout_masks, mask_bytes, mask_reference
from kdfast.ops.packed_rows import pair_tiles
from kdfast.ops.philox import dropout_keep
from tests.ops.packed import rows_of

COUNTS = [3, 0, 17, 1, 33]
ROWS = rows_of(COUNTS, padding=4)
P, SEED = 0.3, 2**62 + 12345


@pytest.mark.parametrize("features", [1, 8, 13])
def test_a_byte_has_the_bits_of_eight_features(features: int) -> None:
    found = mask_reference(ROWS, MaskUse("rows", features), P, SEED)
    octets = (features + 7) // 8
    assert found.shape == (sum(COUNTS), octets)
    for row in range(sum(COUNTS)):
        jet, position = ROWS.jet[row], ROWS.position[row]
        keep = dropout_keep(SEED, P, jet, torch.tensor(0), position, 8 * octets).tolist()
        assert [int(found[row, f // 8]) >> f % 8 & 1 for f in range(8 * octets)] == keep


def test_rows_that_are_jets() -> None:
    found = mask_reference(ROWS, MaskUse("jets", 24), P, SEED)
    for jet in range(len(COUNTS)):
        keep = dropout_keep(SEED, P, torch.tensor(jet), torch.tensor(0), torch.tensor(0), 24).tolist()
        assert [int(found[jet, f // 8]) >> f % 8 & 1 for f in range(24)] == keep


@pytest.mark.parametrize("heads", [1, 3])
def test_a_tile_has_the_bits_of_its_queries_and_keys(heads: int) -> None:
    found = mask_reference(ROWS, MaskUse("pairs", heads), P, SEED)
    assert len(found) == heads * pair_tiles(torch.tensor(COUNTS)).sum()
    first = 0
    for jet, n in enumerate(COUNTS):
        tiles = (n + 15) // 16
        for head in range(heads):
            for query in range(n):
                place = (torch.tensor(x) for x in (jet, head, query))
                keep = dropout_keep(SEED, P, *place, n).tolist()
                row = first + query // 16 * tiles
                shift = 16 * (query % 16 // 8)
                bits = [int(found[row + key // 16, query % 8]) >> shift + key % 16 & 1 for key in range(n)]
                assert bits == keep, f"jet {jet}, head {head}, query {query}"
            first += tiles**2


def test_bytes_of_a_mask() -> None:
    """A multiple of 16, so that the one behind it begins at such; 32 bytes for 256 pairs."""
    assert mask_bytes(MaskUse("rows", 4), 33, 5, 0) == 48
    assert mask_bytes(MaskUse("jets", 24), 33, 5, 0) == 16
    assert mask_bytes(MaskUse("pairs", 3), 33, 5, 10) == 960


def test_no_masks_without_the_kernels() -> None:
    seeds = torch.tensor([1, 2])
    drops = dropout_masks(ROWS, [MaskUse("rows", 8), MaskUse("pairs", 2)], P, seeds, plan=None)
    assert [(drop.p, int(drop.seed), drop.mask) for drop in drops] == [(P, 1, None), (P, 2, None)]
