"""The reference of batch_norm_gelu against torch's own BatchNorm and GELU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kdfast.ops.batch_norm_gelu import batch_norm_gelu
from kdfast.ops.packed_rows import Dropout
from kdfast.ops.philox import dropout_keep, dropout_scale
from tests.ops.packed import jets_of, normal

DROPOUT = Dropout(0.2, torch.tensor(13))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [1, 2, 23])
def test_it_is_batch_norm_and_gelu_of_the_rows_that_are_there(count: int, training: bool) -> None:
    rows = jets_of(count, padding=4)
    y, gamma = (normal(2, *shape, dtype=torch.float64) for shape in ((count + 4, 24), (24,)))
    y[:, count:] = torch.nan
    beta, mean = (normal(2, 24, dtype=torch.float64, seed=seed) for seed in (1, 2))
    variance = mean.exp()
    moved_mean, moved_variance = mean.clone(), variance.clone()
    out = batch_norm_gelu(y, gamma, beta, moved_mean, moved_variance, rows, DROPOUT, training=training)
    keep = dropout_keep(int(DROPOUT.seed), DROPOUT.p, rows.jet, torch.zeros_like(rows.jet), rows.position, 24)
    for k in range(2):
        # Of one row there is no variance: the running moments then serve, as in evaluation.
        z = F.batch_norm(y[k, :count], mean[k], variance[k], gamma[k], beta[k], training=training and count > 1)
        expected = F.gelu(z) * keep[:count] * dropout_scale(DROPOUT.p)
        torch.testing.assert_close(out[k, :count], expected)
        torch.testing.assert_close(moved_mean[k], mean[k])  # which F.batch_norm has moved
        torch.testing.assert_close(moved_variance[k], variance[k])
    assert not out[:, count:].any()
