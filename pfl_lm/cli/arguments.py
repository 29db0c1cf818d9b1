"""Arguments of any verb: none may be empty, and a text is read as UTF-8.

A shell's unset variable leaves an empty argument, and an empty path would be read as the current
folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_OPTION = re.compile(r"-[a-z]|--[a-z][a-z-]*")
_STATED_EMPTY = re.compile(r"(--[a-z][a-z-]*)=")


def refuse_empty(arguments: Sequence[str]) -> None:
    """Check the command line of a verb; the texts of `pfl-lm suggest` alone may be empty.

    Raises:
        ValueError: naming the option that has no value, or the argument's place.
    """
    for before, value in pairwise(["", *arguments]):
        stated = _STATED_EMPTY.fullmatch(value)
        if stated or (not value and _OPTION.fullmatch(before)):
            option = stated[1] if stated else before
            raise ValueError(f"{option} is empty: state a value, or leave it out")
        if not value and arguments[0] != "suggest":
            after = f" after {before!r}" if before else ""
            raise ValueError(f"an argument{after} is empty: an unset variable of the shell?")


def refuse_other_encodings(arguments: Sequence[str]) -> None:
    """Refuse a name that is not UTF-8: manifests and pages state names, and could not hold it.

    The texts of `pfl-lm suggest` and of `pfl-lm tokenizer describe` are not names.

    Raises:
        ValueError: naming the argument, with ? for what cannot be read.
    """
    for before, value in pairwise(["", *arguments]):
        if arguments[0] == "suggest" or before == "--text":
            continue
        try:
            os.fsencode(value).decode("utf-8")
        except UnicodeDecodeError:
            shown = os.fsencode(value).decode("ascii", "replace").replace("\ufffd", "?")
            raise ValueError(
                f"{shown!r} is not UTF-8, and files and pages must state names in UTF-8: rename it"
            ) from None


def listed(text: str) -> tuple[str, ...]:
    """Return the parts of a comma-separated text."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def typed(value: Any) -> Any:
    """Return what was typed, a text or several, also where the locale's encoding is not UTF-8.

    Python then reads each byte that is not ASCII as half a surrogate pair. Paths stay so, because
    that is how the operating system takes them back.
    """
    if isinstance(value, list):
        return [typed(one) for one in value]
    if isinstance(value, str):
        return os.fsencode(value).decode("utf-8", "replace")
    return value
