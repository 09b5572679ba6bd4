"""Pages of the documentation that are made from the program itself: the command line and the settings."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def repository() -> str:
    """The project's address, which pyproject.toml alone holds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Source"]


def pages() -> dict[str, str]:
    """File name → text, for docs/_generated/."""
    from kdfast.report.schema import Analysis

    schema = json.dumps(Analysis.model_json_schema(), indent=2) + "\n"
    return {"cli.md": command_line(), "settings.md": settings(), "report.schema.json": schema}


def undocumented() -> list[str]:
    """Public names that no page of the API reference mentions."""
    import kdfast
    from kdfast import models, nn, ops

    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference" / "api").glob("*.md"))
    modules = {"kdfast": kdfast, "kdfast.models": models, "kdfast.nn": nn, "kdfast.ops": ops}
    names = [
        (f"{where}.{name}", name)
        for where, module in modules.items()
        for name in module.__all__
        if not _is_module(module, name)
    ]
    return [full for full, name in names if not re.search(rf":: kdfast\.(\w+\.)?{name}$", text, re.MULTILINE)]


def _is_module(home: Any, name: str) -> bool:
    return name.startswith("__") or inspect.ismodule(getattr(home, name))


# ---- the command line


def command_line() -> str:
    """A section for each command, with what its --help prints."""
    from typer.main import get_command

    from kdfast.cli import app

    sections = []
    for name, command in _commands(get_command(app), "kdfast"):
        context = command.context_class(command, info_name=name, terminal_width=100, max_content_width=100)
        sections.append(f"## `{name}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "\n".join(sections)


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, command
    for child, sub in getattr(command, "commands", {}).items():
        if not sub.hidden:
            yield from _commands(sub, f"{name} {child}")


# ---- the settings


def settings() -> str:
    """A table for each model of settings: key, type, default, the demo's default, meaning."""
    from kdfast.jets.hlt import HLTConfig
    from kdfast.models import ModelConfig
    from kdfast.store.settings import DEMO, DataSettings, GridLists, RecipeSettings, StudySettings

    tables: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "Top level": (StudySettings, DEMO),
        "[data]": (DataSettings, {}),
        "[recipe]": (RecipeSettings, DEMO["recipe"]),
        "[grid]": (GridLists, {}),
        "[hlt]": (HLTConfig, {}),
        "[model] and [teacher_model]": (ModelConfig, {}),
    }
    return "\n".join(f"## {title}\n\n{_table(model, demo)}" for title, (model, demo) in tables.items())


def _table(model: Any, demo: Mapping[str, Any]) -> str:
    rows = [
        f"| `{name}` | {_kind(schema)} | {default}{_demo(demo.get(name))} | {_cell(schema.get('description', ''))} |\n"
        for name, schema, default in _fields(model)
    ]
    return "| key | value | default | meaning |\n|---|---|---|---|\n" + "".join(rows)


def _fields(model: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Name, JSON schema and default of each field of a pydantic model or a dataclass."""
    schema = TypeAdapter(model).json_schema()
    declared: dict[str, FieldInfo] = model.model_fields if issubclass(model, BaseModel) else {}
    for name, entry in schema["properties"].items():
        field = declared.get(name)
        description = (field and field.description) or _documented(model, name)
        default = entry.get("default", "required" if name in schema.get("required", ()) else "")
        if isinstance(default, dict):
            continue  # a table of its own
        yield name, {**entry, "description": description}, _literal(default)


def _documented(model: Any, name: str) -> str:
    """What the Parameters of a class's NumPy docstring say of a field."""
    found = re.search(rf"^{name}\n((?:    .*\n?)+)", inspect.cleandoc(model.__doc__ or ""), re.MULTILINE)
    return found[1] if found else ""


def _kind(schema: Mapping[str, Any]) -> str:
    """A JSON schema's type in words, with its bounds."""
    if "anyOf" in schema:
        kinds = [_kind(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        return "table"
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return "list of " + _kind(items).replace("number", "numbers") if items else "list"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema and abs(schema[key]) < 2**31]
    return " ".join([words.get(schema.get("type", ""), "any"), ", ".join(bounds)]).strip()


def _literal(value: Any) -> str:
    if value is None:
        return "none"
    if value == "" or value == "required":
        return value
    return f"`{value!r}`".replace("'", '"')


def _demo(value: Any) -> str:
    return "" if value is None or isinstance(value, dict) else f" (demo: {_literal(value)})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
