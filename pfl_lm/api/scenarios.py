"""Scenarios, policies and projects, for programs and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

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


def _plain(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return settings with Python's own numbers for those of numpy."""
    if settings is None:
        return None
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in settings.items()}


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
    return create(Path(folder), template)
