"""A recipe as TOML in which a comment explains every key, chosen or not.

The comments are what ``pfl-lm explain`` prints: both read the docstrings of the dataclasses.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pfl_lm.reference.docstrings import summary
from pfl_lm.reference.keys import NAME, Key, in_toml, keys_of
from pfl_lm.reference.kinds import kind_of

WIDTH = 96


def commented_toml(name: str, chosen: Mapping[str, Any], schema: str = "") -> str:
    """Return a recipe's text: chosen keys as they are, all others as comments with their defaults.

    Args:
        name: the kind of recipe.
        chosen: values, and tables of values, by key.
        schema: path of the kind's JSON Schema, for editors that read Taplo's directive.
    """
    keys = list(keys_of(kind_of(name)))
    head = [f"#:schema {schema}"] if schema else []
    head += _comment(
        f"{summary(kind_of(name))}. A line '#key = value', without a space, states a default. "
        f"`pfl-lm explain {name} KEY` prints the comment of a key."
    )
    return "\n".join([*head, "", *_table(keys, "", chosen)]).rstrip() + "\n"


def _table(keys: list[Key], place: str, chosen: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the lines of one table: its own keys first, as TOML asks, then the tables in it."""
    depth = place.count(".") + 1 if place else 0
    here = [key for key in keys if _inside(key, place) and key.depth == depth]
    for key in here:
        if not key.table:
            yield from _entry(key, chosen)
    for key in here:
        if key.table:
            yield from _inner(keys, key, chosen)


def _entry(key: Key, chosen: Mapping[str, Any] | None) -> Iterator[str]:
    last = key.name.rpartition(".")[2]
    yield from _comment(f"{last}: {key.meaning} [{facts(key)}]")
    if chosen is not None and last in chosen:
        yield f"{last} = {in_toml(chosen[last])}"
    else:
        yield f"#{last} = {'' if key.default in (None, 'none') else key.default}".rstrip()
    yield ""


def _inner(keys: list[Key], key: Key, chosen: Mapping[str, Any] | None) -> Iterator[str]:
    last = key.name.rpartition(".")[2]
    inner = None if chosen is None else chosen.get(last)
    named = any(other.name.startswith(f"{key.name}.{NAME}.") for other in keys)
    if not named:
        yield from _section(keys, key, key.name, inner)
        return
    for nth, (name, table) in enumerate((inner or {}).items()):
        if nth:  # explained above
            yield from _bare(f"{key.name}.{name}", table)
            continue
        renamed = [_renamed(other, key.name, name) for other in keys]
        yield from _section(renamed, key, f"{key.name}.{name}", table)


def _bare(place: str, chosen: Mapping[str, Any]) -> Iterator[str]:
    yield f"[{place}]"
    yield from (f"{name} = {in_toml(value)}" for name, value in chosen.items())
    yield ""


def _section(
    keys: list[Key], key: Key, place: str, chosen: Mapping[str, Any] | None
) -> Iterator[str]:
    yield from _comment(f"{key.name.rpartition('.')[2]}: {key.meaning}")
    yield f"[{place}]" if chosen is not None else f"#[{place}]"
    yield from _table(keys, place, chosen)


def facts(key: Key) -> str:
    """Return unit, choices and default of a key in a few words."""
    parts = [key.unit or key.expected if not key.choices else ""]
    if key.choices:
        parts = [" or ".join(map(in_toml, key.choices))]
        if "number" in key.expected:
            parts = [f"{key.unit or 'a number'}, or {parts[0]}"]
    parts.append("must be stated" if key.default is None else f"default {key.default}")
    return "; ".join(filter(None, parts))


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _inside(key: Key, place: str) -> bool:
    return not place or key.name.startswith(f"{place}.")


def _renamed(key: Key, table: str, name: str) -> Key:
    return replace(key, name=key.name.replace(f"{table}.{NAME}", f"{table}.{name}", 1))
