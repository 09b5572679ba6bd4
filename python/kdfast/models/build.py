"""A network from its sizes."""

from __future__ import annotations

from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig, OwnModel
from kdfast.models.deep_sets import DeepSets
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.network import Network
from kdfast.models.own_model import OwnNetwork

__all__ = ["build_network"]


def build_network(config: NetworkConfig, seed: int = 0) -> Network:
    """The network of these sizes, with the initial weights of this seed.

    Raises ConfigError for a network of the user's own whose function is not at hand.
    """
    if isinstance(config, DeepSetsConfig):
        return DeepSets(config, seed=seed)
    if isinstance(config, OwnModel):
        return OwnNetwork(config, seed=seed)
    assert isinstance(config, ModelConfig)
    return JetTransformer(config, seed=seed)
