"""The sweep: one teacher, and for each seed a baseline and the grid's students."""

from __future__ import annotations

import gc
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from kdfast import report
from kdfast.distill import cuda_engine
from kdfast.distill.devices import check_bf16, check_threads, default_precision, training_devices
from kdfast.errors import BackendError, ConfigError, DataError, KdfastWarning, StudyError
from kdfast.interrupt import stoppable
from kdfast.jets.memory_table import is_table
from kdfast.jets.packed import PackedJets
from kdfast.jets.readers import read_jets
from kdfast.models.config import OwnModel, model_config
from kdfast.models.own_model import own_model
from kdfast.models.tagger import Tagger
from kdfast.store.claims import Claims
from kdfast.store.identity import environment, planned_environment, refuse_another, warn_of_other_environment
from kdfast.store.keywords import SweepSettings, by_keyword, nested, with_settings
from kdfast.store.settings import GIVEN, HLTFiles, StudySettings
from kdfast.store.store import StudyStore
from kdfast.study import dask_engine
from kdfast.study.inputs import Given, Inputs, absolute_paths, describe_anew, is_jets, joined_hlt, write_inputs
from kdfast.study.own_models import check_training_jets
from kdfast.study.plan import Budget, plan_study, shared_groups
from kdfast.study.prepare import reading
from kdfast.study.progress import SweepProgress
from kdfast.study.results import StudyResults, open_study
from kdfast.study.search import check_search, refuse_other_search, runs_to_train
from kdfast.study.sets import SET_PATHS, SETS
from kdfast.study.training import StudyTraining
from kdfast.study.worker import PackRunner
from kdfast.validation import SettingError

if sys.version_info >= (3, 11):
    from typing import Unpack
else:
    from typing_extensions import Unpack

if TYPE_CHECKING:
    from distributed import Client

    from kdfast.distill.pack import EpochReport

__all__ = ["run_study", "sweep"]

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


