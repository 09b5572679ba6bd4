"""What a study is trained on, as any process can open it: files, or what it was given in Python.

inputs/jets, inputs/hlt_jets, inputs/teacher: committed folders with what no settings hold. They are written
if other processes will work on the study (workers, a cluster), so that its folder is all they need.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray
from torch import nn

from kdfast.errors import ConfigError, DataError, StudyError
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.packed import DTYPES, PackedJets
from kdfast.models.tagger import Tagger, load_model
from kdfast.store.folders import commit, read_checked
from kdfast.store.identity import differing, refuse_another, shown_setting, teacher_fingerprint
from kdfast.store.result import array_bytes, load_arrays
from kdfast.store.settings import DATA_SOURCE, GIVEN, DataSettings, HLTFiles, StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.own_models import adapted, as_logits, check_values, external_teacher
from kdfast.study.prepare import PreparedData, load_sets, prepare, reading
from kdfast.study.sets import SET_PATHS, SETS, Sets, join

__all__ = [
    "Given",
    "Inputs",
    "absolute_paths",
    "describe_anew",
    "is_jets",
    "joined_hlt",
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
    "validation_jets": ("validation jets", "validation_data"),
    "test_jets": ("test jets", "test_data"),
}


@dataclass(frozen=True)
class Given:
    """What a study is given in Python and no TOML can hold.

    jets, validation_jets, test_jets, hlt_jets: instead of files and of the emulation; HLT jets of all three,
    joined (sets.join). teacher: a Tagger, or for all jets what the setting `teacher_kind` says.
    """

    jets: PackedJets | None = None
    hlt_jets: PackedJets | None = None
    teacher: Any = None
    validation_jets: PackedJets | None = None
    test_jets: PackedJets | None = None

    def names(self) -> list[str]:
        """What of it there is."""
        return [name for name in _IN_PYTHON if getattr(self, name) is not None]

    def sets(self) -> dict[str, PackedJets]:
        """The jets, by set."""
        sets = zip(SETS, (self.jets, self.validation_jets, self.test_jets), strict=True)
        return {name: jets for name, jets in sets if jets is not None}


@dataclass(frozen=True)
class Inputs:
    """What a study is trained on. given: what of it is given in Python. prepared: the jets. sets: that they
    were given as. teacher: that the study was given, a Tagger, logits [N] of all jets, or None. decisive:
    what makes the study this study."""

    given: Given
    prepared: PreparedData
    sets: Sets
    teacher: Tagger | NDArray[np.float32] | None
    decisive: dict[str, Any]

    @classmethod
    def load(cls, settings: StudySettings, given: Given, store: StudyStore | None = None) -> Inputs:
        """Reads and prepares the jets. store: of the study, if there is one. Raises StudyError where it holds
        another study, before the work of reading the data where that is possible."""
        values = external_teacher(settings, given.teacher)
        own = values if isinstance(values, nn.Module) else None
        teacher = None if own else _as_teacher(values, settings)
        hlt_jets = given.hlt_jets
        if store is not None and own is None:
            refuse_another(store, _decisive(settings, teacher, hlt_jets))
        jets, sets = load_sets(given.sets(), settings.data)
        if own is not None:  # the study keeps its logits
            hlt = None if hlt_jets is not None or isinstance(settings.hlt, HLTFiles) else settings.hlt
            values = adapted(own, jets, hlt, settings.data.max_constituents)
            teacher = _as_teacher(values, settings)
        if isinstance(values, np.ndarray):
            check_values(values, settings.teacher_kind, len(jets))
            if given.teacher is not None:
                given = replace(given, teacher=values)  # as write_inputs stores it
        if hlt_jets is None and isinstance(settings.hlt, HLTFiles):
            hlt_jets = _stored_hlt_jets(settings.hlt, settings.data)
        decisive = _decisive(settings, teacher, hlt_jets)
        decisive["data"] |= sets.fingerprints(jets, settings.data.max_constituents)
        if store is not None:
            refuse_another(store, decisive)
        return cls(given, prepare(jets, settings, hlt_jets, sets), sets, teacher, decisive)


def _as_teacher(values: Any, settings: StudySettings) -> Tagger | NDArray[np.float32] | None:
    return as_logits(values, settings.teacher_kind) if isinstance(values, np.ndarray) else values


def is_jets(hlt: Any) -> TypeGuard[PackedJets | Sequence[PackedJets]]:
    """Whether the argument `hlt` is jets, or a list of the jets of each set."""
    if isinstance(hlt, (list, tuple)):
        return bool(hlt) and all(isinstance(jets, PackedJets) for jets in hlt)
    return isinstance(hlt, PackedJets)


def joined_hlt(hlt: PackedJets | Sequence[PackedJets], data: DataSettings) -> PackedJets:
    """HLT jets of all sets, given as such or as a list of those of each set that the settings name."""
    if isinstance(hlt, PackedJets):
        return hlt
    names = [name for name, key in SET_PATHS.items() if name == "data" or getattr(data, key)]
    if len(hlt) != len(names):
        what = f"has {len(hlt)} sets of HLT jets, for {', '.join(names)}"
        raise DataError(what, where="hlt", hint="give the HLT jets of each of them")
    return join(dict(zip(names, hlt, strict=True)))


def _stored_hlt_jets(files: HLTFiles, data: DataSettings) -> PackedJets:
    """With all constituents: `prepare` cuts them to `max_constituents`, and files may store fewer."""
    from kdfast.jets.readers import read_jets

    found = {}
    for name, key in SET_PATHS.items():
        paths = getattr(files, key)
        how = replace(reading(data, name), max_constituents=None, exactly=False)
        if how.split is not None and how.split.other == "error":  # else the same jets are left out here
            how = replace(how, split=None)
        if paths:
            found[name] = read_jets(paths, how)[0]
    return join(found)


def _decisive(
    settings: StudySettings, teacher: Tagger | NDArray[np.float32] | None, hlt_jets: PackedJets | None
) -> dict[str, Any]:
    """What makes the study this study, but for the fingerprints of its data."""
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
    given = inputs.given
    teacher = inputs.teacher
    # The jets as the settings cut them: these may be cut otherwise when they are given again.
    names = {argument: name for name, (_, argument) in _IN_PYTHON.items()}
    jets = {names[each]: inputs.prepared.jets[inputs.sets.rows[each]] for each in given.sets()}
    if given.hlt_jets is not None:
        jets["hlt_jets"] = given.hlt_jets
    files = {}
    for name, part in jets.items():
        files[name] = {"arrays.safetensors": array_bytes({key: getattr(part, key) for key in DTYPES})}
    if given.teacher is not None and teacher is not None:  # else the settings name a file
        if isinstance(teacher, np.ndarray):
            files["teacher"] = {"arrays.safetensors": array_bytes({_VALUES: given.teacher})}
        else:
            files["teacher"] = {"model.safetensors": teacher.to_bytes()}
    for name, content in files.items():
        folder = store.path / "inputs" / name
        if not folder.exists():
            commit(folder, content)


def stored_inputs(store: StudyStore, again: Given | None = None) -> Given:
    """What the study was given in Python: as it is given again, else as `write_inputs` has stored it.

    Raises StudyError where the study was given what is neither.
    """
    again = again or Given()
    given = store.provenance.get("given", ())
    found: dict[str, Any] = {}
    for name in _IN_PYTHON:
        value = getattr(again, name)
        found[name] = _stored(store, name) if value is None and name in given else value
    return Given(**found)


def _stored(store: StudyStore, name: str) -> Any:
    """One of the things that `write_inputs` has stored."""
    folder = store.path / "inputs" / name
    model = folder / "model.safetensors"
    if name == "teacher" and model.exists():
        read_checked(folder, model.name)
        return load_model(model)
    if not folder.exists():
        words, argument = _IN_PYTHON[name]
        what = f"was given its {words} in Python, and does not hold them"
        hint = f"give kdfast.refine the same {argument}=… again; kdfast.sweep(…, plan_only=True) stores them there"
        raise StudyError(what, where=str(store.path), hint=hint)
    arrays = load_arrays(folder)
    return arrays[_VALUES] if name == "teacher" else PackedJets(**{key: arrays[key] for key in DTYPES})


def describe_anew(store: StudyStore, settings: StudySettings, given: Given, *, held: bool) -> list[str]:
    """Rewrites the settings that decide no result for all who open the study from now on: device,
    checkpoints, and where jets, HLT jets and teacher are. Returns the changes in words.

    held: `write_inputs` has stored what is given in Python. Otherwise that does not replace files, as nobody
    else could open the study. The caller holds the study (StudyStore.writing).
    """
    here = settings.table()
    table = dict(store.settings)
    names = {*store.provenance.get("given", ())}
    taken = {*given.names()}
    found = set()
    for group in ({*_IN_PYTHON} - {"teacher"}, {"teacher"}):  # files of jets and of HLT jets are cut alike, by max_jets
        if held or taken & group <= names:
            names = names - group | taken & group
            found |= group
    if "jets" in found:
        table["data"] = _replaced(table["data"], here["data"], DATA_SOURCE)
        if isinstance(settings.hlt, HLTFiles) or settings.hlt == GIVEN:
            table["hlt"] = here["hlt"]
        # Files and their store differ in its default, not in what it does here.
        table["recipe"] = _replaced(table["recipe"], here["recipe"], ["shuffle_window"])
    of_teacher = ["teacher", "teacher_kind"] if "teacher" in found else []
    table = _replaced(table, here, ["device", "checkpoint_every", *of_teacher])
    provenance = store.provenance | {"given": [name for name in _IN_PYTHON if name in names]}
    changes = [
        f"{key} is {shown_setting(new)} from now on, was {shown_setting(old)}"
        for key, old, new in differing(store.settings, table)
    ]
    store.describe(table, provenance)
    return changes


def _replaced(old: Mapping[str, Any], new: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """The old table with these keys as the new one has them, or not at all."""
    kept = {key: value for key, value in old.items() if key not in keys}
    return kept | {key: new[key] for key in keys if key in new}


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

    def files(table: DataSettings | HLTFiles) -> dict[str, tuple[str, ...]]:
        named = {key: getattr(table, key) for key in SET_PATHS.values()}
        return {key: tuple(map(absolute, paths)) for key, paths in named.items() if paths != GIVEN}

    data = settings.data.model_copy(update=files(settings.data))
    hlt = settings.hlt
    if isinstance(hlt, HLTFiles):
        hlt = hlt.model_copy(update=files(hlt))
    teacher = None if settings.teacher is None else absolute(settings.teacher)
    return settings.model_copy(update={"data": data, "hlt": hlt, "teacher": teacher})
