"""The last evaluation of a run, as its folder holds it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pfl_lm.recipes import from_plain
from pfl_lm.run.folder import read_json


@dataclass(frozen=True)
class _Row:
    """A model's figures on held-out users."""

    name: str
    users: int
    perplexity: float | None = None
    top1: float | None = None
    top3: float | None = None
    keystrokes_saved: float | None = None
    buckets: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class _Profile:
    """The trained model on the users of one kind of phone."""

    name: str
    users: int
    share: float
    able: bool = True
    perplexity: float | None = None


@dataclass(frozen=True)
class _Suggestions:
    """What is suggested after a public text, before the first round and after the last."""

    text: str
    before: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class _Evaluation:
    split: str
    rows: tuple[_Row, ...]
    entropy_floor: float | None = None
    profiles: tuple[_Profile, ...] = ()
    suggestions: tuple[_Suggestions, ...] = ()


def read_evaluation(path: Path) -> dict[str, Any]:
    """Return the content of ``evaluation.json``; nothing where there is none yet.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    from_plain(_Evaluation, content, path, "evaluate the run again", known_keys_only=False)
    return content
