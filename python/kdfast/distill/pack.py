"""The words of training: view, targets, member, pack, and what a member reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from kdfast.distill.recipe import Recipe, check_device_name, check_precision, model_of
from kdfast.distill.schedules import Run, RunConfig, settings_of
from kdfast.errors import ConfigError, DataError
from kdfast.mapped import release
from kdfast.models.config import NetworkConfig, model_config
from kdfast.ops.arrays import check_offsets
from kdfast.ops.distill_loss_reference import check_jets

__all__ = ["EpochReport", "MappedView", "Member", "MemberResult", "Pack", "Targets", "View"]


@dataclass(frozen=True)
class View:
    """One split of the jets as one model sees them.

    features: [M, F] float32, standardised. offsets: [B + 1] int64. labels, weights: [B] float32.
    """

    features: Tensor
    offsets: Tensor
    labels: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def release(self) -> None:
        """Drops from memory what has been read of arrays in files."""


@dataclass(frozen=True)
class MappedView(View):
    """A view whose arrays are mapped from files, and need not fit into memory."""

    mapped: tuple[NDArray[Any], ...] = ()

    def release(self) -> None:
        release(self.mapped)


@dataclass(frozen=True)
class Targets:
    """What the teacher says of the training jets, computed once.

    logits: [B, 1]. attention_entropy, attention_max: [B], of its pooling attention; None: no
    attention-transfer term.
    """

    logits: Tensor
    attention_entropy: Tensor | None = None
    attention_max: Tensor | None = None


@dataclass(frozen=True)
class Member:
    """One run of a pack. config: without a RunConfig it has no teacher (a baseline, and the teacher's own training)."""

    name: str
    config: Run = None

    @property
    def distils(self) -> bool:
        """Whether it learns from a teacher."""
        return isinstance(self.config, RunConfig)

    def at(self, epoch: int, epochs: int) -> tuple[float, float]:
        """(T, α) of an epoch; without a teacher (1, 0)."""
        return self.config.at(epoch, epochs) if isinstance(self.config, RunConfig) else (1.0, 0.0)


@dataclass(frozen=True)
class Pack:
    """Members that share model, seed, jets, targets and batches.

    recipe: of all members, but for the settings that a member's configuration has of its own (`recipe_of`).
    targets: of the training jets; needed where a member distils. precision: "fp32", or "bf16" (bfloat16
    operands of the layers' matrix products; weights, moments, norms, softmax and sums stay float32). device:
    "cpu", "cuda" (all GPUs that torch sees) or "cuda:1" (one of them); see devices.training_devices. Raises
    ConfigError, ModelError and DataError for parts that do not fit together, and for labels and weights that
    can't be.
    """

    model: NetworkConfig
    members: tuple[Member, ...]
    seed: int
    recipe: Recipe
    train: View
    validation: View
    test: View
    targets: Targets | None = None
    precision: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        check_device_name(self.device)
        if self.model.num_classes != 1:
            hint = "num_classes=1: the logit of signal"
            raise ConfigError(f"{self.model.num_classes} classes, but a pack trains one", where="model", hint=hint)
        for split in ("train", "validation", "test"):
            _check_view(getattr(self, split), self.model, split, self.train.features.dtype)
        check_jets(self.train.labels, self.model.num_classes, self.train.weights)
        if len(self.train) < self.recipe.batch_size:
            raise ConfigError(
                f"{self.recipe.batch_size} jets a batch, but {len(self.train)} training jets",
                where="batch_size",
                hint=f"choose batch_size ≤ {len(self.train)} or give more jets",
            )
        if self.targets is None and any(member.distils for member in self.members):
            raise ConfigError("students need a teacher's targets", where="targets")
        if self.targets is not None:
            _check_targets(self.targets, len(self.train))
        for member in self.members:
            self._check_shared(member)

    def recipe_of(self, member: Member) -> Recipe:
        """How a member is trained."""
        return settings_of(member.config).applied(self.recipe)

    def _check_shared(self, member: Member) -> None:
        """Raises ConfigError where a member's own settings differ from those that the members of a pack share."""
        shared = settings_of(member.config).shared
        recipe = shared.applied(self.recipe)
        same = all(getattr(recipe, name) == getattr(self.recipe, name) for name in shared if name != "model")
        if not same or ("model" in shared and model_config(model_of(str(shared["model"]))) != self.model):
            what = f"{member.name} has other batches, epochs or sizes than its pack"
            raise ConfigError(what, where="members", hint="give it a pack of its own")


def _check_view(view: View, model: NetworkConfig, split: str, dtype: torch.dtype) -> None:
    """Raises DataError unless a view's arrays fit each other, ModelError unless they fit the model.

    dtype: of all but the offsets; float32, in tests of the reference engine also float64.
    """
    model.check_features(view.features)
    for name in ("features", "offsets", "labels", "weights"):
        array: Tensor = getattr(view, name)
        wanted = torch.int64 if name == "offsets" else dtype
        if array.dtype != wanted or not array.is_cpu:
            what = f"must be {wanted} on the CPU, is {array.dtype} on {array.device}"
            raise DataError(what, where=f"{split}, {name}")
    try:
        check_offsets(view.offsets, len(view.features))
    except DataError as error:
        raise DataError(error.what, where=f"{split}, {error.where}", hint=error.hint) from None
    jets = len(view.offsets) - 1
    if jets == 0:
        raise DataError("no jets", where=split)
    for name, values in (("labels", view.labels), ("weights", view.weights)):
        if values.shape != (jets,):
            raise DataError(f"must be [{jets}], one for each jet, is {list(values.shape)}", where=f"{split}, {name}")


def _check_targets(targets: Targets, jets: int) -> None:
    """Raises DataError unless the targets have this number of jets."""
    shapes = {"logits": (jets, 1), "attention_entropy": (jets,), "attention_max": (jets,)}
    for name, shape in shapes.items():
        values = getattr(targets, name)
        if values is not None and values.shape != shape:
            what = f"must be {list(shape)} for {jets} training jets, is {list(values.shape)}"
            raise DataError(what, where=f"targets, {name}")


@dataclass(frozen=True)
class EpochReport:
    """Progress of one member, after each epoch.

    Attributes
    ----------
    member : str
        Name of the run: a configuration, "baseline" or "teacher".
    epoch, epochs : int
        The epoch, counted from 0, and the number planned.
    loss : float
        Mean training loss of the epoch.
    auc_val, best_auc_val : float
        AUC of the validation jets: of this epoch, and the highest so far.
    jets, seconds : int, float
        Of the part of the epoch that this process trained.
    seed : int
        Seed of the run.
    """

    member: str
    epoch: int
    epochs: int
    loss: float
    auc_val: float
    best_auc_val: float
    jets: int
    seconds: float
    seed: int = 0


@dataclass(frozen=True)
class MemberResult:
    """What became of a member.

    status: "done", or "diverged" (a loss, gradient or logit was not finite: message says when; scores and
    state are empty). best_epoch: counted from 0, the one whose weights are kept. epochs: trained. seconds:
    wall time, in all processes that trained it. curves: a value an epoch of loss, loss_kd, loss_label,
    loss_attention, auc_val, temperature, alpha, learning_rate. scores_validation, scores_test: [B] logits.
    state: the kept weights, by name.
    """

    name: str
    status: str
    message: str
    best_epoch: int
    epochs: int
    seconds: float
    curves: dict[str, list[float]]
    scores_validation: Tensor = field(default_factory=lambda: torch.empty(0))
    scores_test: Tensor = field(default_factory=lambda: torch.empty(0))
    state: dict[str, Tensor] = field(default_factory=dict)
