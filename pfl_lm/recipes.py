"""Strict TOML → frozen dataclasses: what a person wrote, checked whole before anything runs.

Every table becomes the dataclass of the part that it configures; unknown keys, wrong types and
impossible values are refused with the file, the key, and what was expected. Nothing below this
module sees a recipe.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the key and the remedy."""


def load(kind: type[T], path: Path) -> T:
    """Read one recipe file into a frozen dataclass of type ``kind``.

    A field of type ``Path`` is taken relative to the recipe's folder.

    Raises:
        RecipeError: the file is missing or is no TOML, a key is unknown or missing, a value has
            the wrong type or is refused by the dataclass itself.
    """
    path = Path(path)
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    return _build(kind, table, path, key="")


def load_policy(path: Path) -> Any:
    """Read a privacy policy (``privacy/*.toml``) into a ``pfl_lm.dp.policy.Policy``."""
    from pfl_lm.dp.policy import Policy

    return load(Policy, path)


def load_tokenizer_recipe(path: Path) -> Any:
    """Read a vocabulary recipe (``tokenizers/*.toml``) into a ``TokenizerRecipe``."""
    from pfl_lm.language.tokenizer import TokenizerRecipe

    return load(TokenizerRecipe, path)


def _build(kind: type[T], table: Mapping[str, Any], path: Path, key: str) -> T:
    """Build dataclass ``kind`` from a TOML table; ``key`` is the dotted place in the file."""
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    types = typing.get_type_hints(kind)
    for name in table:
        if name not in fields:
            raise RecipeError(_unknown_key(path, _dotted(key, name), name, list(fields)))
    for name, field in fields.items():
        if name not in table and _required(field):
            raise RecipeError(
                f"{path}: {_dotted(key, name)} is missing (expected {_describe(types[name])})"
            )
    values = {
        name: _value(types[name], value, path, _dotted(key, name)) for name, value in table.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise RecipeError(f"{path}: {f'[{key}] ' if key else ''}{error}") from error


def _value(expected: Any, value: Any, path: Path, key: str) -> Any:
    """Check one TOML value against the type its dataclass field declares."""
    nested = _dataclass_of(expected)
    if nested is not None and isinstance(value, Mapping):
        if typing.get_origin(expected) is dict:  # tables by name, as in [profiles.tablet]
            return {name: _named(nested, table, path, key, name) for name, table in value.items()}
        return _build(nested, value, path, key)
    if _is_path(expected) and isinstance(value, str):
        return (path.parent / value).resolve() if value else None
    if _item_is_path(expected) and isinstance(value, list):
        return tuple((path.parent / str(item)).resolve() for item in value)
    try:
        # Strict as JSON is: "5" is no number, 1 is a float, a list may become a tuple.
        return TypeAdapter(expected).validate_python(_tuples(expected, value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"{path}: {key} = {value!r} is refused: expected {_describe(expected)}"
            f" ({first['msg'].lower()})"
        ) from error


def _named(kind: type[T], table: Any, path: Path, key: str, name: str) -> T:
    if not isinstance(table, Mapping):
        raise RecipeError(f"{path}: {_dotted(key, name)} must be {_describe(kind)}")
    return _build(kind, table, path, _dotted(key, name))


def _tuples(expected: Any, value: Any) -> Any:
    options = (expected, *typing.get_args(expected))
    if isinstance(value, list) and any(typing.get_origin(o) is tuple for o in options):
        return tuple(value)
    return value


def _dataclass_of(expected: Any) -> type | None:
    for option in (expected, *typing.get_args(expected)):
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return option
    return None


def _is_path(expected: Any) -> bool:
    return expected is Path or Path in typing.get_args(expected)


def _item_is_path(expected: Any) -> bool:
    return typing.get_origin(expected) is tuple and _is_path(typing.get_args(expected)[0])


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _dotted(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _describe(expected: Any) -> str:
    """Say a type the way a person would write it in a recipe."""
    if typing.get_origin(expected) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(expected))
    if dataclasses.is_dataclass(expected):
        return "a table with " + ", ".join(f.name for f in dataclasses.fields(expected))
    options = [o for o in typing.get_args(expected) if o is not type(None) and o is not ...]
    if typing.get_origin(expected) is tuple:
        return f"a list of {_describe(options[0])}"
    if options:
        return " or ".join(_describe(option) for option in options)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(expected, "a path" if expected is Path else str(expected))


def _unknown_key(path: Path, key: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)
    return f"{path}: {key} is not a key of this recipe; {hint}"
