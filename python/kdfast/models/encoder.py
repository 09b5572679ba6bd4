"""JetTransformer's training step and evaluation as compiled functions of flat parameters.

The specification is models/jet_transformer.py with distill/reference_engine.py's `member_loss`: the same loss
and gradient, with the same dropout. csrc/encoder/ says how it is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdfast.errors import BackendError
from kdfast.models.compiled import CompiledModel, Step, StepInputs, address
from kdfast.models.config import ModelConfig
from kdfast.ops import backend
from kdfast.ops.constituent_attention import HEAD_DIMS
from kdfast.ops.philox import dropout_threshold

__all__ = ["PARTS", "Encoder", "unsupported"]

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


def unsupported(config: ModelConfig) -> str | None:
    """Why the compiled encoder can't take a model of these sizes; None: it can."""
    if config.width % 16 or config.ffn % 16:
        return f"width {config.width} and ffn {config.ffn} must be multiples of 16"
    if config.width // config.heads not in HEAD_DIMS:
        return f"width / heads is {config.width // config.heads}, none of {', '.join(map(str, HEAD_DIMS))}"
    if config.num_features > MAX_FEATURES:
        return f"{config.num_features} features a constituent, more than {MAX_FEATURES}"
    return None


class Encoder(CompiledModel):
    """One JetTransformer on flat parameters.

    running: mean and variance of each BatchNorm, one after the other; shared with the caller, and moved by each step.
    precision "bf16": operands of the layers' matrix products in bfloat16, everything else in float32. A batch has two
    jets at least.
    """

    name = "encoder"
    config: ModelConfig

    def __init__(self, config: ModelConfig, parameters: Tensor, running: Tensor, precision: str = "fp32") -> None:
        reason = unsupported(config)
        if reason is not None:
            raise BackendError(reason, where="encoder")
        super().__init__(config, parameters, running)
        self._kernels = backend.cpu_module().Encoder(
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
        self._check_sizes(self._kernels.num_parameters, self._kernels.num_running)

    def _gradient(self, gradient: Tensor, inputs: StepInputs, jets: Tensor, step: Step) -> Sequence[float]:
        return self._kernels.gradient(
            gradient.data_ptr(),
            inputs.features.data_ptr(),
            inputs.offsets.data_ptr(),
            jets.data_ptr(),
            len(jets),
            inputs.labels.data_ptr(),
            inputs.weights.data_ptr(),
            address(inputs.teacher_logits),
            address(inputs.teacher_entropy),
            address(inputs.teacher_maximum),
            step.temperature,
            step.alpha,
            step.attention_weight,
            step.dropout_seed,
            dropout_threshold(self.config.dropout),
            step.num_threads,
            address(step.seconds),
        )

    def _logits(
        self, features: Tensor, offsets: Tensor, first: int, num_threads: int, logits: Tensor, pooling: bool
    ) -> Tensor | None:
        rows = int(offsets[first + len(logits)] - offsets[first])
        weights = features.new_empty(rows) if pooling else None
        self._kernels.logits(
            features.data_ptr(),
            offsets.data_ptr(),
            first,
            len(logits),
            num_threads,
            logits.data_ptr(),
            address(weights),
        )
        return weights
