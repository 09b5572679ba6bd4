"""The sweep: one teacher, and for each seed a baseline and the grid's students, each result stored as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdfast.distill import cuda_engine
from kdfast.distill.devices import training_devices
from kdfast.distill.schedules import RunConfig
from kdfast.errors import BackendError, ConfigError, DataError, ModelError, StudyError
from kdfast.jets.fingerprint import fingerprint
from kdfast.jets.hlt import HLTConfig
from kdfast.jets.packed import PackedJets
from kdfast.models.config import ModelConfig, model_config
from kdfast.models.tagger import Tagger, load_model
from kdfast.study.identity import environment, refuse_another, teacher_fingerprint, warn_of_other_environment
from kdfast.study.interrupt import stoppable
from kdfast.study.prepare import load, prepare
from kdfast.study.progress import SweepProgress
from kdfast.study.results import StudyResults, open_study
from kdfast.study.settings import StudySettings
from kdfast.study.store import StudyStore
from kdfast.study.training import StudyTraining

__all__ = ["Given", "run_study", "sweep"]

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


class _Default(str):
    """The default of an argument: tells it from the same text given on purpose, which goes over a file of settings."""


_GRID, _HLT, _PRECISION, _DEVICE = map(_Default, ("study", "nominal", "fp32", "auto"))
_SEEDS: Sequence[int] = (42,)  # likewise, by identity


def sweep(
    data: Paths | PackedJets | None = None,
    out: str | PathLike[str] = "study",
    *,
    grid: str | Mapping[str, Any] | Sequence[RunConfig | str] = _GRID,
    model: str | ModelConfig | Mapping[str, Any] | None = None,
    hlt: str | HLTConfig | PackedJets = _HLT,
    teacher: str | PathLike[str] | Tagger | ArrayLike | None = None,
    epochs: int | None = None,
    seeds: int | Sequence[int] = _SEEDS,
    batch_size: int | None = None,
    max_constituents: int | None = None,
    precision: str = _PRECISION,
    device: str = _DEVICE,
    resume: bool = True,
    progress: bool = True,
    teacher_model: str | ModelConfig | Mapping[str, Any] | None = None,
    teacher_epochs: int | None = None,
    max_jets: int | None = None,
    on_bad: str | None = None,
    config: str | PathLike[str] | Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> StudyResults:
    """Trains a teacher, a baseline and a grid of distilled students, and gives their results.

    What is None takes the study's settings where data are given, else the demo's (study/settings.py lists them).
    data: files for load_jets, jets, or None: the bundled sample. out: the study's folder; each result is stored there
    as soon as it is finished, and a call that finds the same study there trains what is missing (other seeds and grids
    add runs; a study with other settings is refused). resume False: refuse any study that is there.
    grid: "study", "wide", the configurations of kdfast.grid, names of runs, or a table of kdfast.grid's arguments.
    model, teacher_model: sizes of students and teacher. epochs, batch_size, …: of the recipe.
    hlt: preset or HLTConfig of the emulation, or the same jets, in the same order, as a real trigger saw them.
    teacher: None (train one), a saved model or Tagger, or logits for all jets, in their order (after max_jets); logits
    come without the attention-transfer term. seeds: each trains its own baseline and grid; the teacher is shared.
    config: a TOML file (or a table like it); arguments that are given go over it.
    device: of the training. "cuda": all GPUs that torch sees share the members of each seed; "cuda:1": one of them;
    "cpu" and "auto": the CPU. threads: of the training on the CPU; None: torch.get_num_threads().

    Raises ConfigError, DataError, ModelError, StudyError, BackendError where the device can't be used, and
    SweepInterrupted (a KeyboardInterrupt) when stopped by SIGINT or SIGTERM: members that have finished are stored.
    """
    arguments = {"grid": grid, "hlt": hlt, "seeds": seeds, "precision": precision, "device": device}
    overrides: dict[str, Any] = {
        name: value for name, value in arguments.items() if not isinstance(value, _Default) and value is not _SEEDS
    }
    jets = data if isinstance(data, PackedJets) else None
    hlt_jets = overrides.pop("hlt") if isinstance(hlt, PackedJets) else None
    teacher_file = fspath(teacher) if isinstance(teacher, (str, PathLike)) else None
    overrides |= {
        "model": model,
        "teacher_model": teacher_model,
        "teacher": teacher_file,
        "data": {
            "paths": None if jets is not None else _paths(data),
            "max_jets": max_jets,
            "max_constituents": max_constituents,
            "on_bad": on_bad,
        },
        "recipe": {"epochs": epochs, "batch_size": batch_size, "teacher_epochs": teacher_epochs},
    }
    settings = StudySettings.resolve(config, overrides, data_given=jets is not None)
    given = Given(jets, hlt_jets, None if teacher_file else teacher)
    return run_study(settings, Path(out), given, resume=resume, progress=progress, threads=threads)


def _paths(data: Any) -> list[str] | None:
    if data is None:
        return None
    try:
        paths = [fspath(data)] if isinstance(data, (str, PathLike)) else [fspath(path) for path in data]
    except TypeError:
        what = f"must be paths, PackedJets or None, is {type(data).__name__}"
        raise DataError(what, where="data", hint="PackedJets.from_padded packs arrays") from None
    if not paths:
        raise DataError("names no file", where="data", hint="None takes the bundled sample")
    return paths


@dataclass(frozen=True)
class Given:
    """What a study is given in Python and no TOML can hold.

    jets, hlt_jets: instead of files and of the emulation. teacher: a Tagger, or logits for all jets.
    """

    jets: PackedJets | None = None
    hlt_jets: PackedJets | None = None
    teacher: Any = None


def run_study(
    settings: StudySettings,
    out: Path,
    given: Given = Given(),
    *,
    resume: bool = True,
    progress: bool = True,
    threads: int | None = None,
) -> StudyResults:
    """Runs what the settings ask for and the folder does not hold yet; `sweep` says the rest."""
    if given.jets is not None and settings.data.paths:
        raise ConfigError("names files, but jets are given too", where="data.paths", hint="give one of them")
    _check_device(settings)
    exists = (out / "provenance.json").exists()
    if exists and not resume:
        hint = "give another folder, or resume=True to go on with it"
        raise StudyError("holds a study already", where=str(out), hint=hint)
    teacher = _external_teacher(settings, given)
    decisive = settings.decisive()
    if teacher is not None:  # then nothing of a teacher's training decides a result
        del decisive["teacher_model"], decisive["recipe"]["teacher_epochs"], decisive["recipe"]["teacher_patience"]
        decisive["teacher"] = teacher_fingerprint(teacher)
    if given.hlt_jets is not None:
        decisive["hlt"] = f"jets {fingerprint(given.hlt_jets)[:16]}"
    if exists:  # before the work of reading the data
        refuse_another(StudyStore.open(out), decisive)
    with SweepProgress(progress) as shown:
        jets = load(given.jets, settings.data)
        decisive["data"]["fingerprint"] = fingerprint(jets)
        if isinstance(teacher, np.ndarray) and len(teacher) != len(jets):
            hint = "give a logit for every jet, in the data's order (after max_jets, where that is set)"
            raise DataError(f"{len(teacher)} logits for {len(jets)} jets", where="teacher", hint=hint)
        prepared = prepare(jets, settings, given.hlt_jets)
        provenance = {"decisive": decisive, "environment": environment(settings.device)}
        store = StudyStore.create_or_open(out, settings.table(), provenance)
        refuse_another(store, decisive)
        warn_of_other_environment(store, settings.device)
        with store.writing():
            for split in ("validation", "test"):
                store.write_shared(split, prepared.shared_arrays(split))
            store.write_shared("test_kinematics", prepared.kinematics("test"))  # apart: older studies lack it
            sizes = ", ".join(f"{len(part):,} {split}" for split, part in prepared.positions.items())
            shown.say(f"{len(jets):,} jets ({sizes}); results go to {out}")
            with stoppable(shown.say) as stop:
                training = StudyTraining(settings, store, prepared, shown, stop, threads)
                targets = training.teacher(teacher)
                for seed in settings.seeds:
                    training.students(seed, targets)
            shown.say("writing the report")
            store.rebuild_summaries()
    return open_study(out)


def _check_device(settings: StudySettings) -> None:
    """Raises BackendError where the training can't run on the device, before any work is done."""
    if training_devices(settings.device) == ["cpu"]:
        return
    for name in ("model", "teacher_model"):
        if (why := cuda_engine.unsupported(model_config(getattr(settings, name)))) is not None:
            raise BackendError(why, where=name, hint="choose other sizes, or device='cpu'")


def _external_teacher(settings: StudySettings, given: Given) -> Tagger | NDArray[np.float32] | None:
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