def sweep(
    data: Paths | PackedJets | Mapping[str, Any] | Any = None,
    out: str | PathLike[str] = "study",
    *,
    config: str | PathLike[str] | Mapping[str, Any] | None = None,
    resume: bool = True,
    progress: bool = True,
    on_epoch: Callable[[EpochReport], object] | None = None,
    threads: int | None = None,
    plan_only: bool = False,
    pack_size: int | None = None,
    workers: int | None = None,
    client: Client | None = None,
    **settings: Unpack[SweepSettings],
) -> StudyResults:
    """Train a teacher, a baseline and a grid of distilled students.

    Each result is stored in the folder `out` as soon as it is finished. A call that finds the same study
    there trains only what is missing: an interrupted sweep resumes, and other seeds and grids add runs. A
    study with other settings is refused.

    Every setting of a study is a keyword. The parameters below are the main ones; ``python -m
    kdfast.store.keywords`` prints a table of all. A setting that is neither a keyword nor in `config` has the
    reproduced study's value if data are given, otherwise the demo's; so has one that is None.

    Parameters
    ----------
    data
        Files for `load_jets`, or patterns of them; jets; or a table of jets in memory, as `load_jets` takes it.
        None: the bundled sample.
    out
        Folder of the study.
    grid
        ``"study"``, ``"wide"``, what `kdfast.grid` returns or a mapping of its arguments, or names of runs.
    search
        ``"race"``: train only the configurations of the grid that may be the best, in rounds. Or a mapping of the
        settings in [search]. None: train the whole grid.
    model, teacher_model
        Sizes of students and baseline, and of the teacher: a preset, ModelConfig, DeepSetsConfig or mapping of
        numbers. Or a network of your own: a function that makes it, an ``nn.Module`` or a `kdfast.models.Adapter`, or
        the function's name ``"package.module:function"``.
    validation_data, test_data
        Jets of their own for validation and testing, as `data`. None: a share of `data`, by `fractions`.
    split
        A column of the files of `data` that splits them, e.g. ``{"column": "fold", "validation": [3], "test": [4]}``.
    hlt
        HLT emulation: a preset, an HLTConfig or a mapping of numbers. Or the same jets, in the same order, as
        a real trigger saw them: as jets, or as ``{"paths": files}``. With `validation_data` or `test_data`: a list of
        the jets of each set, or also ``"validation_paths"`` and ``"test_paths"``.
    teacher
        A trained teacher (a file or Tagger), or its logits (an array or .npy file) for all jets, in their
        order after `max_jets`, those of `data` first; with logits there is no attention-transfer term. A trained
        ``nn.Module`` of your own stands for its logits; it is called with the features of `kdfast.features`. A
        function that makes a network: train that. None: train a teacher.
    teacher_kind
        ``"logit"``, or ``"probability"`` where `teacher` is an array or .npy file of probabilities of signal.
    epochs, batch_size, learning_rate, warmup_epochs, …
        The recipe of students and baseline; `teacher_epochs` and `teacher_patience` are the teacher's.
    seeds
        Seeds of initial weights, batches and dropout. Each has its baseline and grid; all share the teacher.
    max_jets, max_constituents
        Number of jets of `data` to read, and of constituents to keep of each jet (``"all"``: all).
    precision
        ``"fp32"`` or ``"bf16"``, of the matrix products. Not given: that of the study that resumes; for a new one
        ``"bf16"`` on GPUs of compute capability 8.0 and later, ``"fp32"`` elsewhere.
    device
        ``"cpu"`` or ``"auto"``: the CPU. ``"cuda"``: all GPUs that torch sees share the members of each seed;
        ``"cuda:1"``: that GPU.
    checkpoint_every
        Seconds between checkpoints of a running member.
    config
        A TOML file of settings, or a mapping like it. Keywords take precedence over it.
    resume
        False: raise StudyError if `out` already holds a study.
    progress
        Show progress on stderr.
    on_epoch
        A function that is called after each epoch of each run with an `EpochReport` (member, seed, epoch, loss,
        auc_val, …): from the threads that train, one call at a time. Where it raises, running members save
        checkpoints, and the sweep ends with CallbackError.
    threads
        Threads of the training on the CPU, at most as many as the CPUs that this process may use. None:
        ``torch.get_num_threads()``. With `plan_only`: of each worker.
    plan_only
        Train nothing, but write the packs of runs that workers (``kdfast worker``) then share.
    pack_size
        Runs in a pack. None: chosen from memory, threads, workers and the measured time of a few steps.
    workers
        Number of workers to plan for. With `client`: of tasks at a time (None: what its workers take now).
    client
        A distributed.Client. The workers of its cluster train, one pack for each thread or GPU.

    Returns
    -------
    StudyResults
        The study in `out`, as `open_study` returns it.

    Raises
    ------
    ConfigError
        For a setting that can't be used, by its keyword. For an unknown keyword it is a TypeError too.
    DataError, ModelError
        For jets, logits or a model file that can't be used.
    StudyError
        For a folder that holds another study, is damaged or can't be written.
    BackendError
        If the device can't be used.
    CallbackError
        If `on_epoch` raises. The same call resumes.
    ClusterError
        If the cluster is lost.
    SweepInterrupted
        On SIGINT, SIGTERM or SIGUSR1 (it is a KeyboardInterrupt). Finished members are stored, running ones
        have checkpoints, and the same call resumes.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", arXiv:1503.02531.

    Examples
    --------
    >>> kdfast.sweep(out="demo")  # doctest: +SKIP
    >>> kdfast.sweep("train_*.h5", "mine", seeds=[1, 2], learning_rate=1e-3, warmup_epochs=1)  # doctest: +SKIP
    """
    teacher = settings.get("teacher")
    teacher_file = fspath(teacher) if isinstance(teacher, (str, PathLike)) else None
    arguments = {"data": data, **{name: settings.get(name) for name in SETS[1:]}}
    in_memory = {name: value for name, value in arguments.items() if isinstance(value, PackedJets) or is_table(value)}
    hlt = settings.get("hlt")
    overrides = nested(settings, known=inspect.signature(sweep).parameters)
    for name, value in arguments.items():
        overrides["data"][SET_PATHS[name]] = GIVEN if name in in_memory else _paths(value, name)
    if "data" in in_memory:
        overrides["data"]["paths"] = None
    overrides["hlt"] = GIVEN if is_jets(hlt) else hlt
    overrides["teacher"] = teacher_file
    for name in ("model", "teacher_model"):
        if _is_factory(overrides.get(name)):
            overrides[name] = own_model(overrides[name], name)
    if callable(teacher) and _is_factory(teacher):  # of a teacher to be trained
        overrides["teacher_model"] = own_model(teacher, "teacher")
        overrides["teacher"] = teacher = None
    try:
        resolved = StudySettings.resolve(config, overrides, data_given="data" in in_memory)
    except SettingError as error:
        raise by_keyword(error) from None
    jets: dict[str, PackedJets] = {}
    for name, value in in_memory.items():
        how = replace(reading(resolved.data, name), split=None)
        jets[name] = value if isinstance(value, PackedJets) else read_jets(value, how)[0]
    return run_study(
        resolved,
        Path(out),
        Given(
            jets.get("data"),
            joined_hlt(hlt, resolved.data) if is_jets(hlt) else None,
            None if overrides["teacher"] else teacher,
            jets.get("validation_data"),
            jets.get("test_data"),
        ),
        Budget(threads, workers, pack_size),
        SweepProgress(progress, on_epoch=on_epoch),
        resume=resume,
        plan_only=plan_only,
        client=client,
    )


