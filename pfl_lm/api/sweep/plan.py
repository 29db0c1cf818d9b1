"""What a sweep runs: every combination of the values of some keys, each with several seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfl_lm.recipes import RecipeError, parse_settings
from pfl_lm.reference.keys import in_toml

MOST_TRIALS = 1000


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: values by dotted key, the seed among them.
        label: the settings that vary, in words, without the seed: trials of one label differ in
            chance alone.
    """

    name: str
    settings: dict[str, Any]
    label: str


def plan(texts: Sequence[str], seeds: int, first_seed: int) -> list[Trial]:
    """Return the trials of a sweep, in the order of the choices.

    Args:
        texts: ``KEY=VALUE,VALUE,…``; commas within brackets, braces and quotes belong to a value.
        seeds: runs of each combination.
        first_seed: of the scenario, where no choice states one; the others follow.

    Raises:
        RecipeError: a text has no key, seeds are chosen twice, or there are too many trials.

    >>> [trial.label for trial in plan(["training.learning_rate=0.3,1", "cohort=20"], 1, 0)]
    ['training.learning_rate = 0.3', 'training.learning_rate = 1']
    """
    choices = choices_of(texts)
    if seeds > 1:
        first_seed = _first_seed(choices.get("seed", [first_seed]))
    combinations = list(itertools.product(*choices.values()))
    if len(combinations) * seeds > MOST_TRIALS:
        raise RecipeError(f"{len(combinations) * seeds:,} trials; a sweep runs {MOST_TRIALS:,}")
    varying = [key for key, values in choices.items() if len(values) > 1]
    trials: list[Trial] = []
    for combination in combinations:
        settings = dict(zip(choices, combination, strict=True))
        label = label_of({key: settings[key] for key in varying})
        for seed in range(first_seed, first_seed + seeds):
            name = f"{len(trials):03d}"
            trials.append(Trial(name, settings | ({"seed": seed} if seeds > 1 else {}), label))
    return trials


def _first_seed(stated: list[Any]) -> int:
    if len(stated) > 1:
        raise RecipeError("--seeds runs seeds one after the other: set seed to the first of them")
    if type(stated[0]) is not int:
        raise RecipeError(f"seed = {shown(stated[0])} is refused: expected a whole number")
    return stated[0]


def choices_of(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each key, from ``KEY=VALUE,VALUE,…``; of equal ones the first.

    Raises:
        RecipeError: a text has no key.
    """
    choices: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        singles = [f"{key}{equals}{value}" for value in _split(values)] if equals else [text]
        for single in singles:
            for name, value in parse_settings([single]).items():
                known = choices.setdefault(name, [])
                if not any(_equal(value, each) for each in known):
                    known.append(value)
    return choices


def _equal(one: Any, other: Any) -> bool:
    """Whether a key takes two values for one: 1 and 1.0, but not 1 and true."""
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)


def label_of(varying: Mapping[str, Any]) -> str:
    """Say in words which values the varying settings have."""
    return ", ".join(f"{key} = {shown(value)}" for key, value in varying.items()) or "as it stands"


def shown(value: Any) -> str:
    """Write a value as a person would type it."""
    return "none" if value is None else in_toml(value).strip('"')


def _split(text: str) -> list[str]:
    """Split at commas that stand in no bracket and in no quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
