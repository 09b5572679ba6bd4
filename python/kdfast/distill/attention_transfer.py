"""The study's attention-transfer term: the student's pooling attention should be as concentrated as the teacher's.

Teacher and student see different constituents of a jet, so their attention can't be compared weight by
weight; two numbers per jet can: H = −Σ_c w_c ln w_c and w_max = max_c w_c of the (head-averaged) pooling
weights w.
"""

import torch
from torch import Tensor

from kdfast.models.layers import segment_max

__all__ = ["attention_summary", "attention_transfer_loss"]


def attention_summary(pooling_weights: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """(entropy [B] in nats, maximum [B]) of the pooling weights within each jet.

    pooling_weights: [M], ≥ 0, head-averaged, summing to 1 within a jet. offsets: [B + 1] int64, jet b holds
    the weights offsets[b] … offsets[b + 1] − 1. A jet without constituents gives zeros. A weight of 0 adds
    nothing to the entropy (0 · ln 0 = 0), and its gradient is 0 rather than infinite. 16-bit weights are
    summed in float32.
    """
    weights = pooling_weights.float() if pooling_weights.element_size() < 4 else pooling_weights
    terms = -weights * torch.where(weights > 0, weights, 1.0).log()
    # initial=0 is what an empty jet gives; no sum or maximum of weights ≥ 0 is changed by it.
    entropy = torch.segment_reduce(terms, "sum", offsets=offsets, initial=0, unsafe=True)
    return entropy, segment_max(weights, offsets)


def attention_transfer_loss(
    pooling_weights: Tensor,
    offsets: Tensor,
    teacher_entropy: Tensor,
    teacher_maximum: Tensor,
    weights: Tensor | None = None,
) -> Tensor:
    """The scalar Σ_b w_b [(H_b − H_b^teacher)² + (max_b − max_b^teacher)²] / Σ_b w_b.

    pooling_weights [M], offsets [B + 1]: the student's, as for `attention_summary`. teacher_entropy,
    teacher_maximum: [B], the teacher's summary of its own view of the same jets (no gradient reaches it).
    weights: [B] event weights w (None: all 1), as in `kdfast.ops.distill_loss`, which also checks them. A jet
    that is empty in the student's view counts with the teacher's values squared and has no gradient.
    """
    entropy, maximum = attention_summary(pooling_weights, offsets)
    error = (entropy - teacher_entropy.detach()).square() + (maximum - teacher_maximum.detach()).square()
    return error.mean() if weights is None else (weights * error).sum() / weights.sum()
