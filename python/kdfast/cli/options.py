"""Options that are settings, made from the models in store/settings.py; and what a shell completes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from typer.core import TyperCommand

from kdfast.distill.recipe import PRECISIONS
from kdfast.distill.schedules import SHAPES
from kdfast.errors import ConfigError, KdfastError
from kdfast.jets.columns import COLUMN_PRESETS
from kdfast.jets.hlt_config import HLT_PRESETS
from kdfast.models.config import PRESETS
from kdfast.store.grid import GRIDS
from kdfast.store.key import RunKey
from kdfast.store.keywords import SETTINGS, Setting

__all__ = ["InSections", "in_options", "pack_names", "run_names", "setting_argument", "with_options"]

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
        autocompletion=_choices(setting.keyword),
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
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


# ---- completion

# By the setting's keyword. Another value may be a file, a table or numbers.
_CHOICES: dict[str, Iterable[str]] = {
    "model": PRESETS,
    "teacher_model": PRESETS,
    "hlt": HLT_PRESETS,
    "grid": GRIDS,
    "columns": COLUMN_PRESETS,
    "shape": SHAPES,
    "precision": PRECISIONS,
    "device": ("auto", "cpu", "cuda"),
    "unit": ("MeV", "GeV"),
    "on_bad": ("error", "drop"),
    "teacher_kind": ("logit", "probability"),
}


def _choices(keyword: str) -> Callable[[str], list[str]] | None:
    """What completes a setting; None where its values are not known beforehand."""
    known = _CHOICES.get(keyword)
    return None if known is None else lambda incomplete: _beginning(known, incomplete)


def run_names(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the stored runs."""
    keys = (RunKey.parse(name) for name in _folders(context, "results"))
    return _beginning((key.name for key in keys if key is not None), incomplete)


def pack_names(context: typer.Context, incomplete: str) -> list[str]:
    """The teacher, and the planned packs."""
    return _beginning(["teacher", *_folders(context, "packs")], incomplete)


def _folders(context: typer.Context, inside: str) -> list[str]:
    """Names of the folders in a part of the study, in order; none where no study is named yet."""
    options = [value for value in context.params.values() if isinstance(value, Path)]
    arguments = map(Path, context.args)  # of an unfinished line
    for study in (*options, *arguments):
        if (study / inside).is_dir():
            return sorted(path.name for path in (study / inside).iterdir() if path.is_dir())
    return []


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
