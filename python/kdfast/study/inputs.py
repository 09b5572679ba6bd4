"""What a study is trained on, as any process can open it: its settings' files, or what it was given in Python.

inputs/jets, inputs/hlt_jets, inputs/teacher: committed folders with what no settings hold, written where other
processes are to work on the study (workers, a cluster), so that its folder is all they need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save

from kdfast.errors import DataError, ModelError, StudyError
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.models.tagger import Tagger, load_model
from kdfast.study.folders import commit, read_checked
from kdfast.study.identity import teacher_fingerprint
from kdfast.study.prepare import PreparedData, load, prepare
from kdfast.study.settings import StudySettings
from kdfast.study.store import StudyStore

__all__ = [
    "Given",
    "Inputs",
    "absolute_paths",
    "decisive",
    "external_teacher",
    "stored_inputs",
    "write_inputs",
]


@dataclass(frozen=True)
class Given:
    """What a study is given in Python and no TOML can hold.

    jets, hlt_jets: instead of files and of the emulation. teacher: a Tagger, or logits for all jets.
    """

    jets: PackedJets | None = None
    hlt_jets: PackedJets | None = None
    teacher: Any = None

    def names(self) -> list[str]:
        """What of it there is."""
        return [name for name in ("jets", "hlt_jets", "teacher") if getattr(self, name) is not None]


@dataclass(frozen=True)
class Inputs:
    """The jets, prepared, and the teacher that the study was given (a Tagger, logits [N] of all jets, or None)."""

    prepared: PreparedData
    teacher: Tagger | NDArray[np.float32] | None

    @classmethod
    def load(cls, settings: StudySettings, given: Given, teacher: Tagger | NDArray[np.float32] | None) -> Inputs:
        """Reads and prepares the jets. teacher: as `external_teacher` gives it."""
        jets = load(given.jets, settings.data)
        if isinstance(teacher, np.ndarray) and len(teacher) != len(jets):
            hint = "give a logit for every jet, in the data's order (after max_jets, where that is set)"
            raise DataError(f"{len(teacher)} logits for {len(jets)} jets", where="teacher", hint=hint)
        return cls(prepare(jets, settings, given.hlt_jets), teacher)


def decisive(
    settings: StudySettings, given: Given, teacher: Tagger | NDArray[np.float32] | None, inputs: Inputs | None = None
) -> dict[str, Any]:
    """What makes the study this study; the data's fingerprint is in it where inputs are given."""
    table = settings.decisive()
    if teacher is not None:  # then nothing of a teacher's training decides a result
        del table["teacher_model"], table["recipe"]["teacher_epochs"], table["recipe"]["teacher_patience"]
        table["teacher"] = teacher_fingerprint(teacher)
    if given.hlt_jets is not None:
        table["hlt"] = f"jets {fingerprint(given.hlt_jets)[:16]}"
    if inputs is not None:
        table["data"]["fingerprint"] = fingerprint(inputs.prepared.jets)
    return table


def external_teacher(settings: StudySettings, given: Given) -> Tagger | NDArray[np.float32] | None:
    """The teacher that the study was given, checked as far as it can be without the jets."""
    teacher = given.teacher
    if teacher is None:
        teacher = load_model(settings.teacher) if settings.teacher is not None else None
    if teacher is None:
        return None
    if isinstance(teacher, Tagger):
        if teacher.model.config.num_classes != 1:
            classes = teacher.model.config.num_classes
            raise ModelError(
                f"has {classes} outputs, students have one", where="teacher", hint="train a binary teacher"
            )
        return teacher
    hint = "give None, a model's file, a Tagger, or an array of logits [jets]"
    try:
        logits = np.array(teacher, np.float32)
    except (TypeError, ValueError):
        raise DataError(
            f"is neither a model nor logits: {type(teacher).__name__}", where="teacher", hint=hint
        ) from None
    if logits.ndim == 2 and logits.shape[1] == 1:
        logits = logits[:, 0]
    if logits.ndim != 1:
        raise DataError(f"needs one logit a jet, has shape {list(logits.shape)}", where="teacher", hint=hint)
    if not (finite := np.isfinite(logits)).all():
        row = int(np.argmin(finite))
        raise DataError(f"logit must be finite, is {logits[row]}", where=f"teacher, row {row}")
    return logits


# ---- in the study's folder


def write_inputs(store: StudyStore, given: Given, teacher: Tagger | NDArray[np.float32] | None) -> None:
    """Stores what was given in Python, so that other processes can open the study. A second time changes nothing."""
    folder = store.path / "inputs"
    files = {
        f"{name}/arrays.safetensors": save({key: np.ascontiguousarray(getattr(jets, key)) for key in DTYPES})
        for name, jets in (("jets", given.jets), ("hlt_jets", given.hlt_jets))
        if jets is not None
    }
    if isinstance(teacher, np.ndarray):
        files["teacher/arrays.safetensors"] = save({"logits": teacher})
    elif given.teacher is not None and teacher is not None:
        files["teacher/model.safetensors"] = teacher.to_bytes()
    for path, content in files.items():
        name, file = path.split("/")
        if not (folder / name).exists():
            commit(folder / name, {file: content})


def stored_inputs(store: StudyStore) -> Given:
    """What `write_inputs` has stored. Raises StudyError where the study was given what is not there."""
    jets: dict[str, PackedJets | None] = {}
    for name in ("jets", "hlt_jets"):
        arrays = _arrays(store, name)
        jets[name] = None if arrays is None else PackedJets(**{key: arrays[key] for key in DTYPES})
    teacher: Any = None
    folder = store.path / "inputs" / "teacher"
    if (folder / "model.safetensors").exists():
        read_checked(folder, "model.safetensors")
        teacher = load_model(folder / "model.safetensors")
    elif (arrays := _arrays(store, "teacher")) is not None:
        teacher = arrays["logits"]
    return Given(jets["jets"], jets["hlt_jets"], teacher)


def _arrays(store: StudyStore, name: str) -> dict[str, NDArray[Any]] | None:
    folder = store.path / "inputs" / name
    if folder.exists():
        return load_arrays(read_checked(folder, "arrays.safetensors"))
    if name in store.provenance.get("given", ()):
        hint = "plan it where they are: kdfast.sweep(..., plan_only=True) stores them in the study's folder"
        what = f"was given its {name.replace('_', ' ')} in Python, and does not hold them"
        raise StudyError(what, where=str(store.path), hint=hint)
    return None


def absolute_paths(settings: StudySettings) -> StudySettings:
    """The settings with files named so that a process in another folder finds them."""
    data = settings.data.model_copy(update={"paths": tuple(str(Path(path).absolute()) for path in settings.data.paths)})
    teacher = None if settings.teacher is None else str(Path(settings.teacher).absolute())
    return settings.model_copy(update={"data": data, "teacher": teacher})
