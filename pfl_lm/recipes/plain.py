"""Plain values that a program wrote, by way of JSON or not → frozen dataclasses."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def from_plain(
    kind: type[T], content: Any, source: object, remedy: str = "", *, known_keys_only: bool = True
) -> T:
    """Build a dataclass from what ``dataclasses.asdict`` wrote, by way of JSON or not.

    Args:
        source: what the content was read from, for the message.
        remedy: what a person can do, appended to it.
        known_keys_only: refuse keys that ``kind`` does not have.

    Raises:
        ValueError: a field is missing, unknown, has another type, or is refused by the dataclass.
    """
    if known_keys_only and (unknown := _unknown_in(kind, content, "")):
        raise ValueError(f"{source} is of another version: {unknown} is not known here")
    try:
        return cast("T", _adapter(cast(Any, kind)).validate_python(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        advice = f"; {remedy}" if remedy else ""
        raise ValueError(
            f"{source} is damaged, or of another version: {f'{place}: ' if place else ''}{message}"
            f"{advice}"
        ) from error


def _unknown_in(kind: Any, content: Any, key: str) -> str:
    """Return the dotted place of the first key that a dataclass does not have, or ""."""
    if not isinstance(content, Mapping):
        return ""
    fields = {field.name for field in dataclasses.fields(kind)}
    types = typing.get_type_hints(kind)
    for name, value in content.items():
        if name not in fields:
            return dotted(key, name)
        nested = dataclass_of(types[name])
        if nested is not None and (unknown := _unknown_in(nested, value, dotted(key, name))):
            return unknown
    return ""


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def dataclass_of(expected: Any) -> type | None:
    """Return the dataclass that a field's type allows, or None."""
    for option in (expected, *typing.get_args(expected)):
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return option
    return None


def dotted(key: str, name: str) -> str:
    """Return the place of a key within the table at ``key``."""
    return f"{key}.{name}" if key else name
