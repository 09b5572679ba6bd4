"""How a study's runs are shared out into packs, and how large a pack should be.

Planning again adds packs for what no pack holds yet.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from kdfast.distill.pack import EpochReport, Member, Pack, View
from kdfast.distill.recipe import Recipe, Settings
from kdfast.distill.schedules import Run, RunConfig, settings_of
from kdfast.distill.trainer import train_pack
from kdfast.models.config import NetworkConfig
from kdfast.store.grid import with_baselines
from kdfast.store.key import RunKey, run_name
from kdfast.store.packs import PlannedPack, missing, place, planned, write_pack
from kdfast.store.settings import StudySettings, check_counts
from kdfast.store.store import StudyStore
from kdfast.study.checkpoints import checkpoint_bytes
from kdfast.study.inputs import Inputs
from kdfast.study.own_models import network_config
from kdfast.study.progress import SweepProgress, duration

__all__ = [
    "Budget",
    "MemberCost",
    "calibrate",
    "members_per_pack",
    "plan",
    "plan_study",
    "shared_groups",
    "study_seconds",
]

# Aim for the time that a pack takes: the unit of sharing and, without checkpoints, what a lost machine costs.
PACK_SECONDS = 600.0
# Limit of all checkpoints of a pack whose members run at once (on GPUs): what a disk can write in the seconds
# that a batch system leaves.
CHECKPOINT_BYTES = 2 << 30
# Packs for each worker, so that the wait for the last one is short.
PACKS_PER_WORKER = 4
# Of an epoch of a calibration, and how many members take part in it at most.
CALIBRATION_STEPS = 2
CALIBRATION_MEMBERS = 8


def plan_study(
    settings: StudySettings,
    runs: Sequence[RunConfig],
    store: StudyStore,
    inputs: Inputs,
    budget: Budget,
    shown: SweepProgress,
) -> tuple[list[PlannedPack], Mapping[Settings, int]]:
    """Plans these runs with all seeds, says so, and returns the packs with just these runs, and how many of
    them a new pack has at most, by the settings that its members share."""
    wanted = [RunKey.of(run, seed) for seed in settings.seeds for run in with_baselines(runs)]
    known = {key for pack in planned(store) for key in pack.keys}
    lock_step = settings.device.startswith("cuda")  # all members of a pack run at once
    threads = budget.threads or torch.get_num_threads()
    groups = shared_groups(runs)
    costs = dict.fromkeys(groups, MemberCost())
    checkpoints = {shared: checkpoint_bytes(settings.student(shared)[0]) for shared in groups}
    sizes = dict.fromkeys(groups, budget.pack_size or 0)
    for shared, group in groups.items() if budget.pack_size is None else ():
        if not lock_step and any(RunKey.of(run, seed) not in known for seed in settings.seeds for run in group):
            costs[shared] = _cost(settings, shared, inputs, threads)
        disk = checkpoints[shared] if lock_step else 0
        workers = budget.workers or 1
        sizes[shared] = members_per_pack(len(group), costs[shared], threads, workers, free_memory(), disk)
    teacher = math.nan
    if any(cost.seconds > 0 for cost in costs.values()):
        teacher = _teacher_seconds(settings, store, inputs, threads)
    packs, new = plan(store, settings.seeds, runs, sizes, threads=threads, costs=costs)
    _say_what_is_stored(store, wanted, shown)
    if new:
        work = sum(len(pack.runs) * costs[pack.shared].seconds for pack in new)
        at_once = [len(pack.runs) if lock_step else min(len(pack.runs), threads) for pack in new]
        disk = max(n * checkpoints[pack.shared] for n, pack in zip(at_once, new, strict=True))
        took = _time_in_words(teacher, work, replace(budget, threads=threads))
        precision = f", in {settings.precision}" if lock_step else ""
        shown.say(
            f"plan: {_packs_in_words(new)}{took}{precision}; checkpoints of up to {math.ceil(disk / 1e6)} MB a worker"
        )
    names = {key.name for key in wanted}
    chosen = (pack.of(names) for pack in packs if pack.seed in settings.seeds)
    return [pack for pack in chosen if pack.runs], sizes


def _packs_in_words(packs: Sequence[PlannedPack]) -> str:
    sizes = [len(pack.runs) for pack in packs]
    return f"{sum(sizes)} runs in " + (f"{len(packs)} packs of up to {max(sizes)}" if len(packs) > 1 else "one pack")


def _time_in_words(teacher: float, work: float, budget: Budget) -> str:
    """work: seconds that the members take on one thread; NaN: unknown, and nothing is shown."""
    threads = budget.threads or 1
    seconds = study_seconds(teacher, work, threads * (budget.workers or 1))
    if not seconds > 0:
        return ""
    each = "one thread" if threads == 1 else f"{threads} threads"
    of_workers = f" of {budget.workers} workers" if budget.workers else ""
    first = f" ({duration(teacher)} of it for the teacher)" if teacher else ""
    return f", up to {duration(seconds)} on {each}{of_workers}{first}"


def _cost(settings: StudySettings, shared: Settings, inputs: Inputs, threads: int) -> MemberCost:
    """Of a member with these shared settings, which has one thread of all."""
    model, recipe = settings.student(shared)
    views = inputs.prepared.hlt
    at_once = min(threads, CALIBRATION_MEMBERS)
    network = network_config(model, inputs.prepared.offline_preparation.standardisation)
    train = views["train"]
    validation = views["validation"]
    return calibrate(network, recipe, train, validation, settings.precision, members=at_once, threads=at_once)


def _teacher_seconds(settings: StudySettings, store: StudyStore, inputs: Inputs, threads: int) -> float:
    """What the teacher takes, which has all threads: 0 where none is to be trained."""
    if inputs.teacher is not None or store.has(RunKey.teacher(settings.data.seed)):
        return 0.0
    prepared = inputs.prepared
    recipe = settings.recipe.teacher()
    network = network_config(settings.teacher_model, prepared.offline_preparation.standardisation)
    train = prepared.some_offline("train", CALIBRATION_STEPS * recipe.batch_size)
    validation = prepared.some_offline("validation", recipe.batch_size)
    jets = (len(prepared.hlt["train"]), len(prepared.hlt["validation"]))
    return calibrate(network, recipe, train, validation, settings.precision, jets=jets, threads=threads).seconds


def _say_what_is_stored(store: StudyStore, wanted: Collection[RunKey], shown: SweepProgress) -> None:
    done = sum(store.has(key) for key in wanted)  # and not damaged
    if done:
        shown.say(f"{done} of {len(wanted)} runs are stored, {len(wanted) - done} to go")
        for stored in store.results():
            if stored.kind == "student" and stored.status == "done":
                shown.best(stored.name, stored.metrics["auc_val"])


def plan(
    store: StudyStore,
    seeds: Iterable[int],
    runs: Sequence[RunConfig],
    members: int | Mapping[Settings, int],
    *,
    threads: int | None = None,
    costs: Mapping[Settings, MemberCost] | None = None,
) -> tuple[list[PlannedPack], list[PlannedPack]]:
    """Writes packs of up to `members` runs for what is neither in a pack nor stored.

    Runs of a pack have their shared settings alike (`shared_groups`). members: of all packs, or by these
    settings. threads: of a worker. costs: of a member by shared settings. Both are stored for scripts that
    submit the packs as jobs.

    Returns all of the study's packs, and the new ones. The caller holds the study (StudyStore.writing).
    """
    packs = planned(store)
    stored = store.keys()
    held = {(pack.seed, member.name) for pack in packs for member in pack.members}
    new: list[PlannedPack] = []
    for seed in seeds:
        numbers = (place(pack)[1] for pack in packs if pack.seed == seed)
        number = max(numbers, default=-1) + 1  # not their count: a damaged one may have been moved aside
        for shared, group in shared_groups(runs).items():
            wanted = PlannedPack("", seed, tuple(r for r in group if (seed, run_name(r)) not in held))
            left = missing(store, wanted, stored).runs
            size = members if isinstance(members, int) else members[shared]
            cost = (costs or {}).get(shared, MemberCost())
            for first in range(0, len(left), size):
                part = left[first : first + size]
                seconds = None
                if threads and cost.seconds > 0:  # not nan
                    seconds = round(cost.seconds * math.ceil(len(part) / threads), 1)
                pack = PlannedPack(f"seed{seed}.{number:03}", seed, part, threads, seconds)
                number += 1
                write_pack(store, pack)
                new.append(pack)
    return sorted([*packs, *new], key=place), new


def shared_groups(runs: Iterable[RunConfig]) -> dict[Settings, list[Run]]:
    """The runs and their baselines by the settings that the members of a pack share, the baselines first."""
    groups: dict[Settings, list[Run]] = {}
    for run in with_baselines(runs):
        groups.setdefault(settings_of(run).shared, []).append(run)
    return groups


@dataclass(frozen=True)
class Budget:
    """What a sweep may use. Raises ConfigError for numbers below 1.

    threads: of the training on the CPU, or of each worker; None: torch's. workers: that packs are planned
    for; None: one. pack_size: runs of a pack; None: see `members_per_pack`.
    """

    threads: int | None = None
    workers: int | None = None
    pack_size: int | None = None

    def __post_init__(self) -> None:
        check_counts(**vars(self))


@dataclass(frozen=True)
class MemberCost:
    """What one member takes on one thread of this machine, while others are on the other threads. seconds: if
    it spares no epoch; nan where not known. memory: bytes while it runs."""

    seconds: float = math.nan
    memory: int = 0


def calibrate(
    model: NetworkConfig,
    recipe: Recipe,
    train: View,
    validation: View,
    precision: str,
    *,
    jets: tuple[int, int] | None = None,
    members: int = 1,
    threads: int = 1,
) -> MemberCost:
    """Measures a member's cost on the CPU, by a few steps of `members` that share the threads: each slows the others.

    jets: for training and validation, where the views hold only some of them.
    """
    epochs = 4
    few = _first(train, min(len(train), CALIBRATION_STEPS * recipe.batch_size))
    some = _first(validation, min(len(validation), recipe.batch_size))
    all_train, all_validation = jets or (len(train), len(validation))
    short = recipe.model_copy(update={"epochs": epochs, "warmup_epochs": 0, "patience": epochs})
    several = tuple(Member(f"calibration {i}") for i in range(members))
    pack = Pack(model, several, 0, short, few, some, some, precision=precision)
    reports: list[EpochReport] = []
    before = _resident()
    most = 0

    def on_epoch(report: EpochReport) -> None:
        nonlocal most
        reports.append(report)
        most = max(most, _resident())

    for _ in train_pack(pack, threads=threads, on_epoch=on_epoch):
        pass
    if len(reports) < epochs * members:  # one diverged
        return MemberCost()
    # The first epoch finds cold caches. A jet's evaluation is a third of its step.
    measured = (report.seconds / (report.jets + len(some) / 3) for report in reports if report.epoch > 0)
    seconds_per_jet = median(measured)
    seconds = recipe.epochs * seconds_per_jet * (all_train + all_validation / 3)
    return MemberCost(seconds, max(0, most - before) // members)


def study_seconds(teacher: float, members: float, threads: int) -> float:
    """How long the training takes at most: the teacher with its threads, then the members, together so long
    on one thread, on all threads (of all workers); nan where it is not known."""
    return teacher + members / threads


def _first(view: View, jets: int) -> View:
    end = int(view.offsets[jets])
    return View(view.features[:end], view.offsets[: jets + 1], view.labels[:jets], view.weights[:jets])


def _resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def free_memory() -> int:
    """Bytes that new work may take on this machine; 0 where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def members_per_pack(
    runs: int, cost: MemberCost, threads: int, workers: int = 1, free: int = 0, checkpoint: int = 0
) -> int:
    """The number of a seed's runs that a pack should have.

    A pack takes about PACK_SECONDS and fills the threads, each worker gets several, and no more runs train at
    once than fit into the free bytes (0: not known). checkpoint: bytes of one member's, where all members of
    a pack run at once: together they stay below CHECKPOINT_BYTES.
    """
    if checkpoint:
        at_once = max(1, CHECKPOINT_BYTES // checkpoint)
        if at_once < runs:
            return min(at_once, members_per_pack(runs, cost, threads, workers, free))
    if free and cost.memory:
        fit = int(0.8 * free / cost.memory)
        if fit < threads:
            return max(1, fit)  # their steps then share the threads
    most = runs
    if cost.seconds > 0:  # not nan
        most = int(min(runs, PACK_SECONDS * threads / cost.seconds))
    if workers > 1:
        most = min(most, math.ceil(runs / (PACKS_PER_WORKER * workers)))
    most = max(most, threads)
    count = math.ceil(runs / most)
    return math.ceil(runs / count / threads) * threads  # nearly equal, and no thread idle
