"""The CPU engine: the training step as compiled kernels, on slices of jets (csrc/encoder, csrc/deep_sets).

One member runs per thread while there are members enough, else its slices are shared among threads. Gradient
sums are taken over fixed groups of jets in a fixed order, so that no result depends on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from torch import Tensor

from kdfast.distill.engine import Learner, train_members
from kdfast.distill.pack import Member, Pack, View
from kdfast.models.compiled import CompiledModel, StepInputs

__all__ = ["train"]

# Jets a call of the evaluation: few enough for their pooled rows, and to stop between two calls (a second or
# two on one core for the study's model).
_EVALUATED = 1024


class _Learner(Learner):
    """On flat parameters."""

    def __init__(self, pack: Pack, member: Member) -> None:
        super().__init__(pack, member)
        self.attention_weight = pack.recipe_of(member).attention_weight
        parameters = self.optimizer.parameters
        self.compiled = CompiledModel(pack.model, parameters, self.buffers["running"], pack.precision)
        self.inputs = step_inputs(pack, member)

    def step(
        self, jets: Tensor, temperature: float, alpha: float, rate: float, dropout_seed: int, num_threads: int
    ) -> Tensor | None:
        terms = self.compiled.gradient(
            self.optimizer.gradient,
            self.inputs,
            jets,
            temperature=temperature,
            alpha=alpha,
            attention_weight=self.attention_weight,
            dropout_seed=dropout_seed,
            num_threads=num_threads,
        )
        return terms if math.isfinite(terms[0]) and self.optimizer.step(rate, num_threads) else None

    def logits(self, view: View, num_threads: int) -> Iterator[Tensor]:
        features = view.features.contiguous()
        offsets = view.offsets.contiguous()
        for start in range(0, len(view), _EVALUATED):
            count = min(_EVALUATED, len(view) - start)
            yield self.compiled.logits(features, offsets, start, count, num_threads)[0][:, 0]


# The engine's entrance; see trainer.train_pack.
train = partial(train_members, _Learner)


def step_inputs(pack: Pack, member: Member) -> StepInputs:
    """The pack's training jets as the compiled step takes them, with the teacher's targets where the member has one."""
    train = pack.train
    targets = pack.targets if member.distils else None
    arrays = [train.features, train.offsets, train.labels, train.weights]
    if targets is not None:
        arrays.append(targets.logits[:, 0])
        if targets.attention_entropy is not None and targets.attention_max is not None:
            arrays += [targets.attention_entropy, targets.attention_max]
    return StepInputs(*(array.contiguous() for array in arrays))
