"""JetTransformer: the tagger that serves as teacher, baseline and student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdfast.errors import ConfigError
from kdfast.models.config import ModelConfig, model_config
from kdfast.models.layers import BatchNorm, DenseBlock, EncoderLayer, Linear, PoolingAttention
from kdfast.models.network import Network, uniform
from kdfast.ops.philox import derive_seed, fold_seed

__all__ = ["JetTransformer", "initialise"]


class JetTransformer(Network):
    """A transformer over the constituents of packed jets: the tagger that serves as teacher, baseline and student.

    Features → dense block per constituent → pre-norm encoder layers → attention pooling → LayerNorm → head
    (dense block, residual dense block, dense block to half the width, linear).

    Parameters
    ----------
    preset : str or ModelConfig, optional
        "study", "medium", "demo", "small" or "tiny".
    seed : int
        Sets the initial weights, which are float32 whatever torch's default dtype is.
    **sizes
        Fields of `kdfast.models.ModelConfig`: instead of a preset, or to change some of its sizes.

    Raises
    ------
    ConfigError
        For an unknown preset, or sizes that do not fit together.

    References
    ----------
    Vaswani et al., "Attention is all you need", arXiv:1706.03762; Xiong et al., arXiv:2002.04745,
    for norms that come first.

    Examples
    --------
    >>> model = JetTransformer(width=48, layers=2, heads=3, ffn=128, seed=1).eval()
    >>> features, offsets = torch.randn(5, 7), torch.tensor([0, 3, 5])
    >>> model(features, offsets).shape
    torch.Size([2, 1])
    >>> logits, attention = model(features, offsets, return_attention=True)
    >>> attention.shape
    torch.Size([5])
    """

    config: ModelConfig

    def __init__(self, preset: str | ModelConfig | None = None, *, seed: int = 0, **sizes: Any) -> None:
        super().__init__()
        base = {} if preset is None else model_config(preset).model_dump()
        if preset is None and not sizes:
            raise ConfigError("give a preset or sizes", where="JetTransformer", hint='e.g. JetTransformer("small")')
        config = model_config(base | sizes)
        if not isinstance(config, ModelConfig):
            raise ConfigError(f"{preset!r} is not a JetTransformer", where="JetTransformer", hint="see kdfast.models")
        self.config = config
        width = config.width
        p = config.dropout
        self.embed = DenseBlock(config.num_features, width, p)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.pool = PoolingAttention(config)
        self.pool_norm = nn.LayerNorm(width)
        self.dense1 = DenseBlock(width, width, p)
        self.dense2 = DenseBlock(width, width, p)
        self.dense3 = DenseBlock(width, width // 2, p)
        self.classify = Linear(width // 2, config.num_classes)
        self.float()
        initialise(self, seed)

    def _answer(self, features: Tensor, offsets: Tensor, dropout_seed: int | None) -> tuple[Tensor, Tensor]:
        """See Network."""
        self.config.check_features(features)
        seeds: list[int | None]
        if self.training and self.config.dropout > 0:
            if dropout_seed is None:
                dropout_seed = int(torch.randint(2**62, ()).item())
            seeds = [fold_seed(dropout_seed, layer) for layer in range(self.config.layers + 5)]
        else:
            seeds = [None] * (self.config.layers + 5)
        x = self.embed(features, offsets, seeds[0])
        for layer, seed in zip(self.encoder, seeds[5:], strict=True):
            x = layer(x, offsets, seed)
        pooled, attention = self.pool(x, offsets, seeds[1])
        h = self.dense1(self.pool_norm(pooled), None, seeds[2])
        h = h + self.dense2(h, None, seeds[3])
        return self.classify(self.dense3(h, None, seeds[4])), attention


def initialise(model: JetTransformer, seed: int) -> None:
    """The study's initial weights: Xavier-uniform matrices, zero biases, query 0.02 · N(0, 1), norms 1 and 0.

    Random numbers are Philox of (seed, "init", the parameter's number), so they are the same on every
    machine.
    """
    for number, (name, parameter) in enumerate(model.named_parameters()):
        with torch.no_grad():
            if parameter.ndim == 2:
                fan_out, fan_in = parameter.shape
                if name.endswith(("qkv.weight", "pool.q.weight", "pool.kv.weight")):
                    fan_out = 3 * fan_in  # one stacked matrix, as in torch.nn.MultiheadAttention
                bound = (6.0 / (fan_in + fan_out)) ** 0.5
                parameter.copy_((2 * uniform(derive_seed(seed, "init", number), parameter) - 1) * bound)
            elif name == "pool.query":
                u = uniform(derive_seed(seed, "init", number), parameter.new_empty(2, *parameter.shape))
                parameter.copy_(0.02 * torch.sqrt(-2 * torch.log(u[0])) * torch.cos(2 * torch.pi * u[1]))
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.reset_running_stats()
