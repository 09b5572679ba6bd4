"""Training a study's teacher, baselines and students, and storing each result as soon as it is there."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdfast.distill import cuda_engine
from kdfast.distill.devices import training_devices
from kdfast.distill.pack import EpochReport, Member, MemberResult, Pack, Targets, View
from kdfast.distill.recipe import Recipe
from kdfast.distill.schedules import Run
from kdfast.distill.targets import predict_logits, teacher_targets
from kdfast.distill.trainer import train_pack
from kdfast.errors import CallbackError, StudyError
from kdfast.files import writing_errors
from kdfast.interrupt import Stop
from kdfast.jets.fingerprint import sampled
from kdfast.metrics import evaluate
from kdfast.models.build import build_network
from kdfast.models.config import NetworkConfig
from kdfast.models.network import Network
from kdfast.models.tagger import Tagger, tagger_card
from kdfast.store.folders import AlreadyStored
from kdfast.store.identity import training_environment
from kdfast.store.key import RunKey
from kdfast.store.packs import PlannedPack
from kdfast.store.settings import StudySettings
from kdfast.store.store import StoredResult, StudyStore
from kdfast.study.checkpoints import StudyCheckpoints
from kdfast.study.own_models import network_config
from kdfast.study.prepare import SPLITS, PreparedData
from kdfast.study.progress import SweepProgress

__all__ = ["StudyTraining"]


@dataclass(frozen=True)
class StudyTraining:
    """What the steps of one run of a study share."""

    settings: StudySettings
    store: StudyStore
    prepared: PreparedData
    shown: SweepProgress
    stop: Stop
    threads: int | None = None

    def teacher(self, external: Tagger | NDArray[np.float32] | None) -> Targets:
        """Stores the teacher as a result, if it is not there yet, and gives its targets on the training jets.

        external: a trained teacher, logits [N] of all jets (targets without attention), or None: train one.
        """
        key = RunKey.teacher(self.settings.data.seed)  # one per study, whatever the members' seeds
        known = self.store.has(key)
        if isinstance(external, np.ndarray):
            logits = {split: torch.from_numpy(external[part]) for split, part in self.prepared.positions.items()}
            if not known:
                metrics, arrays = self._scored(logits)
                self._store(StoredResult(*key, metrics=metrics, arrays=arrays))
            return Targets(logits["train"][:, None])
        if external is not None:
            model = external.model
            views = self.prepared.seen_by(external)
            if not known:
                scores = {split: predict_logits(model, views[split]) for split in ("validation", "test")}
                metrics, arrays = self._scored(scores)
                card = tagger_card(model.config, external.preparation, external.trained_on)
                self._store(StoredResult(*key, metrics=metrics, arrays=arrays, state=model.state_dict(), card=card))
        else:
            views = self.prepared.offline
            if not known:
                self._train_teacher(key)
            model = build_network(self._teacher_sizes())
            model.load_state_dict(dict(self.store.get(key).state))
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)  # else the targets' last bits, and every student's, depend on the number of threads
        try:
            with writing_errors(self.store.targets_cache):
                return teacher_targets(model, views["train"], self.store.targets_cache, self._teacher_device(model))
        finally:
            torch.set_num_threads(num_threads)

    def _teacher_sizes(self) -> NetworkConfig:
        return network_config(self.settings.teacher_model, self.prepared.offline_preparation.standardisation)

    def _teacher_device(self, model: Network) -> str:
        """The first of the devices, if it takes a model of these sizes: an external one's may be any."""
        device = training_devices(self.settings.device)[0]
        return device if device == "cpu" or cuda_engine.unsupported(model.config) is None else "cpu"

    def _train_teacher(self, key: RunKey) -> None:
        recipe = self.settings.recipe.teacher()
        sizes = self._teacher_sizes()
        pack = self._pack(sizes, (Member("teacher"),), key.seed, recipe, self.prepared.offline)
        self.shown.begin("teacher", members=1, epochs=recipe.epochs)
        trained_on = sampled(self.prepared.hashes("train"))
        self._train(pack, {"teacher": key}, tagger_card(sizes, self.prepared.offline_preparation, trained_on))

    def students(
        self,
        pack: PlannedPack,
        targets: Targets,
        *,
        lost: threading.Event | None = None,
        done: int = 0,
        later: int = 0,
    ) -> None:
        """Trains the runs of a pack, of which none is stored.

        lost: set when the pack is no longer this process's; it is then given up at the next result. done,
        later: runs of the pack that are stored, and of packs that come after it, for the progress.
        """
        sizes, recipe = self.settings.student(pack.shared)
        sizes = network_config(sizes, self.prepared.hlt_preparation.standardisation)
        trained = self._pack(sizes, pack.members, pack.seed, recipe, self.prepared.hlt, targets)
        self.shown.begin(pack.id, members=len(pack.runs), epochs=recipe.epochs, done=done, later=later)
        keys = {member.name: RunKey.of(member.config, pack.seed) for member in pack.members}
        self._train(trained, keys, tagger_card(sizes, self.prepared.hlt_preparation), lost)

    def _pack(
        self,
        sizes: NetworkConfig,
        members: tuple[Member, ...],
        seed: int,
        recipe: Recipe,
        views: Mapping[str, View],
        targets: Targets | None = None,
    ) -> Pack:
        train, validation, test = (views[split] for split in SPLITS)
        precision = self.settings.precision
        device = self.settings.device
        return Pack(sizes, members, seed, recipe, train, validation, test, targets, precision, device)

    def _train(
        self, pack: Pack, keys: Mapping[str, RunKey], card: Mapping[str, Any], lost: threading.Event | None = None
    ) -> None:
        """Trains a pack and stores its results. keys: of the results, by member. card: of their model files.

        Raises StudyError where the teacher diverges, and, after checkpoints, SweepInterrupted where the user
        has stopped the training and CallbackError where the user's function has raised.
        """
        configs = {member.name: member.config for member in pack.members}
        checkpoints = StudyCheckpoints(
            self.store.path,
            pack,
            {name: key.folder for name, key in keys.items()},
            decisive=self.store.provenance["decisive"],
            environment=training_environment(self.settings.device),
            interval=self.settings.checkpoint_every,
            say=self.shown.say,
        )
        watch = _Watch(self.shown, self.stop.event)
        trained = train_pack(pack, threads=self.threads, on_epoch=watch.epoch, stop=watch, checkpoints=checkpoints)
        with self.stop.deferred(), closing(trained) as results:
            for result in results:
                key = keys[result.name]
                done = result.status == "done"
                if key.kind == "teacher" and not done:
                    hint = "lower the learning rate: without a teacher there are no students"
                    raise StudyError(f"the teacher diverged: {result.message}", where=str(self.store.path), hint=hint)
                if key.kind == "student" and done:
                    self.shown.best(result.name, max(result.curves["auc_val"]))
                self._write_trained(key, configs[result.name], result, card, checkpoints.resumed_from(result.name))
                if lost is not None and lost.is_set():
                    return
                self.shown.member(result)
        watch.check()

    def _write_trained(
        self,
        key: RunKey,
        config: Run,
        result: MemberResult,
        card: Mapping[str, Any],
        resumed_from: Sequence[Mapping[str, str]],
    ) -> None:
        metrics: dict[str, Any] = {"epochs": result.epochs}
        if result.status != "done":
            stored = StoredResult(*key, config, result.status, result.message, metrics, result.curves)
        else:
            logits = {"validation": result.scores_validation, "test": result.scores_test}
            metrics, arrays = self._scored(logits)
            metrics |= {"best_epoch": result.best_epoch, "epochs": result.epochs, "seconds": result.seconds}
            stored = StoredResult(
                *key, config, metrics=metrics, curves=result.curves, arrays=arrays, state=result.state, card=card
            )
        self._store(replace(stored, resumed_from=resumed_from))

    def _scored(self, logits: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Metrics and arrays of a result with these logits, [B] by split."""
        metrics: dict[str, Any] = {}
        arrays: dict[str, NDArray[Any]] = {}
        for split, suffix in (("test", ""), ("validation", "_val")):
            scores = logits[split].numpy()
            arrays[f"scores_{split}"] = scores
            jets = self.prepared.shared_arrays(split)
            metrics |= evaluate(jets["labels"], scores, jets["weights"], suffix=suffix)
        return metrics, arrays

    def _store(self, result: StoredResult) -> None:
        here = training_environment(self.settings.device)
        with suppress(AlreadyStored):  # by another process that trained the same run: the first one counts
            self.store.write(replace(result, environment=here))


class _Watch(threading.Event):
    """Hands the epochs of a pack to the progress and to the user's function, one call at a time. It is set,
    and so ends the pack, when that function has raised or `stop` is set."""

    def __init__(self, shown: SweepProgress, stop: threading.Event) -> None:
        super().__init__()
        self._shown = shown
        self._stop = stop
        self._lock = threading.Lock()
        self._raised: tuple[Exception, EpochReport] | None = None

    def is_set(self) -> bool:
        return self._stop.is_set() or super().is_set()

    def epoch(self, report: EpochReport) -> None:
        self._shown.epoch(report)
        if self._shown.on_epoch is None:
            return
        with self._lock:
            if self._raised is not None:
                return
            try:
                self._shown.on_epoch(report)
            except Exception as error:
                self._raised = error, report
                self.set()

    def check(self) -> None:
        """Raises CallbackError where the user's function has raised."""
        if self._raised is not None:
            error, report = self._raised
            what = f"raised {type(error).__name__}: {error}"
            where = f"on_epoch, {report.member}, seed {report.seed}, epoch {report.epoch}"
            hint = "finished runs and checkpoints are stored: rerun the same call to resume"
            raise CallbackError(what, where=where, hint=hint) from error
