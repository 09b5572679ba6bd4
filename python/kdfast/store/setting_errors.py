"""Errors of settings that name them: which setting, what is wrong, what to do."""

from __future__ import annotations

from collections.abc import Sequence

from kdfast.errors import ConfigError

__all__ = ["SettingError", "UnknownSetting"]


class SettingError(ConfigError):
    """A setting that was given as an argument and can't be used.

    path: of the setting in study.toml, e.g. ("recipe", "epochs").
    """

    def __init__(self, what: str, *, path: Sequence[str], where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what, where=".".join(path) if where is None else where, hint=hint)
        self.path = tuple(path)

    def named(self, where: str) -> SettingError:
        """The same error under another name of the setting: a keyword or an option."""
        return SettingError(self.what, path=self.path, where=where, hint=self.hint)


class UnknownSetting(ConfigError, TypeError):
    """A keyword that `sweep` does not have."""
