"""Options of the command line that are settings, made from the models in store/settings.py."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import typer
from typer.core import TyperCommand

from kdfast.cli.completion import choices
from kdfast.errors import ConfigError, KdfastError
from kdfast.store.keywords import SETTINGS, Setting

__all__ = ["InSections", "in_options", "setting_argument", "with_options"]

_SECTIONS = ("Arguments", "Options", "Grid", "Your own grid", "Data", "Models", "Recipe", "Running")
_BY_KEYWORD = {setting.keyword: setting for setting in SETTINGS}


def setting_argument(keyword: str) -> Any:
    """A setting as a command's positional argument, given by its keyword."""
    setting = _BY_KEYWORD[keyword]
    return typer.Argument(metavar=setting.option, help=setting.help())


def _option(setting: Setting) -> Any:
    repeatable = " Repeatable." if get_origin(setting.kind) is list else ""
    return typer.Option(
        setting.option,
        metavar=setting.metavar or None,
        help=setting.help(repeatable),
        rich_help_panel=setting.panel,
        autocompletion=choices(setting.keyword),
    )


def in_options(error: KdfastError) -> str:
    """The error's text with options where it names settings."""
    where = error.where
    if isinstance(error, ConfigError) and where in _BY_KEYWORD and where != "data":
        where = _BY_KEYWORD[where].option
    return error.text(where, _spelled)


def _spelled(name: str, value: Any) -> str:
    option = _BY_KEYWORD[name].option
    return option if value is True else f"{option} {value}"


def with_options(*settings: Setting | str, before: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command's `**settings` become an option for each of these settings, or of their keywords.

    before: the command's own option that they come before in its help; by default they come last.
    """
    chosen = [_BY_KEYWORD[each] if isinstance(each, str) else each for each in settings]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            each.replace(kind=each.KEYWORD_ONLY)
            for each in signature.parameters.values()
            if each.kind is not each.VAR_KEYWORD
        ]
        place = next((place for place, each in enumerate(parameters) if each.name == before), len(parameters))
        parameters[place:place] = [
            inspect.Parameter(
                setting.keyword,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[setting.kind | None, _option(setting)],
            )
            for setting in chosen
        ]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


class InSections(TyperCommand):
    """A command whose --help has a section for each panel of options, those without a panel first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuses `DATA … --test-data test_*.h5` without quotes: all files but the first would be training data."""
        files = {name for each in self.params if getattr(each, "metavar", "") == "FILE" for name in each.opts}
        if ctx.resilient_parsing:  # a shell completes it
            return super().parse_args(ctx, args)
        for option, following in zip(args, args[2:], strict=False):
            if option in files and not args[0].startswith("-") and not following.startswith("-"):
                what = f"{option} takes one file, and {following} follows: put a pattern in quotes, or repeat {option}"
                raise typer.BadParameter(what, ctx=ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in _SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            panel = getattr(parameter, "rich_help_panel", None)
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections[panel or usual].append(record)
        for title, records in sections.items():
            if not records:
                continue
            with formatter.section(title):
                formatter.write_dl(records)
