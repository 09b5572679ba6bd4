"""The CPU engine: the training step as compiled kernels, on slices of jets (csrc/encoder, csrc/deep_sets).

One member runs per thread while there are members enough, else its slices are shared among threads. Gradient
sums are taken over fixed groups of jets in a fixed order, so that no result depends on the number of threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator

from torch import Tensor

from kdfast.distill.checkpoint import Checkpoints
from kdfast.distill.engine import train_members
from kdfast.distill.optimizer import FlatAdamW
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, View
from kdfast.models.build import build_network
from kdfast.models.compiled import CompiledModel, StepInputs
from kdfast.models.flat import flatten_running

__all__ = ["train"]

# Jets a call of the evaluation: few enough for their pooled rows, and to stop between two calls (a second or
# two on one core for the study's model).
_EVALUATED = 1024


def train(
    pack: Pack,
    threads: int,
    on_epoch: Callable[[EpochReport], None] | None,
    stop: threading.Event,
    checkpoints: Checkpoints | None = None,
) -> Generator[MemberResult, None, None]:
    """The engine's entrance; see trainer.train_pack."""
    return train_members(pack, threads, on_epoch, stop, _Learner, checkpoints)


class _Learner:
    """distill.engine.Learner on flat parameters."""

    def __init__(self, pack: Pack, member: Member) -> None:
        recipe = pack.recipe_of(member)
        self.attention_weight = recipe.attention_weight
        self.model = build_network(pack.model, pack.seed)
        self.optimizer = FlatAdamW(self.model, recipe.weight_decay, recipe.clip_norm)
        self.running = flatten_running(self.model)
        self.compiled = CompiledModel(pack.model, self.optimizer.parameters, self.running, pack.precision)
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

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict(state)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.optimizer.tensors(), "running": self.running}


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
