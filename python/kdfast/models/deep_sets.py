"""DeepSets: the family of networks that level-1 triggers can afford."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdfast.errors import ConfigError
from kdfast.models.config import DeepSetsConfig, model_config
from kdfast.models.layers import Linear, segment_max, segment_sum
from kdfast.models.network import Network, uniform
from kdfast.ops.philox import derive_seed

__all__ = ["DeepSets"]


class DeepSets(Network):
    """An MLP on each constituent of packed jets, mean and maximum over a jet, an MLP on both.

    All layers are linear with ReLU, without norm and dropout: what tools for FPGAs take. There is no attention.

    Parameters
    ----------
    preset : str or DeepSetsConfig
        "deepsets", or sizes.
    seed : int
        Sets the initial weights, which are float32 whatever torch's default dtype is.
    **sizes
        Fields of `kdfast.models.DeepSetsConfig` that change the preset's.

    Raises
    ------
    ConfigError
        For an unknown preset, or one of another family.

    References
    ----------
    Zaheer et al., "Deep sets", arXiv:1703.06114; Komiske, Metodiev and Thaler, "Energy flow networks",
    arXiv:1810.05165; Odagiu et al., "Ultrafast jet classification on FPGAs for the HL-LHC", arXiv:2402.01876.

    Examples
    --------
    >>> model = DeepSets(seed=1).eval()
    >>> features, offsets = torch.randn(5, 7), torch.tensor([0, 3, 5])
    >>> model(features, offsets).shape
    torch.Size([2, 1])
    """

    def __init__(self, preset: str | DeepSetsConfig = "deepsets", *, seed: int = 0, **sizes: Any) -> None:
        super().__init__()
        config = model_config(model_config(preset).model_dump() | sizes)
        if not isinstance(config, DeepSetsConfig):
            raise ConfigError(f"{preset!r} is not a DeepSets model", where="DeepSets", hint='e.g. DeepSets("deepsets")')
        self.config = config
        widths = [config.num_features, *[config.width] * config.layers]
        self.constituent = nn.ModuleList(map(Linear, widths, widths[1:]))
        widths = [2 * config.width, *[config.head_width] * config.head_layers]
        self.jet = nn.ModuleList(map(Linear, widths, widths[1:]))
        self.classify = Linear(config.head_width, config.num_classes)
        self.float()
        # He-uniform matrices (arXiv:1502.01852), from Philox of (seed, "init", the parameter's number); zero
        # biases.
        for number, parameter in enumerate(self.parameters()):
            if parameter.ndim == 2:
                bound = (6.0 / parameter.shape[1]) ** 0.5
                with torch.no_grad():
                    parameter.copy_((2 * uniform(derive_seed(seed, "init", number), parameter) - 1) * bound)

    def _answer(self, features: Tensor, offsets: Tensor, dropout_seed: int | None) -> tuple[Tensor, None]:
        """See Network. There is no dropout. A jet without constituents has mean and maximum 0."""
        self.config.check_features(features)
        x = features
        for layer in self.constituent:
            x = torch.relu(layer(x))
        mean = segment_sum(x, offsets) / offsets.diff().clamp(min=1)[:, None]
        # ReLU's results are ≥ 0, so that starting from 0 changes none but an empty jet's.
        maximum = segment_max(x, offsets)
        h = torch.cat([mean, maximum], dim=1)
        for layer in self.jet:
            h = torch.relu(layer(h))
        return self.classify(h), None
