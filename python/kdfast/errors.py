"""Errors that users meet: each says what is wrong, where, and what to do.

`str(error)` is one or two lines that the command line prints as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any

__all__ = [
    "BackendError",
    "BusyError",
    "CallbackError",
    "ClusterError",
    "ConfigError",
    "DamagedError",
    "DataError",
    "Fault",
    "KdfastError",
    "KdfastWarning",
    "ModelError",
    "NewerFormatError",
    "ResourceError",
    "StudyError",
]


class KdfastError(Exception):
    """Base of every error that kdfast raises on purpose.

    what: the fault, in a sentence without a full stop. where: file, dataset, row, argument or setting.
    hint: what the user can do about it. settings: values that the hint suggests, by the setting's name; the
    hint then has `{name}` where it names one.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        hint: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.what, self.where = what, where
        self._hint, self._settings = hint, dict(settings or {})
        self.hint = self._spelled("{}={!r}".format)
        super().__init__(self._text(where, self.hint))

    def text(self, where: str | None, spelled: Callable[[str, Any], str]) -> str:
        """The error in other words than Python's. where: the place. spelled: gives a setting with a value."""
        return self._text(where, self._spelled(spelled))

    def parts(self) -> dict[str, Any]:
        """What the constructor takes, for another process."""
        return {"what": self.what, "where": self.where, "hint": self._hint, "settings": self._settings}

    def _spelled(self, spelled: Callable[[str, Any], str]) -> str | None:
        if self._hint is None or not self._settings:
            return self._hint
        return self._hint.format(**{name: spelled(name, value) for name, value in self._settings.items()})

    def _text(self, where: str | None, hint: str | None) -> str:
        text = f"{where}: {self.what}" if where else self.what
        return f"{text}\n{hint}" if hint else text


class DataError(KdfastError, ValueError):
    """Input data that can't be used: a file, dataset or array with wrong content or shape."""


class ConfigError(KdfastError, ValueError):
    """A setting or argument outside what it may be."""


class ModelError(KdfastError, ValueError):
    """A model file that can't be used, or a model that does not fit the data."""


class StudyError(KdfastError, RuntimeError):
    """A study folder that can't be used: another study's, damaged, unwritable, of a newer format.

    done: what a repair had put right before this error ended it, a line each.
    """

    done: Sequence[str] = ()


class Fault(Enum):
    """What can be wrong with a file or folder of a study; the value is how a message says it."""

    MISSING = "is missing"
    CHANGED = "does not match its checksum"
    CONTENT = "has unexpected content"
    NOT_CANONICAL = "is not as kdfast writes it"
    NO_FILE = "is not a file"
    LINK = "is a symbolic link"
    UNREADABLE = "can't be read"
    UNLISTED = "no manifest lists it"
    LEFTOVER = "was left by a writer that was killed"


class DamagedError(StudyError):
    """A file or folder of a study that is not as it was written.

    fault: what is wrong. file: the file's name, where it is one of a folder that is checked as a whole.
    detail: more, in words.
    """

    def __init__(
        self,
        fault: Fault,
        *,
        where: str,
        file: str | None = None,
        detail: str = "",
        hint: str | None = "restore it from a copy",
    ) -> None:
        self.fault, self.file, self.detail = fault, file, detail
        what = f"is damaged: {file} {self.reason}" if file else self.reason
        super().__init__(what, where=where, hint=hint)

    def __reduce__(self) -> tuple[object, ...]:  # between processes of a cluster
        keywords: dict[str, Any] = {"where": self.where, "file": self.file, "detail": self.detail, "hint": self.hint}
        return partial(type(self), self.fault, **keywords), ()

    @property
    def reason(self) -> str:
        """The fault and its detail in words, without the file's name."""
        return f"{self.fault.value} ({self.detail})" if self.detail else self.fault.value


class NewerFormatError(StudyError):
    """A study, or a part of one, that a newer version of kdfast wrote."""


class BusyError(StudyError):
    """A study on which another process is working."""


class BackendError(KdfastError, RuntimeError):
    """A backend that was asked for and is not available."""


class ClusterError(KdfastError, RuntimeError):
    """A cluster that was lost half-way: what was stored is kept; rerun the same command to resume.

    exit_code: of a command line, 75 (EX_TEMPFAIL).
    """

    exit_code = 75


class CallbackError(KdfastError, RuntimeError):
    """An error in a function of the user's that kdfast has called. The error itself is its ``__cause__``."""


class ResourceError(KdfastError, MemoryError):
    """Memory that a computation needs and the machine does not have."""


class KdfastWarning(UserWarning):
    """Something runs otherwise than one would expect (a slower path, a dropped jet), and why."""


def suggest(name: str, known: list[str]) -> str:
    """A hint for a misspelt name: the nearest known one, and the list."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    listing = f"known: {', '.join(known)}"
    return f"did you mean {close[0]!r}? ({listing})" if close else listing
