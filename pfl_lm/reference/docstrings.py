"""What the fields of a dataclass mean, from ``Args`` or ``Attributes`` of its docstring."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"^(Args|Attributes):$")
_ENTRY = re.compile(r"^    (\w+(?:, \w+)*): +(.*)$")
_MARKUP = re.compile(r"``([^`]*)``|:(?:func|mod|class):`([^`]*)`")


def summary(kind: type) -> str:
    """Return the first sentence of a class's docstring, without its stop."""
    return _plain((inspect.getdoc(kind) or "").split("\n\n")[0]).rstrip(".")


def explanations(kind: type) -> dict[str, str]:
    """Return what each field of a dataclass means, by its name; fields may share one entry.

    >>> from pfl_lm.phones.fleet import Profile
    >>> explanations(Profile)["upload_mbps"]
    'median rates, 10^6 bits per second.'
    """
    meanings: dict[str, str] = {}
    inside = False
    names: list[str] = []
    for line in (inspect.getdoc(kind) or "").split("\n"):
        if line and not line.startswith(" "):
            inside = bool(_SECTION.match(line))
        elif inside and (entry := _ENTRY.match(line)):
            names = entry[1].split(", ")
            meanings |= dict.fromkeys(names, entry[2])
        elif inside and line.strip():
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return {name: _plain(text) for name, text in meanings.items()}


def _plain(text: str) -> str:
    """Return text without the marks of reStructuredText, in the words of a recipe."""
    unmarked = _MARKUP.sub(lambda mark: mark[1] or mark[2], " ".join(text.split()))
    return re.sub(r"\bNone\b", "left out", unmarked)
