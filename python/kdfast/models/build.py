"""A network from its sizes, as a module and as members in lock-step: what each family is made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig, OwnModel
from kdfast.models.deep_sets import DeepSets
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.network import Network
from kdfast.models.own_model import OwnNetwork
from kdfast.models.packed import PackedDeepSets, PackedNetwork, PackedTransformer

__all__ = ["build_network", "pack_networks"]

# The other tables of families: _FAMILIES in models/config.py, compiled.py, and _PLAIN in plain.py.
_NETWORKS: dict[type[NetworkConfig], Callable[..., Network]] = {
    ModelConfig: JetTransformer,
    DeepSetsConfig: DeepSets,
    OwnModel: OwnNetwork,
}
_PACKED: dict[type[NetworkConfig], type[PackedNetwork]] = {
    ModelConfig: PackedTransformer,
    DeepSetsConfig: PackedDeepSets,
}


def build_network(config: NetworkConfig, seed: int = 0) -> Network:
    """The network of these sizes, with the initial weights of this seed.

    Raises ConfigError for a network of the user's own whose function is not at hand.
    """
    return _NETWORKS[type(config)](config, seed=seed)


def pack_networks(
    config: NetworkConfig,
    parameters: Tensor,
    running: Tensor,
    precision: str = "fp32",
    *,
    gradient: Tensor | None = None,
    rounded: Tensor | None = None,
) -> PackedNetwork:
    """K networks of these sizes in lock-step, on parameters [K, P] and running statistics [K, R]: see PackedNetwork."""
    network = build_network(config)
    return _PACKED[type(config)](network, parameters, running, precision, gradient=gradient, rounded=rounded)
