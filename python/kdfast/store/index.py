"""A cache, in SQLite, of what the results' folders say: spares opening and hashing files that have not changed.

The folders are the truth, and a listing of them decides which results exist. A row is believed as long as its own
checksum holds and the files' stat identity is what it was when they were hashed; a row that is not, or a file that is
missing, damaged, locked or of another version, costs time and changes no answer. Each machine has its own file,
STUDY/.index/HOST.sqlite (locks of SQLite do not carry over every network file system), or one in the folder that
KDFAST_INDEX_DIR names. A file that is no longer right is thrown away and filled again by whoever reads results next.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kdfast.store.folders import Seen, identity

if TYPE_CHECKING:
    from sqlite3 import Connection

__all__ = ["Index", "Row"]

T = TypeVar("T")

# Of the schema and of what a row holds. A file with another one is filled anew.
VERSION = 1
_SCHEMA = "CREATE TABLE results (key TEXT PRIMARY KEY, files BLOB, files_sha256 TEXT, text BLOB)"
_PATIENCE = 0.1  # seconds to wait for another process's lock


class Row(NamedTuple):
    """What is known of a result's folder. text: the content of its result.json; None: to be read."""

    files: Seen
    text: bytes | None = None

    def is_current(self, folder: Path, names: Collection[str] | None = None) -> bool:
        """Whether these files (None: all) are, by their stat identity, those that were hashed."""
        if "manifest.json" not in self.files or os.path.islink(folder):
            return False
        try:
            for name in self.files if names is None else names:
                seen = self.files[name][1]
                if seen is None or identity(os.lstat(f"{folder}/{name}")) != seen:
                    return False
        except (OSError, KeyError):
            return False
        return True


class Index:
    """The index of one study on this machine. No method ever raises for the index's sake."""

    def __init__(self, study: Path) -> None:
        study = study.absolute()
        host = re.sub(r"[^A-Za-z0-9_.-]", "_", platform.node()) or "localhost"
        elsewhere = os.environ.get("KDFAST_INDEX_DIR")
        if elsewhere:
            of_study = hashlib.sha256(os.fsencode(study)).hexdigest()[:16]
            self.path = Path(elsewhere).absolute() / f"{host}.{of_study}.sqlite"
        else:
            self.path = study / ".index" / f"{host}.sqlite"

    def rows(self, *, texts: bool = True) -> dict[str, Row]:
        """All rows, by the result's key."""

        def read(connection: Connection) -> dict[str, Row]:
            what = "key, files, files_sha256, " + ("text" if texts else "NULL")
            found = [_row(*values) for values in connection.execute(f"SELECT {what} FROM results")]
            if None in found:  # a row is not what was written, so what else is not?
                raise _Unusable
            return dict(item for item in found if item is not None)

        return self._use(read, {}, create=False)

    def keep(self, rows: Mapping[str, Row], gone: Collection[str] = ()) -> None:
        """Adds or replaces rows, and drops those of results that are gone."""

        def write(connection: Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            # a text that is kept is right or, as its checksum tells, not used
            connection.executemany(
                "INSERT INTO results VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET files = excluded.files,"
                " files_sha256 = excluded.files_sha256, text = coalesce(excluded.text, text)",
                [_values(key, row) for key, row in rows.items()],
            )
            connection.executemany("DELETE FROM results WHERE key = ?", [(key,) for key in gone])
            connection.execute("COMMIT")

        if rows or gone:
            self._use(write, None, create=True)

    def fault(self) -> str | None:
        """What is wrong with the file, for `kdfast verify`; None: nothing, or there is none, or it is in use."""

        def check(connection: Connection) -> str | None:
            (answer,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if answer != b"ok":
                return "is damaged"
            stored = connection.execute("SELECT key, files, files_sha256, text FROM results")
            return "is damaged" if any(_row(*v) is None or not _text_fits(*v) for v in stored) else None

        return self._use(check, None, create=False, otherwise=lambda: "is damaged, or of another version")

    def _use(
        self,
        operation: Callable[[Connection], T],
        default: T,
        *,
        create: bool,
        otherwise: Callable[[], T] | None = None,
    ) -> T:
        """operation's answer, or the default where the index can't be used. One that is damaged is removed; `otherwise`
        is then the answer, if given, and nothing is removed."""
        try:
            import sqlite3
        except ImportError:  # Python may be built without it
            return default
        for _ in range(2):
            try:
                if self.path.parent.is_symlink() or self.path.is_symlink():  # a stranger's: it might lead anywhere
                    return default
                if create:
                    self.path.parent.mkdir(exist_ok=True)
                elif not self.path.exists():
                    return default
                with _connected(self.path) as connection:
                    return operation(connection)
            except sqlite3.OperationalError:  # locked, read-only, disk full
                return default
            except (sqlite3.DatabaseError, _Unusable):
                if otherwise is not None:
                    return otherwise()
                with suppress(OSError):
                    self.remove()
            except (sqlite3.Error, OSError):
                return default
        return default

    def remove(self) -> None:
        """Removes the file. Raises OSError where that can't be done."""
        for name in ("", "-journal", "-wal", "-shm"):
            self.path.with_name(self.path.name + name).unlink(missing_ok=True)


class _Unusable(Exception):
    """A database of something else, of another version, or damaged."""


@contextmanager
def _connected(path: Path) -> Iterator[Connection]:
    """A connection for one operation: nothing stays open over a fork, a thread or a sweep."""
    import sqlite3

    with closing(sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)) as connection:
        connection.text_factory = bytes
        # A power cut or a kill may cost the index, which is noticed; a result need not wait for the disk twice.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA trusted_schema = OFF")
        schema = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if not schema and version == 0:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        elif schema != [_SCHEMA.encode()] or version != VERSION:
            raise _Unusable
        yield connection


def _values(key: str, row: Row) -> tuple[str, bytes, str, bytes | None]:
    files = json.dumps(row.files).encode()
    return key, files, _files_sha256(key.encode(), files), row.text


def _row(key: object, files: object, files_sha256: object, text: object) -> tuple[str, Row] | None:
    """A row as it was written, or None. A text that does not match its SHA-256 is left out."""
    if not (isinstance(key, bytes) and isinstance(files, bytes)):
        return None
    if files_sha256 != _files_sha256(key, files).encode():
        return None
    seen = {name: (digest, where and tuple(where)) for name, (digest, where) in json.loads(files).items()}
    fits = isinstance(text, bytes) and hashlib.sha256(text).hexdigest() == seen.get("result.json", ("",))[0]
    return key.decode(), Row(seen, text if fits and isinstance(text, bytes) else None)


def _files_sha256(key: bytes, files: bytes) -> str:
    return hashlib.sha256(key + b"\0" + files).hexdigest()


def _text_fits(key: object, files: object, files_sha256: object, text: object) -> bool:
    row = _row(key, files, files_sha256, text)
    return text is None or (row is not None and row[1].text is not None)
