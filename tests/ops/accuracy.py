"""The accuracy rule of every kernel, once.

The error of a kernel's result against float64 may be twice the error of PyTorch's own computation in the same dtype,
plus a fixed floor: two units in the last place, and what float64 itself may be wrong by (2^-52, for quantities of order
one). Nothing is tuned per test. Both the largest and the mean error are held to it, so that small elements can't hide
behind large ones.
"""

import torch
from torch import Tensor


def assert_accurate(actual: Tensor, plain: Tensor, exact: Tensor, case: str = "") -> None:
    """Holds `actual` to the rule.

    plain: PyTorch's straightforward computation in the dtype of the inputs. exact: the same from the same inputs (as
    rounded to that dtype) in float64. case: what a failure should name besides shape, dtype and worst element (seed,
    sizes, settings). Where plain is not finite it sets no standard; actual must be finite wherever exact is.
    """
    assert exact.dtype == torch.float64, "exact must be computed in float64"
    assert actual.shape == plain.shape == exact.shape, f"{case}: shapes {actual.shape}, {plain.shape}, {exact.shape}"
    if exact.numel() == 0:
        return
    assert exact.isfinite().all(), f"{case}: the float64 result is not finite"
    error = (actual.detach().double() - exact).abs()
    error = torch.where(error.isnan(), torch.inf, error)
    plain_error = (plain.detach().double() - exact).abs()
    plain_error = plain_error[plain_error.isfinite()]
    eps = torch.finfo(actual.dtype).eps
    for what, statistic in (("largest", Tensor.max), ("mean", Tensor.mean)):
        standard = statistic(plain_error) if plain_error.numel() else exact.new_zeros(())
        bound = 2 * standard + 2 * eps * statistic(exact.abs()) + 2.0**-52
        if statistic(error) <= bound:
            continue
        worst = int(error.argmax())
        at = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
        raise AssertionError(
            f"{case or 'accuracy'}: shape {list(actual.shape)}, {actual.dtype}: {what} error {statistic(error):.3e} > "
            f"{bound:.3e} (2 × PyTorch's {standard:.3e} + floor); worst at {at}: {actual.flatten()[worst].item():.9g}, "
            f"PyTorch {plain.flatten()[worst].item():.9g}, float64 {exact.flatten()[worst].item():.17g}"
        )
