"""The tables of English as chance writes it, from public counts of words and bigrams.

Legend of shapes: N words of the chain, S successors, K topics, H habits.

Source: bigrams, the table that symspellpy ships (MIT); words and their frequencies, wordfreq's
English list (Speer 2022).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files

import numpy as np

from pfl_lm.streams import stream
from pfl_lm.text.synthetic import english_words as lists
from pfl_lm.text.synthetic.english import English
from pfl_lm.text.synthetic.language import FIRST_WORD, HABITS

LEAST_WORDS = 1000  # of a vocabulary: below, most successors would be missing
SUCCESSORS = 32
CHAIN = 20_000  # words that messages are made of, at most
NAMED = 0.45  # chance that a message names what it is about, where it can
# In private, a bigram weighs more by how much commoner its second word is in wordfreq than on the
# web: by that ratio, bounded, to this power.
CONVERSATION, BOUNDS = 1.6, (0.1, 3.0)
_TABLE = "frequency_bigramdictionary_en_243_342.txt"


@lru_cache(maxsize=4)
def english_of(vocabulary_size: int) -> English:
    """Return the English of so many ids; ValueError below ``LEAST_WORDS``."""
    if vocabulary_size < LEAST_WORDS:
        raise ValueError(
            f"vocabulary_size = {vocabulary_size}; invented English needs at least {LEAST_WORDS:,}"
        )
    frequency = _frequencies()
    spellings = [spelling for row in lists.SPELLINGS for spelling in row]
    named = [word for words in lists.TOPICS.values() for word in words.split()]
    wanted = [*lists.OPENERS.split(), *named, *lists.NAMING.split(), *frequency]
    variants = frozenset(spelling for row in lists.SPELLINGS for spelling in row[1:])
    once = dict.fromkeys(word for word in wanted if word not in variants)
    room = vocabulary_size - FIRST_WORD
    kept = list(dict.fromkeys([*spellings, *once]))[:room]
    kept.sort(key=lambda word: (-frequency.get(word, 0.0), word))
    return _tables(tuple(kept), frequency, variants)


def _tables(
    words: tuple[str, ...], frequency: dict[str, float], variants: frozenset[str]
) -> English:
    """Fill the tables for the words of a vocabulary, most frequent first."""
    ids = {word: FIRST_WORD + place for place, word in enumerate(words)}
    named = {word for line in lists.TOPICS.values() for word in line.split()}
    own = [word for word in words if word not in variants]
    chain = [w for place, w in enumerate(own) if (place < CHAIN and w in frequency) or w in named]
    place_of = {word: place for place, word in enumerate(chain)}
    lexeme = np.full(len(chain), -1)
    for row, spelling in enumerate(lists.SPELLINGS):
        lexeme[place_of[spelling[0]]] = row
    successors, following, ending = _following(place_of, frequency)
    naming = np.zeros(len(chain))
    naming[[place_of[word] for word in lists.NAMING.split() if word in place_of]] = NAMED
    common = np.array([frequency[word] for word in chain])
    opening = np.zeros(len(chain))
    for word in lists.OPENERS.split():
        opening[place_of[word]] = frequency[word]
    topic_words = np.array([[place_of[w] for w in t.split()] for t in lists.TOPICS.values()])
    topics, ranks = (1 / (np.arange(size) + 1.0) for size in topic_words.shape)
    drawn = stream(0, "english spellings").random((HABITS, len(lists.SPELLINGS)))
    forms = np.searchsorted([0.4, 0.9], drawn, side="right")  # three spellings
    forms[0] = 0  # the habit of public text
    habits = np.full(HABITS, 0.1 / (HABITS - 1))
    habits[0] = 0.9
    return English(
        words,
        np.array([ids[word] for word in chain]),
        lexeme,
        np.array([[ids[word] for word in row] for row in lists.SPELLINGS]),
        opening / opening.sum(),
        successors,
        following,
        ending,
        naming,
        common / common.sum(),
        topic_words,
        ranks / ranks.sum(),
        forms,
        public_topics=topics / topics.sum(),
        private_topics=(topics / topics.sum())[::-1].copy(),
        public_habits=habits,
        private_habits=habits[::-1].copy(),
    )


def _following(
    place_of: dict[str, int], frequency: dict[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return successors (N, S), their shares (2, N, S), and the chance to end after a word (N,)."""
    size = len(place_of)
    pairs = [
        (place_of[first], place_of[second], count)
        for first, second, count in _bigrams()
        if first in place_of and second in place_of and first != second
    ]
    firsts, seconds = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    counts = np.array([pair[2] for pair in pairs], dtype=np.float64)
    into = np.bincount(seconds, counts, size)
    out_of = np.bincount(firsts, counts, size)
    common = np.array([frequency.get(word, 0.0) for word in place_of])
    commoner = np.clip(common / np.maximum(into / into.sum(), 1e-9), *BOUNDS) ** CONVERSATION
    friendly = counts * commoner[seconds]
    both = np.stack([counts, friendly])
    totals = np.stack([np.bincount(firsts, weights, size) for weights in both])
    shares = both / totals[:, firsts]  # (2, pairs)
    order = np.lexsort((-shares.sum(axis=0), firsts))
    starts = np.searchsorted(firsts[order], np.arange(size))
    nth = np.arange(len(order)) - starts[firsts[order]]
    order, nth = order[nth < SUCCESSORS], nth[nth < SUCCESSORS]
    successors = np.zeros((size, SUCCESSORS), dtype=np.intp)
    following = np.zeros((2, size, SUCCESSORS))
    successors[firsts[order], nth] = seconds[order]
    following[:, firsts[order], nth] = shares[:, order]
    lonely = out_of == 0
    successors[lonely, 0] = place_of["and"]
    following[:, lonely, 0] = 1.0
    # A word that much leads to and little follows closes a sentence.
    closes = np.clip((into - out_of) / np.maximum(into + out_of, 1.0), 0, 1)
    ending = np.where(lonely, 0.6, 0.04 + 0.4 * closes)
    return successors, following / following.sum(axis=2, keepdims=True), ending


def _frequencies() -> dict[str, float]:
    """Return wordfreq's English words of letters alone, most frequent first."""
    from wordfreq import get_frequency_dict

    refused = frozenset(lists.LEFT_OUT.split())
    listed = get_frequency_dict("en", wordlist="best")
    return {
        word: share
        for word, share in listed.items()
        if word.isalpha() and word.isascii() and word not in refused
        and (len(word) > 1 or word in "iaurn")
    }  # fmt: skip


def _bigrams() -> Iterator[tuple[str, str, int]]:
    text = (files("symspellpy") / _TABLE).read_text(encoding="utf-8-sig")
    for line in text.splitlines():
        first, second, count = line.split(" ")
        yield first, second, int(count)
