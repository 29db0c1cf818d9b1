"""Which names a file may hold, and which kind of value under each: nothing else, and no long lists.

A schema is a table of schemas by name, a list of one schema, or one of the words below.
"""

from __future__ import annotations

from typing import Any

NUMBER, TEXT, SENTENCES = "number", "text", "sentences"
VALUE = "value"  # a number or a text
OPEN = "open"  # a table whose names are not fixed
ANY = "any"  # what is checked elsewhere

_MOST_ENTRIES = 24  # of a list: 19 quantiles, 24 time zones; no list has one entry per user
_LONGEST = {TEXT: 80, SENTENCES: 4_000, VALUE: 80}


def numbers(names: str) -> dict[str, Any]:
    """Return the schema of numbers by these names."""
    return dict.fromkeys(names.split(), NUMBER)


def unknown(value: Any, schema: Any, where: str = "") -> str:
    """Return the dotted name of the first value that the schema does not know, or ""."""
    if schema == ANY:
        return ""
    if schema == OPEN:
        return _too_much(value, where)
    if isinstance(schema, dict):
        if value is None and where:
            return ""
        if not isinstance(value, dict):
            return where
        names = ((name, f"{where}.{name}".lstrip(".")) for name in value)
        found = (
            unknown(value[name], schema[name], dotted) if name in schema else dotted
            for name, dotted in names
        )
        return next(filter(None, found), "")
    if isinstance(schema, list):
        if not isinstance(value, list) or len(value) > _MOST_ENTRIES:
            return where
        return next(filter(None, (unknown(item, schema[0], where) for item in value)), "")
    if isinstance(value, str):
        return "" if len(value) <= _LONGEST.get(schema, -1) else where
    if schema in (NUMBER, VALUE):
        return "" if value is None or isinstance(value, int | float) else where
    return where


def not_ours(where: str, name: str) -> str:
    """Say that a file holds a value whose name no schema knows."""
    return f"{where} holds {name}, which no version of pfl-lm writes: whose figure is it?"


def _too_much(value: Any, where: str) -> str:
    """Return where a table of any names holds a list or text that is too long, or ""."""
    if isinstance(value, dict):
        parts = ((item, f"{where}.{name}") for name, item in value.items())
    elif isinstance(value, list):
        if len(value) > _MOST_ENTRIES:
            return where
        parts = ((item, where) for item in value)
    else:
        return where if isinstance(value, str) and len(value) > _LONGEST[SENTENCES] else ""
    return next(filter(None, (_too_much(item, name) for item, name in parts)), "")
