"""How a member is trained, as plain values: the recipe, precision and device, and the further axes of a grid.

Axes are settings of the recipe, and the student's model, that a run can have of its own. Its name holds them
after T and α, each by a short code: `baseline_T3.0_A0.5_lr0.001_m-small`. Imports no torch, so that `--help`
is quick.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdfast.errors import ConfigError, suggest
from kdfast.models.config import model_config
from kdfast.validation import in_words

__all__ = [
    "AXES",
    "PRECISIONS",
    "Axis",
    "Recipe",
    "Settings",
    "Value",
    "check_device_name",
    "check_precision",
    "in_order",
    "model_of",
]

PRECISIONS = ("fp32", "bf16")


class Recipe(BaseModel):
    """How every member is trained; the defaults are the study's.

    `python -m kdfast.store.keywords` prints them as a table.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(default=50, ge=1)
    """Planned epochs of students and baseline."""
    batch_size: int = Field(default=512, ge=2)
    """Jets per batch; the last, partial batch of an epoch is dropped."""
    learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    """Learning rate after the warm-up; it then decays as a cosine."""
    weight_decay: float = Field(default=1e-5, ge=0, allow_inf_nan=False)
    """Weight decay of AdamW."""
    warmup_epochs: int = Field(default=3, ge=0)
    """Epochs of linear warm-up of the learning rate; at most those of the training."""
    clip_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    patience: int = Field(default=20, ge=1)
    """Stop a student or the baseline after N epochs without a better validation AUC."""
    attention_weight: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    """Weight of the attention-transfer term."""
    shuffle_window: int | None = Field(default=None, ge=1)
    """Jets that are shuffled together, in windows from all over the training jets."""


def check_precision(name: str) -> str:
    """The name. Raises ConfigError unless it is one of PRECISIONS."""
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}", where="precision", hint=suggest(name, list(PRECISIONS)))
    return name


