"""The AUC of many members at once against that of one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdfast.distill import packed_auc
from kdfast.distill.packed_auc import PackedAuc
from kdfast.errors import DataError
from kdfast.metrics import roc_auc
from tests.cuda_kernels import needs_gpu

DEVICES = ["cpu", pytest.param("cuda:0", marks=needs_gpu)]


def aucs(labels, logits, weights, device="cpu"):
    """[K] of logits [K, B]."""
    packed = PackedAuc(torch.tensor(labels), torch.tensor(weights), torch.device(device))
    return packed(torch.tensor(logits, device=device)).cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("members", [1, 7])
@pytest.mark.parametrize("weights", ["ones", "numbers"])
def test_of_many_jets(device, members, weights, monkeypatch):
    """Ties, jets without weight, and members that are taken in several parts."""
    monkeypatch.setattr(packed_auc, "_ELEMENTS", 3 * 2000)
    rng = np.random.default_rng(members)
    labels = rng.integers(0, 2, 2000).astype(np.float32)
    logits = (labels + rng.normal(size=(members, 2000)).round(1)).astype(np.float32)
    w = np.ones(2000, np.float32) if weights == "ones" else rng.exponential(size=2000).astype(np.float32)
    w[::9] *= weights == "ones"
    found = aucs(labels, logits, w, device)
    expected = [roc_auc(labels, row, w) for row in logits]
    np.testing.assert_allclose(found, expected, rtol=0 if weights == "ones" else 1e-9, atol=1e-15)
    assert (found == aucs(labels, logits, w, device)).all()


@given(st.data())
def test_of_few_jets(data):
    count = data.draw(st.integers(2, 12))
    labels = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count))
    labels[:2] = [0.0, 1.0]
    scores = st.lists(st.floats(-2, 2, width=32), min_size=count, max_size=count)
    logits = np.array(data.draw(st.lists(scores, min_size=1, max_size=3)), np.float32)
    weights = data.draw(st.lists(st.floats(0.0009765625, 4096, width=32), min_size=count, max_size=count))
    np.testing.assert_allclose(
        aucs(labels, logits, np.array(weights, np.float32)),
        [roc_auc(labels, row, weights) for row in logits],
        atol=1e-6,
    )


def test_logits_that_are_not_finite():
    labels, weights = [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]
    logits = np.array([[0.0, 1.0, 2.0], [0.0, np.nan, 2.0], [-np.inf, 1.0, 2.0]], np.float32)
    assert aucs(labels, logits, weights).tolist()[0] == 1.0
    assert np.isnan(aucs(labels, logits, weights)[1:]).all()


def test_a_missing_class():
    with pytest.raises(DataError, match="no signal"):
        aucs([0.0, 0.0], np.zeros((1, 2), np.float32), [1.0, 1.0])
