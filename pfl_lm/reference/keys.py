"""Every key of a kind of recipe: what it means, its unit, its default and its choices."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.recipes.plain import dataclass_of, dotted
from pfl_lm.reference.docstrings import explanations, summary
from pfl_lm.reference.units import unit_of
from pfl_lm.validate import describe

NAME = "NAME"  # stands for a name that the user chooses, as in [profiles.NAME]


@dataclass(frozen=True)
class Key:
    """One key, or one table, of a recipe.

    Attributes:
        name: its dotted name.
        meaning: from the docstring of the dataclass that has it.
        expected: what may stand there, in words.
        choices: the allowed words or numbers; empty where there are none to choose from.
        default: what holds where the key is left out; None where it must be stated.
        table: whether it is a table with keys of its own.
        unit: of a number; "" where it has none.
    """

    name: str
    meaning: str
    expected: str
    choices: tuple[Any, ...]
    default: str | None
    table: bool
    unit: str

    @property
    def depth(self) -> int:
        return self.name.count(".")


def keys_of(kind: type[Any], within: str = "") -> Iterator[Key]:
    """Yield the keys of a dataclass in the order of its fields, tables before what they hold."""
    meanings, hints = explanations(kind), typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if not field.init:
            continue
        name, expected = dotted(within, field.name), hints[field.name]
        nested = dataclass_of(expected)
        meaning = meanings.get(field.name, "")
        yield Key(
            name,
            meaning,
            describe(expected) if nested is None else f"a table: {summary(nested)}",
            _choices(expected),
            _default(field, nested),
            nested is not None,
            unit_of(name) if _is_number(expected) else "",
        )
        if nested is not None:
            named = typing.get_origin(expected) is dict
            yield from keys_of(nested, f"{name}.{NAME}" if named else name)


def find_key(kind: type[Any], name: str) -> Key:
    """Return the key with this dotted name, or with this last part if it is the only one.

    Raises:
        ValueError: there is none, or several; the message names the nearest, or all.
    """
    keys = {key.name: key for key in keys_of(kind)}
    if name in keys:
        return keys[name]
    ending = [key for key in keys if key.endswith(f".{name}")]
    if len(ending) == 1:
        return keys[ending[0]]
    if ending:
        raise ValueError(f"{name} stands in several tables; choose one of {', '.join(ending)}")
    lasts = {key.rpartition(".")[2]: key for key in keys}
    close = difflib.get_close_matches(name, [*keys, *lasts], n=1)
    hint = f"; did you mean {lasts.get(close[0], close[0])!r}?" if close else ""
    raise ValueError(f"{name} is not a key of this recipe{hint}")


def within(kind: type[Any], table: Key) -> list[Key]:
    """Return what a table of a recipe holds."""
    return [key for key in keys_of(kind) if key.name.startswith(f"{table.name}.")]


def in_toml(value: Any) -> str:
    """Write a value as TOML does; None, which TOML lacks, is the empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(in_toml, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {in_toml(item)}' for name, item in value.items())} }}"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _default(field: dataclasses.Field[Any], nested: type | None) -> str | None:
    if field.default is not dataclasses.MISSING:
        return "none" if field.default is None else in_toml(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return "the defaults of its keys" if nested else in_toml(field.default_factory())
    return None


def _choices(expected: Any) -> tuple[Any, ...]:
    options = typing.get_args(expected)
    if typing.get_origin(expected) is typing.Literal:
        return options
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return tuple(choice for option in options for choice in _choices(option))
    return ()


def _is_number(expected: Any) -> bool:
    if expected in (int, float):
        return True
    if typing.get_origin(expected) is typing.Literal:
        return all(isinstance(choice, int) for choice in typing.get_args(expected))
    options = [o for o in typing.get_args(expected) if o not in (type(None), ...)]
    return expected is not Path and any(_is_number(option) for option in options)
