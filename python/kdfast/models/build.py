"""A network from its sizes: as a module, compiled, and as members in lock-step."""

from __future__ import annotations

from torch import Tensor

from kdfast.models import encoder
from kdfast.models.compiled import CompiledModel
from kdfast.models.compiled_deep_sets import CompiledDeepSets
from kdfast.models.config import DeepSetsConfig, ModelConfig, NetworkConfig, OwnModel
from kdfast.models.deep_sets import DeepSets
from kdfast.models.jet_transformer import JetTransformer
from kdfast.models.network import Network
from kdfast.models.own_model import OwnNetwork
from kdfast.models.packed_deep_sets import PackedDeepSets
from kdfast.models.packed_network import PackedNetwork
from kdfast.models.packed_transformer import PackedTransformer
from kdfast.ops import backend

__all__ = ["build_network", "compile_network", "pack_networks", "runs_compiled"]


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


def runs_compiled(config: NetworkConfig, device_type: str = "cpu", unsupported: str | None = None) -> bool:
    """Whether networks of these sizes run on the compiled kernels, by `backend.choose`: it warns where they do not.

    unsupported: why they can't, whatever the sizes.
    """
    if isinstance(config, OwnModel):
        return False
    if isinstance(config, DeepSetsConfig):
        return backend.choose("deep_sets", device_type, unsupported) == "cpu"
    assert isinstance(config, ModelConfig)
    return backend.choose("encoder", device_type, unsupported or encoder.unsupported(config)) == "cpu"


def compile_network(
    config: NetworkConfig, parameters: Tensor, running: Tensor, precision: str = "fp32"
) -> CompiledModel:
    """The compiled kernels on flat parameters and running statistics [models/flat.py], where `runs_compiled`."""
    if isinstance(config, DeepSetsConfig):
        return CompiledDeepSets(config, parameters, running, precision)
    assert isinstance(config, ModelConfig)
    return encoder.Encoder(config, parameters, running, precision)


def pack_networks(config: NetworkConfig, parameters: Tensor, running: Tensor, precision: str = "fp32") -> PackedNetwork:
    """K networks of these sizes in lock-step, on parameters [K, P] and running statistics [K, R]."""
    if isinstance(config, DeepSetsConfig):
        return PackedDeepSets(config, parameters, running, precision)
    assert isinstance(config, ModelConfig)
    return PackedTransformer(config, parameters, running, precision)
