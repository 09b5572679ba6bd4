import math

import pytest
import torch

from kdfast.distill.optimizer import FlatAdamW, learning_rate


def test_learning_rate_is_the_studys():
    rates = [learning_rate(e, 50, 3, 5e-4) for e in range(50)]
    assert rates[:3] == pytest.approx([5e-4 / 3, 5e-4 * 2 / 3, 5e-4])
    assert rates[3] == pytest.approx(5e-4)
    assert rates[49] == pytest.approx(5e-4 * 0.5 * (1 + math.cos(math.pi * 46 / 47)))
    assert learning_rate(0, 1, 3, 1.0) == pytest.approx(1 / 3)
    assert learning_rate(0, 1, 0, 1.0) == 1.0


def network(dtype):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.GELU(), torch.nn.Linear(16, 1)).to(dtype)


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_equals_torch_adamw_with_clipping(clip):
    ours, theirs = network(torch.float32), network(torch.float32)
    flat = FlatAdamW(ours, weight_decay=0.1, clip_norm=clip)
    adamw = torch.optim.AdamW(theirs.parameters(), weight_decay=0.1)
    x = torch.randn(64, 5)
    for step in range(20):
        rate = 0.01 / (1 + step)
        flat.zero_grad()
        (ours(x) ** 2).mean().backward()
        assert flat.step(rate)
        adamw.zero_grad()
        (theirs(x) ** 2).mean().backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        adamw.param_groups[0]["lr"] = rate
        adamw.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    model = network(torch.float32)
    flat = FlatAdamW(model, 0.0, 1.0)
    before = flat.parameters.clone()
    flat.gradient[3] = bad
    assert not flat.step(0.1)
    assert torch.equal(flat.parameters, before)
    assert not flat.moment1.any()
