"""The commonest words of public text, and how a passage of it names them.

Legend: W listed words, n passages, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

MOST_LISTED = 4096  # words
MOST_NAMED = 1000  # words that one text names


@dataclass(frozen=True)
class ListedWords:
    """W words, and what a passage of public text says of them.

    A text names its distinct listed words, the most used first, all alike: 1 ÷ √(words named).

    Attributes:
        ids: int64[W], commonest first.
        means: float64[W], what a passage says of each on average.
        labels: W names for people, all different.
    """

    ids: npt.NDArray[np.int64]
    means: npt.NDArray[np.float64]
    labels: tuple[str, ...]

    def named(self, tokens: np.ndarray) -> list[int]:
        """Return the places in the list of the words that a text names."""
        words, times = np.unique(tokens, return_counts=True)
        listed = np.argsort(self.ids)
        at = np.searchsorted(self.ids, words, sorter=listed)
        places = listed[np.minimum(at, len(listed) - 1)]
        known = self.ids[places] == words
        order = np.lexsort((words[known], -times[known]))[:MOST_NAMED]
        found: list[int] = places[known][order].tolist()
        return found


def listed_words(counts: sparse.csr_array, words: Sequence[str]) -> ListedWords:
    """List the commonest words of a store.

    Args:
        counts: (n, V), the tokens of each passage.
        words: V of them, by id.
    """
    total = np.asarray(counts.sum(axis=0)).ravel()
    ids = np.argsort(-total, kind="stable")[: min(MOST_LISTED, int((total > 0).sum()))]
    said = counts[:, ids].tocsr().astype(np.float64)
    said.data[:] = 1.0
    named = np.maximum(np.asarray(said.sum(axis=1)).ravel(), 1.0)
    means = (1 / np.sqrt(named)) @ said / len(named)
    labels = tuple(f"{id}: {words[id]}" for id in ids.tolist())
    return ListedWords(ids.astype(np.int64), np.asarray(means, dtype=np.float64), labels)
