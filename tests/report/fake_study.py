"""A study with scores drawn from a formula in place of trained networks: fast, and its right answers are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdfast.distill.schedules import Run, RunConfig
from kdfast.metrics import evaluate
from kdfast.store.documents import LatencyDocument, TimingDocument
from kdfast.store.grid import grid
from kdfast.store.key import RunKey, run_name
from kdfast.store.store import StoredResult, StudyStore

# Sixteen configurations, four of each strategy.
SMALL_GRID = grid(temperature=[3.0, 7.0], alpha=[0.3, 0.9], temperature_final=[1.0], alpha_final=[0.1])
SETTINGS = {"grid": "study", "seeds": [42]}
PROVENANCE = {"versions": {"kdfast": "0.1.0"}, "data": "0123abcd"}


def separation(config: Run) -> float:
    """Mean score of signal over background, in σ: α helps, T helps less."""
    if not isinstance(config, RunConfig):
        return 1.25
    return 1.25 + 0.05 * config.alpha_init + 0.002 * config.temp_init


def make_study(
    path: Path,
    configs: list[RunConfig] | None = None,
    *,
    seeds: tuple[int, ...] = (42,),
    jets: int = 900,
    diverged: tuple[str, ...] = (),
    teacher: bool = True,
    kinematics: bool = True,
    provenance: dict[str, Any] = PROVENANCE,
    gain: float = 0.0,
    teacher_strength: float = 2.0,
    strength: Callable[[Run], float] = separation,
    baseline_seeds: tuple[int, ...] | None = None,
    settings: dict[str, Any] | None = None,
    best_epoch: Callable[[RunConfig | None, int], int] = lambda config, seed: 3,
    latency: bool = False,
) -> StudyStore:
    """Teacher, baseline and students (default: the study's 132) on `jets` validation and as many test jets.

    gain: added to the students' separation. strength: the separation of a configuration or a baseline.
    baseline_seeds: None: the students'. settings: of a new study, over those of the study's grid with these seeds.
    best_epoch: of six, counted from 0. latency: whether the times of teacher and students are stored."""
    store = StudyStore.create_or_open(path, SETTINGS | {"seeds": list(seeds)} | (settings or {}), provenance)
    rng = np.random.default_rng(5)
    splits = {}
    for number, split in enumerate(("validation", "test")):
        labels = np.arange(jets) % 2
        splits[split] = labels
        weights = rng.uniform(0.5, 1.5, jets).astype(np.float32)
        store.write_shared(split, {"labels": labels, "weights": weights, "index": np.arange(jets) + number * jets})
    if kinematics:  # the heavier a background jet, the more it looks like signal
        mass = 80.0 + 40.0 * splits["test"] + 10.0 * rng.normal(size=jets)
        pt = rng.uniform(450.0, 1200.0, jets)
        store.write_shared("test_kinematics", {"pt": pt, "eta": rng.normal(size=jets), "mass": mass})
    configs = grid("study") if configs is None else configs
    noise = {split: rng.normal(size=jets) for split in splits}  # shared, as the runs share their jets

    def write(kind: str, name: str, seed: int, strength: float, config: Run = None) -> None:
        if name in diverged:
            store.write(StoredResult(kind, name, seed, config, "diverged", "the loss is NaN in epoch 2", {"epochs": 2}))
            return
        own = np.random.default_rng([seed, *name.encode()])
        scores, metrics = {}, {}
        for split, labels in splits.items():
            values = noise[split] + 0.2 * own.normal(size=jets) + strength * labels
            scores[f"scores_{split}"] = values.astype(np.float32)
            suffix = "_val" if split == "validation" else ""
            metrics |= evaluate(labels, scores[f"scores_{split}"], store.shared(split)["weights"], suffix=suffix)
        store.write(
            StoredResult(
                kind,
                name,
                seed,
                config,
                metrics={**metrics, "best_epoch": best_epoch(config, seed), "epochs": 6, "seconds": 12.0},
                curves={"loss": [0.7, 0.6], "auc_val": [0.7, metrics["auc_val"]]},
                arrays=scores,
                state={"w": torch.full((3,), float(seed))},
                card={"of": f"{kind} {name} {seed}", "model": size(kind)},
            )
        )

    def size(kind: str) -> dict[str, int]:
        return {"width": 128 if kind == "teacher" else 32}

    def write_latency(key: RunKey, microseconds: float) -> None:
        timing = TimingDocument(engine="onnxruntime", batch=1, p50_us=microseconds, p99_us=2 * microseconds, calls=100)
        store.write_latency(
            key,
            LatencyDocument(
                model=size(key.kind),
                parameters=10 * size(key.kind)["width"],
                flops=(0.0, 100.0, 1.0),
                constituents=30.0,
                timings=(timing,),
                environment={},
                when="2026-01-01",
            ),
        )

    if teacher:
        write("teacher", "teacher", 42, teacher_strength)
    for seed in seeds if baseline_seeds is None else baseline_seeds:
        for base in dict.fromkeys(config.baseline for config in configs):
            write("baseline", run_name(base), seed, strength(base), base)
    for seed in seeds:
        for config in configs:
            write("student", config.name, seed, strength(config) + gain, config)
    if latency:
        write_latency(RunKey.teacher(42), 1800.0)
        write_latency(RunKey("student", configs[0].name, seeds[0]), 200.0)
    return store
