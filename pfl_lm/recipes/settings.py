"""Single keys of a recipe, set from the command line or from Python: ``training.epochs=3``."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from pfl_lm.recipes.errors import RecipeError


class Typed(str):
    """Text that did not stand in the recipe: a path in it starts from the current folder."""


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` texts; what is no TOML value is text, and an empty value is None.

    Raises:
        RecipeError: a text has no key or no ``=``.

    >>> parse_settings(["training.learning_rate=0.3", "server.kind=adam", "policy="])
    {'training.learning_rate': 0.3, 'server.kind': 'adam', 'policy': None}
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise RecipeError(
                f"--set {text}: write KEY=VALUE with the key's dotted name, such as "
                "training.learning_rate=0.3"
            )
        settings[key] = _value(value.strip())
    return settings


def with_settings(table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's table with some keys set; None takes a key out, back to its default.

    Raises:
        RecipeError: a key lies within a value that is no table.
    """
    changed = copy.deepcopy(dict(table))
    for key, value in settings.items():
        *outer, name = key.split(".")
        inner = changed
        for place, part in enumerate(outer):
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise RecipeError(f"--set {key}: {'.'.join(outer[: place + 1])} is no table")
        if value is None:
            inner.pop(name, None)
        else:
            inner[name] = _typed(value)
    return changed


def _value(text: str) -> Any:
    if not text:
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _typed(value: Any) -> Any:
    if isinstance(value, str):
        return Typed(value)
    if isinstance(value, list | tuple):
        return [_typed(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _typed(item) for name, item in value.items()}
    return value if isinstance(value, bool | int | float) else Typed(value)
