"""What evaluation knows of a vocabulary: words, marks, emoji, and how frequent words are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pfl_lm.evaluation.interfaces import TokenizerLike
from pfl_lm.text.pieces import is_emoji
from pfl_lm.text.tokenizer import LEFT_OUT

# Upper public frequency rank of each bucket of words.
BUCKETS = (("1–100", 100), ("101–1k", 1_000), ("1k–10k", 10_000), ("10k+", 2**62))


@dataclass(frozen=True)
class Vocabulary:
    """What evaluation knows of each token id.

    Attributes:
        is_predicted: bool[V], false for <pad> and <s>.
        is_word: bool[V], words that the keyboard may suggest.
        is_unknown: bool[V], <unk> and the pieces of words outside the vocabulary.
        counts_as_word: bool[V], words, <unk>, and the first piece of an unknown word.
        is_mark, is_emoji: bool[V], punctuation, and the emoji of the vocabulary.
        letters: int64[V], characters of each word.
        bucket: int64[V], place in ``BUCKETS`` by public rank among the words.
    """

    is_predicted: np.ndarray
    is_word: np.ndarray
    is_unknown: np.ndarray
    counts_as_word: np.ndarray
    is_mark: np.ndarray
    is_emoji: np.ndarray
    letters: np.ndarray
    bucket: np.ndarray

    @classmethod
    def of(cls, tokenizer: TokenizerLike) -> Vocabulary:
        """Sort the ids of a tokenizer into these classes."""
        size = len(tokenizer.words)
        kinds = np.array(getattr(tokenizer, "kinds", ["word"] * size))
        special, unk = np.zeros((2, size), dtype=bool)
        special[list(tokenizer.specials)] = True
        unk[tokenizer.unk_id] = True
        starts = np.array([word.startswith("\u2581") for word in tokenizer.words])
        subword = kinds == "subword"
        mark = kinds == "mark"
        left_out = kinds == LEFT_OUT
        emoji = mark & np.array([bool(word) and is_emoji(word) for word in tokenizer.words])
        is_word = ~special & ~unk & ~subword & ~mark & ~left_out
        is_predicted = np.ones(size, dtype=bool)
        is_predicted[[tokenizer.pad_id, tokenizer.bos_id]] = False
        return cls(
            is_predicted=is_predicted,
            is_word=is_word,
            is_unknown=unk | subword,
            counts_as_word=is_word | unk | (subword & starts),
            is_mark=mark & ~emoji,
            is_emoji=emoji,
            letters=np.array([len(word) for word in tokenizer.words], dtype=np.int64),
            bucket=_buckets(tokenizer.unigram, is_word),
        )

    @property
    def never_suggested(self) -> np.ndarray:
        """The ids that are no words, int64."""
        return np.flatnonzero(~self.is_word)


def _buckets(unigram: np.ndarray, is_word: np.ndarray) -> np.ndarray:
    """Return the bucket of each word by its public rank among words, int64[V]."""
    order = np.argsort(-np.where(is_word, unigram, -1.0), kind="stable")
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(1, len(order) + 1)
    return np.searchsorted([upper for _, upper in BUCKETS], rank)
