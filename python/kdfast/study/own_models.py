"""Networks of the user's own, and a trained teacher.

A study's folder holds no code: its own networks are named again. A teacher that it is given is a trained
model, or a value for each jet."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdfast.errors import ConfigError, DataError, KdfastWarning, ModelError
from kdfast.jets.features import Standardisation
from kdfast.jets.fingerprint import share_among
from kdfast.jets.hlt_config import HLTConfig
from kdfast.jets.packed import PackedJets
from kdfast.models.config import NetworkConfig, OwnModel, model_config
from kdfast.models.own_model import NOT_STANDARDISED, Adapter, Factory, OwnNetwork, named_again, own_model
from kdfast.models.tagger import Preparation, Tagger, load_model
from kdfast.store.settings import StudySettings
from kdfast.study.prepare import PreparedData

__all__ = [
    "Factory",
    "adapted",
    "as_logits",
    "check_training_jets",
    "check_values",
    "external_teacher",
    "importable_names",
    "network_config",
    "with_own_models",
]

# A probability is brought to [1e-7, 1 − 1e-7], so that its logit is finite: within ±16.1.
CLIPPED_PROBABILITY = 1e-7


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
    """Logits [N] that a trained network of the user's own has for jets: of their offline view, with features
    as `kdfast.features` gives them, standardised by nobody. hlt: the emulation that this view goes with, or
    None."""
    adapter = teacher if isinstance(teacher, Adapter) else Adapter(teacher)
    name = type(adapter.module).__name__
    network = OwnNetwork(OwnModel(name=name, weights="", factory=lambda: adapter))
    logits = Tagger(network, Preparation("offline", hlt, 0, max_constituents, NOT_STANDARDISED)).logits(jets)
    if not bool(logits.isfinite().all()):
        row = int(torch.argmax((~logits.isfinite()).any(1).int()))
        raise ModelError(f"gives a logit that is not finite for jet {row}", where=f"teacher, {name}")
    return logits[:, 0].numpy()


# ---- a trained teacher: a model, or a value for each jet


def external_teacher(settings: StudySettings, given: Any) -> Tagger | nn.Module | NDArray[np.floating] | None:
    """The teacher that the study was given, in Python or by its settings: a Tagger, a network of the user's
    own, or values [N], logits (float32) or probabilities (float64). Checked as far as it can be without the
    jets."""
    teacher = given
    if teacher is None and settings.teacher is not None:
        file = Path(settings.teacher)
        teacher = _stored_values(file) if file.suffix == ".npy" else load_model(file)
    if (teacher is None or isinstance(teacher, (Tagger, nn.Module))) and settings.teacher_kind != "logit":
        what = "is for a teacher given as an array or .npy file, and there is none"
        raise ConfigError(what, where="teacher_kind", hint="give the teacher's probabilities, or leave it out")
    if teacher is None or isinstance(teacher, nn.Module):
        return teacher
    if isinstance(teacher, Tagger):
        if teacher.model.config.num_classes != 1:
            what = f"has {teacher.model.config.num_classes} outputs, students have one"
            raise ModelError(what, where="teacher", hint="train a binary teacher")
        return teacher
    return _one_a_jet(teacher, settings.teacher_kind)


def _one_a_jet(teacher: Any, kind: str) -> NDArray[np.floating]:
    hint = "give None, a model's file, a Tagger, or an array of logits [jets]"
    try:
        values = np.array(teacher, np.float32 if kind == "logit" else np.float64)
    except (TypeError, ValueError):
        what = f"is neither a model nor logits: {type(teacher).__name__}"
        raise DataError(what, where="teacher", hint=hint) from None
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"needs one {kind} a jet, has shape {list(values.shape)}", where="teacher", hint=hint)
    bad = ~np.isfinite(values)
    needed = "be finite"
    if kind == "probability":
        bad |= (values < 0) | (values > 1)
        needed = "lie in [0, 1]"
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{kind} must {needed}, is {values[row]}", where=f"teacher, row {row}")
    return values


def as_logits(values: NDArray[np.floating], kind: str) -> NDArray[np.float32]:
    """Logits [N] of a teacher's values: ln(p / (1 − p)) of probabilities p, clipped to CLIPPED_PROBABILITY."""
    if kind == "logit":
        return values.astype(np.float32)
    p = np.clip(values, CLIPPED_PROBABILITY, 1 - CLIPPED_PROBABILITY)
    return (np.log(p) - np.log1p(-p)).astype(np.float32)


def check_values(values: NDArray[np.floating], kind: str, jets: int) -> None:
    """Raises DataError where there is not a value for each jet, or where logits seem to be probabilities."""
    if len(values) != jets:
        hint = f"give a {kind} for every jet, in the order of data (after max_jets), validation and test data"
        plural = "logits" if kind == "logit" else "probabilities"
        raise DataError(f"{len(values)} {plural} for {jets} jets", where="teacher", hint=hint)
    if kind == "logit" and ((values >= 0) & (values <= 1)).all():
        what = f"the logits of all {jets:,} jets lie in [0, 1], as probabilities do"
        hint = "{teacher_kind} takes probabilities"
        raise DataError(what, where="teacher", hint=hint, settings={"teacher_kind": "probability"})


def check_training_jets(teacher: Tagger, prepared: PreparedData) -> None:
    """Raises DataError where the teacher was trained on jets of the test split; warns where its file does not
    say on which jets it was trained."""
    if teacher.trained_on is None:
        what = "the teacher's file does not say which jets it was trained on"
        warnings.warn(f"{what}: make sure that none of them is among the test jets", KdfastWarning, stacklevel=4)
        return
    share = share_among(teacher.trained_on, prepared.hashes("test"))
    if share > 0:
        what = f"was trained on test jets: about {share:.1%} of its training jets are among them"
        hint = "split the jets as the teacher's study did (data_seed, fractions, max_jets, test data), or give others"
        raise DataError(what, where="teacher", hint=hint)


def _stored_values(file: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(file, allow_pickle=False))
    except OSError as error:
        raise DataError(f"can't be read ({error.strerror or error})", where=str(file)) from None
    except Exception as error:  # NumPy parses the header as Python's text, and raises whatever that raises
        raise DataError(f"is not an array written by numpy.save ({error})", where=str(file)) from None
