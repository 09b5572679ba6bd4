"""The plan of a study: packs, each the members of one seed that one process trains together.

A pack is a committed folder packs/ID/ with the runs that it holds. It is what a worker claims, a task of a cluster's
scheduler, an index of a job array. Planning again adds packs for what no pack holds yet.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from kdfast.distill.schedules import RunConfig
from kdfast.distill.trainer import EpochReport, Member, Pack, Recipe, View, train_pack
from kdfast.errors import ConfigError, StudyError, suggest
from kdfast.models.config import ModelConfig
from kdfast.study.claims import Claims, Holder
from kdfast.study.folders import commit, damage, folders, json_bytes, parse_json, read_checked
from kdfast.study.store import StoredResult, StudyStore

__all__ = [
    "TEACHER",
    "MemberCost",
    "PlannedPack",
    "at_work",
    "calibrate",
    "find",
    "free_memory",
    "kind_of",
    "members_per_pack",
    "missing",
    "no_packs",
    "parts",
    "plan",
    "planned",
    "read_pack",
]

# The pack that every other one needs: of the teacher alone. No folder holds it.
TEACHER = "teacher"

# A pack is to take about so long: it is what is shared out and, without a checkpoint, lost with a machine.
PACK_SECONDS = 600.0
# Where all members of a pack run at once (on GPUs), their checkpoints together: what a disk takes in the seconds that a
# batch system leaves.
CHECKPOINT_BYTES = 2 << 30
# So many packs for each worker, so that the last one to finish is not waited for long.
PACKS_PER_WORKER = 4


@dataclass(frozen=True)
class PlannedPack:
    """Some runs of one seed. id: e.g. "seed42.003". runs: None stands for the baseline.

    threads: of a worker that it was planned for. seconds: that one takes for it, by a calibration. None: not known.
    """

    id: str
    seed: int
    runs: tuple[RunConfig | None, ...]
    threads: int | None = None
    seconds: float | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """The runs as the trainer takes them."""
        return tuple(Member(_name(run), run) for run in self.runs)

    @cached_property
    def keys(self) -> list[str]:
        """Of the results that the runs give."""
        return [StoredResult(kind_of(run), _name(run), self.seed).key for run in self.runs]

    def of(self, names: Container[str]) -> PlannedPack:
        """The pack with only those of its runs that have one of these names."""
        return replace(self, runs=tuple(run for run in self.runs if _name(run) in names))


def parts(pack: PlannedPack, runs: int) -> list[PlannedPack]:
    """The pack in parts of so many runs at most, with ids like "seed42.003.01"."""
    count = math.ceil(len(pack.runs) / runs)
    return [replace(pack, id=f"{pack.id}.{part:02}", runs=pack.runs[part::count]) for part in range(count)]


def kind_of(run: RunConfig | None) -> str:
    """The kind of result that a run gives."""
    return "baseline" if run is None else "student"


def missing(store: StudyStore, pack: PlannedPack, stored: Collection[str] | None = None) -> PlannedPack:
    """The pack with only those of its runs that are not stored. stored: the store's keys, where many packs are asked
    for."""
    runs = zip(pack.runs, pack.keys, strict=True)
    left = (run for run, key in runs if not (store.is_stored(key) if stored is None else key in stored))
    return replace(pack, runs=tuple(left))


def planned(store: StudyStore) -> list[PlannedPack]:
    """The study's packs, by seed and number. Raises StudyError for a damaged one."""
    return sorted(map(read_pack, folders(store.path / "packs")), key=_place)


