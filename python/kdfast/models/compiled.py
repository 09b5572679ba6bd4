"""A network's training step and evaluation as compiled functions of flat parameters: what all families share.

models/encoder.py and models/compiled_deep_sets.py are the families. Each has the loss and gradient of
distill/reference_engine.py's `member_loss`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdfast.errors import DataError, ResourceError
from kdfast.models.config import NetworkConfig
from kdfast.ops.arrays import check_offsets

__all__ = ["CompiledModel", "Step", "StepInputs", "address"]


@dataclass(frozen=True)
class StepInputs:
    """The training jets: features [M, F] float32, offsets [N + 1] int64, and [N] float32 labels and weights.

    teacher_logits, teacher_entropy, teacher_maximum: [N] float32, or None. Arrays must be contiguous, and
    stay where they are while a CompiledModel uses them.
    """

    features: Tensor
    offsets: Tensor
    labels: Tensor
    weights: Tensor
    teacher_logits: Tensor | None = None
    teacher_entropy: Tensor | None = None
    teacher_maximum: Tensor | None = None

    def __post_init__(self) -> None:
        jets = len(self.offsets) - 1
        for name, array in vars(self).items():
            if array is not None:
                _check_array(array, torch.int64 if name == "offsets" else torch.float32, name)
            if array is not None and name not in ("features", "offsets") and array.shape != (jets,):
                raise DataError(f"must be [{jets}], one for each jet, is {list(array.shape)}", where=name)
        check_offsets(self.offsets, len(self.features))


def _check_array(array: Tensor, dtype: torch.dtype, name: str) -> None:
    """Raises DataError unless the compiled step can read it by its address."""
    if array.dtype != dtype or not array.is_cpu or not array.is_contiguous():
        what = f"must be contiguous {dtype} on the CPU, is {array.dtype} on {array.device}"
        raise DataError(what, where=name)


def address(array: Tensor | None) -> int:
    """Where the array's elements are; 0: there is none."""
    return 0 if array is None else array.data_ptr()


@dataclass(frozen=True)
class Step:
    """The numbers of one training step; see CompiledModel.gradient."""

    temperature: float
    alpha: float
    attention_weight: float
    dropout_seed: int
    num_threads: int
    seconds: Tensor | None


class CompiledModel(ABC):
    """One model on flat parameters.

    parameters: [P] float32, in the order of the network's own, shared with the caller, as are the running statistics.

    Results do not depend on num_threads.
    """

    name: str
    _kernels: Any

    def __init__(self, config: NetworkConfig, parameters: Tensor, running: Tensor) -> None:
        _check_array(parameters, torch.float32, "parameters")
        _check_array(running, torch.float32, "running statistics")
        self.config = config
        self.parameters = parameters
        self.running = running

    def _check_sizes(self, parameters: int, running: int) -> None:
        """Raises DataError unless the arrays are as large as the kernels expect."""
        expected = (parameters, running)
        found = (self.parameters.numel(), self.running.numel())
        if found != expected:
            what = f"{found} parameters and running statistics, expected {expected}"
            raise DataError(what, where=self.name)

    @abstractmethod
    def _gradient(self, gradient: Tensor, inputs: StepInputs, jets: Tensor, step: Step) -> Sequence[float]:
        """Whether values can be, and the terms. Raises MemoryError."""

    @abstractmethod
    def _logits(
        self, features: Tensor, offsets: Tensor, first: int, num_threads: int, logits: Tensor, pooling: bool
    ) -> Tensor | None:
        """Writes the logits; returns the pooling weights, where they are asked for and exist. Raises MemoryError."""

    def gradient(
        self,
        gradient: Tensor,
        inputs: StepInputs,
        jets: Tensor,
        *,
        temperature: float,
        alpha: float,
        attention_weight: float,
        dropout_seed: int,
        num_threads: int,
        seconds: Tensor | None = None,
    ) -> Tensor:
        """Writes the gradient [P] of a batch (jets: positions [B]), moves the running statistics.

        Returns [4] float64: the loss, and its KL, BCE and attention-transfer parts as weighted. dropout_seed:
        the step's. seconds: [len(PARTS)] float64, to which the processor time of each part is added. Raises
        DataError for a label, weight, temperature or α out of range and for a model of several classes,
        ResourceError where there is not enough memory.
        """
        if self.config.num_classes != 1:
            raise DataError(f"trains models of one logit, this one has {self.config.num_classes}", where=self.name)
        self.config.check_features(inputs.features)
        step = Step(temperature, alpha, attention_weight, dropout_seed, num_threads, seconds)
        try:
            valid, *terms = self._gradient(gradient, inputs, jets, step)
        except MemoryError:
            raise ResourceError(
                f"no memory for the activations of a batch of {len(jets)} jets",
                where=self.name,
                hint="use a smaller batch, fewer threads (each trains a member of its own), or bf16, which takes half",
            ) from None
        if not valid:
            raise DataError(
                "labels must lie in [0, 1], weights be finite, ≥ 0 and not all 0, temperature > 0, α in [0, 1]",
                where="training batch",
            )
        return torch.tensor(terms, dtype=torch.float64)

    def logits(
        self,
        features: Tensor,
        offsets: Tensor,
        first: int,
        count: int,
        num_threads: int,
        pooling: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [count, C] of the view's jets from `first` on, in evaluation mode; pooling: also their weights [m].

        features: [M, F] float32, offsets: [B + 1] int64, contiguous. Raises DataError for others, ModelError
        for features of another model, ResourceError where there is not enough memory.
        """
        _check_array(features, torch.float32, "features")
        _check_array(offsets, torch.int64, "offsets")
        self.config.check_features(features)
        logits = features.new_empty(count, self.config.num_classes)
        try:
            weights = self._logits(features, offsets, first, num_threads, logits, pooling)
        except MemoryError:
            raise ResourceError(f"no memory for the activations of {count} jets", where=self.name) from None
        return logits, weights

    @property
    def memory(self) -> int:
        """Bytes held for activations and gradient sums, without the threads' scratch."""
        return int(self._kernels.memory)
