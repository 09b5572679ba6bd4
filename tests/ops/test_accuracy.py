import pytest
import torch

from tests.ops.accuracy import assert_accurate

EXACT = torch.tensor([1.0, 10.0, -100.0], dtype=torch.float64)
PLAIN = (EXACT + 1e-4).float()


def test_twice_the_error_of_pytorch_is_allowed() -> None:
    assert_accurate((EXACT - 1.9e-4).float(), PLAIN, EXACT)
    with pytest.raises(AssertionError, match=r"case 7: shape \[3\], torch.float32: largest error .* worst at \[1\]"):
        assert_accurate((EXACT + torch.tensor([0, 3e-4, 0])).float(), PLAIN, EXACT, "case 7")


def test_small_elements_do_not_hide_behind_large_ones() -> None:
    exact = torch.cat([torch.tensor([1e4], dtype=torch.float64), torch.ones(9999, dtype=torch.float64)])
    with pytest.raises(AssertionError, match="mean error"):
        assert_accurate((exact + 1e-3).float(), exact.float(), exact)


def test_a_unit_in_the_last_place_is_allowed_where_pytorch_is_exact() -> None:
    assert_accurate(torch.nextafter(EXACT.float(), torch.tensor(torch.inf)), EXACT.float(), EXACT)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_fails(bad: float) -> None:
    with pytest.raises(AssertionError, match="error inf"):
        assert_accurate(torch.tensor([1.0, bad, -100.0]), PLAIN, EXACT)
    assert_accurate(EXACT.float(), torch.tensor([1.0, bad, -100.0]), EXACT)
