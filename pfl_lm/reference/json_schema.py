"""A recipe's JSON Schema, by which editors complete and check TOML while somebody types."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from pydantic import TypeAdapter

from pfl_lm.recipes.plain import dataclass_of
from pfl_lm.reference.docstrings import explanations, summary
from pfl_lm.reference.kinds import kind_of

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(name: str) -> dict[str, Any]:
    """Return the schema of a kind of recipe; see ``kinds.KINDS`` for the names.

    Types and choices are those that a recipe is read with; what two keys ask of one another, and
    the ranges of numbers, is checked by the reader alone.

    Raises:
        ValueError: there is no such kind of recipe.
    """
    kind = kind_of(name)
    schema = TypeAdapter(kind).json_schema()
    parts = {part.__name__: part for part in _dataclasses(kind)}
    for title, table in [(kind.__name__, schema), *schema.get("$defs", {}).items()]:
        _describe(table, parts[title])
    title = {"$schema": DRAFT, "title": f"pfl-lm {name}", "description": f"{summary(kind)}."}
    return title | {key: value for key, value in schema.items() if key not in title}


def _describe(table: dict[str, Any], kind: type[Any]) -> None:
    """Add what the dataclass knows: the meaning of its keys, and that it has no others."""
    table["additionalProperties"] = False
    table["description"] = f"{summary(kind)}."
    hints = typing.get_type_hints(kind)
    for key, meaning in explanations(kind).items():
        if key in table["properties"]:
            entry = table["properties"][key]
            entry["description"] = meaning
            entry.pop("title", None)
            _as_toml(entry, hints[key])


def _as_toml(entry: dict[str, Any], expected: Any) -> None:
    """Take out what TOML cannot hold: null."""
    options = [option for option in entry.get("anyOf", ()) if option.get("type") != "null"]
    if options and len(options) < len(entry["anyOf"]):
        del entry["anyOf"]
        if len(options) == 1 and "$ref" not in options[0]:
            entry.update(options[0])
        else:
            entry["anyOf"] = options
    if entry.get("default", "") is None:
        del entry["default"]


def _dataclasses(kind: type[Any]) -> typing.Iterator[type[Any]]:
    yield kind
    for field, hint in typing.get_type_hints(kind).items():
        named = {f.name for f in dataclasses.fields(kind) if f.init}
        nested = dataclass_of(hint) if field in named else None
        if nested is not None:
            yield from _dataclasses(nested)