def read_pack(folder: Path) -> PlannedPack:
    """The pack in a folder. Raises StudyError where it is damaged."""
    content = read_checked(folder, "pack.json")
    try:
        document = parse_json(content)
        runs = tuple(None if run is None else RunConfig(**run) for run in document["runs"])
        pack = PlannedPack(folder.name, int(document["seed"]), runs, document.get("threads"), document.get("seconds"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damage(folder, f"pack.json has unexpected content ({error})") from error
    if re.fullmatch(rf"seed{pack.seed}\.\d+", folder.name) is None:
        raise damage(folder, f"it holds a pack of seed {pack.seed}")
    return pack


def at_work(path: Path) -> list[Holder]:
    """Who holds what is not done in a study's folder; a claim of what is done, of a machine that was lost then, stays
    for ever."""
    if (path / "claims").is_symlink():
        return []  # a finding
    return [h for h in Claims(path / "claims").holders() if h.alive and not _is_done(path, h.name)]


def _is_done(path: Path, name: str) -> bool:
    """Whether all results of a pack, or of the one that it is a part of, are there."""
    if name == TEACHER:
        return any((path / "results").glob("teacher.*"))
    for pack in (name, name.rpartition(".")[0]):
        if pack and (path / "packs" / pack).is_dir():
            try:
                return all(os.path.lexists(path / "results" / key) for key in read_pack(path / "packs" / pack).keys)
            except StudyError:  # a finding
                return False
    return False


def plan(
    store: StudyStore,
    seeds: Iterable[int],
    runs: Sequence[RunConfig],
    members: int,
    *,
    threads: int | None = None,
    cost: MemberCost | None = None,
) -> tuple[list[PlannedPack], list[PlannedPack]]:
    """Writes packs of up to so many members for what no pack holds and no result is there of.

    threads: that a worker is to have. cost: of a member; both are noted for whoever submits the packs as jobs.

    Returns (all of the study's packs, those of them that are new). The caller holds the study (StudyStore.writing).
    """
    packs, stored = planned(store), store.keys()
    held = {(pack.seed, member.name) for pack in packs for member in pack.members}
    new: list[PlannedPack] = []
    for seed in seeds:
        numbers = (_place(pack)[1] for pack in packs if pack.seed == seed)
        number = max(numbers, default=-1) + 1  # not their count: a damaged one may have been moved aside
        wanted = PlannedPack("", seed, tuple(r for r in (None, *runs) if (seed, _name(r)) not in held))
        left = missing(store, wanted, stored).runs
        for first in range(0, len(left), members):
            part = left[first : first + members]
            seconds = None
            if threads and cost and cost.seconds > 0:  # not nan
                seconds = round(cost.seconds * math.ceil(len(part) / threads), 1)
            pack = PlannedPack(f"seed{seed}.{number:03}", seed, part, threads, seconds)
            number += 1
            content = {
                "seed": seed,
                "runs": [None if run is None else asdict(run) for run in part],
                "threads": threads,
                "seconds": seconds,
            }
            commit(store.path / "packs" / pack.id, {"pack.json": json_bytes(content)})
            new.append(pack)
    return sorted([*packs, *new], key=_place), new


def _place(pack: PlannedPack) -> tuple[int, int]:
    """Seed and number of a pack."""
    return pack.seed, int(pack.id.rpartition(".")[2])


def _name(run: RunConfig | None) -> str:
    return "baseline" if run is None else run.name


def find(packs: Sequence[PlannedPack], name: str) -> PlannedPack:
    """The pack with this id. Raises ConfigError that names the nearest one."""
    for pack in packs:
        if pack.id == name:
            return pack
    hint = suggest(name, [TEACHER, *(pack.id for pack in packs)][:20])
    raise ConfigError(f"there is no pack {name!r}", where="pack", hint=hint)


def no_packs(store: StudyStore, purpose: str) -> StudyError:
    """Says that a study has none for this purpose, and what to do."""
    if "imported" in store.provenance:
        what, hint = "was imported: it has", "run a sweep of these configurations with `kdfast sweep`"
    else:
        what, hint = "has", "`kdfast sweep --plan-only` makes them"
    return StudyError(f"{what} no packs {purpose}", where=str(store.path), hint=hint)


# ---- how large a pack should be


@dataclass(frozen=True)
class MemberCost:
    """What one member takes on one thread of this machine. seconds: if it spares no epoch; nan where not known.
    memory: bytes while it runs."""

    seconds: float = math.nan
    memory: int = 0


def calibrate(model: ModelConfig, recipe: Recipe, train: View, validation: View, precision: str) -> MemberCost:
    """Measures a member's cost on the CPU, by a few steps of one."""
    steps, epochs = 2, 4
    few = _first(train, min(len(train), steps * recipe.batch_size))
    some = _first(validation, min(len(validation), recipe.batch_size))
    short = recipe.model_copy(update={"epochs": epochs, "warmup_epochs": 0, "patience": epochs})
    pack = Pack(model, (Member("calibration"),), 0, short, few, some, some, precision=precision)
    reports: list[EpochReport] = []
    before, most = _resident(), 0

    def on_epoch(report: EpochReport) -> None:
        nonlocal most
        reports.append(report)
        most = max(most, _resident())

    for _ in train_pack(pack, threads=1, on_epoch=on_epoch):
        pass
    if len(reports) < epochs:  # it diverged
        return MemberCost()
    # The quickest: the first finds cold caches, and others may share the machine. A jet's evaluation is a third of its
    # step.
    seconds_per_jet = min(report.seconds / (report.jets + len(some) / 3) for report in reports)
    return MemberCost(recipe.epochs * seconds_per_jet * (len(train) + len(validation) / 3), max(0, most - before))


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
    """How many of a seed's runs a pack should have.

    So many that it takes about PACK_SECONDS and fills the threads, that each of the workers gets several, and no more
    at once than fit into the free bytes (0: not known). checkpoint: bytes of a member's, where all members of a pack
    run at once: together they stay below CHECKPOINT_BYTES.
    """
    if checkpoint:
        at_once = max(1, CHECKPOINT_BYTES // checkpoint)
        if at_once < runs:
            return min(at_once, members_per_pack(runs, cost, threads, workers, free))
    if free and cost.memory and (fit := int(0.8 * free / cost.memory)) < threads:
        return max(1, fit)  # their steps then share the threads
    most = runs
    if cost.seconds > 0:  # not nan
        most = int(min(runs, PACK_SECONDS * threads / cost.seconds))
    if workers > 1:
        most = min(most, math.ceil(runs / (PACKS_PER_WORKER * workers)))
    most = max(most, threads)
    count = math.ceil(runs / most)
    return math.ceil(runs / count / threads) * threads  # nearly equal, and no thread idle
