"""What a study is trained on, as any process can open it: files, or what it was given in Python.

inputs/jets, inputs/hlt_jets, inputs/teacher: committed folders with what no settings hold. They are written
if other processes will work on the study (workers, a cluster), so that its folder is all they need.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save

from kdfast.errors import ConfigError, StudyError
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.models.tagger import Tagger, load_model
from kdfast.store.folders import commit, read_checked
from kdfast.store.identity import differing, refuse_another, shown_setting, teacher_fingerprint
from kdfast.store.settings import DATA_SOURCE, GIVEN, HLTFiles, StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.external_teacher import as_logits, check_values, external_teacher
from kdfast.study.prepare import PreparedData, load, prepare, reading

__all__ = [
    "Given",
    "Inputs",
    "absolute_paths",
    "describe_anew",
    "stored_inputs",
    "write_inputs",
]


# Name of the stored values of a teacher: logits, or what the setting `teacher_kind` says.
_VALUES = "logits"

# What a study can be given in Python, in words, and the argument of kdfast.sweep and kdfast.refine for it.
_IN_PYTHON = {
    "jets": ("jets", "data"),
    "hlt_jets": ("HLT jets", "hlt"),
    "teacher": ("teacher's weights or logits", "teacher"),
}


@dataclass(frozen=True)
class Given:
    """What a study is given in Python and no TOML can hold.

    jets, hlt_jets: instead of files and of the emulation. teacher: a Tagger, or for all jets what the setting
    `teacher_kind` says.
    """

    jets: PackedJets | None = None
    hlt_jets: PackedJets | None = None
    teacher: Any = None

    def names(self) -> list[str]:
        """What of it there is."""
        return [name for name in ("jets", "hlt_jets", "teacher") if getattr(self, name) is not None]


@dataclass(frozen=True)
class Inputs:
    """What a study is trained on. given: what of it is given in Python. prepared: the jets. teacher: that the study
    was given, a Tagger, logits [N] of all jets, or None. decisive: what makes the study this study."""

    given: Given
    prepared: PreparedData
    teacher: Tagger | NDArray[np.float32] | None
    decisive: dict[str, Any]

    @classmethod
    def load(cls, settings: StudySettings, given: Given, store: StudyStore | None = None) -> Inputs:
        """Reads and prepares the jets. store: of the study, if there is one. Raises StudyError where it holds
        another study, before the work of reading the data where that is possible."""
        values = external_teacher(settings, given.teacher)
        teacher = as_logits(values, settings.teacher_kind) if isinstance(values, np.ndarray) else values
        hlt_jets = given.hlt_jets
        if store is not None:
            refuse_another(store, _decisive(settings, teacher, hlt_jets))
        jets = load(given.jets, settings.data)
        if isinstance(values, np.ndarray):
            check_values(values, settings.teacher_kind, len(jets))
            if given.teacher is not None:
                given = replace(given, teacher=values)  # as write_inputs stores it
        if hlt_jets is None and isinstance(settings.hlt, HLTFiles):
            from kdfast.jets.readers import read_jets

            # `prepare` cuts them to `max_constituents`; files may store fewer.
            how = replace(reading(settings.data), max_constituents=None, exactly=False)
            hlt_jets = read_jets(settings.hlt.paths, how)[0]
        decisive = _decisive(settings, teacher, hlt_jets)
        decisive["data"]["fingerprint"] = fingerprint(jets)
        if store is not None:
            refuse_another(store, decisive)
        return cls(given, prepare(jets, settings, hlt_jets), teacher, decisive)


def _decisive(
    settings: StudySettings, teacher: Tagger | NDArray[np.float32] | None, hlt_jets: PackedJets | None
) -> dict[str, Any]:
    """What makes the study this study, but for the data's fingerprint."""
    table = settings.decisive()
    if teacher is not None:  # then nothing of a teacher's training decides a result
        del table["teacher_model"], table["recipe"]["teacher_epochs"], table["recipe"]["teacher_patience"]
        table["recipe"].pop("teacher_warmup_epochs", None)
        table["teacher"] = teacher_fingerprint(teacher)
    if hlt_jets is not None:
        table["hlt"] = f"jets {fingerprint(hlt_jets)[:16]}"
    return table


# ---- in the study's folder


def write_inputs(store: StudyStore, inputs: Inputs) -> None:
    """Stores what was given in Python, so that other processes can open the study."""
    folder = store.path / "inputs"
    given = inputs.given
    teacher = inputs.teacher
    # The jets as the settings cut them: these may be cut otherwise when they are given again.
    jets = None if given.jets is None else inputs.prepared.jets
    files = {
        f"{name}/arrays.safetensors": save({key: np.ascontiguousarray(getattr(jets, key)) for key in DTYPES})
        for name, jets in (("jets", jets), ("hlt_jets", given.hlt_jets))
        if jets is not None
    }
    if given.teacher is not None and teacher is not None:  # else the settings name a file
        if isinstance(teacher, np.ndarray):
            files["teacher/arrays.safetensors"] = save({_VALUES: np.ascontiguousarray(given.teacher)})
        else:
            files["teacher/model.safetensors"] = teacher.to_bytes()
    for path, content in files.items():
        name, file = path.split("/")
        if not (folder / name).exists():
            commit(folder / name, {file: content})


