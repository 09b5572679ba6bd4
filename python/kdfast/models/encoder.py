"""The tagger's training step and evaluation as compiled functions of flat parameters.

The specification is models/jet_transformer.py with distill/reference_engine.py's `member_loss`: the same loss
and gradient, with the same dropout. csrc/encoder/ says how it is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kdfast.errors import BackendError, DataError, ResourceError
from kdfast.models.config import ModelConfig, NetworkConfig
from kdfast.ops import backend
from kdfast.ops.arrays import check_offsets
from kdfast.ops.constituent_attention import HEAD_DIMS
from kdfast.ops.philox import dropout_threshold

__all__ = ["PARTS", "Encoder", "StepInputs", "unsupported"]

MAX_FEATURES = 16

# What `seconds` of Encoder.gradient counts; `Part` in csrc/encoder/encoder.h.
PARTS = (
    *(
        "gather",
        "pack",
        "dropout",
        "embed",
        "norm",
        "qkv",
        "attention",
        "out",
        "ffn_in",
        "ffn_out",
        "pooling",
        "head",
    ),
    *("back_pooling", "back_ffn_out", "back_ffn_in", "back_out", "back_attention", "back_qkv", "back_norm"),
    *("back_weights", "back_embed", "gradient"),
)


def unsupported(config: NetworkConfig) -> str | None:
    """Why the compiled encoder can't take a model of these sizes; None: it can."""
    if not isinstance(config, ModelConfig):
        return "it computes JetTransformers only"
    if config.width % 16 or config.ffn % 16:
        return f"width {config.width} and ffn {config.ffn} must be multiples of 16"
    if config.width // config.heads not in HEAD_DIMS:
        return f"width / heads is {config.width // config.heads}, none of {', '.join(map(str, HEAD_DIMS))}"
    if config.num_features > MAX_FEATURES:
        return f"{config.num_features} features a constituent, more than {MAX_FEATURES}"
    return None


@dataclass(frozen=True)
class StepInputs:
    """The training jets: features [M, F] float32, offsets [N + 1] int64, and [N] float32 labels and weights.

    teacher_logits, teacher_entropy, teacher_maximum: [N] float32, or None. Arrays must be contiguous, and
    stay where they are while an Encoder uses them.
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


class Encoder:
    """One model on flat parameters.

    parameters: [P] float32, in the order of JetTransformer.named_parameters(). running: mean and variance of
    each BatchNorm, one after the other. Both are shared with the caller. precision: "fp32", or "bf16":
    operands of the layers' matrix products in bfloat16, everything else in float32.

    Results do not depend on num_threads. Raises BackendError for sizes that `unsupported` names.
    """

    def __init__(self, config: ModelConfig, parameters: Tensor, running: Tensor, precision: str = "fp32") -> None:
        reason = unsupported(config)
        if reason is not None:
            raise BackendError(reason, where="encoder")
        _check_array(parameters, torch.float32, "parameters")
        _check_array(running, torch.float32, "running statistics")
        self.config = config
        self.parameters = parameters
        self.running = running
        self._encoder = backend.cpu_module().Encoder(
            config.num_features,
            config.width,
            config.layers,
            config.heads,
            config.ffn,
            config.pooling_heads,
            config.num_classes,
            parameters.data_ptr(),
            running.data_ptr(),
            precision == "bf16",
        )
        expected = (self._encoder.num_parameters, self._encoder.num_running)
        if (parameters.numel(), running.numel()) != expected:
            found = (parameters.numel(), running.numel())
            raise DataError(f"{found} parameters and running statistics, expected {expected}", where="encoder")

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
        """Writes the gradient [P] of a batch (jets: positions [B ≥ 2]), moves the running statistics.

        Returns [4] float64: the loss, and its KL, BCE and attention-transfer parts as weighted. dropout_seed:
        the step's. seconds: [len(PARTS)] float64, to which the processor time of each part is added. Raises
        DataError for a label, weight, temperature or α out of range and for a model of several classes,
        ResourceError where there is not enough memory.
        """
        if self.config.num_classes != 1:
            raise DataError(f"trains models of one logit, this one has {self.config.num_classes}", where="encoder")
        self.config.check_features(inputs.features)
        try:
            valid, *terms = self._encoder.gradient(
                gradient.data_ptr(),
                inputs.features.data_ptr(),
                inputs.offsets.data_ptr(),
                jets.data_ptr(),
                len(jets),
                inputs.labels.data_ptr(),
                inputs.weights.data_ptr(),
                *(
                    0 if array is None else array.data_ptr()
                    for array in (inputs.teacher_logits, inputs.teacher_entropy, inputs.teacher_maximum)
                ),
                temperature,
                alpha,
                attention_weight,
                dropout_seed,
                dropout_threshold(self.config.dropout),
                num_threads,
                0 if seconds is None else seconds.data_ptr(),
            )
        except MemoryError:
            raise ResourceError(
                f"no memory for the activations of a batch of {len(jets)} jets",
                where="encoder",
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
        rows = int(offsets[first + count] - offsets[first])
        weights = features.new_empty(rows) if pooling else None
        try:
            self._encoder.logits(
                features.data_ptr(),
                offsets.data_ptr(),
                first,
                count,
                num_threads,
                logits.data_ptr(),
                0 if weights is None else weights.data_ptr(),
            )
        except MemoryError:
            raise ResourceError(f"no memory for the activations of {count} jets", where="encoder") from None
        return logits, weights

    @property
    def memory(self) -> int:
        """Bytes held for activations and gradient sums, without the threads' scratch."""
        return int(self._encoder.memory)