# What editors and help() show: each setting by name, with its default.
sweep.__signature__ = with_settings(inspect.signature(sweep))  # type: ignore[attr-defined]


def _is_factory(value: Any) -> bool:
    """Whether it is a function that makes networks, or names one."""
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", value) is not None
    return callable(value) and not isinstance(value, (nn.Module, Tagger, Mapping))


def _paths(data: Any, where: str) -> list[str] | None:
    if data is None:
        return None
    from kdfast.jets.sources import as_paths

    paths = as_paths(data, where=where, accepted="paths, PackedJets, a table or None")
    if not paths:
        instead = "the bundled sample" if where == "data" else "a share of data"
        raise DataError("names no file", where=where, hint=f"None takes {instead}")
    return paths


def run_study(
    settings: StudySettings,
    out: Path,
    given: Given,
    budget: Budget,
    shown: SweepProgress,
    *,
    resume: bool = True,
    plan_only: bool = False,
    client: Client | None = None,
) -> StudyResults:
    """Runs what the settings ask for and the folder does not hold yet; see `sweep`."""
    _check_given(settings, given)
    _warn_of_shortened_warmup(settings, trains_teacher=given.teacher is None and settings.teacher is None)
    if shown.on_epoch is not None and (client is not None or plan_only):
        raise ConfigError("is called where the training runs, and other processes train", where="on_epoch")
    if client is not None:
        budget = dask_engine.budget(client, settings.device, budget)
    elif not plan_only:
        check_threads(budget.threads)
        _check_device(settings)
    check_search(settings)
    settings = absolute_paths(settings)
    elsewhere = plan_only or client is not None  # other processes train
    exists = (out / "provenance.json").exists()
    if exists and not resume:
        hint = "give another folder, or leave out --no-resume (in Python, resume=False) to resume it"
        raise StudyError("holds a study already", where=str(out), hint=hint)
    with shown, stoppable(shown.say, out) as stop:
        stored = StudyStore.open(out) if exists else None
        settings = _with_precision(settings, stored, elsewhere, shown)
        inputs = Inputs.load(settings, given, stored)
        if isinstance(inputs.teacher, Tagger):
            check_training_jets(inputs.teacher, inputs.prepared)
        provenance = {
            "decisive": inputs.decisive,
            "environment": planned_environment(settings.device) if elsewhere else environment(settings.device),
            "given": given.names(),
        }
        store = StudyStore.create_or_open(out, settings.table(), provenance)
        refuse_another(store, inputs.decisive)  # made by another process meanwhile
        refuse_other_search(store, settings)
        if not elsewhere:  # else the workers warn
            warn_of_other_environment(store, settings.device)
        with store.writing():
            _describe(settings, store, inputs, shown, elsewhere)
            if plan_only:
                seeds, runs = runs_to_train(store, settings, shown.say)
                plan_study(settings.model_copy(update={"seeds": tuple(seeds)}), runs, store, inputs, budget, shown)
            else:
                training = StudyTraining(settings, store, inputs.prepared, shown, stop, budget.threads)
                _train(training, inputs, budget, client)
                del inputs, training  # the jets' memory: the report reads what is stored
                gc.collect()  # views and what makes them refer to each other
                shown.say("writing the report")
                report.write(store)
    return open_study(out)


def _train(training: StudyTraining, inputs: Inputs, budget: Budget, client: Client | None) -> None:
    """Plans and trains what is missing, of a search round after round. Raises the first error of a pack."""
    settings, store, shown = training.settings, training.store, training.shown
    runner = PackRunner(training, inputs.teacher, Claims(store.path / "claims"))
    said: list[str] = []

    def say(text: str) -> None:
        if text not in said:  # of a race that was over before
            shown.say(text)
        said.append(text)

    trained: set[tuple[int, str]] = set()
    seeds, runs = runs_to_train(store, settings, say)
    while new := {(seed, run.name) for seed in seeds for run in runs} - trained:
        asked = settings.model_copy(update={"seeds": tuple(seeds)})
        packs, sizes = plan_study(asked, runs, store, inputs, budget, shown)
        if client is not None:
            failed = dask_engine.run_packs(client, training, packs, sizes)
        else:
            failed = runner.sweep(packs).failed
        for error in failed.values():
            raise error
        trained |= new
        seeds, runs = runs_to_train(store, settings, say)


