"""Closed domain: which words of a public list do people use that the vocabulary lacks?

One round. The cells are the words of a larger public list that lie beyond the vocabulary. Each
device names its m most used ones, with equal weights whose squares sum to 1, so a device that has
few of them counts more in each.

Source: the histogram of Zhu et al. 2020, "Federated heavy hitters discovery with differential
privacy" (arXiv:1902.08534), with noise that devices add in place of sampling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.found import FoundWord
from pfl_lm.queries.query import Answer, Query, equal_weights
from pfl_lm.queries.thresholds import by_rank, thresholds
from pfl_lm.text.normalisation import is_word
from pfl_lm.text.tokenizer import Tokenizer
from pfl_lm.text.tokenizer_recipe import TokenizerRecipe, VocabularySource
from pfl_lm.text.word_counts import count_words

OwnWords = Sequence[str]  # of one device: the words that the vocabulary lacks, most used first


def candidates(
    tokenizer: Tokenizer, size: int, path: Path | None = None, denied: Collection[str] = ()
) -> list[str]:
    """Return the first ``size`` words of a public list that the vocabulary lacks.

    Args:
        path: a table with columns ``word`` and ``count``; None: the list of the wordfreq package
            for the tokenizer's locale.
        denied: words that are never asked for.

    Raises:
        ValueError: the list is missing, or holds no word beyond the vocabulary.
    """
    locale = str(tokenizer.manifest.get("locale", "en_US"))
    kind = "wordfreq" if path is None else "word_list"
    source = VocabularySource(kind, "candidates of a query", "as the list states", path)  # type: ignore[arg-type]
    recipe = TokenizerRecipe(locale, 10_000, source)
    counts = count_words(recipe, tokenizer.normalisation)
    lacks, denied = (None, tokenizer.unk_id), set(denied)
    words = [
        word
        for word in counts
        if is_word(word) and word not in denied and tokenizer.word_id(word) in lacks
    ]
    if not words:
        raise ValueError(
            f"{path or f'the wordfreq list for {locale}'} holds no word beyond the vocabulary of "
            f"{tokenizer.vocabulary_size:,} ids; choose a larger list with --candidates-from, or "
            "ask for words in no list with --open"
        )
    return sorted(words, key=lambda word: (-counts[word], word))[:size]


def word_query(words: Sequence[str], entries: int, least_dim: int) -> Query:
    """Return the query whose cells are these words: at most ``entries`` a device, norm 1."""
    return Query("words of a public list", words, min(entries, len(words)), least_dim=least_dim)


def answer(own: OwnWords, cell_of: Mapping[str, int], entries: int) -> Answer:
    """Return what a device says: its ``entries`` most used words among the cells, norm 1."""
    listed = (cell_of[word] for word in own if word in cell_of)
    return equal_weights(list(islice(listed, entries)))


def believed(
    query: Query, sums: Doubles, deviation: float, false_positives: float
) -> list[FoundWord]:
    """Return the words whose sum noise alone hardly reaches.

    Args:
        false_positives: expected number of returned words that nobody named, at most.
    """
    limits = thresholds(deviation, by_rank(len(query.labels)), false_positives)
    return [
        FoundWord(query.labels[cell], float(sums[cell]), float(sums[cell] / deviation))
        for cell in np.flatnonzero(sums > limits).tolist()
    ]


@dataclass(frozen=True)
class WordList:
    """What is known of a public list's words, before the one round or after it; all of it public.

    Attributes:
        words: of the list, the most frequent first; the cells.
        entries: the most words that one device names.
        false_positives: expected number of found words that nobody named, at most.
        round: 0 before the round, 1 after it.
    """

    words: tuple[str, ...]
    entries: int
    false_positives: float
    round: int = 0
    found: Mapping[str, FoundWord] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether nothing is left to ask."""
        return self.round > 0

    @property
    def most_cells(self) -> int:
        """The most cells of a round."""
        return len(self.words)

    def query(self, least_dim: int) -> Query:
        """Return the round's question."""
        return word_query(self.words, self.entries, least_dim)

    def say(self, query: Query) -> str:
        """Say what the round asks for."""
        return f"{len(query.labels):,} words of a public list"

    def so_far(self) -> str:
        """Say what is known."""
        return f"{len(self.found):,} words so far"

    def answer(self, own: OwnWords, cell_of: Mapping[str, int], denied: Collection[str]) -> Answer:
        """Return what a device says; no denied word is in the list."""
        return answer(own, cell_of, self.entries)

    def descend(self, query: Query, sums: Doubles, deviation: float) -> WordList:
        """Return the words that noise alone hardly reaches."""
        words = believed(query, sums, deviation, self.false_positives)
        return replace(self, round=1, found={word.word: word for word in words})
