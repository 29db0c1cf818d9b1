"""Options that several verbs share, stated once: a function takes them, a verb takes its result."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from typing import Any

Verb = Callable[..., None]


def with_options(**readers: Callable[..., Any]) -> Callable[[Verb], Verb]:
    """Give a verb the options of functions in place of its parameters of those names.

    A verb ``serve(keys, calls)`` under ``with_options(calls=Calls)`` has an option for each field
    of ``Calls`` where ``calls`` stood, and is called with the ``Calls`` that they make.
    """

    def joined(verb: Verb) -> Verb:
        own = _parameters(verb)
        shared = {name: _parameters(reader) for name, reader in readers.items()}

        def offered() -> Iterator[Parameter]:
            for name, parameter in own.items():
                yield from shared[name].values() if name in shared else (parameter,)

        @functools.wraps(verb)
        def run(**options: Any) -> None:
            made = {
                name: reader(**{key: options.pop(key) for key in shared[name]})
                for name, reader in readers.items()
            }
            verb(**options, **made)

        del run.__wrapped__  # type: ignore[attr-defined]  # its source has other parameters
        parameters = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in offered()]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return joined


def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return a function's parameters by name, their annotations evaluated."""
    return dict(inspect.signature(function, eval_str=True).parameters)
