"""Members' checkpoints on disk, with which a sweep resumes inside a member.

STUDY/checkpoints/KIND.NAME.seedN/STEP/ is a committed folder (folders.py): manifest.json, checkpoint.json
(what it belongs to, where it was trained, curves, numbers), tensors.safetensors. The newest intact one is
used; once a newer one is committed those before it and the unusable ones of its member go, and with the
member's result all of them (StudyStore.write).

On disk they take at most twice `checkpoint_bytes` (the old one until the new one is there) for each member
that is running, and once for each that was stopped: for the study's model, of 1.3 million parameters,
2 × 21 MB for each thread of the CPU engine or each member of a GPU's pack.
"""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load, save
from torch import Tensor

from kdfast.distill.checkpoint import MemberCheckpoint
from kdfast.distill.optimizer import FlatAdamW
from kdfast.distill.pack import Pack
from kdfast.distill.schedules import run_table
from kdfast.errors import Fault, KdfastWarning, StudyError
from kdfast.files import writing_errors
from kdfast.models.build import build_network
from kdfast.models.config import NetworkConfig
from kdfast.models.flat import flatten_running
from kdfast.store import folders
from kdfast.store.documents import CheckpointDocument, json_bytes, json_number
from kdfast.store.identity import differing, shown_setting

__all__ = ["StudyCheckpoints", "checkpoint_bytes"]


class StudyCheckpoints:
    """distill.checkpoint.Checkpoints of one pack, in a study's folder.

    study: its path. decisive: the settings that its results depend on. keys: by member, the name of its
    result's folder. environment: this process's, of which `host` decides nothing. say: shows a line.
    """

    def __init__(
        self,
        study: Path,
        pack: Pack,
        keys: Mapping[str, str],
        *,
        decisive: Mapping[str, Any],
        environment: Mapping[str, str],
        interval: float,
        say: Callable[[str], None],
    ) -> None:
        self.interval = interval
        self._say = say
        self._folder = study / "checkpoints"
        self._keys = keys
        self._environment = dict(environment)
        self._epochs = pack.recipe.epochs
        common = {
            "settings": _fingerprint(json.dumps(decisive, sort_keys=True).encode()),
            "targets": None if pack.targets is None else _fingerprint(*map(_bytes, vars(pack.targets).values())),
            "model": pack.model.model_dump(exclude={"name"}),
            "recipe": pack.recipe.model_dump(),  # with the planned epochs, which schedules depend on
            "precision": pack.precision,
            "seed": pack.seed,
        }
        # As JSON gives it back.
        self._belongs_to: dict[str, dict[str, Any]] = {
            member.name: json.loads(
                json_bytes(common | {"result": keys[member.name], "config": run_table(member.config)})
            )
            for member in pack.members
        }
        self._before: dict[str, list[dict[str, str]]] = {}  # by member: other environments that trained it
        self._newest: dict[str, Path] = {}  # by member: the intact folder that this process wrote or read
        self._unusable: set[Path] = set()
        self._lock = threading.Lock()
        self._warned = set[str]()

    def load(self, member: str) -> MemberCheckpoint | None:
        """The newest intact checkpoint of the member. Warns of those that it can't use."""
        parent = self._folder / self._keys[member]
        found = sorted(folders.committed(parent), reverse=True)  # which refuses a link
        folders.remove_leftovers(parent)
        for folder in found:
            self._unusable.add(folder)
            try:
                document, checkpoint = _read(folder)
            except StudyError as error:
                self._warn(f"{error.where}: {error.what}; this checkpoint is not used")
                continue
            others = [name for name, _, _ in differing(document.belongs_to, self._belongs_to[member])]
            if others:
                self._warn(f"{folder}: is of another configuration ({', '.join(others)}); this checkpoint is not used")
                continue
            self._unusable.remove(folder)
            self._newest[member] = folder
            self._before[member] = [there for there in document.environments if self._differences(there)]
            for there in self._before[member]:
                listing = ", ".join(self._differences(there))
                self._warn(f"resumed members were begun in another environment ({listing}); last bits may differ")
            place = f"epoch {min(checkpoint.epoch + 1, self._epochs)} of {self._epochs}"
            self._say(f"{member} resumes in {place}, after step {checkpoint.step}")
            return checkpoint
        return None

    def save(self, member: str, checkpoint: MemberCheckpoint) -> None:
        """Writes a checkpoint, then removes those before it. Warns once where it can't be written."""
        folder = self._folder / self._keys[member] / f"{checkpoint.step:09}"
        if self._newest.get(member) == folder:
            return  # differs at most by an evaluation, which is computed again
        environments = [*self._before.get(member, []), self._environment]
        files = _files(checkpoint, {"belongs_to": self._belongs_to[member], "environments": environments})
        try:
            with writing_errors(folder):
                folder.parent.mkdir(parents=True, exist_ok=True)
                if folder in self._unusable and folder.exists():
                    folders.remove(folder)
            folders.commit(folder, files)
        except folders.AlreadyStored:
            pass  # by a process that has taken the member over and is at the same step
        except StudyError as error:
            self._warn(f"{self._folder}: {error.what}; training continues without checkpoints", once="writing")
            return
        self._newest[member] = folder
        for other in folders.committed(folder.parent):
            # One that is further may be of a process that has taken the member over from this one.
            if other.name < folder.name or (other in self._unusable and other != folder):
                with suppress(OSError):
                    folders.remove(other)

    def resumed_from(self, member: str) -> Sequence[Mapping[str, str]]:
        """The environments, other than this one, in which the member was trained before; empty: none."""
        return tuple(self._before.get(member, ()))

    def _differences(self, there: Mapping[str, Any]) -> list[str]:
        return [
            f"{name} {shown_setting(old)} → {shown_setting(new)}"
            for name, old, new in differing(there, self._environment)
            if name != "host"
        ]

    def _warn(self, message: str, once: str | None = None) -> None:
        with self._lock:
            if (once or message) in self._warned:
                return
            self._warned.add(once or message)
        warnings.warn(message, KdfastWarning, stacklevel=3)


