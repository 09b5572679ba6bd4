"""A network's training step and evaluation as compiled functions of flat parameters.

The specification is models/jet_transformer.py or models/deep_sets.py, with the loss and gradient of
distill/reference_engine.py's `member_loss`. csrc/encoder/ and csrc/deep_sets/ say how they are computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdfast.errors import BackendError, DataError, ResourceError
from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig
from kdfast.ops import backend
from kdfast.ops.arrays import check_offsets
from kdfast.ops.constituent_attention import HEAD_DIMS
from kdfast.ops.philox import dropout_threshold

__all__ = ["PARTS", "CompiledModel", "StepInputs", "runs_compiled", "unsupported"]

MAX_FEATURES = 16

# What `seconds` of CompiledModel.gradient counts; `Part` in csrc/encoder/encoder.h.
PARTS = (
    *("gather", "pack", "dropout", "embed", "norm", "qkv", "attention", "out", "ffn_in", "ffn_out"),
    *("pooling", "head", "back_pooling", "back_ffn_out", "back_ffn_in", "back_out", "back_attention"),
    *("back_qkv", "back_norm", "back_weights", "back_embed", "gradient"),
)


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


def _address(array: Tensor | None) -> int:
    """Where the array's elements are; 0: there is none."""
    return 0 if array is None else array.data_ptr()


def unsupported(config: NetworkConfig) -> str | None:
    """Why the kernels can't take a model of these sizes; None: they can."""
    if not isinstance(config, ModelConfig):
        return None
    if config.width % 16 or config.ffn % 16:
        return f"width {config.width} and ffn {config.ffn} must be multiples of 16"
    if config.width // config.heads not in HEAD_DIMS:
        return f"width / heads is {config.width // config.heads}, none of {', '.join(map(str, HEAD_DIMS))}"
    if config.num_features > MAX_FEATURES:
        return f"{config.num_features} features a constituent, more than {MAX_FEATURES}"
    return None


def runs_compiled(config: NetworkConfig, device_type: str = "cpu", reason: str | None = None) -> bool:
    """Whether networks of these sizes run on the compiled kernels; `backend.choose` warns where they do not.

    Networks of the user's own have none. reason: why they can't, whatever the sizes.
    """
    if not isinstance(config, ModelConfig | DeepSetsConfig):
        return False
    return backend.choose(_kernels_of(config), device_type, reason or unsupported(config)) == "cpu"


def _kernels_of(config: NetworkConfig) -> str:
    return "encoder" if isinstance(config, ModelConfig) else "deep_sets"


class CompiledModel:
    """One JetTransformer, or one DeepSets of any sizes, on flat parameters [models/flat.py].

    parameters: [P] float32, in the order of the network's own. running: mean and variance of each BatchNorm,
    one after the other; each step moves them. Both are shared with the caller. precision "bf16": operands of
    the matrix products of layers (of DeepSets: of those on constituents) in bfloat16, everything else in
    float32. A JetTransformer's batch has two jets at least. Results do not depend on num_threads.
    """

    def __init__(self, config: NetworkConfig, parameters: Tensor, running: Tensor, precision: str = "fp32") -> None:
        self.name = _kernels_of(config)
        reason = unsupported(config)
        if reason is not None:
            raise BackendError(reason, where=self.name)
        _check_array(parameters, torch.float32, "parameters")
        _check_array(running, torch.float32, "running statistics")
        self.config = config
        self.parameters = parameters
        self.running = running
        module = backend.cpu_module()
        in_bf16 = precision == "bf16"
        if isinstance(config, ModelConfig):
            sizes = [config.num_features, config.width, config.layers, config.heads, config.ffn]
            sizes += [config.pooling_heads, config.num_classes]
            self._kernels = module.Encoder(*sizes, parameters.data_ptr(), running.data_ptr(), in_bf16)
            expected = (self._kernels.num_parameters, self._kernels.num_running)
        else:
            assert isinstance(config, DeepSetsConfig)
            sizes = [config.num_features, config.width, config.layers, config.head_width, config.head_layers]
            self._kernels = module.DeepSets(*sizes, config.num_classes, parameters.data_ptr(), in_bf16)
            expected = (self._kernels.num_parameters, 0)
        found = (parameters.numel(), running.numel())
        if found != expected:
            what = f"{found} parameters and running statistics, expected {expected}"
            raise DataError(what, where=self.name)

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
        the step's. seconds: [len(PARTS)] float64, to which a JetTransformer's step adds the processor time of
        each part. Raises DataError for a label, weight, temperature or α out of range and for a model of
        several classes, ResourceError where there is not enough memory.
        """
        if self.config.num_classes != 1:
            raise DataError(f"trains models of one logit, this one has {self.config.num_classes}", where=self.name)
        self.config.check_features(inputs.features)
        batch = (gradient, inputs.features, inputs.offsets, jets)
        targets = [inputs.labels, inputs.weights, inputs.teacher_logits]
        step = [temperature, alpha]
        after: list[int] = []
        if isinstance(self.config, ModelConfig):
            targets += [inputs.teacher_entropy, inputs.teacher_maximum]
            step += [attention_weight, dropout_seed, dropout_threshold(self.config.dropout)]
            after.append(_address(seconds))
        try:
            valid, *terms = self._kernels.gradient(
                *map(_address, batch), len(jets), *map(_address, targets), *step, num_threads, *after
            )
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
        self, features: Tensor, offsets: Tensor, first: int, count: int, num_threads: int, pooling: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Logits [count, C] of the view's jets from `first` on, in evaluation mode; pooling: also their weights [m].

        features: [M, F] float32, offsets: [B + 1] int64, contiguous. DeepSets has no pooling weights. Raises
        DataError for others, ModelError for features of another model, ResourceError where there is not
        enough memory.
        """
        _check_array(features, torch.float32, "features")
        _check_array(offsets, torch.int64, "offsets")
        self.config.check_features(features)
        logits = features.new_empty(count, self.config.num_classes)
        weights = None
        arguments = [features.data_ptr(), offsets.data_ptr(), first, count, num_threads, logits.data_ptr()]
        if isinstance(self.config, ModelConfig):
            weights = features.new_empty(int(offsets[first + count] - offsets[first])) if pooling else None
            arguments.append(_address(weights))
        try:
            self._kernels.logits(*arguments)
        except MemoryError:
            raise ResourceError(f"no memory for the activations of {count} jets", where=self.name) from None
        return logits, weights

    @property
    def memory(self) -> int:
        """Bytes held for activations and gradient sums, without the threads' scratch."""
        return int(self._kernels.memory)
