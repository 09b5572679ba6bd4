"""The reference of bias_gelu against the definition of GELU."""

from __future__ import annotations

import torch

from kdfast.ops.bias_gelu import bias_gelu
from kdfast.ops.packed_rows import Dropout
from kdfast.ops.philox import dropout_keep, dropout_scale
from tests.ops.packed import jets_of, normal, with_gradients

DROPOUT = Dropout(0.2, torch.tensor(13))


def test_it_is_z_times_the_normal_distribution() -> None:
    rows = jets_of(23, padding=4)
    u, bias = normal(2, 27, 24, dtype=torch.float64, rows=rows), normal(2, 24, dtype=torch.float64, seed=1)
    z = u + bias[:, None]
    cdf = torch.distributions.Normal(0.0, 1.0).cdf(z[:, :23])
    keep = dropout_keep(int(DROPOUT.seed), DROPOUT.p, rows.jet, torch.zeros_like(rows.jet), rows.position, 24)
    expected = z[:, :23] * cdf * keep[:23] * dropout_scale(DROPOUT.p)
    out = bias_gelu(u, bias, rows, DROPOUT)
    torch.testing.assert_close(out[:, :23], expected)
    assert not out[:, 23:].any()


def test_nothing_of_the_padding_reaches_a_gradient() -> None:
    rows = jets_of(9, padding=4)
    u, bias, grad = normal(1, 13, 8, rows=rows), normal(1, 8, seed=1), normal(1, 13, 8, seed=2, rows=rows)
    _, grad_u, grad_bias = with_gradients(lambda u, bias: bias_gelu(u, bias, rows), (u, bias), (grad,))
    assert not grad_u[:, 9:].any()
    torch.testing.assert_close(grad_bias, grad_u.sum(1))
