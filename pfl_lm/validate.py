"""Range checks for the numbers and choices that people state: one line that names the field.

Every check takes fields by name and passes over None, which says that a field was left out. NaN and
infinity are refused by all of them: a number that is not one must not choose a noise or an ε.

    positive(learning_rate=self.learning_rate)
    one_of(("poisson", "rotation"), kind=self.kind)

Within ``collecting()`` the checks gather what they refuse instead of stopping at the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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
