"""A study's networks of the user's own: named again, since its folder holds no code."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdfast.errors import ConfigError, ModelError
from kdfast.jets.features import Standardisation
from kdfast.jets.hlt_config import HLTConfig
from kdfast.jets.packed import PackedJets
from kdfast.models.config import NetworkConfig, OwnModel, model_config
from kdfast.models.own_model import NOT_STANDARDISED, Adapter, Factory, OwnNetwork, named_again, own_model
from kdfast.models.tagger import Preparation, Tagger
from kdfast.store.settings import StudySettings

__all__ = ["Factory", "adapted", "importable_names", "network_config", "with_own_models"]


def with_own_models(
    settings: StudySettings, model: Factory | None, teacher_model: Factory | None, *, trains_teacher: bool = True
) -> StudySettings:
    """The settings of a stored study, with the functions that make its own networks.

    Raises ConfigError where one is needed and not given, makes another network, or is given and not needed.
    """
    changes: dict[str, Any] = {}
    for name, factory in {"model": model, "teacher_model": teacher_model}.items():
        stored = model_config(getattr(settings, name))
        if not isinstance(stored, OwnModel):
            if factory is not None:
                raise ConfigError("the study has no network of your own there: leave it out", where=name)
            continue
        if name == "model" or trains_teacher:
            given = None if factory is None else own_model(factory, name)
            changes[name] = named_again(stored, given, name)
    return settings.model_copy(update=changes)


def importable_names(settings: StudySettings) -> dict[str, str]:
    """The names of the study's own networks, by setting, for processes that import them.

    Raises ConfigError for a function that no other process can import.
    """
    found = {}
    for name in ("model", "teacher_model"):
        config = getattr(settings, name)
        if isinstance(config, OwnModel):
            if config.name.startswith("__main__:") or "<" in config.name:
                hint = "put the function into a module that they can import"
                raise ConfigError(f"the workers can't import {config.name}", where=name, hint=hint)
            found[name] = config.name
    return found


def network_config(setting: Any, standardisation: Standardisation) -> NetworkConfig:
    """Sizes of a setting; a network of the user's own learns how its features are standardised."""
    config = model_config(setting)
    if isinstance(config, OwnModel):
        return config.model_copy(update={"standardisation": standardisation})
    return config


def adapted(
    teacher: nn.Module, jets: PackedJets, hlt: str | HLTConfig | None, max_constituents: int | None
) -> NDArray[np.float32]:
    """Logits [N] that a trained network of the user's own has for jets: of their offline view, with features as
    `kdfast.features` gives them, standardised by nobody. hlt: the emulation that this view goes with, or None."""
    adapter = teacher if isinstance(teacher, Adapter) else Adapter(teacher)
    name = type(adapter.module).__name__
    network = OwnNetwork(OwnModel(name=name, weights="", factory=lambda: adapter))
    logits = Tagger(network, Preparation("offline", hlt, 0, max_constituents, NOT_STANDARDISED)).logits(jets)
    if not bool(logits.isfinite().all()):
        row = int(torch.argmax((~logits.isfinite()).any(1).int()))
        raise ModelError(f"gives a logit that is not finite for jet {row}", where=f"teacher, {name}")
    return logits[:, 0].numpy()
