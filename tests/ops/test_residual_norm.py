"""The reference of residual_norm against torch's own LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kdfast.ops.packed_rows import Dropout
from kdfast.ops.philox import dropout_keep, dropout_scale
from kdfast.ops.residual_norm import residual_norm
from tests.ops.packed import jets_of, normal

DROPOUT = Dropout(0.3, torch.tensor(987654321))


def test_it_is_layer_norm_of_a_sum() -> None:
    rows = jets_of(23, padding=4)
    x, y = (normal(2, 27, 24, dtype=torch.float64, seed=seed, rows=rows) for seed in (0, 1))
    bias, gamma, beta = (normal(2, 24, dtype=torch.float64, seed=seed) for seed in (2, 3, 4))
    total, norm = residual_norm(x, y, bias, gamma, beta, rows, DROPOUT)
    keep = dropout_keep(int(DROPOUT.seed), DROPOUT.p, rows.jet, torch.zeros_like(rows.jet), rows.position, 24)
    for k in range(2):
        expected = x[k] + keep * (y[k] + bias[k]) * dropout_scale(DROPOUT.p)
        torch.testing.assert_close(total[k, :23], expected[:23])
        torch.testing.assert_close(norm[k, :23], F.layer_norm(expected, (24,), gamma[k], beta[k])[:23])
    assert not total[:, 23:].any()
    assert not norm[:, 23:].any()
