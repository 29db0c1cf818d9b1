"""Passages of public text: messages in a row, the pieces that clusters divide and weights choose.

Legend: n passages, V words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pfl_lm.text.population import BOS_ID, PopulationStore

PASSAGE_TOKENS = 100  # some messages in a row: one topic, and words enough to tell it
Bounds = npt.NDArray[np.int64]


def passages(stream: np.ndarray, least: int = PASSAGE_TOKENS) -> Bounds:
    """Cut a stream ``<s> w w </s> <s> …`` into passages: int64[n + 1], where each begins.

    A passage is the fewest messages in a row that hold ``least`` tokens; the last one takes what is
    left. Public text is stored in the order of its source, so neighbours are often alike.
    """
    begins = np.flatnonzero(stream == BOS_ID)
    bounds = [0]
    while (place := np.searchsorted(begins, bounds[-1] + least)) < len(begins):
        bounds.append(int(begins[place]))
    return np.array([*bounds, len(stream)], dtype=np.int64)


def word_counts(stream: np.ndarray, bounds: Bounds, vocabulary_size: int) -> sparse.csr_array:
    """Count the tokens of each passage: int32 (n, V)."""
    ones, shape = np.ones(len(stream), dtype=np.int32), (len(bounds) - 1, vocabulary_size)
    words, begins = stream.astype(np.int64), bounds.copy()  # the table is summed up in place
    table = sparse.csr_array((ones, words, begins), shape=shape)
    table.sum_duplicates()
    return table


def public_stream(store: PopulationStore) -> np.ndarray:
    """Return a store's whole text, unsigned[tokens]; ValueError unless it is public."""
    store.require_public()
    return store.stream("train")