def checkpoint_bytes(model: NetworkConfig) -> int:
    """Bytes on disk of one member's checkpoint, but for its curves (some 200 an epoch): four float32 a
    parameter, the weights, both moments and the best weights."""
    network = build_network(model)
    learner = {**FlatAdamW(network, 0.0, 1.0).tensors(), "running": flatten_running(network)}
    files = _files(MemberCheckpoint(learner=learner, best_state=dict(network.state_dict())), {})
    return sum(map(len, files.values()))


_NUMBERS = ("step", "best_epoch", "best_auc", "seconds")


def _files(at: MemberCheckpoint, document: Mapping[str, Any]) -> dict[str, bytes]:
    curves = {name: [json_number(value) for value in values] for name, values in at.curves.items()}
    tensors = {"sums": at.sums}
    for group, content in (("learner", at.learner), ("best", at.best_state)):
        tensors |= {f"{group}.{name}": tensor.detach().cpu() for name, tensor in content.items()}
    # clones of views: tensors that share memory are refused
    whole = {name: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for name, t in tensors.items()}
    numbers = {name: getattr(at, name) for name in _NUMBERS}
    return {
        "checkpoint.json": json_bytes({**document, **numbers, "curves": curves}),
        "tensors.safetensors": save(whole),
    }


def _read(folder: Path) -> tuple[CheckpointDocument, MemberCheckpoint]:
    """Raises StudyError unless it is what was written."""
    document = folders.read_document(folder, "checkpoint.json", CheckpointDocument)
    tensors = folders.read_checked(folder, "tensors.safetensors")
    try:
        found = load(tensors)
        sums = found.pop("sums")
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise folders.damage(folder, Fault.CONTENT, "tensors.safetensors", str(error)) from error
    checkpoint = MemberCheckpoint(
        **{name: getattr(document, name) for name in _NUMBERS},
        sums=sums,
        curves={name: [float(value) for value in values] for name, values in document.curves.items()},
        learner=_group(found, "learner."),
        best_state=_group(found, "best."),
    )
    return document, checkpoint


def _group(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _bytes(tensor: Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.contiguous().numpy().tobytes()


def _fingerprint(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