def stored_inputs(store: StudyStore, again: Given | None = None) -> Given:
    """What the study was given in Python: as it is given again, else as `write_inputs` has stored it.

    Raises StudyError where the study was given what is neither.
    """
    again = again or Given()
    return Given(
        _stored_jets(store, "jets") if again.jets is None else again.jets,
        _stored_jets(store, "hlt_jets") if again.hlt_jets is None else again.hlt_jets,
        _stored_teacher(store) if again.teacher is None else again.teacher,
    )


def _stored_jets(store: StudyStore, name: str) -> PackedJets | None:
    arrays = _arrays(store, name)
    return None if arrays is None else PackedJets(**{key: arrays[key] for key in DTYPES})


def _stored_teacher(store: StudyStore) -> Tagger | NDArray[np.floating] | None:
    model = store.path / "inputs" / "teacher" / "model.safetensors"
    if "teacher" in _given(store) and model.exists():
        read_checked(model.parent, model.name)
        return load_model(model)
    arrays = _arrays(store, "teacher")
    return None if arrays is None else arrays[_VALUES]


def _arrays(store: StudyStore, name: str) -> dict[str, NDArray[Any]] | None:
    if name not in _given(store):
        return None
    folder = store.path / "inputs" / name
    if folder.exists():
        return load_arrays(read_checked(folder, "arrays.safetensors"))
    words, argument = _IN_PYTHON[name]
    what = f"was given its {words} in Python, and does not hold them"
    hint = f"give kdfast.refine the same {argument}=… again; kdfast.sweep(…, plan_only=True) stores them there"
    raise StudyError(what, where=str(store.path), hint=hint)


def _given(store: StudyStore) -> set[str]:
    """Names (see Given) of what the study was given in Python."""
    return {*store.provenance.get("given", ())}


def describe_anew(store: StudyStore, settings: StudySettings, given: Given, *, held: bool) -> list[str]:
    """Rewrites the settings that decide no result for all who open the study from now on: device,
    checkpoints, and where jets, HLT jets and teacher are. Returns the changes in words.

    held: `write_inputs` has stored what is given in Python. Otherwise that does not replace files, as nobody
    else could open the study. The caller holds the study (StudyStore.writing).
    """
    here = settings.table()
    table = dict(store.settings)
    names = _given(store)
    found = {"device", "checkpoint_every"}
    taken = {*given.names()}
    for group in ({"jets", "hlt_jets"}, {"teacher"}):  # files of jets and of HLT jets are cut alike, by max_jets
        if held or taken & group <= names:
            names = names - group | taken & group
            found |= group
    if "jets" in found:
        kept = {key: value for key, value in table["data"].items() if key not in DATA_SOURCE}
        table["data"] = kept | {key: here["data"][key] for key in DATA_SOURCE if key in here["data"]}
        if isinstance(settings.hlt, HLTFiles) or settings.hlt == GIVEN:
            table["hlt"] = here["hlt"]
    if "teacher" in found:
        found.add("teacher_kind")
    for key in found & {"device", "checkpoint_every", "teacher", "teacher_kind"}:
        table.pop(key, None)
        table |= {key: here[key]} if key in here else {}
    provenance = store.provenance | {"given": [name for name in _IN_PYTHON if name in names]}
    changes = [
        f"{key} is {shown_setting(new)} from now on, was {shown_setting(old)}"
        for key, old, new in differing(store.settings, table)
    ]
    store.describe(table, provenance)
    return changes


def absolute_paths(settings: StudySettings) -> StudySettings:
    """The settings with files named so that a process in another folder finds them.

    Raises ConfigError for a path that study.toml can't hold, as it is no text.
    """

    def absolute(path: str) -> str:
        named = str(Path(path).absolute())
        try:
            named.encode()
        except UnicodeEncodeError:
            hint = "rename it, or give a link to it or a pattern that finds it"
            what = "is not UTF-8, so study.toml can't hold it"
            raise ConfigError(what, where=ascii(named), hint=hint) from None
        return named

    data = settings.data.model_copy(update={"paths": tuple(map(absolute, settings.data.paths))})
    hlt = settings.hlt
    if isinstance(hlt, HLTFiles):
        hlt = HLTFiles(paths=tuple(map(absolute, hlt.paths)))
    teacher = None if settings.teacher is None else absolute(settings.teacher)
    return settings.model_copy(update={"data": data, "hlt": hlt, "teacher": teacher})
