"""Range checks for the numbers and choices that people state: one line that names the field.

Every check takes fields by name and passes over None, which says that a field was left out. NaN and
infinity are refused by all of them: a number that is not one must not choose a noise or an ε.

    positive(learning_rate=self.learning_rate)
    one_of(("poisson", "rotation"), kind=self.kind)
    typed(self)

Within ``collecting()`` the checks gather what they refuse instead of stopping at the first.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import Any

_gathered: ContextVar[list[str] | None] = ContextVar("gathered", default=None)


@contextmanager
def collecting() -> Iterator[list[str]]:
    """Gather, within the block, the messages of what is refused, and raise none of them."""
    messages: list[str] = []
    token = _gathered.set(messages)
    try:
        yield messages
    finally:
        _gathered.reset(token)


def refuse(message: str) -> None:
    """Raise ValueError; within ``collecting()``, gather the message and go on."""
    messages = _gathered.get()
    if messages is None:
        raise ValueError(message)
    messages.append(message)


def positive(**fields: float | None) -> None:
    """Raise ValueError unless each field is above 0 and finite."""
    _check(fields, lambda value: 0 < value < math.inf, "must be positive and finite")


def at_least(least: float, **fields: float | None) -> None:
    """Raise ValueError unless each field is ``least`` or more, and finite."""
    _check(fields, lambda value: least <= value < math.inf, f"must be at least {least:,g}")


def whole(least: int, **fields: Any) -> None:
    """Raise ValueError unless each field is a whole number of ``least`` or more."""
    for name, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            refuse(f"{name} = {value!r} is refused: expected a whole number")
        else:
            at_least(least, **{name: int(value)})


def within(low: float, high: float, **fields: float | None) -> None:
    """Raise ValueError unless each field lies in [low, high]."""
    _check(fields, lambda value: low <= value <= high, f"must lie between {low:,g} and {high:,g}")


def in_unit(**fields: float | None) -> None:
    """Raise ValueError unless each field is a share or a chance, in [0, 1]."""
    within(0, 1, **fields)


def below_one(**fields: float | None) -> None:
    """Raise ValueError unless each field is a share that leaves some, in [0, 1)."""
    _check(fields, lambda value: 0 <= value < 1, "must lie in [0, 1)")


def above_zero_in_unit(**fields: float | None) -> None:
    """Raise ValueError unless each field is a share of something, in (0, 1]."""
    _check(fields, lambda value: 0 < value <= 1, "must lie in (0, 1]")


def one_of(choices: Collection[object], **fields: object) -> None:
    """Raise ValueError unless each field is one of the choices."""
    for name, value in fields.items():
        if value is not None and value not in choices:
            known = ", ".join(repr(choice) for choice in choices)
            refuse(f"{name} = {value!r} must be one of {known}")


def _check(fields: dict[str, float | None], holds: Callable[[float], bool], rule: str) -> None:
    for name, value in fields.items():
        if value is not None and not holds(value):  # NaN holds nowhere
            refuse(f"{name} = {value} {rule}")


def typed(record: Any, own: Collection[str] = ()) -> None:
    """Raise ValueError unless each field of a dataclass is of the type that it declares.

    Numbers of numpy become Python's: theirs wrap around, compare by fewer digits and are no JSON.
    Text becomes a path, and a list a tuple, where that is declared. Fields that the record does not
    hold yet are passed over.

    Args:
        record: a dataclass that is being constructed.
        own: fields of text whose choices a program may add to; they are checked elsewhere.
    """
    for name, expected in _types_of(typing.cast(Any, type(record))).items():
        if name not in vars(record):
            continue
        value = _plain(vars(record)[name], expected)
        object.__setattr__(record, name, value)
        if fits(value, str if name in own else expected):
            if isinstance(value, str) and not value.isascii() and value != _in_utf_8(value):
                refuse(f"{name} = {value!r} is refused: it holds what is no text in UTF-8")
            continue
        if typing.get_origin(expected) is typing.Literal and value is not None:
            one_of(typing.get_args(expected), **{name: value})
        else:
            refuse(f"{name} = {value!r} is refused: expected {describe(expected)}")


def _in_utf_8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=256)
def _types_of(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _plain(value: Any, expected: Any) -> Any:
    """Return a number of numpy as Python's, text as a path, a list as a tuple, as is declared."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    options = (expected, *typing.get_args(expected))
    if isinstance(value, str) and Path in options:
        return Path(value)
    if isinstance(value, list) and any(typing.get_origin(o) is tuple for o in options):
        return tuple(value)
    return value


def fits(value: Any, expected: Any) -> bool:
    """Say whether a value is of a type as dataclasses declare it; a whole number is a number."""
    origin, options = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in options)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in options)
    if origin is tuple:
        return isinstance(value, tuple) and all(fits(item, options[0]) for item in value)
    if expected in (int, float):
        return isinstance(value, int | expected) and not isinstance(value, bool)
    return isinstance(value, origin or expected)


def describe(expected: Any) -> str:
    """Say a type the way a person would write it in a recipe."""
    if typing.get_origin(expected) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(expected))
    if dataclasses.is_dataclass(expected):
        return "a table with " + ", ".join(f.name for f in dataclasses.fields(expected))
    options = [o for o in typing.get_args(expected) if o is not type(None) and o is not ...]
    if typing.get_origin(expected) is tuple:
        return f"a list of {describe(options[0])}"
    if options:
        return " or ".join(describe(option) for option in options)
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names.get(expected, "a path" if expected is Path else str(expected))
