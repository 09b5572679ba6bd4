"""What makes a study this study: the settings, data and teacher that decide its results."""

from __future__ import annotations

import hashlib
import json
import platform
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdfast._version import __version__
from kdfast.distill.devices import training_devices
from kdfast.errors import KdfastWarning, StudyError
from kdfast.models.tagger import Tagger, tagger_card
from kdfast.ops import backend
from kdfast.store.store import StudyStore

__all__ = [
    "differing",
    "environment",
    "other_environment",
    "planned_environment",
    "refuse_another",
    "shown_setting",
    "teacher_fingerprint",
    "training_environment",
    "warn_of_other_environment",
]

# Differences that an error names before it only counts them.
_NAMED = 6


def environment(device: str = "cpu") -> dict[str, str]:
    """Versions, instruction set, backend and device: for one of these, results are the same bit for bit."""
    devices = training_devices(device)
    try:
        isa = str(backend.cpu_module().isa)
    except AssertionError:
        isa = "none"
    return {
        "kdfast": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "isa": isa,
        "backend": backend.forced() or "auto",
        "device": "cpu" if devices == ["cpu"] else ", ".join(map(torch.cuda.get_device_name, devices)),
    }


def planned_environment(device: str) -> dict[str, str]:
    """`environment` where a study is planned for others to train: this machine need not have their device."""
    return environment() | ({"device": device} if device.startswith("cuda") else {})


def training_environment(device: str) -> dict[str, str]:
    """What is recorded with a result: the part of `environment` that decides its last bits, and the host."""
    here = environment(device)
    return {name: here[name] for name in ("kdfast", "torch", "isa", "backend", "device")} | {"host": platform.node()}


def teacher_fingerprint(teacher: Tagger | NDArray[np.float32]) -> str:
    """SHA-256 of a teacher that a study was given."""
    if isinstance(teacher, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(teacher).data).hexdigest()
    card = tagger_card(teacher.model.config, teacher.preparation)
    card.pop("kdfast")  # the version that wrote it does not matter
    digest = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name, tensor in sorted(teacher.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def refuse_another(store: StudyStore, decisive: Mapping[str, Any]) -> None:
    """Raises StudyError where the store's study was made with other decisive settings, and names them.

    The fingerprints of the data, of their split and of HLT jets are compared once they are known.
    """
    there = store.provenance.get("decisive")
    if there is None:
        raise StudyError("does not say what it was made with", where=str(store.path), hint="use another folder")
    here = json.loads(json.dumps(decisive))
    if "fingerprint" not in here["data"]:
        data = there.get("data", {})
        here["data"] |= {key: data[key] for key in data if key.endswith("fingerprint")}
    here.setdefault("hlt", there.get("hlt"))
    for name in ("model", "teacher_model"):
        if _is_own(there, name) and not _is_own(here, name) and name in here:
            own = store.settings.get(name, {}).get("name", "of your own")
            what = f"its {'students' if name == 'model' else 'teacher'} are networks of your own ({own})"
            hint = f"name the function again: {{{name}}}"
            raise StudyError(what, where=str(store.path), hint=hint, settings={name: own})
    found = [_difference(key, old, new) for key, old, new in differing(there, here)]
    if found:
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise StudyError(
            f"holds another study: {'; '.join(found[:_NAMED])}{more}",
            where=str(store.path),
            hint="give another folder, or the settings of this one (see its study.toml)",
        )


def _is_own(decisive: Mapping[str, Any], name: str) -> bool:
    sizes = decisive.get(name)
    return isinstance(sizes, Mapping) and sizes.get("family") == "own"


# What the fingerprints in [data] are of.
_FINGERPRINTS = {
    "data.fingerprint": "the jets are others",
    "data.validation_fingerprint": "the validation jets are others",
    "data.test_fingerprint": "the test jets are others",
    "data.split_fingerprint": "the split by a column is another",
}


def _difference(key: str, old: Any, new: Any) -> str:
    if key in _FINGERPRINTS:
        return _FINGERPRINTS[key]
    if key == "data.fractions" and None in (old, new):
        what = {True: "by fractions", False: "by files or a column alone"}
        return f"the jets are split {what[old is not None]} there, {what[new is not None]} here"
    return f"{key} is {shown_setting(old)} there, {shown_setting(new)} here"


def differing(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings that differ between two tables: dotted name, and both values (None: not there)."""
    for key in dict.fromkeys([*there, *here]):
        old = there.get(key)
        new = here.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differing(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


def shown_setting(value: Any) -> str:
    """A setting's value in a sentence; a fingerprint by its first digits."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {item}" for key, item in value.items()) + "}"
    text = str(value)
    return f"{text[:8]}…" if len(text) == 64 else text


def other_environment(store: StudyStore, device: str = "cpu") -> str | None:
    """The warning for a study that is resumed in another environment, where last bits may differ."""
    there = {"device": "cpu"} | store.provenance.get("environment", {})
    here = environment(device)
    if there["device"].startswith("cuda"):  # planned where no GPU's name was known
        here.pop("device")
    names = [name for name in here if there.get(name) != here[name]]
    if not names:
        return None
    listing = ", ".join(f"{name} {there.get(name)} → {here[name]}" for name in names)
    return f"{store.path}: this study was begun in another environment ({listing}); last bits may differ"


def warn_of_other_environment(store: StudyStore, device: str = "cpu") -> None:
    """Warns of what `other_environment` finds."""
    message = other_environment(store, device)
    if message is not None:
        warnings.warn(message, KdfastWarning, stacklevel=4)
