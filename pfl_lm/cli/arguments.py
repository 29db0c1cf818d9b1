"""What an argument of any verb may not be: empty, as an unset variable of a shell leaves it.

An empty path would be read as the current folder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

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
