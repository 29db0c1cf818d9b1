"""What a search chooses from: ranges of numbers, and choices of any values.

training.learning_rate=0.1:10:log     any number from 0.1 to 10, by its logarithm
cohort=20:100                         a whole number, as the key takes no other
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pfl_lm.api.sweep.plan import Trial, choices_of, label_of, shown
from pfl_lm.reference.keys import find_key
from pfl_lm.run.scenario import Scenario

DIGITS = 4  # of a number that a search tries: a person can type it again


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read ``KEY=LOW:HIGH`` or ``KEY=LOW:HIGH:log``.

        Raises:
            ValueError: it is written otherwise, or the key takes no number.
        """
        key, _, ends = text.partition("=")
        low, _, rest = ends.partition(":")
        high, _, scale = rest.partition(":")
        try:
            numbers = float(low), float(high)
        except ValueError:
            numbers = math.nan, math.nan
        if not all(map(math.isfinite, numbers)) or scale not in ("", "log"):
            raise ValueError(
                f"--range {text}: write KEY=LOW:HIGH, or KEY=LOW:HIGH:log for a range of which "
                "every factor counts the same, such as training.learning_rate=0.1:10:log"
            )
        whole = _takes_whole_numbers(key.strip(), text)
        return cls(key.strip(), *numbers, scale == "log", whole)._checked(text)

    def _checked(self, text: str) -> Range:
        if self.low >= self.high:
            raise ValueError(f"--range {text}: the first number must be below the second")
        if self.log and self.low <= 0:
            raise ValueError(f"--range {text}: a range by its logarithm begins above 0")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"--range {text}: {self.key} takes whole numbers")
        return self

    def value(self, suggested: float) -> int | float:
        """Return a suggested number with ``DIGITS`` digits, within the range."""
        if self.whole:
            return int(suggested)
        return min(max(float(f"{suggested:.{DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Space:
    """What a search varies, and what it sets.

    Attributes:
        ranges: by key.
        choices: values by key, of which each trial takes one.
        fixed: values by key.
    """

    ranges: dict[str, Range]
    choices: dict[str, list[Any]]
    fixed: dict[str, Any]

    @classmethod
    def parse(cls, ranges: Sequence[str], choices: Sequence[str]) -> Space:
        """Read the options of a search.

        Raises:
            ValueError: one of them is written wrongly, a key stands twice, or nothing varies.
        """
        numbers = [Range.parse(text) for text in ranges]
        values = choices_of(choices)
        keys = [each.key for each in numbers]
        twice = sorted({key for key in keys if keys.count(key) > 1 or key in values})
        if twice:
            raise ValueError(f"{twice[0]} is stated twice; choose one --range or --set of it")
        varying = {key: several for key, several in values.items() if len(several) > 1}
        if not numbers and not varying:
            raise ValueError("a search needs something to vary: a --range, or --set KEY=A,B")
        if "seed" in {*keys, *varying}:
            raise ValueError("a search for the luckiest seed finds luck; --seeds runs several")
        fixed = {key: several[0] for key, several in values.items() if key not in varying}
        return cls({each.key: each for each in numbers}, varying, fixed)

    def corners(self) -> Iterator[dict[str, Any]]:
        """Yield settings that take each end and each choice once, to be checked beforehand."""
        ends = {each.key: [each.value(each.low), each.value(each.high)] for each in self._ranges}
        values = {**ends, **self.choices}
        first = self.fixed | {key: several[0] for key, several in values.items()}
        for key, several in values.items():
            for value in several:
                yield first | {key: value}

    def settings(self, suggested: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of what a sampler suggested; a choice is suggested as its text."""
        chosen = {
            key: next(value for value in several if shown(value) == suggested[key])
            for key, several in self.choices.items()
        }
        numbers = {each.key: each.value(suggested[each.key]) for each in self._ranges}
        return self.fixed | chosen | numbers

    def trials(
        self, suggested: Mapping[str, Any], number: int, seeds: int, first_seed: int
    ) -> list[Trial]:
        """Return the runs of a suggestion, which differ in the seed alone."""
        settings = self.settings(suggested)
        label = label_of({key: settings[key] for key in (*self.ranges, *self.choices)})
        return [
            Trial(f"{number * seeds + place:03d}", settings | {"seed": first_seed + place}, label)
            for place in range(seeds)
        ]

    @property
    def _ranges(self) -> list[Range]:
        return list(self.ranges.values())


def _takes_whole_numbers(key: str, text: str) -> bool:
    """Whether a key takes whole numbers only.

    Raises:
        ValueError: there is no such key, or it takes no number.
    """
    known = find_key(Scenario, key)
    if known.name != key:
        raise ValueError(f"--range {text}: write {known.name}=LOW:HIGH")
    kinds = known.expected.split(" or ")
    if "a number" not in kinds and "a whole number" not in kinds:
        raise ValueError(f"--range {text}: {key} takes no number; name values by --set {key}=A,B")
    return "a number" not in kinds
