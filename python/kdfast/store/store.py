"""A study on disk: one immutable folder per result (folders.py says how they are written and checked).

STUDY/
    study.toml                  settings
    provenance.json             format, versions, fingerprint of the data, instruction set
    manifest.json               checksums of these two
    results/KIND.NAME.seedN/    one trained network: manifest.json, result.json (settings, metrics, curves, model
                                card), arrays.safetensors (scores per jet), weights.safetensors
    shared/NAME/                what all results share (labels, weights, index of a split, kinematics of the test
                                jets): manifest.json, arrays.safetensors
    attempts/NAME.NNN/          a try of a unit of work that failed (attempts.py)
    checkpoints/…               of members that are not finished (checkpoints.py)
    targets/                    cache of teacher outputs
    .lock, .report.lock         held by the sweep that makes the study, and by who writes its report
    .index/HOST.sqlite          cache of what the results' folders say (index.py)
    damaged/                    what `kdfast verify --repair` moved aside
    results_summary.csv, …      derived from the above; can always be rebuilt
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w
from numpy.typing import NDArray

from kdfast.distill.schedules import RunConfig
from kdfast.errors import StudyError
from kdfast.files import fsync_folder, write_content, writing_errors
from kdfast.store.attempts import Attempt, now, read_attempts, write_attempt
from kdfast.store.folders import (
    FORMAT,
    LOCK,
    MANIFEST,
    AlreadyStored,
    check_complete,
    check_folder,
    check_format,
    commit,
    damage,
    exclusively,
    folders,
    json_bytes,
    json_number,
    locked,
    manifest,
    manifest_bytes,
    parse_json,
    read,
    read_and_see,
    read_checked,
    refuse_link,
    remove,
    remove_leftovers,
    seen_on_disk,
)
from kdfast.store.index import Index, Row
from kdfast.store.key import RunKey, safe_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StoredResult", "StudyStore", "check_description", "description_version", "load_result"]

# What a study's folder may hold. (`.index` is a cache, and done without where it is a link.)
_FOLDERS = ("results", "shared", "attempts", "packs", "inputs", "checkpoints", "targets", "claims", "damaged")


@dataclass(frozen=True)
class StoredResult:
    """One trained network as it is stored.

    kind: "teacher", "baseline" (a student trained without a teacher) or "student". name: the run's name, unique
    together with kind and seed. config: a student's schedule, else None. status: "done" or "diverged"; message says
    why. metrics: numbers by name: those of `kdfast.metrics.evaluate` on the test jets and, with the suffix "_val", on
    the validation jets, best_epoch and epochs; of a diverged run epochs alone. curves: a value per epoch, by name, or,
    with a curve `epoch` of their numbers (counted from 1), of these epochs only.
    arrays: logits per jet [B], `scores_validation` and `scores_test`. state: the network's tensors by name.
    An imported result has no arrays and no state, of the metrics what its file gives, and a message that names it.
    card: `kdfast.models.tagger_card`; with it weights.safetensors is a model file that `kdfast.load_model` reads.
    stored: when it was stored (UTC, ISO), which `StudyStore.write` fills in; "" in studies of older versions.
    environment: of the process that finished it: kdfast, torch, isa, backend, device, host (None: not known).
    resumed_from: other environments (the host aside) that trained it before: its last bits may depend on them.
    Read back, arrays and state are loaded and checked on first use.
    """

    kind: str
    name: str
    seed: int
    config: RunConfig | None = None
    status: str = "done"
    message: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, list[float]] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    card: Mapping[str, Any] | None = None
    stored: str = ""
    environment: Mapping[str, str] | None = None
    resumed_from: Sequence[Mapping[str, str]] = ()

    @property
    def key(self) -> RunKey:
        """Which run it is of."""
        return RunKey(self.kind, self.name, self.seed)

    @property
    def has_scores(self) -> bool:
        """Whether its scores per jet are stored: not of a diverged and not of an imported result."""
        return self.status == "done" and bool(self.arrays)


class StudyStore:
    """The folder of one study. Make one with `create_or_open` or `open`.

    path; settings (the content of study.toml); provenance; targets_cache: the folder for teacher outputs.
    Every method raises StudyError, which names the file or folder, for what can't be read or written or is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
        self.path, self.settings, self.provenance = path, settings, provenance
        self.targets_cache = path / "targets"
        self._results, self._shared = path / "results", path / "shared"
        self._attempts = path / "attempts"
        self._index = Index(path)
        self._intact: set[RunKey] = set()
        self._known: dict[str, Row] | None = None

    # ---- opening

    @classmethod
    def create_or_open(cls, path: str | Path, settings: dict[str, Any], provenance: dict[str, Any]) -> StudyStore:
        """Opens the study at path, or makes one with these settings and provenance where there is none.

        Of an existing study the stored settings count (`.settings`); comparing them is the caller's part. Leftovers
        of killed writers are removed. Refuses a folder that holds other things.
        """
        path = Path(path)
        if not _exists(path / "provenance.json"):
            _create(path, settings, provenance)
        store = cls.open(path)
        store._remove_leftovers()
        return store

    @classmethod
    def open(cls, path: str | Path) -> StudyStore:
        """Opens an existing study, which may be read-only."""
        path = Path(path)
        described = path / "provenance.json"
        if not _exists(described):
            what = "holds no study" if path.exists() else "does not exist"
            raise StudyError(what, where=str(path), hint="give the folder that `kdfast sweep --out` wrote")
        file = described
        try:
            provenance = parse_json(read(file))
            file = path / "study.toml"
            settings = tomllib.loads(read(file).decode())
        except (ValueError, RecursionError) as error:
            raise StudyError(f"can't be read ({error})", where=str(file), hint="restore it from a copy") from None
        check_format(provenance.pop("format", None), described)
        check_description(path)
        for folder in _FOLDERS:
            refuse_link(path / folder)
        return cls(path, settings, provenance)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Holds the study for one writing process (a second one gets a StudyError). A killed process lets go of it."""
        with _held(self.path):
            yield

    def is_written(self) -> bool:
        """Whether a process holds the study by `writing`."""
        with locked(self.path, fcntl.LOCK_SH | fcntl.LOCK_NB) as held:
            return held is False

    # ---- reading

    def results(self, *, skip: Collection[Path] = ()) -> list[StoredResult]:
        """All results but those of the folders to skip, sorted by kind, name and seed. Raises StudyError for the first
        damaged one."""
        found, damaged = self.readable(skip=skip)
        for error in damaged.values():
            raise error
        return found

    def readable(
        self, *, skip: Collection[Path] = (), complete: bool = False
    ) -> tuple[list[StoredResult], dict[Path, StudyError]]:
        """All results but those to skip that can be read, and for the folders of the others why they can't.

        complete: one that lacks a file counts among the others."""
        rows = self._index.rows()
        fresh: dict[str, Row] = {}
        found, damaged, left_out = [], {}, set(skip)
        for folder in folders(self._results):
            row = rows.pop(folder.name, None)
            if folder in left_out:
                continue
            try:
                current = row is not None and row.is_current(folder, (MANIFEST, "result.json"))
                content, files = (row.text, row.files) if row is not None and current else (None, None)
                if content is None:
                    content, seen = read_and_see(folder, "result.json")
                    files = files or seen
                    fresh[folder.name] = Row(files, content)
                if complete:
                    check_complete(folder, files or ())
                found.append(load_result(folder, content))
            except StudyError as error:
                damaged[folder] = error
        self._index.keep(fresh, gone=rows)
        return found, damaged

    def get(self, key: RunKey) -> StoredResult:
        """One result. Raises StudyError where it is missing or damaged."""
        folder = self._results / key.folder
        if not folder.exists():
            raise StudyError(f"there is no {key.kind} {key.name!r} with seed {key.seed}", where=str(self.path))
        return load_result(folder, read_checked(folder, "result.json"))

    def keys(self) -> set[RunKey]:
        """The results that are there, by a listing; whether they are intact is seen where they are used."""
        keys = (RunKey.parse(folder.name) for folder in folders(self._results))
        return {key for key in keys if key is not None}

    def is_stored(self, key: RunKey) -> bool:
        """Whether one result is there; see `keys`."""
        return os.path.lexists(self._results / key.folder)

    def has(self, key: RunKey) -> bool:
        """Whether the result is there. The first time it checks all of its files, but for those that the index saw
        unchanged; raises StudyError for a damaged one."""
        if key not in self._intact:
            folder = self._results / key.folder
            if not os.path.lexists(folder):
                return False
            if self._known is None:
                self._known = self._index.rows(texts=False)
            if folder.name not in self._known or not self._known[folder.name].is_current(folder):
                self._index.keep({folder.name: Row(check_folder(folder))})
            self._intact.add(key)
        return True

    def digest(self, key: RunKey) -> str | None:
        """SHA-256 of a result's manifest, which tells it from another one of its name; None: it is not there."""
        folder = self._results / key.folder
        return manifest(folder)[1][MANIFEST][0] if os.path.lexists(folder) else None

    def attempts(self, name: str | None = None) -> list[Attempt]:
        """The tries that failed, of all units of work or of one, by unit and number."""
        return read_attempts(self._attempts, name)

    def model_file(self, result: StoredResult) -> bytes:
        """A result's weights as the bytes of a model file (that of a result with a card)."""
        return read_checked(self._results / result.key.folder, "weights.safetensors")

    def has_shared(self, name: str) -> bool:
        """Whether `write_shared` stored arrays under this name."""
        return (self._shared / name).exists()

    def shared(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays that `write_shared` stored under this name."""
        folder = self._shared / name
        if not folder.exists():
            hint = "run the same sweep again: it is made anew"
            raise StudyError(f"there are no shared arrays {name!r}", where=str(self.path), hint=hint)
        return _load_arrays(folder)

    # ---- writing

    def write(self, result: StoredResult) -> Path:
        """Stores a result, whole or not at all, and returns its folder. What is stored is never changed."""
        folder = self._results / result.key.folder
        document = {
            "kind": result.kind,
            "name": result.name,
            "seed": result.seed,
            "config": None if result.config is None else asdict(result.config),
            "status": result.status,
            "message": result.message,
            "metrics": dict(result.metrics),
            "curves": {name: [json_number(value) for value in values] for name, values in result.curves.items()},
            "card": None if result.card is None else dict(result.card),
            "stored": result.stored or now(),
            "environment": None if result.environment is None else dict(result.environment),
            "resumed_from": [dict(environment) for environment in result.resumed_from],
        }
        content = json_bytes(document)
        files = {
            "result.json": content,
            "arrays.safetensors": _array_bytes(result.arrays),
            "weights.safetensors": _state_bytes(result.state, result.card),
        }
        try:
            digests = commit(folder, files)
        except AlreadyStored:
            self._remove_checkpoints(folder.name)  # which may have come after the other process had removed them
            raise
        self._index.keep({folder.name: Row(seen_on_disk(folder, digests), content)})
        self._intact.add(result.key)
        self._remove_checkpoints(folder.name)
        return folder

    def describe(self, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Writes the study's description anew where it is another one; the caller holds the study (`writing`).

        Killed half-way it leaves a description without checksums, which the next call gives it back.
        """
        manifest = self.path / MANIFEST
        if (settings, provenance) == (self.settings, self.provenance) and os.path.lexists(manifest):
            return
        described = _described(settings, provenance)
        with writing_errors(self.path):
            manifest.unlink(missing_ok=True)  # first: never one of other content
            fsync_folder(self.path)
            for name, content in (*described.items(), (MANIFEST, manifest_bytes(described))):
                write_content(self.path / name, content)
        self.settings, self.provenance = settings, provenance

    def write_attempt(self, attempt: Attempt) -> Path:
        """Stores a try that failed, under the next number of its unit of work."""
        safe_name(attempt.name)
        return write_attempt(self._attempts, attempt)

    def write_shared(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Stores what all results share: "validation" and "test" with arrays labels, weights, index [B], and
        "test_kinematics" with pt, eta, mass [B] (GeV).

        The same again changes nothing; other content under the same name is refused.
        """
        folder = self._shared / safe_name(name)
        content = _array_bytes(arrays)
        if not folder.exists():
            commit(folder, {"arrays.safetensors": content})
        elif read_checked(folder, "arrays.safetensors") != content:
            raise StudyError(f"holds other jets for {name}", where=str(self.path), hint="use another folder")
        return folder

    def _remove_checkpoints(self, name: str) -> None:
        """name: of the result's folder."""
        with suppress(OSError):
            remove(self.path / "checkpoints" / name)

    def _remove_leftovers(self) -> None:
        for folder in folders(self.path / "checkpoints"):
            if (self._results / folder.name).exists():  # stored, and then killed
                self._remove_checkpoints(folder.name)
        with os.scandir(self.path) as entries:
            parents = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
        for parent in (self.path, *parents):
            remove_leftovers(parent)


class _OnUse(Mapping[str, Any]):
    """A mapping that is loaded when first looked at."""

    def __init__(self, load: Callable[[], dict[str, Any]]) -> None:
        self._load = load
        self._content: dict[str, Any] | None = None

    def _mapping(self) -> dict[str, Any]:
        if self._content is None:
            self._content = self._load()
        return self._content

    def __getitem__(self, key: str) -> Any:
        return self._mapping()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapping())

    def __len__(self) -> int:
        return len(self._mapping())


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a parent that may not be entered
        raise StudyError(f"can't be read: {error.strerror}", where=str(path)) from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """See StudyStore.writing."""
    with exclusively(path) as held:
        if not held:
            hint = "wait until it has ended; `kdfast status` says how far it is"
            raise StudyError("another process is working on this study", where=str(path), hint=hint)
        yield


def _create(path: Path, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
    own = {LOCK, "study.toml", MANIFEST, "results", "shared", "targets"}  # a killed creation may have left these
    other = StudyError("is no study and is not empty", where=str(path), hint="give a new or an empty folder")
    with writing_errors(path):
        if path.exists() and not (path.is_dir() and _is_free(path, own)):
            raise other
        described = _described(settings, provenance)
        path.mkdir(parents=True, exist_ok=True)
        with _held(path):
            if _exists(path / "provenance.json"):  # another process was first
                return
            if not _is_free(path, own):
                raise other
            for folder in ("results", "shared", "targets"):
                (path / folder).mkdir(exist_ok=True)
            write_content(path / "study.toml", described["study.toml"])
            write_content(path / MANIFEST, manifest_bytes(described))
            write_content(path / "provenance.json", described["provenance.json"])  # last: from now on it is a study
        fsync_folder(path.absolute().parent)


def _described(settings: dict[str, Any], provenance: dict[str, Any]) -> dict[str, bytes]:
    """The files of a description, but for their manifest."""
    return {
        "study.toml": tomli_w.dumps(settings).encode(),
        "provenance.json": json_bytes({"format": FORMAT, **provenance}),
    }


def _is_free(path: Path, own: Collection[str]) -> bool:
    """Whether a folder is a study, or can become one."""
    return _exists(path / "provenance.json") or all(p.name in own or p.suffix == ".tmp" for p in path.iterdir())


def check_description(path: Path) -> None:
    """Checks study.toml and provenance.json. Raises StudyError where they are not as they were written; studies of
    older versions have no checksums of them."""
    while (there := description_version(path)) is not None:
        try:
            check_folder(path)
            return
        except StudyError as error:
            if description_version(path) != there:  # `describe` was at work
                continue
            hint = f"restore it from a copy; if it is meant to be so, delete {path / MANIFEST}"
            raise StudyError(error.what, where=error.where, hint=hint) from None


def description_version(path: Path) -> tuple[int, int] | None:
    """Tells a study's description from one that `describe` has put into its place; None: it has no checksums."""
    try:
        status = os.lstat(path / MANIFEST)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def load_result(folder: Path, content: bytes) -> StoredResult:
    """The result in a folder whose result.json has this content. Raises StudyError where the two do not fit."""
    try:
        document = parse_json(content)
        config = document["config"]
        result = StoredResult(
            kind=document["kind"],
            name=document["name"],
            seed=document["seed"],
            config=None if config is None else RunConfig(**config),
            status=document["status"],
            message=document["message"],
            metrics=document["metrics"],
            curves={name: [float(value) for value in values] for name, values in document["curves"].items()},
            arrays=_OnUse(lambda: _load_arrays(folder)),
            state=_OnUse(lambda: _load_state(folder)),
            card=document["card"],
            stored=str(document.get("stored", "")),
            environment=document.get("environment"),  # older studies lack both
            resumed_from=tuple(document.get("resumed_from", ())),
        )
        named = result.key.folder
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, StudyError) as error:
        raise damage(folder, f"result.json has unexpected content ({error})") from error
    if named != folder.name:
        raise damage(folder, f"it holds {named}")
    return result


def _load_arrays(folder: Path) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load

    return load(read_checked(folder, "arrays.safetensors"))


def _load_state(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(read_checked(folder, "weights.safetensors"))


def _array_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})


def _state_bytes(state: Mapping[str, Tensor], card: Mapping[str, Any] | None) -> bytes:
    from safetensors.torch import save

    from kdfast.models.tagger import model_bytes

    if card is not None:
        return model_bytes(state, card)
    return save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
