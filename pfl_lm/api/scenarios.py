"""Scenarios, policies and projects, for programs and notebooks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pfl_lm.dp.policy import Policy
from pfl_lm.project.create import DEFAULT, create
from pfl_lm.recipes import load
from pfl_lm.run.scenario import Scenario


def load_scenario(source: Path | str, settings: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario.

    Args:
        source: a TOML file, or the name of a scenario that ships with the package.
        settings: values by dotted key that replace those of the file; None takes a key out.

    Raises:
        ValueError: there is no such file, or it has mistakes; the message names all of them.

    >>> import pfl_lm
    >>> scenario = pfl_lm.load_scenario("chat_partial", {"training.epochs": 2, "rounds": 20})
    >>> scenario.training.epochs, scenario.rounds, scenario.clip_norm
    (2, 20, 0.4)
    """
    return load(Scenario, Path(source), _plain(settings))


def load_policy(source: Path | str, settings: Mapping[str, Any] | None = None) -> Policy:
    """Read a privacy policy; arguments and errors as those of ``load_scenario``.

    >>> import pfl_lm
    >>> pfl_lm.load_policy("privacy/keyboard_150").epsilon
    2.0
    """
    return load(Policy, Path(source), _plain(settings))


def _plain(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return settings with Python's own numbers for those of numpy, in tables and lists, too."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise ValueError(
            f"settings = {settings!r} is refused: expected values by dotted key, such as "
            '{"training.epochs": 2}'
        )
    return {key: _plain_value(key, value) for key, value in settings.items()}


def _plain_value(key: str, value: Any) -> Any:
    if getattr(value, "ndim", None) == 0:  # of numpy
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain_value(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(key, item) for item in value]
    if value is None or isinstance(value, str | os.PathLike | bool | int | float):
        return value
    raise ValueError(
        f"settings: {key} is {type(value).__name__}, which no recipe can state; write a number, "
        "text, a path, a list or a table (of a policy, its file)"
    )


def new_project(folder: Path | str, template: str = DEFAULT) -> Path:
    """Write a small project, as `pfl-lm new` does, and return its folder.

    Args:
        folder: a new or an empty folder.
        template: ``invented``, ``chat``, ``fleet`` or ``network``.

    Raises:
        ValueError: the folder holds something, or there is no such template.

    >>> import pfl_lm, tempfile
    >>> project = pfl_lm.new_project(tempfile.mkdtemp())
    >>> sorted(path.name for path in project.glob("*.toml"))
    ['policy.toml', 'scenario.toml']
    """
    if not isinstance(template, str):
        raise ValueError(f"template = {template!r} is refused: expected text")
    return create(Path(folder), template)
