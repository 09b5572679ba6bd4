"""How a member is trained, as plain values: recipe, precision, device.

Imports no torch, so that `--help` is quick.
"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from kdfast.errors import ConfigError, suggest

__all__ = ["PRECISIONS", "Recipe", "check_device_name", "check_precision"]

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
