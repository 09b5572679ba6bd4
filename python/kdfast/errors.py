"""Errors that users meet: each says what is wrong, where, and what to do.

`str(error)` is one or two lines that the command line prints as they are.
"""

from collections.abc import Sequence

__all__ = [
    "BackendError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "KdfastError",
    "KdfastWarning",
    "ModelError",
    "ResourceError",
    "StudyError",
]


class KdfastError(Exception):
    """Base of every error that kdfast raises on purpose.

    what: the fault, in a sentence without a full stop. where: file, dataset, row, argument or setting.
    hint: what the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        text = f"{where}: {what}" if where else what
        super().__init__(f"{text}\n{hint}" if hint else text)


class DataError(KdfastError, ValueError):
    """Input data that can't be used: a file, dataset or array with wrong content or shape."""


class ConfigError(KdfastError, ValueError):
    """A setting or argument outside what it may be."""


class ModelError(KdfastError, ValueError):
    """A model file that can't be used, or a model that does not fit the data."""


class StudyError(KdfastError, RuntimeError):
    """A study folder that can't be used: another study's, damaged, unwritable, of a newer format.

    done: what a repair that it ends had put right before it, a line each.
    """

    done: Sequence[str] = ()


class BackendError(KdfastError, RuntimeError):
    """A backend that was asked for and is not available."""


class ClusterError(KdfastError, RuntimeError):
    """A cluster that was lost half-way: what was stored is kept, and the same command goes on.

    exit_code: of a command line, 75 (EX_TEMPFAIL: run it again).
    """

    exit_code = 75


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
