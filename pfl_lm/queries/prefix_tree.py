"""Open domain: words that no list holds, letter by letter down a prefix tree.

Round 0 asks for the first three letters, every further round for two more, below the prefixes that
were believed. A word ends with ``$``. A device votes at each round for the next letters of its most
used words that are still alive: their prefix was believed and they are not found yet. Its weights
are equal and their squares sum to 1, so dead words take nothing from living ones.

Every user is asked in every round: with r rounds of equal noise that costs √r in noise, while
disjoint users would cost a factor r in signal. The policy's ``rounds`` pay for all of them
together.

Source: Zhu et al. 2020 (arXiv:1902.08534), the tree; Chadha et al. 2023, "Differentially private
heavy hitter detection using federated analytics" (arXiv:2307.11749), adaptive levels and deny
lists; both with noise that devices add and secure aggregation in place of sampling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.found import FoundWord
from pfl_lm.queries.query import Answer, Query, equal_weights
from pfl_lm.queries.thresholds import thresholds
from pfl_lm.queries.word_list import OwnWords
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.validate import at_least, positive

END = "$"
_FIRST, _NEXT = 3, 2  # letters of the first round, and of each further one
_FALSE_PREFIXES = 5.0  # expected in a round; they cost width, and no false word
_COMMON = 1e-3  # of the vocabulary's words hold a letter that is asked for


@dataclass(frozen=True)
class TreePlan:
    """How the tree is walked.

    Args:
        rounds: of the whole question.
        entries: the most words that a device votes for in a round.
        cells: the most cells of a round; the strongest prefixes stay.
        false_positives: expected number of returned words that nobody typed, over all rounds.
        letters: the public alphabet; words with other letters are not asked for.

    Raises:
        ValueError: a number out of range, or an alphabet whose first round exceeds ``cells``.
    """

    rounds: int
    entries: int
    cells: int
    false_positives: float
    letters: tuple[str, ...]

    def __post_init__(self) -> None:
        at_least(1, rounds=self.rounds, entries=self.entries)
        positive(false_positives=self.false_positives)
        needed = len(self._extensions(_FIRST))
        if needed > self.cells:
            raise ValueError(
                f"cells = {self.cells:,}, but the first letters of words over {len(self.letters)} "
                f"letters need {needed:,}: state --cells {needed} or more, or ask for the words of "
                "a list"
            )

    def length(self, round: int) -> int:
        """Return how many letters, the end included, are known after a round."""
        return _FIRST + _NEXT * round

    def extensions(self, round: int) -> list[str]:
        """Return what a round appends to a prefix."""
        return self._extensions(_FIRST if round == 0 else _NEXT)

    def _extensions(self, count: int) -> list[str]:
        shortest = 1 if count == _FIRST else 0  # no word is empty
        ended = [
            "".join(letters) + END
            for shorter in range(shortest, count)
            for letters in product(self.letters, repeat=shorter)
        ]
        return ended + ["".join(letters) for letters in product(self.letters, repeat=count)]

    def most_prefixes(self, round: int) -> int:
        """Return how many prefixes a round can stand on."""
        return self.cells // len(self.extensions(round))


@dataclass(frozen=True)
class Tree:
    """What is known of the tree before a round; public, like every sum it follows from."""

    plan: TreePlan
    round: int = 0
    prefixes: tuple[str, ...] = ("",)
    found: Mapping[str, FoundWord] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing is left to ask."""
        return self.round == self.plan.rounds or not self.prefixes

    @property
    def most_cells(self) -> int:
        """The most cells of a round."""
        return self.plan.cells

    def query(self, least_dim: int) -> Query:
        """Return the next round's question."""
        extensions = self.plan.extensions(self.round)
        cells = [prefix + extension for prefix in self.prefixes for extension in extensions]
        name = f"letters up to {self.plan.length(self.round)} of words in no list"
        return Query(name, cells, self.plan.entries, least_dim=least_dim)

    def say(self, query: Query) -> str:
        """Say what the next round asks for."""
        return (
            f"{query.name}, {len(self.prefixes):,} beginnings, {len(query.labels):,} cells "
            f"(round {self.round + 1} of {self.plan.rounds})"
        )

    def so_far(self) -> str:
        """Say what is known."""
        return f"{len(self.found):,} words so far"

    def answer(self, own: OwnWords, cell_of: Mapping[str, int], denied: Collection[str]) -> Answer:
        """Return a device's vote: the next letters of its most used words that are alive.

        Words that share these letters are one entry.
        """
        chosen: dict[int, None] = {}
        length = self.plan.length(self.round)
        for word in own:
            cell = cell_of.get((word + END)[:length])
            if cell is None or word in self.found or word in denied:
                continue
            chosen[cell] = None
            if len(chosen) == self.plan.entries:
                break
        return equal_weights(list(chosen))

    def descend(self, query: Query, sums: Doubles, deviation: float) -> Tree:
        """Return the tree after a round: words that ended, and prefixes to go on from.

        Guarantees:
            Over all rounds the expected number of found words that nobody named is at most
            ``plan.false_positives``. A prefix that nobody named may go on; it leads to no word but
            by the same chance again.
        """
        plan, ended = self.plan, np.array([label.endswith(END) for label in query.labels])
        allowed = plan.false_positives / plan.rounds
        limits = np.empty(len(sums))
        for which, chance in ((ended, allowed), (~ended, _FALSE_PREFIXES)):
            limits[which] = thresholds(deviation, np.ones(which.sum()), chance)
        passed = np.flatnonzero(sums > limits)
        found = dict(self.found)
        for cell in passed[ended[passed]]:
            word = query.labels[cell].removesuffix(END)
            found[word] = FoundWord(word, float(sums[cell]), float(sums[cell] / deviation))
        after = self.round + 1
        going = sorted(passed[~ended[passed]], key=lambda cell: -sums[cell])
        room = plan.most_prefixes(after) if after < plan.rounds else 0
        prefixes = tuple(sorted(query.labels[cell] for cell in going[:room]))
        return Tree(plan, after, prefixes, found)


def alphabet(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the letters that words are asked for in: those of the public vocabulary's words.

    A letter that fewer than one word in a thousand holds is left out, a digit never.
    """
    words = [w for w, k in zip(tokenizer.words, tokenizer.kinds, strict=True) if k == "word"]
    held = Counter(letter for word in words for letter in set(word))
    common = {letter for letter, count in held.items() if count >= _COMMON * len(words)}
    return tuple(sorted((common | set("0123456789")) - {END}))
