"""Options that take a number: each has a least and a largest value, and refuses NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from pfl_lm.validate import within


def number(low: float, high: float, help: str, *flags: str) -> Any:
    """Describe an option whose value lies in [low, high]; a list holds such values only.

    Typer's own ranges let NaN through and answer in a box of several lines.
    """
    return typer.Option(*flags, help=help, callback=between(low, high))


def between(low: float, high: float) -> Callable[[typer.CallbackParam, Any], Any]:
    """Return a callback that raises ValueError for a value outside [low, high]."""

    def check(param: typer.CallbackParam, value: Any) -> Any:
        name = f"--{str(param.name).replace('_', '-')}"
        for one in value if isinstance(value, list | tuple) else [value]:
            within(low, high, **{name: one})
        return value

    check.bounds = (low, high)  # type: ignore[attr-defined]
    return check
