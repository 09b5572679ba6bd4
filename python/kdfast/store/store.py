"""A study on disk: one immutable folder per result (folders.py says how they are written and checked).

docs/reference/study-folder.md describes the files of a study.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w
from numpy.typing import NDArray

from kdfast.errors import BusyError, DamagedError, Fault, StudyError
from kdfast.files import fsync_folder, write_content, writing_errors
from kdfast.store import folders
from kdfast.store.attempts import Attempt, read_attempts, write_attempt
from kdfast.store.documents import FORMAT, MANIFEST, LatencyDocument, ProvenanceDocument, json_bytes, parse
from kdfast.store.key import RunKey, safe_name
from kdfast.store.locks import LOCK, exclusively
from kdfast.store.result import StoredResult, array_bytes, load_arrays, load_result, result_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["StoredResult", "StudyStore", "check_description", "read_description", "read_latency", "require_study"]

LATENCY = "latency.json"

# What a study holds of folders; the first three are made with it.
_NEW = ("results", "shared", "targets")
_FOLDERS = (*_NEW, "attempts", "packs", "inputs", "checkpoints", "claims", "damaged", "latency")


class StudyStore:
    """The folder of one study. Make one with `create_or_open` or `open`.

    path: the study's folder. settings, provenance: the content of study.toml and provenance.json.
    targets_cache: the folder for teacher outputs.

    Every method raises StudyError, which names the file or folder, for what can't be read or written or is
    damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.provenance = provenance
        self.targets_cache = path / "targets"
        self._results = path / "results"
        self._shared = path / "shared"
        self._intact: set[RunKey] = set()

    # ---- opening

    @classmethod
    def create_or_open(cls, path: str | Path, settings: dict[str, Any], provenance: dict[str, Any]) -> StudyStore:
        """Opens the study at path, or makes one with these settings and provenance where there is none.

        Of an existing study the stored settings count (`.settings`); comparing them is the caller's part.
        Leftovers of killed writers are removed. Refuses a folder that holds other things.
        """
        path = Path(path)
        if not _is_study(path):
            _create(path, settings, provenance)
        store = cls.open(path)
        store._remove_leftovers()
        return store

    @classmethod
    def open(cls, path: str | Path) -> StudyStore:
        """Opens an existing study, which may be read-only. Raises StudyError for one with symbolic links."""
        path = Path(path)
        settings, provenance = read_description(path)
        check_description(path)
        for folder in _FOLDERS:
            folders.refuse_link(path / folder)
            with suppress(FileNotFoundError, NotADirectoryError):
                folders.refuse_links(path / folder, levels=2 if folder == "checkpoints" else 1)
        return cls(path, settings, provenance)

    def writing(self) -> AbstractContextManager[None]:
        """Holds the study for one writing process, until it ends; a second one gets a BusyError."""
        return _held(self.path)

    # ---- reading

    def results(self) -> list[StoredResult]:
        """All results, sorted by kind, name and seed. Raises StudyError for the first damaged one."""
        return [load_result(folder) for folder in folders.committed(self._results)]

    def complete(self) -> tuple[list[StoredResult], dict[Path, StudyError]]:
        """All results that can be read and have all their files, and what is wrong with the others, by folder."""

        def load(folder: Path) -> StoredResult:
            folders.check_complete(folder, folders.manifest(folder))
            return load_result(folder)

        return folders.read_each(folders.committed(self._results), load)

    def get(self, key: RunKey) -> StoredResult:
        """One result. Raises StudyError where it is missing or damaged."""
        folder = self._results / key.folder
        if not folder.exists():
            raise StudyError(f"there is no {key.kind} {key.name!r} with seed {key.seed}", where=str(self.path))
        return load_result(folder)

    def keys(self) -> set[RunKey]:
        """The results that are there, by a listing; their content is checked where it is used."""
        keys = (RunKey.parse(folder.name) for folder in folders.committed(self._results))
        return {key for key in keys if key is not None}

    def has(self, key: RunKey) -> bool:
        """Whether the result is there. Raises DamagedError where it is not as it was written.

        All of its files are checked, once for each StudyStore.
        """
        if key not in self._intact:
            folder = self._results / key.folder
            if not os.path.lexists(folder):
                return False
            folders.check_folder(folder)
            self._intact.add(key)
        return True

    def attempts(self, name: str | None = None) -> list[Attempt]:
        """The attempts that failed, of all units of work or of one, by unit and number."""
        return read_attempts(self.path / "attempts", name)

    def model_file(self, result: StoredResult) -> bytes:
        """A result's weights as the bytes of a model file (that of a result with a card)."""
        return folders.read_checked(self._results / result.key.folder, "weights.safetensors")

    def has_shared(self, name: str) -> bool:
        """Whether `write_shared` stored arrays under this name."""
        return (self._shared / name).exists()

    def shared(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays that `write_shared` stored under this name."""
        folder = self._shared / name
        if not folder.exists():
            hint = "rerun the same sweep: it writes them again"
            raise StudyError(f"there are no shared arrays {name!r}", where=str(self.path), hint=hint)
        return load_arrays(folder)

    def latencies(self) -> dict[RunKey, LatencyDocument]:
        """What `write_latency` stored, by run."""
        found = {RunKey.parse(folder.name): read_latency(folder) for folder in folders.committed(self.path / "latency")}
        return {key: document for key, document in found.items() if key is not None}

    # ---- writing

    def write_latency(self, key: RunKey, document: LatencyDocument) -> None:
        """Stores what a run's network costs, in the place of an earlier measurement."""
        folder = self.path / "latency" / key.folder
        with writing_errors(folder):
            if folder.exists():
                folders.remove(folder)
        folders.commit(folder, {LATENCY: json_bytes(document.model_dump(mode="json"))})

    def write(self, result: StoredResult) -> Path:
        """Stores a result, whole or not at all, and returns its folder. A stored result is never changed."""
        folder = self._results / result.key.folder
        try:
            folders.commit(folder, result_files(result))
        finally:  # also if it is stored already: checkpoints may have come after the other process's removal
            if folder.exists():
                self._remove_checkpoints(folder.name)
        self._intact.add(result.key)
        return folder

    def describe(self, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Writes the study's description again if it has changed; the caller holds the study (`writing`).

        If it is killed, the description has no checksums until the next call.
        """
        manifest = self.path / MANIFEST
        if (settings, provenance) == (self.settings, self.provenance) and os.path.lexists(manifest):
            return
        described = _described(settings, provenance)
        with writing_errors(self.path):
            manifest.unlink(missing_ok=True)  # first: never one of other content
            fsync_folder(self.path)
            for name, content in (*described.items(), (MANIFEST, folders.manifest_bytes(described))):
                write_content(self.path / name, content)
        self.settings = settings
        self.provenance = provenance

    def write_attempt(self, attempt: Attempt) -> Path:
        """Stores an attempt that failed, under the next number of its unit of work."""
        safe_name(attempt.name)
        return write_attempt(self.path / "attempts", attempt)

    def write_shared(self, name: str, arrays: Mapping[str, NDArray[Any]]) -> Path:
        """Stores what all results share: "validation" and "test" with arrays labels, weights, index [B], and
        "test_kinematics" with pt, eta, mass [B] (GeV).

        The same again changes nothing; other content under the same name is refused.
        """
        folder = self._shared / safe_name(name)
        content = array_bytes(arrays)
        if not folder.exists():
            folders.commit(folder, {"arrays.safetensors": content})
        elif folders.read_checked(folder, "arrays.safetensors") != content:
            raise StudyError(f"holds other jets for {name}", where=str(self.path), hint="use another folder")
        return folder

    def _remove_checkpoints(self, name: str) -> None:
        """name: of the result's folder."""
        with suppress(OSError):
            folders.remove(self.path / "checkpoints" / name)

    def _remove_leftovers(self) -> None:
        for folder in folders.committed(self.path / "checkpoints"):
            if (self._results / folder.name).exists():  # stored, and then killed
                self._remove_checkpoints(folder.name)
        with os.scandir(self.path) as entries:
            parents = [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]
        for parent in (self.path, *parents):
            folders.remove_leftovers(parent)


def read_latency(folder: Path) -> LatencyDocument:
    """The measurement in a folder. Raises DamagedError where it is not as it was written."""
    return folders.read_document(folder, LATENCY, LatencyDocument)


# ---- description


def require_study(path: Path) -> None:
    """Raises StudyError where there is no study."""
    if not _is_study(path):
        what = "holds no study" if path.exists() else "does not exist"
        raise StudyError(what, where=str(path), hint="give the folder that `kdfast sweep --out` wrote")


def _is_study(path: Path) -> bool:
    try:
        (path / "provenance.json").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # e.g. a parent without the permission to enter it
        raise StudyError(f"can't be read: {error.strerror}", where=str(path)) from error
    return True


def read_description(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and provenance of the study at path; their checksums are not looked at. Raises StudyError."""
    require_study(path)
    file = path / "provenance.json"
    content = folders.read(file)
    parse(ProvenanceDocument, content, str(file), hint="restore it from a copy")
    provenance = json.loads(content)
    del provenance["format"]
    file = path / "study.toml"
    try:
        settings = tomllib.loads(folders.read(file).decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(Fault.UNREADABLE, where=str(file), detail=str(error)) from None
    return settings, provenance


def check_description(path: Path) -> None:
    """Checks study.toml and provenance.json against their checksums, if there are any (see `describe`).

    Raises DamagedError where they are not as they were written.
    """
    while True:
        listing = _description_manifest(path)
        if listing is None:
            return
        try:
            folders.check_folder(path)
            return
        except DamagedError as error:
            if _description_manifest(path) != listing:
                continue  # `describe` was writing them
            fault, file, detail = error.fault, error.file, error.detail
            hint = f"restore it from a copy; if it is meant to be so, delete {path / MANIFEST}"
            raise DamagedError(fault, where=str(path), file=file, detail=detail, hint=hint) from None


def _description_manifest(path: Path) -> bytes | None:
    try:
        return folders.read(path / MANIFEST)
    except DamagedError as error:
        if error.fault is Fault.MISSING:  # also while `describe` writes
            return None
        raise


@contextmanager
def _held(path: Path) -> Iterator[None]:
    with exclusively(path) as held:
        if not held:
            hint = "wait until it has ended; `kdfast status` shows its progress"
            raise BusyError("another process is working on this study", where=str(path), hint=hint)
        yield


def _create(path: Path, settings: dict[str, Any], provenance: dict[str, Any]) -> None:
    described = _described(settings, provenance)
    with writing_errors(path):
        _refuse_other_content(path)
        path.mkdir(parents=True, exist_ok=True)
        with _held(path):
            if _is_study(path):  # another process was first
                return
            _refuse_other_content(path)
            for folder in _NEW:
                (path / folder).mkdir(exist_ok=True)
            write_content(path / "study.toml", described["study.toml"])
            write_content(path / MANIFEST, folders.manifest_bytes(described))
            write_content(path / "provenance.json", described["provenance.json"])  # last: from now on it is a study
        fsync_folder(path.absolute().parent)


def _refuse_other_content(path: Path) -> None:
    """Raises StudyError for a folder that holds more than a study, or than a killed `_create` left."""
    if not path.exists() or _is_study(path):
        return
    own = {LOCK, "study.toml", MANIFEST, "provenance.json", *_NEW}
    if not path.is_dir() or any(item.name not in own and item.suffix != ".tmp" for item in path.iterdir()):
        hint = "give a new or an empty folder"
        raise StudyError("is not a study and is not empty", where=str(path), hint=hint)


def _described(settings: dict[str, Any], provenance: dict[str, Any]) -> dict[str, bytes]:
    """The files of a description, but for their manifest."""
    return {
        "study.toml": tomli_w.dumps(settings).encode(),
        "provenance.json": json_bytes({"format": FORMAT, **provenance}),
    }