def check_device_name(name: str) -> str:
    """The name. Raises ConfigError unless it is "auto", "cpu", "cuda" or "cuda:" and a number."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        hint = suggest(name.lower().replace("gpu", "cuda"), ["auto", "cpu", "cuda", "cuda:0"])
        raise ConfigError(f"unknown device {name!r}", where="device", hint=hint)
    return name


# ---- axes


Value = float | int | str


@dataclass(frozen=True)
class Axis:
    """A setting that runs of one study can differ in.

    code: before its value in a run's name. label: in tables and figures. shared: whether all members of a
    pack have the same value, as they share batches and sizes. distils: whether it plays no part without a
    teacher. column: of results_summary.csv, if not the setting's name.
    """

    code: str
    label: str
    shared: bool = False
    distils: bool = False
    column: str = ""


# Every setting of Recipe, and the model, in the order of names, tables and columns.
AXES: dict[str, Axis] = {
    "learning_rate": Axis("lr", "Learning rate"),
    "weight_decay": Axis("wd", "Weight decay"),
    "warmup_epochs": Axis("wu", "Warm-up epochs"),
    "clip_norm": Axis("cn", "Gradient clip"),
    "patience": Axis("pt", "Patience"),
    "attention_weight": Axis("aw", "Attention weight", distils=True),
    "epochs": Axis("ep", "Planned epochs", shared=True, column="planned_epochs"),  # `epochs` are those trained
    "batch_size": Axis("bs", "Batch size", shared=True),
    "shuffle_window": Axis("sw", "Shuffle window", shared=True),
    "model": Axis("m-", "Model", shared=True),  # the last one: its value ends the name
}

_BY_CODE = {axis.code: name for name, axis in AXES.items()}
_ALL = "all"  # of shuffle_window, whose setting is then None
_PART = re.compile(r"([a-z]+?)(\d.*|all)")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


class Settings(Mapping[str, Value]):
    """Further settings of a run: an immutable, hashable mapping in the order of AXES, empty for most runs.

    A model is a preset's name, or sizes as text (`model_of` reads it). Raises ConfigError for an unknown
    setting, and for a value that its field in Recipe refuses.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        given = values or {}
        self._values = {name: _checked(name, given[name]) for name in in_order(given)}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return repr(self._values)

    @property
    def suffix(self) -> str:
        """What a run's name ends with, e.g. ``_lr0.001_m-small``."""
        return "".join(f"_{AXES[name].code}{value}" for name, value in self.items())

    @classmethod
    def from_suffix(cls, suffix: str) -> Settings:
        """The settings that a name's end holds. Raises ConfigError for an unknown code or a bad value."""
        head, _, model = suffix.partition(f"_{AXES['model'].code}")
        values: dict[str, Any] = {"model": model} if model else {}
        for part in head.split("_")[1:]:
            found = _PART.fullmatch(part)
            if found is None or found[1] not in _BY_CODE:
                codes = ", ".join(f"{code} ({name})" for code, name in _BY_CODE.items())
                raise ConfigError(f"has an unknown part {part!r}", hint=f"after T and α: {codes}")
            values[_BY_CODE[found[1]]] = found[2]
        return cls(values)

    def only(self, names: Iterable[str]) -> Settings:
        """Those of these names."""
        return Settings({name: self[name] for name in names if name in self})

    @property
    def shared(self) -> Settings:
        """Those that all members of a pack have alike."""
        return self.only(name for name, axis in AXES.items() if axis.shared)

    @property
    def without_teacher(self) -> Settings:
        """Those that matter without a teacher: the baseline's."""
        return self.only(name for name, axis in AXES.items() if not axis.distils)

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with these settings. A warm-up that is longer than the training is shortened to it."""
        changes = {name: None if value == _ALL else value for name, value in self.items() if name != "model"}
        changed = recipe.model_copy(update=changes)
        if not {"epochs", "warmup_epochs"} & set(changes) or changed.warmup_epochs <= changed.epochs:
            return changed
        return changed.model_copy(update={"warmup_epochs": changed.epochs})


def in_order(names: Iterable[str]) -> list[str]:
    """These names of axes in their order. Raises ConfigError for one that there is not."""
    given = list(names)
    for name in given:
        if name not in AXES:
            raise ConfigError(f"unknown axis {name!r}", where="grid", hint=suggest(str(name), list(AXES)))
    return [name for name in AXES if name in given]


def _checked(name: str, value: Any) -> Value:
    if name == "model":
        return _model_text(value)
    if name == "shuffle_window" and value in (None, _ALL):
        return _ALL
    if isinstance(value, bool):
        raise ConfigError(f"must not be true or false, is {value!r}", where=name)
    try:
        return getattr(Recipe(**{name: value}), name) + 0  # no negative zero in a name
    except ValidationError as error:
        raise ConfigError(in_words(error, Recipe)[1].what, where=name) from None


def _model_text(model: Any) -> str:
    """Sizes become `width.32-layers.2-…`: a name and a value each, in the order of their type."""
    if not isinstance(model, str):
        config = model_config(model, where="model")
        every = config.model_dump()
        family = {"family": every["family"]} if "family" in every else {}
        sizes = {**(model if isinstance(model, Mapping) else config.model_dump(exclude_defaults=True)), **family}
        model = "-".join(f"{key}.{sizes[key]}" for key in every if key in sizes)
    if not _WORD.fullmatch(model):
        raise ConfigError(f"{model!r} can't be part of a run's name", where="model", hint="name a preset or sizes")
    return str(model)


def model_of(text: str) -> str | dict[str, Any]:
    """The preset's name, or the sizes, that the value of the axis `model` stands for."""
    if "." not in text:
        return text
    parts = (part.partition(".") for part in re.split(r"-(?=[a-z])", text))
    return {key: _number(value) for key, _, value in parts}


def _number(text: str) -> Value:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
