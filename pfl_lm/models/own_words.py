"""One user's own words beside a shared model: a cache of counts that stays on the phone.

What a person types repeats itself: names, places, turns of phrase. The phone counts its user's
words and mixes the counts into the shared model's prediction. Nothing of them is reported, so they
cost no ε, and forgetting them is deleting them.

The counts are kept after the last two words, after the last word, and after anything. Each level j
takes the one below as its prior, and level 0 is the model:

    p_j(w) = (max(n_j(w) − D_j, 0) + (A_j + D_j · k_j) p_{j−1}(w)) / (n_j + A_j)

n_j(w) is how often w followed the level's context, n_j the sum and k_j the number of these words; a
level that has seen nothing changes nothing. So the outcome is ``factor`` · p_model + ``shares``,
where shares are sparse, and a phone needs no second look at the vocabulary.

Source: the cache of Kuhn & De Mori 1990, "A cache-based natural language model for speech
recognition"; the smoothing is that of a Pitman-Yor process with discount D and strength A, in its
Kneser-Ney form (Teh 2006, "A hierarchical Bayesian language model based on Pitman-Yor processes",
section 4.1, one table for each word).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_lm.validate import refuse

Context = tuple[int, ...]


@dataclass(frozen=True)
class OwnWordsRule:
    """How much a phone believes its own counts; one number for each length of context, 0 to 2.

    Attributes:
        strengths: A, in words: a level with so many counts weighs as much as the level below.
        discounts: D, what is taken off each count, since one occurrence proves little.

    Raises:
        ValueError: not three of each, or out of range.
    """

    strengths: tuple[float, ...] = (5000.0, 40.0, 3.0)
    discounts: tuple[float, ...] = (0.5, 0.8, 0.8)

    def __post_init__(self) -> None:
        if not len(self.strengths) == len(self.discounts) == 3:
            refuse("strengths and discounts need three numbers each")
        if not all(0 < strength < float("inf") for strength in self.strengths):
            refuse(f"strengths must be above 0 and finite, got {self.strengths}")
        if not all(0 <= discount < 1 for discount in self.discounts):
            refuse(f"discounts must lie in [0, 1), got {self.discounts}")


class OwnWords:
    """What one phone has counted so far."""

    def __init__(self, rule: OwnWordsRule, vocabulary_size: int, begin: int) -> None:
        """Start with nothing counted.

        Args:
            begin: the id that begins a message; no context reaches behind it.
        """
        self._rule, self._size, self._begin = rule, vocabulary_size, begin
        self._counts: dict[Context, dict[int, int]] = {}

    def add(self, before: np.ndarray, word: int) -> None:
        """Count a word that its user typed after these."""
        for context in self._contexts(before):
            counts = self._counts.setdefault(context, {})
            counts[word] = counts.get(word, 0) + 1

    def mixture(self, before: np.ndarray) -> tuple[float, np.ndarray]:
        """Return what becomes of the model's probabilities after these words.

        Returns:
            factor and shares, float64[V]: a word's probability is factor · p_model + its share;
            factor and all shares add up to 1.
        """
        factor, shares = 1.0, np.zeros(self._size)
        for level, context in enumerate(self._contexts(before)):
            counted = self._counts.get(context)
            if counted is None:
                continue
            words = np.fromiter(counted.keys(), np.int64, len(counted))
            counts = np.fromiter(counted.values(), np.float64, len(counted))
            strength, discount = self._rule.strengths[level], self._rule.discounts[level]
            total = counts.sum() + strength
            below = (strength + discount * len(words)) / total
            factor *= below
            shares *= below
            shares[words] += (counts - discount) / total
        return factor, shares

    def _contexts(self, before: np.ndarray) -> list[Context]:
        """Return the contexts of a word after these words, the shorter first."""
        last = tuple(np.asarray(before)[-2:].tolist())
        if len(last) == 2 and last[1] == self._begin:
            last = last[1:]
        return [last[len(last) - length :] for length in range(len(last) + 1)]
