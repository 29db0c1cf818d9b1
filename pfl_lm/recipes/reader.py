"""Reading a TOML file into the dataclass of a recipe, and naming all that is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pfl_lm.recipes.errors import RecipeError
from pfl_lm.recipes.names import Source
from pfl_lm.recipes.plain import dataclass_of, dotted
from pfl_lm.recipes.settings import Typed, with_settings
from pfl_lm.validate import collecting, describe

T = TypeVar("T")

_NUMBERS = (int, float)

# Keys and values that recipes used to have: the dataclass's name, the old name, the present one.
RENAMED = {
    ("LocalTraining", "stretch"): "segment_length",
    ("ModelSpec", "residual"): "side_branch",
}
RENAMED_VALUES = {
    ("PayloadPlan", "dense", "residual"): "side_branch",
    ("PayloadPlan", "dense", "biases_residual"): "biases_side_branch",
}


def load(kind: type[T], path: Path, settings: Mapping[str, Any] | None = None) -> T:
    """Read one recipe file into a frozen dataclass of type ``kind``.

    Args:
        kind: the dataclass of the whole file.
        path: a file, or the name of a shipped recipe (see ``find``).
        settings: values by dotted key that replace the file's; None takes a key out.

    A field of type ``Path`` is taken relative to the recipe's folder; in ``settings``, to the
    current one. A shipped recipe that was found by name is read as if it lay in the current folder:
    its ``../data`` is ``data`` there.

    Raises:
        RecipeError: the file is missing or is no TOML, keys are unknown or missing, values have
            the wrong type or are refused by the dataclass itself. It names all of them.
    """
    source = Source.of(path, kind)
    try:
        table = tomllib.loads(source.path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, or nested too deep
        raise RecipeError(f"{path}: not valid TOML: {error}") from error
    reader = _Reader(source, frozenset(settings or ()))
    built = reader.build(kind, with_settings(table, settings or {}), key="")
    if reader.problems:
        raise RecipeError(*reader.problems)
    return typing.cast("T", built)


class _Reader:
    """Reads one file; ``problems`` gathers what is wrong with it."""

    def __init__(self, source: Source, settings: frozenset[str]) -> None:
        self.problems: list[str] = []
        self._source, self._settings = source, settings

    def build(self, kind: type[Any], table: Mapping[str, Any], key: str) -> Any:
        """Build dataclass ``kind`` from a table at the dotted place ``key``; None if it cannot."""
        before = len(self.problems)
        fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
        types = typing.get_type_hints(kind)
        values, meant = {}, set[str]()
        for name, value in table.items():
            place = dotted(key, name)
            if name not in fields:
                problem, nearest = _unknown_key(kind, place, list(fields))
                meant.add(nearest)
                self._refuse(place, problem)
            elif (now := _renamed_value(kind, name, value)) is not None:
                self._refuse(place, f'{place} = "{value}" is now called "{now}"; write that')
            else:
                count = len(self.problems)
                built = self._value(types[name], value, place, _is_recipe(fields[name]))
                if len(self.problems) == count:
                    values[name] = built
        for name, field in fields.items():
            if name not in table and name not in meant and _required(field):
                place = dotted(key, name)
                self._refuse(place, f"{place} is missing (expected {describe(types[name])})")
        return self._construct(kind, values, key, whole=len(self.problems) == before)

    def _construct(self, kind: type[Any], values: dict[str, Any], key: str, whole: bool) -> Any:
        """Let the dataclass check its values, those that could be read if not all could."""
        built = None
        with collecting() as refused:
            try:
                if whole:
                    built = kind(**values)
                else:
                    _check_some(kind, values)
            except ValueError as error:
                refused.append(str(error))
            except Exception:
                # A check met a value that is missing, or that an earlier one refused.
                if whole and not refused:
                    raise
        for problem in dict.fromkeys(refused):
            name = problem.split(" ", 1)[0]
            self._refuse(dotted(key, name), f"[{key}] {problem}" if key else problem)
        return None if refused else built

    def _value(self, expected: Any, value: Any, key: str, recipe: bool = False) -> Any:
        """Check one TOML value against the type its dataclass field declares."""
        nested = dataclass_of(expected)
        if nested is not None and isinstance(value, Mapping):
            if typing.get_origin(expected) is dict:  # tables by name, as in [profiles.tablet]
                return {name: self._named(nested, t, key, name) for name, t in value.items()}
            return self.build(nested, value, key)
        if _is_path(expected) and isinstance(value, str):
            if _names_nothing(value):
                self._refuse(key, f"{key} is empty; name a path, or leave {key} out")
                return None
            return self._source.resolve(value, recipe)
        if _item_is_path(expected) and isinstance(value, list):
            if any(isinstance(item, str) and _names_nothing(item) for item in value):
                self._refuse(key, f"{key} holds an empty path; name a path")
                return None
            items = (item if isinstance(item, str) else str(item) for item in value)
            return tuple(self._source.resolve(item, recipe) for item in items)
        value = _plain(value)
        with contextlib.suppress(ValidationError):
            # Strict as JSON is: "5" is no number, 1 is a float, a list may become a tuple.
            read = TypeAdapter(expected).validate_python(_tuples(expected, value), strict=True)
            if not _is_another_choice(value, read):
                return read
        self._refuse(key, f"{key} = {value!r} is refused: expected {describe(expected)}")
        return None

    def _named(self, kind: type[Any], table: Any, key: str, name: str) -> Any:
        if not isinstance(table, Mapping):
            self._refuse(dotted(key, name), f"{dotted(key, name)} must be {describe(kind)}")
            return None
        return self.build(kind, table, dotted(key, name))

    def _refuse(self, key: str, problem: str) -> None:
        where = "--set" if key in self._settings else self._source.path
        self.problems.append(f"{where}: {problem}")


def _check_some(kind: type[Any], values: Mapping[str, Any]) -> None:
    """Run the checks of a dataclass on some of its fields, as far as they come.

    A number that could not be read is None, which range checks pass over.
    """
    types = typing.get_type_hints(kind)
    needed = [field.name for field in dataclasses.fields(kind) if _required(field)]
    absent: dict[str, Any] = {name: None for name in needed if types[name] in _NUMBERS}
    partial: Any = object.__new__(type(kind.__name__, (kind,), absent))
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            object.__setattr__(partial, field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            object.__setattr__(partial, field.name, field.default_factory())
    for name, value in values.items():
        object.__setattr__(partial, name, value)
    getattr(partial, "__post_init__", lambda: None)()


def _plain(value: Any) -> Any:
    if isinstance(value, Typed):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _tuples(expected: Any, value: Any) -> Any:
    options = (expected, *typing.get_args(expected))
    if isinstance(value, list) and any(typing.get_origin(o) is tuple for o in options):
        return tuple(value)
    return value


def _is_another_choice(value: Any, read: Any) -> bool:
    """Whether a value was taken for a whole number that Python calls equal, as true is 1."""
    return type(read) is int and type(value) is not int


def _names_nothing(path: str) -> bool:
    """Whether a path is blank, as an unset variable in a template leaves it, or is none at all."""
    return not path.strip() or "\0" in path


def _is_path(expected: Any) -> bool:
    return expected is Path or Path in typing.get_args(expected)


def _item_is_path(expected: Any) -> bool:
    return typing.get_origin(expected) is tuple and _is_path(typing.get_args(expected)[0])


def _is_recipe(field: dataclasses.Field[Any]) -> bool:
    return bool(field.metadata.get("recipe"))


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _renamed_value(kind: type[Any], name: str, value: Any) -> str | None:
    return RENAMED_VALUES.get((kind.__name__, name, value)) if isinstance(value, str) else None


def _unknown_key(kind: type[Any], key: str, known: list[str]) -> tuple[str, str]:
    """Say what is wrong with a key that a recipe does not have, and which one was meant."""
    outer, _, name = key.rpartition(".")
    if (now := RENAMED.get((kind.__name__, name))) is not None:
        return f"{key} is now called {dotted(outer, now)}; rename it", now
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "expected one of " + ", ".join(known)
    return f"{key} is not a key of this recipe; {hint}", close[0] if close else ""
