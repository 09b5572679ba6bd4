"""The packs of a study as they are stored: each the members of one seed that one process trains together.

A pack is a committed folder packs/ID/ with the runs that it holds. It is what a worker claims, a task of a
cluster's scheduler, an index of a job array. `kdfast.study.plan` decides what goes into one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from kdfast.distill.pack import Member
from kdfast.distill.recipe import Settings
from kdfast.distill.schedules import Run, RunConfig, run_table, settings_of
from kdfast.errors import ConfigError, Fault, StudyError, suggest
from kdfast.store.claims import Claims, Holder
from kdfast.store.documents import PackDocument, json_bytes
from kdfast.store.folders import commit, committed, damage, read_document
from kdfast.store.grid import with_baselines
from kdfast.store.key import RunKey, run_name
from kdfast.store.settings import StudySettings
from kdfast.store.store import StudyStore

__all__ = [
    "TEACHER",
    "PlannedPack",
    "asked_keys",
    "asked_runs",
    "at_work",
    "find",
    "missing",
    "no_packs",
    "parts",
    "place",
    "planned",
    "read_pack",
    "write_pack",
]

# The pack that every other one needs: of the teacher alone. No folder holds it.
TEACHER = "teacher"


@dataclass(frozen=True)
class PlannedPack:
    """Some runs of one seed, with the same shared settings (Settings.shared).

    id: e.g. "seed42.003". threads: of the worker that it was
    planned for. seconds: that such a worker takes for it, by a calibration.
    """

    id: str
    seed: int
    runs: tuple[Run, ...]
    threads: int | None = None
    seconds: float | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """The runs as the trainer takes them."""
        return tuple(Member(run_name(run), run) for run in self.runs)

    @property
    def shared(self) -> Settings:
        """The further settings that its runs share."""
        return settings_of(self.runs[0]).shared

    @cached_property
    def keys(self) -> list[RunKey]:
        """Of the results that the runs give."""
        return [RunKey.of(run, self.seed) for run in self.runs]

    def of(self, names: Container[str]) -> PlannedPack:
        """The pack with only those of its runs that have one of these names."""
        return replace(self, runs=tuple(run for run in self.runs if run_name(run) in names))


def asked_runs(settings: StudySettings, packs: Iterable[PlannedPack], stored: Iterable[RunKey]) -> list[RunConfig]:
    """The grid's configurations that a study is to train: all, or those that its search has chosen so far,
    which are in packs or stored."""
    runs = settings.runs()
    if settings.search is None:
        return runs
    chosen = {member.name for pack in packs if pack.seed in settings.seeds for member in pack.members}
    chosen |= {key.name for key in stored if key.kind == "student" and key.seed in settings.seeds}
    return [run for run in runs if run.name in chosen]


def asked_keys(settings: StudySettings, packs: Iterable[PlannedPack], stored: Iterable[RunKey]) -> list[RunKey]:
    """Of the teacher, made with the seed of its data, and for each seed of the baselines and `asked_runs`."""
    runs = with_baselines(asked_runs(settings, packs, stored))
    of_seeds = (RunKey.of(run, seed) for seed in settings.seeds for run in runs)
    return [RunKey.teacher(settings.data.seed), *of_seeds]


def parts(pack: PlannedPack, runs: int) -> list[PlannedPack]:
    """The pack in parts of at most `runs` runs, with ids like "seed42.003.01"."""
    count = math.ceil(len(pack.runs) / runs)
    return [replace(pack, id=f"{pack.id}.{part:02}", runs=pack.runs[part::count]) for part in range(count)]


def missing(store: StudyStore, pack: PlannedPack, stored: Collection[RunKey] | None = None) -> PlannedPack:
    """The pack with only those of its runs that are not stored. stored: the store's keys, if known."""

    def is_stored(key: RunKey) -> bool:
        return _is_stored(store.path, key) if stored is None else key in stored

    left = (run for run, key in zip(pack.runs, pack.keys, strict=True) if not is_stored(key))
    return replace(pack, runs=tuple(left))


def _is_stored(study: Path, key: RunKey) -> bool:
    return os.path.lexists(study / "results" / key.folder)


def planned(store: StudyStore) -> list[PlannedPack]:
    """The study's packs, by seed and number. Raises StudyError for a damaged one."""
    return sorted(map(read_pack, committed(store.path / "packs")), key=place)


def read_pack(folder: Path) -> PlannedPack:
    """The pack in a folder. Raises DamagedError where it is not as it was written."""
    document = read_document(folder, "pack.json", PackDocument)
    if re.fullmatch(rf"seed{document.seed}\.\d+", folder.name, re.ASCII) is None:
        raise damage(folder, Fault.CONTENT, "pack.json", f"it holds a pack of seed {document.seed}")
    return PlannedPack(folder.name, **dict(document))


def at_work(path: Path) -> list[Holder]:
    """Who holds claims of what is not done. (A lost machine leaves claims of what is done.)"""
    if (path / "claims").is_symlink():
        return []  # a finding
    return [h for h in Claims(path / "claims").holders() if h.alive and not _is_done(path, h.name)]


def _is_done(path: Path, name: str) -> bool:
    """Whether all results of a pack, or of the one that it is a part of, are there."""
    if name == TEACHER:
        keys = (RunKey.parse(folder.name) for folder in committed(path / "results"))
        return any(key is not None and key.kind == TEACHER for key in keys)
    for pack in filter(None, (name, name.rpartition(".")[0])):
        folder = path / "packs" / pack
        if folder.is_dir():
            try:
                return all(_is_stored(path, key) for key in read_pack(folder).keys)
            except StudyError:  # a finding
                return False
    return False


def write_pack(store: StudyStore, pack: PlannedPack) -> None:
    """Stores a new pack."""
    content = {
        "seed": pack.seed,
        "runs": [run_table(run) for run in pack.runs],
        "threads": pack.threads,
        "seconds": pack.seconds,
    }
    commit(store.path / "packs" / pack.id, {"pack.json": json_bytes(content)})


def place(pack: PlannedPack) -> tuple[int, int]:
    """Seed and number of a pack."""
    return pack.seed, int(pack.id.rpartition(".")[2])


def find(packs: Sequence[PlannedPack], name: str) -> PlannedPack:
    """The pack with this id. Raises ConfigError that suggests the nearest one."""
    for pack in packs:
        if pack.id == name:
            return pack
    hint = suggest(name, [TEACHER, *(pack.id for pack in packs)][:20])
    raise ConfigError(f"there is no pack {name!r}", where="pack", hint=hint)


def no_packs(store: StudyStore, purpose: str) -> StudyError:
    """Says that a study has none for this purpose, and what to do."""
    if "imported" in store.provenance:
        what = "was imported: it has"
        hint = "run a sweep of these configurations with `kdfast sweep`"
    else:
        what = "has"
        hint = "`kdfast sweep --plan-only` makes them"
    return StudyError(f"{what} no packs {purpose}", where=str(store.path), hint=hint)