def _check_given(settings: StudySettings, given: Given) -> None:
    """Raises ConfigError where settings and what is given in Python contradict each other."""
    data = settings.data
    if given.jets is not None and data.paths:
        raise ConfigError("names files, but jets are given too", where="data.paths", hint="give one of them")
    if given.hlt_jets is None and settings.hlt == GIVEN:
        hint = "give kdfast.sweep the same hlt=… again, or name a preset or files of HLT jets"
        raise ConfigError(f"{GIVEN!r} needs the HLT jets that were given in Python", where="hlt", hint=hint)
    for name in SETS[1:]:
        key = SET_PATHS[name]
        paths = getattr(data, key)
        if paths == GIVEN and name not in given.sets():
            hint = f"give kdfast.sweep the same {name}=… again, or name files"
            raise ConfigError(f"{GIVEN!r} needs the jets that were given in Python", where=name, hint=hint)
        if paths and given.jets is None and not data.paths:
            what = "needs data to train on, and there is only the bundled sample"
            raise ConfigError(what, where=name, hint="give the files of the training jets as well")
        if isinstance(settings.hlt, HLTFiles) and bool(paths) != bool(getattr(settings.hlt, key)):
            what = f"HLT jets in files, and {name}: one is given without the other"
            raise ConfigError(what, where=f"hlt.{key}", hint="give HLT jets of each set of jets")
    if data.split is not None and not data.paths:
        what = "names a column of files, and there are none"
        hint = "name the files; jets in Python are split by validation_data and test_data"
        raise ConfigError(what, where="split", hint=hint)


def _warn_of_shortened_warmup(settings: StudySettings, trains_teacher: bool) -> None:
    recipe = settings.recipe
    trained = {"students": recipe.student()}
    if trains_teacher:
        trained["teacher"] = recipe.teacher()
    shortened = [
        f"to {each.epochs} for the {who}" for who, each in trained.items() if each.warmup_epochs < recipe.warmup_epochs
    ]
    if shortened:
        what = f"warmup_epochs is {recipe.warmup_epochs}, longer than the training: shortened {', '.join(shortened)}"
        warnings.warn(what, KdfastWarning, stacklevel=4)


def _describe(
    settings: StudySettings, store: StudyStore, inputs: Inputs, shown: SweepProgress, elsewhere: bool
) -> None:
    """Stores what all results share, and what other processes need to open the study."""
    prepared = inputs.prepared
    for split in ("validation", "test"):
        store.write_shared(split, prepared.shared_arrays(split))
    store.write_shared("test_kinematics", prepared.kinematics("test"))  # apart: missing in older studies
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in prepared.positions.items())
    shown.say(f"{len(prepared.jets):,} jets ({sizes}); results go to {store.path}")
    if elsewhere:
        write_inputs(store, inputs)  # before the packs: workers may be waiting for them
    for change in describe_anew(store, settings, inputs.given, held=elsewhere):
        shown.say(f"{store.path / 'study.toml'}: {change}")


def _with_precision(
    settings: StudySettings, stored: StudyStore | None, elsewhere: bool, shown: SweepProgress
) -> StudySettings:
    """The settings with the precision that is trained in: what is given, else an existing study's own, else
    bf16 on GPUs that have it. Own networks, which may not take bf16, and GPUs of other processes are fp32 by
    default."""
    precision = settings.precision
    if "precision" not in settings.model_fields_set:
        own = any(isinstance(model_config(model), OwnModel) for model in (settings.model, settings.teacher_model))
        if stored is not None:
            precision = stored.settings.get("precision", precision)
        elif not own and not elsewhere:
            precision = default_precision(training_devices(settings.device))
        elif settings.device.startswith("cuda") and not own:
            shown.say("in fp32, since the GPUs are other processes'; precision bf16 is faster if they have it")
    if precision == "bf16" and not elsewhere:
        check_bf16(training_devices(settings.device))
    return settings.model_copy(update={"precision": precision})


def _check_device(settings: StudySettings) -> None:
    """Raises BackendError where the training can't run on the device, before any work is done."""
    if training_devices(settings.device) == ["cpu"]:
        return
    groups = shared_groups(settings.runs())
    models = [("grid.model" if "model" in shared else "model", settings.student(shared)[0]) for shared in groups]
    for name, model in (*models, ("teacher_model", model_config(settings.teacher_model))):
        why = None if isinstance(model, OwnModel) else cuda_engine.unsupported(model)
        if why is not None:
            raise BackendError(why, where=name, hint="choose other sizes, or {device}", settings={"device": "cpu"})
