"""DeepSets' training step and evaluation as compiled functions of flat parameters.

The specification is models/deep_sets.py with distill/reference_engine.py's `member_loss`; csrc/deep_sets/ says how it
is computed.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kdfast.models.compiled import CompiledModel, Step, StepInputs, address
from kdfast.models.config import DeepSetsConfig
from kdfast.ops import backend

__all__ = ["CompiledDeepSets"]


class CompiledDeepSets(CompiledModel):
    """One DeepSets, of any sizes, on flat parameters.

    running: empty, since there are no norms. precision "bf16": operands of the matrix products on constituents in
    bfloat16, everything else in float32.
    """

    name = "deep_sets"

    def __init__(self, config: DeepSetsConfig, parameters: Tensor, running: Tensor, precision: str = "fp32") -> None:
        super().__init__(config, parameters, running)
        self._kernels = backend.cpu_module().DeepSets(
            config.num_features,
            config.width,
            config.layers,
            config.head_width,
            config.head_layers,
            config.num_classes,
            parameters.data_ptr(),
            precision == "bf16",
        )
        self._check_sizes(self._kernels.num_parameters, 0)

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
            step.temperature,
            step.alpha,
            step.num_threads,
        )

    def _logits(
        self, features: Tensor, offsets: Tensor, first: int, num_threads: int, logits: Tensor, pooling: bool
    ) -> Tensor | None:
        self._kernels.logits(
            features.data_ptr(), offsets.data_ptr(), first, len(logits), num_threads, logits.data_ptr()
        )
        return None
