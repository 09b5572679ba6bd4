"""Standard errors against the spread of many simulated samples."""

import numpy as np
import pytest

from kdfast.metrics import background_rejection, roc_auc
from kdfast.report.uncertainty import auc_error, effective_number, rejection_error


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("separation", [0.5, 1.25])
def test_errors_are_the_spread_of_repeated_samples(weighted, separation):
    rng = np.random.default_rng(11)
    labels = np.arange(2000) % 2
    values = []
    for _ in range(300):
        scores = rng.normal(size=len(labels)) + separation * labels
        weights = rng.uniform(0.2, 2.0, len(labels)) if weighted else None
        values.append(
            (
                roc_auc(labels, scores, weights),
                background_rejection(labels, scores, 0.5, weights).value,
                auc_error(labels, scores, weights),
                rejection_error(labels, scores, 0.5, weights),
            )
        )
    auc, rejection, auc_sigma, rejection_sigma = np.array(values).T
    # the spread of 300 samples is itself known to 4 %: three times that
    assert auc_sigma.mean() == pytest.approx(auc.std(), rel=0.12)
    assert rejection_sigma.mean() == pytest.approx(rejection.std(), rel=0.12)


def test_the_size_of_the_study():
    # AUC 0.82 on 4,500 jets: 0.006, and the rejection near 9 has 0.7 (with ties none)
    rng = np.random.default_rng(0)
    labels = np.arange(4500) % 2
    scores = rng.normal(size=4500) + 1.25 * labels
    assert auc_error(labels, scores) == pytest.approx(0.006, abs=0.001)
    assert rejection_error(labels, scores, 0.5) == pytest.approx(0.7, abs=0.2)


def test_weights():
    assert effective_number(np.full(10, 0.3)) == pytest.approx(10)
    labels, scores = [0, 0, 1, 1, 0, 1], [0.1, 0.5, 0.3, 0.9, 0.2, 0.8]
    assert auc_error(labels, scores, np.full(6, 7.0)) == pytest.approx(auc_error(labels, scores))


def test_no_survivors_no_error():
    assert rejection_error([0, 0, 1, 1], [0.0, 1.0, 2.0, 3.0], 0.5) is None
    assert auc_error([0, 1], [0.0, 1.0]) == 0.0
